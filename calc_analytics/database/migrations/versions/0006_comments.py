"""Comments on tables and columns, so that a database explains itself. No row is touched, no writer waits."""

from alembic import op

from calc_analytics.database.comments import describe_tables

revision = "0006_comments"
down_revision = "0005_log_relation"


def upgrade() -> None:
    describe_tables(op.get_bind())
