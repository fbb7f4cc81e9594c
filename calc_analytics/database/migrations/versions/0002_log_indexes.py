"""Indexes of the log table, built without blocking writers.

`xact_id` is how a refresh finds the new rows, `created_at` how a rebuild finds its day. CONCURRENTLY cannot run in
a transaction, so each index is safe to repeat by itself: one left invalid by a broken attempt is dropped first.
"""

from alembic import op

from calc_analytics.database import adopt

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        adopt.create_log_indexes(op.get_bind())
