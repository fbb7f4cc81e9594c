"""What readers need: an index that finds the rows without a response time. The views and functions themselves are
installed at the end of each migration (`database/contract/`)."""

from alembic import op
from sqlalchemy import text

revision = "0007_readers"
down_revision = "0006_comments"


def upgrade() -> None:
    connection = op.get_bind()
    if connection.execute(text("select to_regclass('calculation_latency_daily')")).scalar():
        connection.execute(text(_INDEX))


_INDEX = """
    create index if not exists calculation_latency_daily_unmeasured
    on calculation_latency_daily (publisher_id, date) where response_time_ms = -1
"""
