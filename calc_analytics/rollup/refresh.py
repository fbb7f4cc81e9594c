"""Refresh: adds the rows that became visible since the stored snapshot. Cost: new rows only.

One transaction: lock the state row, take a snapshot S2, aggregate what is visible in S2 and was not in S1, add it,
store S2. Every committed transaction falls between exactly one pair of snapshots, so nothing is skipped or counted
twice and nothing waits for a slow writer; a crash undoes statistics and state together.
"""

import time
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from calc_analytics.database.engine import DatabaseTrouble, persistently, transaction
from calc_analytics.rollup import state
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.reports import DayCount, RefreshReport
from calc_analytics.rollup.snapshot import Snapshot, between, rows_between, visible
from calc_analytics.rollup.windows import day_begin, has_a_day, local_date, midnight, within

T = TypeVar("T")
NUMBER_OUT_OF_RANGE = "22003"


def refresh(engine: Engine, rollup: Rollup, timezone: str) -> RefreshReport:
    """Counts all that was committed before the call, and maybe more. One transaction, safe to repeat.

    Transient trouble is tried again. A day with a counter that would not fit its column is set aside (its status
    becomes 'overflow') and does not keep the others from being counted.
    """
    started = time.perf_counter()
    snapshot, days = whatever_overflows(engine, rollup, timezone, partial(_refresh, engine, rollup, timezone))
    return RefreshReport(
        counted=[day for day in days if day.status == "built"],
        unbuilt=[day for day in days if day.status != "built"],
        seconds=time.perf_counter() - started,
        snapshot=snapshot,
    )


def _refresh(engine: Engine, rollup: Rollup, timezone: str) -> tuple[Snapshot, list[DayCount]]:
    with transaction(engine) as connection:
        return refresh_locked(connection, rollup, timezone)


def whatever_overflows(engine: Engine, rollup: Rollup, timezone: str, work: Callable[[], T]) -> T:
    """What `work` returns, a transaction with a refresh in it; days that cannot be counted are set aside first."""
    try:
        return persistently(work)
    except DatabaseTrouble as trouble:
        if trouble.sqlstate != NUMBER_OUT_OF_RANGE or not _set_aside(engine, rollup, timezone):
            raise
        return persistently(work)


def _set_aside(engine: Engine, rollup: Rollup, timezone: str) -> list[date]:
    """Marks the days that the next refresh cannot count; returns them."""
    statement = f"""
    with {_diff(rollup)}
    insert into rollup_days as r (rollup, date, status)
    select distinct :rollup, diff.date, 'overflow'
    from diff left join {rollup.target} t using ({rollup.key_columns}, date)
    where {rollup.overflows("coalesce(t.{name}, 0) + diff.{name}")}
    on conflict (rollup, date) do update set status = excluded.status where r.status = 'built'
    returning date
    """
    with transaction(engine) as connection:
        before = state.lock(connection, rollup, timezone)
        parameters = {"rollup": rollup.name, "tz": timezone, **between(before.snapshot, Snapshot.now(connection))}
        return list(connection.execute(text(statement), parameters).scalars())


def refresh_locked(connection: Connection, rollup: Rollup, timezone: str) -> tuple[Snapshot, list[DayCount]]:
    """The refresh inside the caller's transaction, which holds the state's lock until it ends.

    Returns the snapshot now stored and the days that had new rows.
    """
    before = state.lock(connection, rollup, timezone)
    # After the lock, in a statement of its own: only now is S2 sure to include what the last holder counted.
    now = Snapshot.now(connection)
    parameters = {"rollup": rollup.name, "tz": timezone, **before.snapshot.bind("s1"), **between(before.snapshot, now)}
    rows = connection.execute(text(refresh_sql(rollup)), parameters).mappings().all()
    state.store_snapshot(connection, rollup, now)
    days = [
        DayCount(row["date"], {name: int(row[name]) for name in rollup.measure_names}, row["keys"], row["status"])
        for row in rows
    ]
    return now, days


def is_uncounted_since(connection: Connection, rollup: Rollup, counted: Snapshot) -> bool:
    """Whether a row has been committed since that snapshot. An index probe, without a lock; none if nobody wrote."""
    span = between(counted, Snapshot.now(connection))
    if span["from_xmax"] == span["to_xmax"] and not span["ended"]:
        return False
    statement = f"select exists (select from {rows_between(rollup.source)} l)"
    return bool(connection.execute(text(statement), span).scalar())


def _diff(rollup: Rollup) -> str:
    """CTE: the diff of the two snapshots, aggregated. READ COMMITTED would show later commits too: hence "visible in
    S2". Rows without a day (infinity, the year 10000) are left out."""
    return f"""diff as materialized (
        select {rollup.key_columns}, {local_date(f"l.{rollup.event_time}", ":tz")} as date, {rollup.aggregates}
        from {rows_between(rollup.source)} l
        where {has_a_day(rollup.event_time)}
        group by {rollup.key_columns}, 2
    )"""


def refresh_sql(rollup: Rollup) -> str:
    """The one statement of a refresh: it adds the diff, records the days, and returns what it did per day."""
    day, begin, end = (
        local_date(f"l.{rollup.event_time}", ":tz"),
        day_begin("d.date", ":tz"),
        midnight("(d.date + 1)", ":tz"),
    )
    return f"""
    with {_diff(rollup)},
    -- What is known of each day in the diff: built, pending or stale; null if it was never seen.
    seen as (
        select d.date, b.status
        from (select distinct date from diff) d
        left join rollup_days b on b.rollup = :rollup and b.date = d.date
    ),
    -- A day begins here if it has no statistics and all of its rows are in this diff; others wait for a rebuild.
    judged as (
        select d.date, d.status as was, case
            when d.status is not null then d.status
            when exists (select from {rollup.target} t where t.date = d.date) then 'pending'
            when exists (
                select from {rollup.source} l
                where {within(f"l.{rollup.event_time}", begin, end)} and {day} = d.date
                  and {visible("s1")}
            ) then 'pending'
            else 'built' end as status
        from seen d
    ),
    -- Days that are built get the diff's measures added.
    added as (
        insert into {rollup.target} ({rollup.columns})
        select {rollup.columns} from diff join judged using (date) where judged.status = 'built'
        on conflict ({rollup.key_columns}, date) do update
        set {rollup.each_measure(f"{{name}} = {rollup.target}.{{name}} + excluded.{{name}}")}
    ),
    -- Every day of the diff is on record, so that a pending one is not forgotten.
    recorded as (
        insert into rollup_days as r (rollup, date, status, timezone, method, built_at, built_by, refreshed_at)
        select :rollup, date, status, :tz, case status when 'built' then 'refresh' end,
               case status when 'built' then clock_timestamp() end,
               case status when 'built' then current_setting('application_name') end, clock_timestamp()
        from judged
        on conflict (rollup, date) do update set refreshed_at = excluded.refreshed_at
    )
    select date, judged.status, count(*) as keys, {rollup.each_measure("sum({name}) as {name}")}
    from diff join judged using (date)
    group by date, judged.status
    order by date
    """
