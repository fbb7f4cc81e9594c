"""What readers need: an index that finds the rows without a response time. The views and functions themselves are
installed at the end of each migration (`database/contract/`)."""

from alembic import op
from sqlalchemy import text

from calc_analytics.database import relations

revision = "0007_readers"
down_revision = "0006_comments"


def upgrade() -> None:
    connection = op.get_bind()
    # Another program may have a table of that name in place of the rollup, if it is not kept.
    if relations.is_own_table(connection, "calculation_latency_daily", _COLUMNS):
        connection.execute(text(_INDEX))


_COLUMNS = ("publisher_id", "date", "source", "response_time_ms", "calculations")
_INDEX = """
    create index if not exists calculation_latency_daily_unmeasured
    on calculation_latency_daily (publisher_id, date) where response_time_ms = -1
"""
