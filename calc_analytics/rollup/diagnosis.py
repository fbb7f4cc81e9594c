"""What in a database can keep the counting from being right or cheap: facts for `doctor` and the health report.

Nothing is changed. Read from PostgreSQL's catalogs, so that a role with few rights can use it; only
`rows_bypassing` reads logs.
"""

from dataclasses import dataclass

from sqlalchemy import text

from calc_analytics.database import adopt, log_index, row_security
from calc_analytics.database.engine import transaction
from calc_analytics.database.log_index import TableIndex
from calc_analytics.database.log_tree import TREE
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log
from calc_analytics.rollup.foreign import foreign_rows_sql, require_none

# What counting, rebuilding and proving need, on which table or view.
ON_STATE = {
    "rollup_state": ("SELECT", "UPDATE"),
    "rollup_days": ("SELECT", "INSERT", "UPDATE"),
    "rollup_journal": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "rollup_archive": ("SELECT", "INSERT", "UPDATE"),
    "publisher_usage_summary": ("SELECT", "INSERT", "DELETE"),
    "calc_analytics_version": ("SELECT",),
}
ON_TARGET = ("SELECT", "INSERT", "UPDATE", "DELETE")
BYPASS_LIMIT = 1000


@dataclass(frozen=True)
class LogTable:
    """The log table, a partition or an inheriting table: `xact_id`'s default, and what may write past it."""

    name: str
    default: str | None
    has_column: bool
    foreign: bool
    detach: str
    triggers_setting_it: list[str]
    insert_rules: list[str]
    subscriptions: int

    @property
    def default_in_place(self) -> bool:
        """Whether an INSERT without `xact_id` gets its transaction's id."""
        return self.default is not None and ("txid_current()" in self.default or "pg_current_xact_id" in self.default)


@dataclass(frozen=True)
class ForeignTrigger:
    """A trigger or a rule (`kind`) of another program on a table of the project."""

    kind: str
    name: str
    table: str


@dataclass(frozen=True)
class BypassingRows:
    """Log rows that came past the default: of the last hour without an id, and with one no transaction has had yet."""

    without_id: int
    from_the_future: int


def needed_rights(log: Log) -> dict[str, tuple[str, ...]]:
    """What counting, rebuilding and proving need: on each table and view, these rights."""
    targets = {rollup.name: ON_TARGET for rollup in log.rollups}
    views = {rollup.live_view: ("SELECT",) for rollup in log.rollups}
    return {log.name: ("SELECT",), **targets, **views, **ON_STATE}


def hidden(db: Database) -> list[row_security.Hidden]:
    """The tables whose policies would hide rows from the connected role, or from a live view's owner."""
    tables, views = needed_rights(db.log), [rollup.live_view for rollup in db.log.rollups]
    with transaction(db.engine) as connection:
        return row_security.hidden(connection, [name for name in tables if name not in views], views)


def require_own_rows(db: Database) -> None:
    """Raises `ForeignRows` if there are log rows with ids of another cluster."""
    with transaction(db.engine) as connection:
        require_none(connection, db.log)


def log_indexes(db: Database) -> list[TableIndex]:
    """The index that a refresh needs: of the table, or of each of its partitions and of the tables over them."""
    with transaction(db.engine) as connection:
        return log_index.examine(connection)


def log_tables(db: Database) -> list[LogTable]:
    """The log table, its partitions and inheriting tables, and what each does with `xact_id`."""
    with transaction(db.engine) as connection:
        rows = connection.execute(text(_TABLES), {"source": db.log.name}).mappings()
        return [LogTable(**row) for row in rows]


def foreign_triggers(db: Database) -> list[ForeignTrigger]:
    """The triggers and rules on the tables of statistics and of their state; the project creates none."""
    tables = [*db.log.names, *ON_STATE]
    with transaction(db.engine) as connection:
        return [ForeignTrigger(*row) for row in connection.execute(text(_TRIGGERS), {"tables": tables})]


def rows_bypassing(db: Database) -> BypassingRows:
    """Looks at the last hour's rows, and by index for ids that lie ahead; counts no further than a thousand."""
    time = db.log.event_time
    statement = f"""
        select (select count(*) from (
                    select from {db.log.name}
                    where {adopt.hour(time)} >= {adopt.hour("clock_timestamp() - interval '1 hour'")}
                      and {time} >= clock_timestamp() - interval '1 hour' and {time} < clock_timestamp()
                      and xact_id is null limit {BYPASS_LIMIT}) as without) as without_id,
               (select count(*) from (
                    {foreign_rows_sql(db.log)} limit {BYPASS_LIMIT}) as ahead) as from_the_future
    """
    with transaction(db.engine) as connection:
        row = connection.execute(text(statement)).one()
    return BypassingRows(row.without_id, row.from_the_future)


_TRIGGERS = """
    select kind, format('%I', name), cast(cast(t.oid as regclass) as text)
    from unnest(cast(:tables as text[])) with ordinality as n (table_name, place)
    join pg_class t on t.oid = to_regclass(n.table_name)
    cross join lateral (
        select 'trigger', tgname from pg_trigger where tgrelid = t.oid and not tgisinternal and tgenabled <> 'D'
        union all select 'rule', rulename from pg_rewrite where ev_class = t.oid and ev_enabled <> 'D'
    ) as found (kind, name)
    order by place, kind, name
"""
# Triggers: bit 1 of tgtype is for each row, 2 before, 4 on insert, 16 on update.
_TABLES = f"""
    with {TREE}
    select t.name, t.relkind = 'f' as foreign, t.detach, a.attname is not null as has_column,
           pg_get_expr(d.adbin, d.adrelid) as default,
           array(select cast(g.tgname as text) from pg_trigger g join pg_proc p on p.oid = g.tgfoid
                 where g.tgrelid = t.oid and not g.tgisinternal and g.tgenabled <> 'D'
                   and g.tgtype & 3 = 3 and g.tgtype & 20 <> 0 and p.prosrc ilike '%xact_id%') as triggers_setting_it,
           array(select cast(r.rulename as text) from pg_rewrite r
                 where r.ev_class = t.oid and r.ev_type = '3' and r.ev_enabled <> 'D') as insert_rules,
           (select count(*) from pg_subscription_rel s where s.srrelid = t.oid) as subscriptions
    from tree t
    left join pg_attribute a on a.attrelid = t.oid and a.attname = 'xact_id' and not a.attisdropped
    left join pg_attrdef d on d.adrelid = t.oid and d.adnum = a.attnum
    order by t.name
"""
