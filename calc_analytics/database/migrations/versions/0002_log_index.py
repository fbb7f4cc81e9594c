"""The index of the log table, built without blocking writers, and the function that brings it up to the table's end.

By `xact_id` a refresh finds the new rows, by the hour of `created_at` a rebuild finds its day. CONCURRENTLY cannot run
in a transaction, so it is safe to repeat by itself: an index left invalid by a broken attempt is dropped first.
"""

from alembic import op

from calc_analytics.database import adopt

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        adopt.create_log_index(op.get_bind())
    adopt.create_summarize_function(op.get_bind())
