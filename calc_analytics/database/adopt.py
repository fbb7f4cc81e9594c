"""The steps that turn an empty database, or the API's own, into one the rollup can work on.

Each step is safe to repeat, checks before it alters, and keeps every row. Locks on the log table are requested with a
short timeout, so that other writers never queue behind a migration that waits for a long one.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Integer, SmallInteger, Table, inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.engine.reflection import Inspector
from sqlalchemy.types import TypeEngine

from calc_analytics.database import log_tree
from calc_analytics.database.log_columns import LOGS, UnfitTable, check_log
from calc_analytics.database.log_tree import TREE
from calc_analytics.database.relations import column_names
from calc_analytics.database.tables import READER_TABLES, STATE_TABLES, calculation_logs

# How many pages (8 kB, about 80 rows) one entry of the index stands for, and a refresh reads at least.
PAGES_PER_RANGE = 64


def check_existing(
    connection: Connection,
    keys: Collection[str],
    reads: Collection[Column[Any]],
    targets: Sequence[Table],
    is_at_head: bool,
) -> None:
    """Raises `UnfitTable` unless the tables that already exist have what is needed, and no name is taken.

    `keys` are the log columns by which rows are grouped, besides the publisher; `reads` all that are read. Unless
    `is_at_head`, a column may be missing that a revision adds, which its `info` names as `added_by`.
    """
    inspector = inspect(connection)
    for table in (calculation_logs, *targets):
        if inspector.has_table(table.name):
            needed = [column.name for column in table.columns if is_at_head or "added_by" not in column.info]
            _check_names(connection, table.name, needed)
    if inspector.has_table(LOGS):
        check_log(connection, keys, reads)
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


def _check_names(connection: Connection, table: str, needed: Sequence[str]) -> None:
    found = column_names(connection, table)
    if table == LOGS and "city_id" in found:
        found.add("locality_id")
    missing = [name for name in needed if name not in found]
    if missing:
        raise UnfitTable(f"table {table} has no column {', '.join(missing)}: add it, or check DATABASE_URL")


def _check_types(inspector: Inspector, table: Table) -> None:
    """Every column of the target that exists has its declared type; an integer may be wider."""
    found = {column["name"]: column["type"] for column in inspector.get_columns(table.name)}
    for column in table.columns:
        if column.name in found and not _holds(found[column.name], column.type):
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
    """Live views and tables for readers are replaced, the state's tables are taken as they are: all must be the
    project's own."""
    tables, replaced = ([table.name for table in tables] for tables in (STATE_TABLES, READER_TABLES))
    names = {"views": list(views), "tables": tables, "replaced": replaced}
    taken = connection.execute(text(_TAKEN), names).scalars().all()
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
    if "city_id" in column_names(connection, LOGS):
        connection.execute(text(f"alter table {LOGS} rename column city_id to locality_id"))


def add_xact_id(connection: Connection) -> None:
    """Adds `xact_id`: null for the rows that are there, the writer's transaction for all that follow.

    ALTER TABLE waits for every open writer, so a row without `xact_id` was committed before any snapshot the
    rollup will ever take: "older than any snapshot" is exact.
    """
    if "xact_id" not in column_names(connection, LOGS):
        connection.execute(text(f"alter table {LOGS} add column xact_id bigint"))
    connection.execute(text(f"alter table {LOGS} alter column xact_id set default txid_current()"))


def gives_xact_ids(connection: Connection) -> bool:
    """Whether the log table, each of its partitions and each inheriting table has the column with its default."""
    return bool(connection.execute(text(_ALL_GIVE_XACT_IDS), {"source": LOGS}).scalar())


def forget_xact_ids(connection: Connection) -> None:
    """Makes every row "older than any snapshot", in an instant: the column is dropped and added again.

    A table that was made to inherit has the column of its own as well: dropping that of the log table leaves it.
    """
    for path in log_tree.paths(connection, LOGS):
        connection.execute(text(f"alter table {path} drop column if exists xact_id"))
    add_xact_id(connection)


def hour(instant: str) -> str:
    """SQL: the hour (UTC) in which the instant lies; immutable, so it can be indexed, and infinity stays infinity."""
    return f"date_bin('1 hour', {instant}, timestamptz '2000-01-01 00:00:00+00')"


_TAKEN = """
    select relname from pg_class
    where (oid in (select to_regclass(name) from unnest(cast(:views as text[])) as n (name)) and relkind <> 'v')
       or (oid in (select to_regclass(name) from unnest(cast(:tables as text[])) as n (name))
           and to_regclass('calc_analytics_version') is null)
       or (oid in (select to_regclass(name) from unnest(cast(:replaced as text[])) as n (name))
           and coalesce(obj_description(oid, 'pg_class') not like 'calc_analytics: %', true))
    order by relname
"""
_ALL_GIVE_XACT_IDS = rf"""
    with {TREE}
    select bool_and(coalesce(pg_get_expr(d.adbin, d.adrelid) ~ 'txid_current\(\)|pg_current_xact_id', false))
    from tree
    left join pg_attribute a on a.attrelid = tree.oid and a.attname = 'xact_id' and not a.attisdropped
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
"""
