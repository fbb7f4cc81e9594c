"""What the log table must be, so that it can be counted exactly. Checked before anything is changed.

Columns that nothing reads may have any type, and further columns any name.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

from sqlalchemy import Column, DateTime, Integer, text
from sqlalchemy.engine import Connection

from calc_analytics.database.log_tree import TREE
from calc_analytics.database.tables import calculation_logs
from calc_analytics.errors import CalcAnalyticsError

LOGS = calculation_logs.name
INTEGERS = ("smallint", "integer", "bigint")
RENAME = f"alter table {LOGS} rename column xact_id to other_xact_id"
KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}


class UnfitTable(CalcAnalyticsError):
    """An existing table that lacks a column or key the rollup needs; adopting it would guess.

    `statement` repairs that, where one does.
    """

    def __init__(self, message: str, statement: str = "") -> None:
        super().__init__(message)
        self.statement = statement


def check_log(connection: Connection, keys: Collection[str], reads: Collection[Column[Any]]) -> None:
    """Raises `UnfitTable` unless every row of the log table can be counted and given its transaction's id.

    `keys` are the log columns by which rows are grouped, `reads` all that are read.
    """
    _check_tables(connection)
    columns = {row["name"]: row for row in connection.execute(text(_COLUMNS), {"source": LOGS}).mappings()}
    if {"city_id", "locality_id"} <= set(columns):
        raise UnfitTable(f"table {LOGS} has both city_id and locality_id: drop the one that is not used")
    if "city_id" in columns:
        columns["locality_id"] = columns.pop("city_id")
    for column in dict.fromkeys([calculation_logs.c.id, calculation_logs.c.created_at, *reads]):
        if column.name in columns:
            _check_type(column, columns[column.name])
    for name in sorted({"publisher_id", "cache_hit", "source", "created_at", *keys} & set(columns)):
        if columns[name]["nullable_in"]:
            table, found = columns[name]["nullable_in"][0], columns[name]["name"]
            raise UnfitTable(
                f"{table}.{name} must not be null: set it NOT NULL",
                f"alter table {table} alter column {found} set not null",
            )
    if "xact_id" in columns:
        _check_xact_id(connection, columns["xact_id"])


def _check_tables(connection: Connection) -> None:
    """Rows of another server, or of a view, cannot get their transaction's id; a partition cannot get a column."""
    for table in connection.execute(text(_TABLES), {"source": LOGS}):
        if table.relkind in KINDS:
            what = f"{table.name} is {KINDS[table.relkind]}"
            advice = "give the name to the table itself" if table.depth == 0 else f"detach it from {LOGS}"
            raise UnfitTable(f"{what}, whose rows cannot get the ids of their transactions: {advice}", table.detach)
        if table.depth == 0 and table.relispartition:
            raise UnfitTable(f"{LOGS} is a partition, to which no column can be added: detach it")


def _check_type(declared: Column[Any], column: Any) -> None:
    name, type_, found, base = declared.name, declared.type, column["type"], column["base"]
    to = partial(_retype_sql, column)
    if isinstance(type_, DateTime):
        if base != "timestamp with time zone":
            raise UnfitTable(
                f"{LOGS}.{name} is {found}, which has no time zone: make it timestamptz", to("timestamptz")
            )
        # The index is on an expression over it.
        if column["is_domain"]:
            raise UnfitTable(f"{LOGS}.{name} is {found}: it must be timestamptz", to("timestamptz"))
        if column["generated"] == "v":
            raise UnfitTable(f"{LOGS}.{name} is a virtual column, which no index can hold: make it a stored one")
    elif isinstance(type_, Integer):
        if base not in INTEGERS:
            raise UnfitTable(f"{LOGS}.{name} is {found}: it must be an integer", to(str(type_).lower()))
    elif base != str(type_).lower():
        raise UnfitTable(f"{LOGS}.{name} is {found}: it must be {type_}", to(str(type_).lower()))


def _retype_sql(column: Any, type_: str) -> str:
    """The statements that give the column that type; a default of another type is dropped."""
    name = column["name"]
    value = f"{name} <> 0" if type_ == "boolean" and column["base"] in INTEGERS else f"cast({name} as {type_})"
    retype = f"alter table {LOGS} alter column {name} type {type_} using {value}"
    if column["default"] is None or column["generated"]:
        return retype
    expression = column["default"]
    default = f"cast({expression} as int) <> 0" if value.endswith("<> 0") else f"cast({expression} as {type_})"
    drop, again = (f"alter table {LOGS} alter column {name} {what} default" for what in ("drop", "set"))
    return f"{drop};\n{retype};\n{again} {default}"


def _check_xact_id(connection: Connection, column: Any) -> None:
    """A column of that name that others made would be overwritten, or taken for what it is not."""
    if column["type"] != "bigint":
        raise UnfitTable(f"{LOGS}.xact_id is {column['type']}: it must be bigint", RENAME)
    is_installed = connection.execute(text("select to_regclass('calc_analytics_version') is not null")).scalar()
    is_new = not is_installed and not column["is_own_default"]
    if column["generated"] or column["identity"] or (is_new and (column["default"] or _has_values(connection))):
        raise UnfitTable(f"{LOGS}.xact_id was not created by this project, which needs the name: rename it", RENAME)


def _has_values(connection: Connection) -> bool:
    return bool(connection.execute(text(f"select exists (select from {LOGS} where xact_id is not null)")).scalar())


_TABLES = f"with {TREE} select name, relkind, relispartition, depth, detach from tree order by depth, path"
# A NOT NULL that was added without a check of the rows (PostgreSQL 18) proves nothing about them.
_COLUMNS = rf"""
    with {TREE},
    nullable as (
        select a.attname, array_agg(tree.name order by depth, path) as tables
        from tree join pg_attribute a on a.attrelid = tree.oid join pg_type t on t.oid = a.atttypid
        where not (a.attnotnull or t.typnotnull) or exists (
            select from pg_constraint c
            where c.conrelid = tree.oid and c.contype = 'n' and not c.convalidated and c.conkey = array[a.attnum])
        group by a.attname
    )
    select a.attname as name, format_type(a.atttypid, a.atttypmod) as type, t.typtype = 'd' as is_domain,
           format_type(case t.typtype when 'd' then t.typbasetype else t.oid end, null) as base,
           cast(a.attgenerated as text) as generated, cast(a.attidentity as text) as identity,
           pg_get_expr(d.adbin, d.adrelid) as default,
           pg_get_expr(d.adbin, d.adrelid) ~ 'txid_current\(\)|pg_current_xact_id' as is_own_default,
           n.tables as nullable_in
    from tree join pg_attribute a on a.attrelid = tree.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid left join nullable n on n.attname = a.attname
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where tree.depth = 0
"""
