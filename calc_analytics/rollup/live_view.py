"""The live view: stored statistics plus the rows not yet counted, exact at the moment of the query.

Its cost is the uncounted rows. The snapshot is not a constant here, so the lower bound on `xact_id` comes with an
upper one: of a range with two unknown ends the planner expects few rows and takes the index.
"""

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.snapshot import STORED, STORED_ENDED, STORED_VISIBLE, STORED_XMAX
from calc_analytics.rollup.windows import day_begin, has_a_day, local_date, midnight, within


def create_live_view(connection: Connection, rollup: Rollup) -> None:
    """Creates or replaces the view; readers of it are not disturbed."""
    connection.execute(text(f"create or replace view {rollup.live_view} as {live_view_sql(rollup)}"))


def without_logs(connection: Connection, rollup: Rollup) -> None:
    """For a moment the view is the stored statistics alone, so that `xact_id` can be dropped; its grants stay."""
    statement = f"create or replace view {rollup.live_view} as select {rollup.columns} from {rollup.target}"
    connection.execute(text(statement))


def live_view_sql(rollup: Rollup) -> str:
    """The view's query, from the same measures and the same definition of `date` as everything else."""
    zone = "(select timezone from stored)"
    day = local_date(f"l.{rollup.event_time}", zone)
    begin, end = day_begin("d.date", zone), midnight("(d.date + 1)", zone)
    keys = rollup.key_columns
    finite = has_a_day(f"l.{rollup.event_time}")
    return f"""
    with {STORED.format(rollup=rollup.name)},
    uncounted as materialized (
        select {keys}, date, {rollup.aggregates}
        from (
            select l.*, {day} as date from {rollup.source} l
            where l.xact_id >= {STORED_XMAX} and l.xact_id < (select xmax + 4611686018427387904 from stored)
              and {finite}
            union all
            select l.*, {day} as date from {rollup.source} l
            where l.xact_id = any({STORED_ENDED}) and {finite}
        ) l
        group by {keys}, date
    ),
    -- A day that was never built counts only if all of its rows are uncounted: a new day, not a partial old one.
    complete as materialized (
        select d.date from (select distinct date from uncounted) d
        left join rollup_days b on b.rollup = '{rollup.name}' and b.date = d.date
        where b.status = 'built' or (b.status is null
          and not exists (select from {rollup.target} t where t.date = d.date)
          and not exists (
              select from {rollup.source} l
              where {within(f"l.{rollup.event_time}", begin, end)}
                and {day} = d.date and {STORED_VISIBLE}))
    )
    select {keys}, date, {rollup.each_measure("cast(sum({name}) as {type}) as {name}")}
    from (
        select {rollup.columns} from {rollup.target}
        union all
        select {rollup.columns} from uncounted join complete using (date)
    ) both_parts
    group by {keys}, date
    """
