"""Alembic's entry point: runs the revisions on the connection of `database.migrate`.

All revisions and what finishes them are one transaction, except that 0002 commits what came before it.
"""

from alembic import context

from calc_analytics.database.tables import VERSION_TABLE

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
    context.config.attributes["finish"](connection)
