"""Creates the tables on an empty database, or adopts the API's: every row of both stays.

One transaction. `xact_id` is added without a default and gets it afterwards, so the table is not rewritten; the
lock this needs is requested briefly, again and again (see `migrate.with_brief_locks`), so writers are never queued
behind it.
"""

from alembic import op

from calc_analytics.database import adopt, tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    connection = op.get_bind()
    tables.metadata.create_all(connection, checkfirst=True)
    adopt.rename_city_id(connection)
    adopt.add_xact_id(connection)
