"""The live view: stored statistics plus the rows not yet counted, exact at the moment of the query.

Its cost is the uncounted rows. The snapshot is not a constant here, so the lower bound on `xact_id` comes with an
upper one: of a range with two unknown ends the planner expects few rows and takes the index.
"""

from collections.abc import Mapping

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.relations import BITS, integer_types
from calc_analytics.database.row_security import hides_from_view_sql
from calc_analytics.database.sql import quote_literal
from calc_analytics.database.views import replace_view
from calc_analytics.rollup.declaration import Log, Rollup, type_to_sql
from calc_analytics.rollup.snapshot import STORED_ENDED, STORED_VISIBLE, STORED_XMAX, stored_cte
from calc_analytics.rollup.windows import day_begin, has_a_day, local_date, midnight, within

# SQL: the time zone in which the stored days are built.
_ZONE = "(select timezone from stored)"
# The schemas of the log and of the view: its table's, if there is no view yet.
_SCHEMAS = text(
    """
    select (select quote_ident(n.nspname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.oid = to_regclass(quote_ident(:log))) as of_log,
           (select quote_ident(n.nspname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.oid = coalesce(to_regclass(quote_ident(:view)), to_regclass(quote_ident(:target)))) as of_view
    """
)


def create_live_view(connection: Connection, log: Log, rollup: Rollup) -> None:
    """Creates the view, or replaces its query: it keeps its owner, its grants, its comments and its options."""
    replace_view(connection, _place(connection, log, rollup), query(connection, log, rollup))


def query(connection: Connection, log: Log, rollup: Rollup) -> str:
    """The view's query, for the tables as they are now."""
    types, log_types = (integer_types(connection, name) for name in (rollup.name, log.name))
    return live_view_sql(log, rollup, types, log_types, *_schemas(connection, log, rollup))


def _place(connection: Connection, log: Log, rollup: Rollup) -> str:
    """The view's name with its schema."""
    return f"{_schemas(connection, log, rollup)[1]}.{rollup.live_view}"


def _schemas(connection: Connection, log: Log, rollup: Rollup) -> tuple[str, str]:
    """The schema of the log, and that of the view."""
    names = {"log": log.name, "view": rollup.live_view, "target": rollup.name}
    of_log, of_view = connection.execute(_SCHEMAS, names).one()
    return str(of_log), str(of_view)


def without_logs(connection: Connection, log: Log, rollup: Rollup) -> None:
    """Makes the view the stored statistics alone for a moment, so that `xact_id` can be dropped; its grants stay."""
    replace_view(connection, _place(connection, log, rollup), f"select {rollup.table_columns} from {rollup.name}")


def _refusals(log: Log, rollup: Rollup, log_schema: str, view_schema: str) -> dict[str, str]:
    """The errors that the view raises instead of wrong numbers, and their conditions.

    A view reads the table that it was created on, even if that was renamed.
    """
    tables = [log.name, rollup.name, "rollup_state", "rollup_days"]
    is_in_place = f"""(
            select relname = {quote_literal(log.name)}
                   and relnamespace = cast({quote_literal(log_schema)} as regnamespace)
            from pg_class where oid = cast({quote_literal(log.name)} as regclass)
        )"""
    return {
        "row-level security hides rows from this view, see calc-analytics doctor":
            hides_from_view_sql(tables, rollup.live_view, view_schema),
        "the log table was renamed or replaced, run calc-analytics migrate, then calc-analytics rebase":
            f"{is_in_place} is not true",
    }  # fmt: skip


def live_view_sql(
    log: Log, rollup: Rollup, types: Mapping[str, str], log_types: Mapping[str, str], log_schema: str, view_schema: str
) -> str:
    """The view's query, from the same measures and the same definition of `date` as everything else.

    Its columns have the `types` that the target's have now. A day with a key that the target cannot hold is about to be
    set aside: the view leaves out its new rows already, so that the other days can be read.
    """
    refusals = _refusals(log, rollup, log_schema, view_schema)
    casts = {**{each.name: type_to_sql(each.type) for each in rollup.target.columns}, **types}
    selects = {
        **{name: f"cast({name} as {casts[name]}) as {name}" for name in (*rollup.keys, "date")},
        **{name: f"cast(sum({name}) as {casts[name]}) as {name}" for name in rollup.measure_names},
    }
    return f"""
    with {stored_cte(log, f"cast({quote_literal(log.name)} as regclass)", refusals)},
    {_uncounted_cte(log, rollup)},
    -- A day that was never built counts only if all of its rows are uncounted: a new day, not a partial old one.
    {_complete_cte(log, rollup, _keys_that_fit(rollup, types, log_types))}
    select {", ".join(selects[each.name] for each in rollup.target.columns if each.name in selects)}
    from (
        select {rollup.columns} from {rollup.name}
        union all
        select {rollup.columns} from uncounted join complete using (date)
    ) both_parts
    -- Reads the stored snapshot, and so raises what there is to raise, even if the log has no rows.
    where (select xmax from stored) is not null
    group by {rollup.key_columns}, date
    """


def _keys_that_fit(rollup: Rollup, types: Mapping[str, str], log_types: Mapping[str, str]) -> list[str]:
    """SQL: a condition for each key whose column is narrower than the log's."""
    return [
        f"bool_and({name} between -{2 ** BITS[types[name]]} and {2 ** BITS[types[name]] - 1})"
        for name, sources in rollup.key_sources.items()
        if name in types and any(BITS[log_types[each]] > BITS[types[name]] for each in sources if each in log_types)
    ]


def _uncounted_cte(log: Log, rollup: Rollup) -> str:
    """CTE: the rows that are not counted yet, by keys and day.

    It names only the log columns that the rollup needs, so that the others may be altered or dropped.
    """
    columns = ", ".join(sorted({*rollup.reads, log.event_time}))
    day = local_date(f"l.{log.event_time}", _ZONE)
    return f"""uncounted as materialized (
        select {rollup.key_selects}, rollup_date as date, {rollup.measure_selects}
        from (
            select {columns}, {day} as rollup_date from {log.name} l
            where xact_id >= {STORED_XMAX} and xact_id < (select xmax + 4611686018427387904 from stored)
            union all
            select {columns}, {day} as rollup_date from {log.name} l where xact_id = any({STORED_ENDED})
        ) l
        where {has_a_day("rollup_date")}
        group by {rollup.group_by}, rollup_date
    )"""


def _complete_cte(log: Log, rollup: Rollup, keys_fit: list[str]) -> str:
    """CTE: the days to which uncounted rows are added."""
    time_ = f"l.{log.event_time}"
    day, begin, end = local_date(time_, _ZONE), day_begin("d.date", _ZONE), midnight("(d.date + 1)", _ZONE)
    days = f"group by date having {' and '.join(keys_fit)}" if keys_fit else "group by date"
    return f"""complete as materialized (
        select d.date from (select date from uncounted {days}) d
        left join rollup_days b on b.rollup = '{rollup.name}' and b.date = d.date
        where b.status = 'built' or (b.status is null
          and not exists (select from {rollup.name} t where t.date = d.date)
          and not exists (
              select from {log.name} l
              where {within(time_, begin, end)} and {day} = d.date and {STORED_VISIBLE}))
    )"""
