"""What is known of days whose logs were deleted, and what tells a copied or upgraded cluster from a restored one.

Databases that begin with this version have the columns from the first revision on.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

COLUMNS = {
    "rollup_days": {"sealed_at": "timestamptz", "sealed_by": "text", "missing": "jsonb"},
    "rollup_state": {"relation": "bigint", "written_by": "bigint"},
}


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        added = ", ".join(f"add column if not exists {name} {type_}" for name, type_ in columns.items())
        op.execute(f"alter table {table} {added}")
