"""What is known of days with deleted logs, and what distinguishes a copied or upgraded cluster from a restored one.

Databases that begin with this version have the columns from the first revision on.
"""

from alembic import op
from sqlalchemy import text

revision = "0003"
down_revision = "0002"

COLUMNS = {
    "rollup_days": {"sealed_at": "timestamptz", "sealed_by": "text", "missing": "jsonb"},
    "rollup_state": {"relation": "bigint", "written_by": "bigint"},
}


def upgrade() -> None:
    if not op.get_bind().execute(text(_HAS_OLD_SHAPE)).scalar():
        return
    for table, columns in COLUMNS.items():
        added = ", ".join(f"add column if not exists {name} {type_}" for name, type_ in columns.items())
        op.execute(f"alter table {table} {added}")


# A database that begins with a later version has the later shape from the first revision on.
_HAS_OLD_SHAPE = """
    select exists (
        select from pg_attribute
        where attrelid = to_regclass('rollup_state') and attname = 'rollup' and not attisdropped
    )
"""
