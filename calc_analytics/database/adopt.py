"""The steps that turn an empty database, or the API's own, into one the rollup can work on.

Each step is safe to repeat, looks before it alters, and keeps every row. Locks on the log table are asked for with
a short timeout, so that a long writer is waited for without queueing other writers behind us.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import BigInteger, DateTime, Integer, SmallInteger, Table, inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.engine.reflection import Inspector
from sqlalchemy.types import TypeEngine

from calc_analytics.database.engine import without_limits
from calc_analytics.database.tables import (
    PROJECT_TARGETS,
    STATE_TABLES,
    calculation_logs,
    calculation_stats_daily,
)
from calc_analytics.errors import CalcAnalyticsError

LOGS = calculation_logs.name
TARGETS = (calculation_stats_daily, *PROJECT_TARGETS)
INDEX = "calculation_logs_rollup_idx"
# How many pages (8 kB, about 80 rows) one entry of the index stands for, and a refresh reads at least.
PAGES_PER_RANGE = 64


class UnfitTable(CalcAnalyticsError):
    """An existing table that lacks a column or key the rollup needs; adopting it would guess."""


def check_existing(connection: Connection, keys: Collection[str] = (), targets: Sequence[Table] = TARGETS) -> None:
    """Raises `UnfitTable` unless the tables that already exist have what is needed, and no name is taken.

    `keys` are the log columns by which rows are grouped, besides the publisher.
    """
    inspector = inspect(connection)
    for table in (calculation_logs, *targets):
        if inspector.has_table(table.name):
            _check_names(inspector, table)
    if inspector.has_table(LOGS):
        _check_log_columns(inspector, keys)
    for table in targets:
        if inspector.has_table(table.name):
            _check_types(inspector, table)
            _check_others(inspector, table)
            _check_key(inspector, table)
    _check_free_names(connection, [f"{table.name}_live" for table in targets])


def require_tables(connection: Connection, targets: Sequence[Table]) -> None:
    """Raises `UnfitTable` if a rollup's table does not exist, which no migration created then."""
    inspector = inspect(connection)
    missing = [table.name for table in targets if not inspector.has_table(table.name)]
    if missing:
        raise UnfitTable(f"there is no table {', '.join(missing)}: add a migration that creates it")


def _check_names(inspector: Inspector, table: Table) -> None:
    found = {column["name"] for column in inspector.get_columns(table.name)}
    if table.name == LOGS and "city_id" in found:
        found.add("locality_id")
    missing = [column.name for column in table.columns if column.name not in found]
    if missing:
        raise UnfitTable(f"table {table.name} has no column {', '.join(missing)}: add it, or check DATABASE_URL")


def _check_log_columns(inspector: Inspector, keys: Collection[str]) -> None:
    columns = {column["name"]: column for column in inspector.get_columns(LOGS)}
    if {"city_id", "locality_id"} <= set(columns):
        raise UnfitTable(f"table {LOGS} has both city_id and locality_id: drop the one that is not used")
    columns = {"locality_id" if name == "city_id" else name: column for name, column in columns.items()}
    if not getattr(columns["created_at"]["type"], "timezone", False):
        raise UnfitTable(
            f"{LOGS}.created_at is {columns['created_at']['type']}, which names no instant: make it timestamptz"
        )
    for name in sorted({"publisher_id", "cache_hit", "source", "created_at", *keys} & set(columns)):
        if columns[name]["nullable"]:
            raise UnfitTable(f"{LOGS}.{name} may be null, which no statistic can count: set it NOT NULL")
    for name in ("id", "publisher_id", "source", "response_time_ms", "xact_id", "locality_id"):
        if name in columns and not isinstance(columns[name]["type"], Integer):
            raise UnfitTable(f"{LOGS}.{name} is {columns[name]['type']}: it must be an integer")


def _check_types(inspector: Inspector, table: Table) -> None:
    """Every column of the target has its declared type; an integer may be wider."""
    found = {column["name"]: column["type"] for column in inspector.get_columns(table.name)}
    for column in table.columns:
        if not _holds(found[column.name], column.type):
            raise UnfitTable(f"{table.name}.{column.name} is {found[column.name]}: it must be {column.type}")


def _holds(found: TypeEngine[Any], declared: TypeEngine[Any]) -> bool:
    if isinstance(declared, Integer):
        return isinstance(found, Integer) and _bytes(found) >= _bytes(declared)
    if isinstance(declared, DateTime):
        return isinstance(found, DateTime) and found.timezone
    return isinstance(found, declared.as_generic().__class__)


def _bytes(type_: Integer) -> int:
    return 8 if isinstance(type_, BigInteger) else 2 if isinstance(type_, SmallInteger) else 4


def _check_others(inspector: Inspector, table: Table) -> None:
    """Columns that the project does not fill may stay, if they can be left out of an INSERT."""
    for column in inspector.get_columns(table.name):
        is_filled = column["default"] is not None or column["nullable"] or "identity" in column or "computed" in column
        if column["name"] not in table.columns and not is_filled:
            raise UnfitTable(f"{table.name}.{column['name']} is NOT NULL and has no default: give it one, or drop it")


def _check_key(inspector: Inspector, table: Table) -> None:
    name, wanted = table.name, {column.name for column in table.primary_key.columns}
    keys = [set(inspector.get_pk_constraint(name)["constrained_columns"])]
    keys += [set(key["column_names"]) for key in inspector.get_unique_constraints(name)]
    if wanted not in keys:
        columns = ", ".join(column.name for column in table.primary_key.columns)
        raise UnfitTable(f"table {name} has no primary key ({columns}): add it, duplicates would be possible")


def _check_free_names(connection: Connection, views: Sequence[str]) -> None:
    """Live views are replaced and the state's tables are taken as they are: both must be the project's own."""
    tables = [table.name for table in STATE_TABLES]
    taken = connection.execute(text(_TAKEN), {"views": list(views), "tables": tables}).scalars().all()
    if taken:
        raise UnfitTable(f"{', '.join(taken)} was not created by this project, which needs the name: rename it")


def create_date_index(connection: Connection, target: str) -> None:
    """A small index by which the rows of a day are found in a target table."""
    connection.execute(
        text(
            f"create index if not exists {target}_date_idx on {target} using brin (date) "
            "with (pages_per_range = 16, autosummarize = on)"
        )
    )


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


def gives_xact_ids(connection: Connection) -> bool:
    """Whether the log table and each of its partitions has the column with its default."""
    return bool(connection.execute(text(_ALL_GIVE_XACT_IDS), {"table": LOGS}).scalar())


def forget_xact_ids(connection: Connection) -> None:
    """Makes every row "older than any snapshot", in an instant: the column is dropped and added again."""
    connection.execute(text(f"alter table {LOGS} drop column if exists xact_id"))
    add_xact_id(connection)


def hour(instant: str) -> str:
    """SQL: the hour (UTC) in which the instant lies; immutable, so it can be indexed, and infinity stays infinity."""
    return f"date_bin('1 hour', {instant}, timestamptz '2000-01-01 00:00:00+00')"


def create_log_index(connection: Connection) -> None:
    """Builds the one index of the log table with CONCURRENTLY; needs a connection in autocommit.

    A BRIN index taxes writers least (benchmarks/README.md). It holds the least and greatest `xact_id` of each range of
    pages, which finds a refresh's new rows wherever they were put, and the hours of `created_at` for the rebuild of
    a day: hours rather than instants, else every single row would move a range's bound and be logged for it.
    Building waits for open writers without blocking any, so here the wait has no limit.
    """
    with without_limits(connection):
        _create_indexes(connection)


def _create_indexes(connection: Connection) -> None:
    partitions = connection.execute(text(_PARTITIONS), {"table": LOGS}).all()
    for partition in partitions:
        _create_index(connection, partition.name, f"{partition.schema}.{partition.name}", partition.table)
    if partitions:
        # PostgreSQL builds none concurrently on a partitioned table itself; later partitions get theirs from it.
        _create_index(connection, INDEX, INDEX, f"only {LOGS}", concurrently="")
        for partition in partitions:
            attach = f"alter index {INDEX} attach partition {partition.schema}.{partition.name}"
            connection.execute(text(attach))
    else:
        _create_index(connection, INDEX, INDEX, LOGS)


def _create_index(connection: Connection, name: str, path: str, table: str, concurrently: str = "concurrently") -> None:
    """Creates the index unless there is a valid one; `path` is the name as a search finds it."""
    valid = connection.execute(text(_INDEX_VALID), {"name": path}).scalar()
    if valid is False and concurrently:
        connection.execute(text(f"drop index concurrently if exists {path}"))
    if not valid:
        connection.execute(text(index_sql(name, table, concurrently)))


def index_sql(name: str, table: str, concurrently: str = "concurrently") -> str:
    """The statement that builds the index, for us or for whoever owns the table."""
    columns = f"xact_id, ({hour('created_at')})"
    options = f"pages_per_range = {PAGES_PER_RANGE}, autosummarize = on"
    return f"create index {concurrently} if not exists {name} on {table} using brin ({columns}) with ({options})"


def create_summarize_function(connection: Connection) -> None:
    """A function that whoever refreshes may call to bring the index up to the table's end (see `rollup/index.py`).

    It runs with the rights of the table's owner, who alone may do so, takes no argument, and gives up when VACUUM
    (which does the same at its end) holds the table.
    """
    schema = connection.execute(text(_SCHEMA), {"table": LOGS}).scalar_one()
    connection.execute(text(_SUMMARIZE.format(schema=schema, logs=LOGS, index=INDEX)))


_TAKEN = """
    select relname from pg_class
    where (oid in (select to_regclass(name) from unnest(cast(:views as text[])) as n (name)) and relkind <> 'v')
       or (oid in (select to_regclass(name) from unnest(cast(:tables as text[])) as n (name))
           and to_regclass('calc_analytics_version') is null)
    order by relname
"""
_PARTITIONS = """
    select cast(cast(relnamespace as regnamespace) as text) as schema, cast(cast(oid as regclass) as text) as table,
           quote_ident(relname || '_rollup_idx') as name
    from pg_partition_tree(to_regclass(:table)) tree join pg_class on oid = tree.relid
    where isleaf and relispartition and relkind = 'r' order by 2
"""
_ALL_GIVE_XACT_IDS = r"""
    select bool_and(coalesce(pg_get_expr(d.adbin, d.adrelid) ~ 'txid_current\(\)|pg_current_xact_id', false))
    from (
        select relid from pg_partition_tree(to_regclass(:table)) union select to_regclass(:table)
    ) tree
    left join pg_attribute a on a.attrelid = tree.relid and a.attname = 'xact_id' and not a.attisdropped
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
"""
_SCHEMA = "select cast(cast(relnamespace as regnamespace) as text) from pg_class where oid = to_regclass(:table)"
_SUMMARIZE = """
    create or replace function {schema}.{logs}_summarize() returns bigint
    language sql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
    as $$
        select coalesce(sum(brin_summarize_new_values(index)), 0)
        from (
            select oid as index from pg_class where oid = cast('{schema}.{index}' as regclass) and relkind = 'i'
            union
            select relid from pg_partition_tree(cast('{schema}.{index}' as regclass)) where isleaf
        ) indexes
    $$
"""
_INDEX_VALID = "select i.indisvalid from pg_index i where i.indexrelid = to_regclass(:name)"


def _columns(connection: Connection) -> set[str]:
    return {column["name"] for column in inspect(connection).get_columns(LOGS)}
