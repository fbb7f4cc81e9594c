"""The index of the log table, built without blocking writers, and the function that brings it up to the table's end.

By `xact_id` a refresh finds the new rows, by the hour of `created_at` a rebuild finds its day. CONCURRENTLY cannot run
in a transaction, so what came before is committed, and it is safe to repeat alone.
"""

from alembic import op

from calc_analytics.database import migrate

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        migrate.build_log_index(op.get_bind().engine)
