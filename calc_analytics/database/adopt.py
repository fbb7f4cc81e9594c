"""The steps that turn an empty database, or the API's own, into one the rollup can work on.

Each step is safe to repeat, looks before it alters, and keeps every row. Locks on the log table are asked for with
a short timeout, so that a long writer is waited for without queueing other writers behind us.
"""

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from calc_analytics.database.tables import calculation_logs, calculation_stats_daily
from calc_analytics.errors import CalcAnalyticsError

LOGS = calculation_logs.name
INDEXES = {
    "calculation_logs_xact_id_idx": "xact_id",
    "calculation_logs_created_at_idx": "created_at",
}


class UnfitTable(CalcAnalyticsError):
    """An existing table that lacks a column or key the rollup needs; adopting it would guess."""


def check_existing(connection: Connection) -> None:
    """Raises `UnfitTable` unless the tables that already exist have what is needed."""
    inspector = inspect(connection)
    for table in (calculation_logs, calculation_stats_daily):
        if not inspector.has_table(table.name):
            continue
        found = {column["name"] for column in inspector.get_columns(table.name)}
        if "city_id" in found:
            found.add("locality_id")
        missing = [column.name for column in table.columns if column.name not in found]
        if missing:
            raise UnfitTable(f"table {table.name} has no column {', '.join(missing)}: add it, or check DATABASE_URL")
    if inspector.has_table(calculation_stats_daily.name):
        _check_stats_key(connection)


def _check_stats_key(connection: Connection) -> None:
    name, wanted = calculation_stats_daily.name, {"publisher_id", "date"}
    inspector = inspect(connection)
    keys = [set(inspector.get_pk_constraint(name)["constrained_columns"])]
    keys += [set(key["column_names"]) for key in inspector.get_unique_constraints(name)]
    if wanted not in keys:
        raise UnfitTable(f"table {name} has no primary key (publisher_id, date): add it, duplicates would be possible")


def rename_city_id(connection: Connection) -> None:
    """Old databases call `locality_id` `city_id`."""
    if "city_id" in _columns(connection):
        connection.execute(text(f"alter table {LOGS} rename column city_id to locality_id"))


def add_xact_id(connection: Connection) -> None:
    """Adds `xact_id`: null for the rows that are there, the writer's transaction for all that follow.

    ALTER TABLE waits for every open writer, so a row without `xact_id` was committed before any snapshot the
    rollup will ever take: "older than any snapshot" is exact.
    """
    if "xact_id" not in _columns(connection):
        connection.execute(text(f"alter table {LOGS} add column xact_id bigint"))
    connection.execute(text(f"alter table {LOGS} alter column xact_id set default txid_current()"))


def forget_xact_ids(connection: Connection) -> None:
    """Makes every row "older than any snapshot", in an instant: the column is dropped and added again."""
    connection.execute(text(f"alter table {LOGS} drop column if exists xact_id cascade"))
    add_xact_id(connection)


def create_log_indexes(connection: Connection) -> None:
    """Builds the missing indexes with CONCURRENTLY; needs a connection in autocommit.

    It waits for open writers without blocking any, so here the wait has no limit.
    """
    connection.execute(text("set lock_timeout = 0"))
    for name, column in INDEXES.items():
        valid = connection.execute(text(_INDEX_VALID), {"name": name}).scalar()
        if valid is False:
            connection.execute(text(f"drop index concurrently if exists {name}"))
        if not valid and not _indexed_already(connection, column):
            connection.execute(text(f"create index concurrently if not exists {name} on {LOGS} ({column})"))


_INDEX_VALID = "select i.indisvalid from pg_index i where i.indexrelid = to_regclass(:name)"


def _columns(connection: Connection) -> set[str]:
    return {column["name"] for column in inspect(connection).get_columns(LOGS)}


def _indexed_already(connection: Connection, column: str) -> bool:
    """Whether the API has an index of its own that begins with this column."""
    statement = """
        select exists (
            select from pg_index i
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
            where i.indrelid = to_regclass(:table) and a.attname = :column
              and i.indisvalid and i.indpred is null)
    """
    return bool(connection.execute(text(statement), {"table": LOGS, "column": column}).scalar())
