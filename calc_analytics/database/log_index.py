"""The index of the log table: on which of its tables it is there, and the statements that make what is missing.

A BRIN index taxes writers least (benchmarks/README.md). It holds the least and greatest `xact_id` of each range of
pages, which finds a refresh's new rows wherever they were put, and the hours of `created_at` for the rebuild of a day:
hours rather than instants, else every single row would move a range's bound and be logged for it.

An index is known by what it is, never by its name: PostgreSQL chooses the names in new partitions, and a table that was
detached or renamed keeps the names of its own.
"""

from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Engine

from calc_analytics.database.adopt import LOGS, PAGES_PER_RANGE, hour
from calc_analytics.database.engine import transaction
from calc_analytics.database.errors import DatabaseError
from calc_analytics.database.log_tree import TREE

SUFFIX = "_rollup_idx"
NAME_BYTES = 63
# Summarizing fails and may wait: VACUUM holds the table; the function, the index, or the right to call it is missing
# (a rebase drops the index for a moment: XX000); a standby.
_HARMLESS = ("55P03", "42883", "42P01", "XX000", "42501", "25006")
# How PostgreSQL shows the second column, with the settings of the project's transactions.
_HOUR = "date_bin('01:00:00'::interval, created_at, '2000-01-01 00:00:00+00'::timestamp with time zone)"
_quote = postgresql.dialect(paramstyle="named").identifier_preparer.quote


@dataclass(frozen=True)
class TableIndex:
    """The index of one table that holds log rows: 'there', 'missing', 'invalid', 'not attached' to the table above, or
    'left over' (there is a valid one too); and the statements that repair it, in order, outside any transaction."""

    table: str
    state: str
    statements: list[str]


@dataclass(frozen=True)
class _Index:
    """`parent` is the index to which it is attached, `children` is how many are attached to it."""

    oid: int
    path: str
    parent: int | None
    is_valid: bool
    children: int


@dataclass
class _Table:
    oid: int
    parent: int | None
    is_partitioned: bool
    schema: str
    relname: str
    name: str
    indexes: list[_Index] = field(default_factory=list)


def examine(connection: Connection) -> list[TableIndex]:
    """The index of the log table, of its partitions and of inheriting tables; partitions before the table above them.

    Needs a transaction with the project's settings.
    """
    rows = connection.execute(text(_TABLES), {"source": LOGS}).mappings()
    tables = {row["oid"]: _Table(**row) for row in rows}
    for row in connection.execute(text(_FITTING), {"source": LOGS, "hour": _HOUR}).mappings():
        values = dict(row)
        tables[values.pop("table_oid")].indexes.append(_Index(**values))
    taken = {(row.schema, row.name) for row in connection.execute(text(_TAKEN), {"source": LOGS})}
    plan = _Plan(list(tables.values()), taken)
    for table in tables.values():
        if table.parent is None:
            plan.settle(table, None)
    return plan.found


def index_sql(name: str, on: str, how: str = "") -> str:
    """The statement that builds the index under that name."""
    columns = f"xact_id, ({hour('created_at')})"
    options = f"pages_per_range = {PAGES_PER_RANGE}, autosummarize = on"
    return f"create index {how}if not exists {name} on {on} using brin ({columns}) with ({options})"


class _Plan:
    """What is there of the index, table by table, and what makes the rest."""

    def __init__(self, tables: list[_Table], taken: set[tuple[str, str]]) -> None:
        self.tables, self.taken, self.found = tables, taken, list[TableIndex]()

    def settle(self, table: _Table, above: _Index | None) -> tuple[str, bool]:
        """Plans for the table and its partitions; returns its index, and whether that is attached to the one `above`.

        An index that is attached to another one cannot be attached to this; a table may have several.
        """
        attached = [index for index in table.indexes if above is not None and index.parent == above.oid]
        free = [index for index in table.indexes if index.parent is None]
        settle = self._partitioned if table.is_partitioned else self._plain
        return settle(table, attached or free), bool(attached)

    def _plain(self, table: _Table, usable: list[_Index]) -> str:
        """Of a build that was interrupted an invalid index is left; the only one is built again, others are dropped."""
        if not usable:
            path, create = self._create(table, "concurrently ", table.name)
            return self._note(table, "missing", [create], path)
        own = usable[0]
        others = [index for index in table.indexes if index is not own and index.parent is None and not index.is_valid]
        drops = [f"drop index concurrently if exists {index.path}" for index in others]
        if not own.is_valid:
            return self._note(table, "invalid", [f"reindex index concurrently {own.path}", *drops], own.path)
        return self._note(table, "left over" if drops else "there", drops, own.path)

    def _partitioned(self, table: _Table, usable: list[_Index]) -> str:
        """PostgreSQL builds none concurrently on a partitioned table itself: its is made of its partitions'."""
        own = max(usable, key=lambda index: index.children, default=None)
        path, create = (own.path, "") if own else self._create(table, "", f"only {table.name}")
        below = [self.settle(each, own) for each in self.tables if each.parent == table.oid]
        attach = [f"alter index {path} attach partition {child}" for child, is_attached in below if not is_attached]
        state = "there" if own and not attach else "not attached" if own else "missing"
        return self._note(table, state, [create, *attach] if create else attach, path)

    def _create(self, table: _Table, how: str, on: str) -> tuple[str, str]:
        """A free name, with its schema, and the statement that builds the index under it."""
        name = _quote(self._free_name(table))
        return f"{_quote(table.schema)}.{name}", index_sql(name, on, how)

    def _free_name(self, table: _Table) -> str:
        for number in range(len(self.taken) + 1):
            suffix = f"{SUFFIX}{number or ''}"
            name = table.relname.encode()[: NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix
            if (table.schema, name) not in self.taken:
                break
        self.taken.add((table.schema, name))
        return name

    def _note(self, table: _Table, state: str, statements: list[str], path: str) -> str:
        self.found.append(TableIndex(table.name, state, statements))
        return path


def create_summarize_function(connection: Connection) -> None:
    """A function by which a role without rights on the index may bring it up to the tables' ends (`summarize`).

    It runs with its owner's rights, since only a table's owner may do so, takes no argument, and gives up when VACUUM
    (which does the same at its end) holds a table.
    """
    schema = connection.execute(text(_SCHEMA), {"source": LOGS}).scalar_one()
    source = "'" + f"{schema}.{LOGS}".replace("'", "''") + "'"
    connection.execute(text(_SUMMARIZE.format(schema=schema, logs=LOGS, tree=TREE.replace(":source", source))))


def summarize(engine: Engine) -> bool:
    """Brings the index up to the tables' ends; False if that must wait. Blocks no writer.

    A range that is not in the index is read by every refresh. PostgreSQL summarizes too (autosummarize, VACUUM),
    but about once a minute, which is many rows under load. One attempt: a refresh is right without.
    """
    try:
        with transaction(engine) as connection:
            connection.execute(text(f"select {LOGS}_summarize()"))
    except DatabaseError as error:
        if error.sqlstate in _HARMLESS:
            return False
        raise
    return True


_TABLES = f"""
    with {TREE}
    select oid, case when relispartition and depth > 0 then parent end as parent, relkind = 'p' as is_partitioned,
           schema, relname, name
    from tree where relkind in ('r', 'p') order by depth, path
"""
# Valid ones first. Only indexes of the same definition can be attached to each other.
_FITTING = f"""
    with {TREE}
    select i.indexrelid as oid, i.indrelid as table_oid, format('%I.%I', n.nspname, c.relname) as path,
           a.inhparent as parent, i.indisvalid as is_valid,
           (select count(*) from pg_inherits below where below.inhparent = i.indexrelid) as children
    from tree t join pg_index i on i.indrelid = t.oid
    join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
    join pg_am m on m.oid = c.relam left join pg_inherits a on a.inhrelid = i.indexrelid
    where m.amname = 'brin' and i.indislive and i.indnatts = 2 and i.indpred is null and i.indkey[1] = 0
      and i.indkey[0] = (select attnum from pg_attribute where attrelid = t.oid and attname = 'xact_id')
      and pg_get_expr(i.indexprs, i.indrelid) = :hour
      and (select bool_and(o.opcdefault) from pg_opclass o where o.oid = any(i.indclass))
    order by i.indisvalid desc, i.indexrelid
"""
_TAKEN = f"""
    with {TREE}
    select n.nspname as schema, c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in (select schema from tree) and position('{SUFFIX}' in c.relname) > 0
"""
_SCHEMA = "select cast(cast(relnamespace as regnamespace) as text) from pg_class where oid = to_regclass(:source)"
_SUMMARIZE = """
    create or replace function {schema}.{logs}_summarize() returns bigint
    language sql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
    as $$
        with {tree}
        select coalesce(sum(brin_summarize_new_values(i.indexrelid)), 0)
        from tree t join pg_index i on i.indrelid = t.oid join pg_class c on c.oid = i.indexrelid
        join pg_am m on m.oid = c.relam join pg_attribute a on a.attrelid = t.oid and a.attnum = i.indkey[0]
        where m.amname = 'brin' and c.relkind = 'i' and i.indisvalid and a.attname = 'xact_id'
          and pg_has_role(c.relowner, 'USAGE')
    $$
"""
