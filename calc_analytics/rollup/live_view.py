"""The live view: stored statistics plus the rows not yet counted, exact at the moment of the query.

Its cost is the uncounted rows. The snapshot is not a constant here, so the lower bound on `xact_id` comes with an
upper one: of a range with two unknown ends the planner expects few rows and takes the index.
"""

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.rollup.declaration import Log, Rollup, type_to_sql
from calc_analytics.rollup.snapshot import STORED, STORED_ENDED, STORED_VISIBLE, STORED_XMAX
from calc_analytics.rollup.windows import day_begin, has_a_day, local_date, midnight, within

_PLACE = text(
    """
    select quote_ident(n.nspname) || '.' || quote_ident(:view)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = coalesce(to_regclass(quote_ident(:view)), to_regclass(quote_ident(:target)))
    """
)


def create_live_view(connection: Connection, log: Log, rollup: Rollup) -> None:
    """Creates or replaces the view; readers of it are not disturbed."""
    view = _place(connection, rollup)
    connection.execute(text(f"create or replace view {view} as {live_view_sql(log, rollup)}"))


def _place(connection: Connection, rollup: Rollup) -> str:
    """The view's name with its schema: where it is, or will be beside its table, whichever schema is first."""
    names = {"view": rollup.live_view, "target": rollup.name}
    return str(connection.execute(_PLACE, names).scalar_one())


def without_logs(connection: Connection, rollup: Rollup) -> None:
    """For a moment the view is the stored statistics alone, so that `xact_id` can be dropped; its grants stay."""
    view = _place(connection, rollup)
    connection.execute(text(f"create or replace view {view} as select {rollup.table_columns} from {rollup.name}"))


def live_view_sql(log: Log, rollup: Rollup) -> str:
    """The view's query, from the same measures and the same definition of `date` as everything else.

    It names only the log columns that the rollup needs, so that the others may be altered or dropped.
    """
    zone, time_ = "(select timezone from stored)", f"l.{log.event_time}"
    columns = ", ".join(sorted({*rollup.reads, log.event_time}))
    day = local_date(time_, zone)
    begin, end = day_begin("d.date", zone), midnight("(d.date + 1)", zone)
    keys = rollup.key_columns
    types = {each.name: type_to_sql(each.type) for each in rollup.target.columns}
    selects = {
        **{name: f"cast({name} as {types[name]}) as {name}" for name in (*rollup.keys, "date")},
        **{each.name: f"cast(sum({each.name}) as {each.type}) as {each.name}" for each in rollup.measures},
    }
    return f"""
    with {STORED.format(log=log.name)},
    uncounted as materialized (
        select {rollup.key_selects}, date, {rollup.measure_selects}
        from (
            select {columns}, {day} as date from {log.name} l
            where xact_id >= {STORED_XMAX} and xact_id < (select xmax + 4611686018427387904 from stored)
            union all
            select {columns}, {day} as date from {log.name} l where xact_id = any({STORED_ENDED})
        ) l
        where {has_a_day("date")}
        group by {rollup.group_by}, date
    ),
    -- A day that was never built counts only if all of its rows are uncounted: a new day, not a partial old one.
    complete as materialized (
        select d.date from (select distinct date from uncounted) d
        left join rollup_days b on b.rollup = '{rollup.name}' and b.date = d.date
        where b.status = 'built' or (b.status is null
          and not exists (select from {rollup.name} t where t.date = d.date)
          and not exists (
              select from {log.name} l
              where {within(time_, begin, end)} and {day} = d.date and {STORED_VISIBLE}))
    )
    select {", ".join(selects[each.name] for each in rollup.target.columns if each.name in selects)}
    from (
        select {rollup.columns} from {rollup.name}
        union all
        select {rollup.columns} from uncounted join complete using (date)
    ) both_parts
    group by {keys}, date
    """
