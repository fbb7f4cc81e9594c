"""Alembic's entry point: runs the revisions on the connection that `database.migrate` hands over."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    version_table="calc_analytics_version",
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
