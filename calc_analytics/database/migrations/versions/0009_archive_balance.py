"""What is still to be erased from the archive, whether its rows add up, and who archived: columns of
`rollup_archive`."""

from alembic import op
from sqlalchemy import text

from calc_analytics.database.comments import describe_tables

revision = "0009_archive_balance"
down_revision = "0008_archive"


def upgrade() -> None:
    connection = op.get_bind()
    for column in (
        "archived_by text",
        "erased jsonb not null default '{}'",
        "erased_at timestamptz",
        "difference bigint not null default 0",
    ):
        connection.execute(text(f"alter table rollup_archive add column if not exists {column}"))
    describe_tables(connection)
