"""Rebuild: recounts whole days from the raw rows. Cost: those days' rows; the lock is held for new rows only.

Per chunk of days, one transaction: aggregate the rows visible in a snapshot SA without the lock; lock; refresh;
add what the refresh and those before it counted since SA; replace the days. Running it twice changes nothing.

A day whose logs were deleted is left as it is (`seals.py`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from functools import partial

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from calc_analytics.database.engine import NEW_ROWS, WHOLE_DAYS, transaction
from calc_analytics.rollup import seals, state
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.index import summarize
from calc_analytics.rollup.refresh import refresh, refresh_locked, whatever_overflows
from calc_analytics.rollup.reports import DayCount, Overflowed, RebuildReport
from calc_analytics.rollup.snapshot import Snapshot, between, rows_between, visible
from calc_analytics.rollup.windows import Window, has_a_day, local_date, of_day, windows

CHUNK_DAYS = 10


def rebuild(
    engine: Engine,
    rollup: Rollup,
    timezone: str,
    days: Sequence[date],
    *,
    allow_shrink: bool = False,
    progress: Callable[[RebuildReport], None] = lambda report: None,
) -> RebuildReport:
    """Rebuilds these days, ten per transaction, so that a stop loses at most ten and a repeat is harmless.

    Days whose raw rows are fewer than the rows they have counted are left alone and reported as `shrunk`, unless
    `allow_shrink`; days with a counter too great for its column as `overflowed`. `progress` gets each chunk's report.
    All that was committed before the call is counted. Transient trouble is tried again.
    """
    started = time.perf_counter()
    refresh(engine, rollup, timezone)
    summarize(engine, rollup)
    total = RebuildReport(seconds=time.perf_counter() - started)
    for chunk in _chunks(sorted(set(days)), CHUNK_DAYS):
        started = time.perf_counter()
        work = partial(_rebuild_chunk, engine, rollup, timezone, chunk, allow_shrink)
        done = whatever_overflows(engine, rollup, timezone, work)
        report = replace(done, seconds=time.perf_counter() - started)
        progress(report)
        total = total + report
    return total


def _chunks(days: Sequence[date], size: int) -> Iterator[Sequence[date]]:
    return (days[n : n + size] for n in range(0, len(days), size))


def _rebuild_chunk(
    engine: Engine, rollup: Rollup, timezone: str, days: Sequence[date], allow_shrink: bool
) -> RebuildReport:
    with transaction(engine) as connection:
        return _rebuild_locked(connection, rollup, timezone, days, allow_shrink)


def _rebuild_locked(
    connection: Connection, rollup: Rollup, timezone: str, days: Sequence[date], allow_shrink: bool
) -> RebuildReport:
    seals.keep_out_prune(connection, rollup)
    spans = windows(connection, list(days), timezone)
    state.read(connection, rollup, timezone)  # refuses before the work rather than after it
    counted_at = _count_unlocked(connection, rollup, timezone, spans)
    now, _ = refresh_locked(connection, rollup, timezone)
    _add_since(connection, rollup, timezone, days, counted_at, now)
    overflowed = _overflowed(connection, rollup)
    judged = seals.Judgement() if allow_shrink else seals.judge(connection, rollup, timezone, spans)
    refused = {*(day.day for day in overflowed), *(day.day for day in judged.shrunk), *judged.accounted}
    seals.mark(connection, rollup, [day.day for day in overflowed], "overflow")
    _replace(connection, rollup, timezone, [day for day in days if day not in refused])
    done = [day for day in days if day not in refused or day in judged.accounted]
    return RebuildReport(_totals(connection, rollup, done), judged.shrunk, 0.0, overflowed)


def _count_unlocked(connection: Connection, rollup: Rollup, timezone: str, spans: list[Window]) -> Snapshot:
    """Aggregates the days into the temporary table `rebuilt`; returns the snapshot they are counted at."""
    counted_at = Snapshot.now(connection)
    statement, parameters = count_sql(rollup, spans), {"tz": timezone, **counted_at.bind("sa")}
    for n, span in enumerate(spans):
        parameters.update(span.parameters(f"_{n}"))
    connection.execute(WHOLE_DAYS)
    connection.execute(text(f"create temporary table rebuilt on commit drop as {statement}"), parameters)
    connection.execute(NEW_ROWS)
    return counted_at


def count_sql(rollup: Rollup, spans: list[Window]) -> str:
    """The days' measures, a branch per day, which may run on several processors."""
    return " union all ".join(_count_day_sql(rollup, n, span) for n, span in enumerate(spans))


def _count_day_sql(rollup: Rollup, n: int, span: Window) -> str:
    return f"""
    select {rollup.key_columns}, cast(:day_{n} as date) as date, {rollup.aggregates}
    from {rollup.source}
    where {of_day(rollup.event_time, span, f"_{n}")} and {visible("sa")}
    group by {rollup.key_columns}
    """


def _add_since(
    connection: Connection, rollup: Rollup, timezone: str, days: Sequence[date], then: Snapshot, now: Snapshot
) -> None:
    """Adds the days' rows that became visible between the two snapshots."""
    statement = f"""
    insert into rebuilt ({rollup.columns})
    select {rollup.key_columns}, {local_date(rollup.event_time, ":tz")} as date, {rollup.aggregates}
    from {rows_between(rollup.source)} l
    where {has_a_day(rollup.event_time)} and {local_date(rollup.event_time, ":tz")} = any(:days)
    group by {rollup.key_columns}, 2
    """
    connection.execute(text(statement), {"tz": timezone, "days": list(days), **between(then, now)})


def _overflowed(connection: Connection, rollup: Rollup) -> list[Overflowed]:
    """The recounted days with a measure that its column cannot hold, and the first such measure."""
    sums = rollup.each_measure("sum({name}) as {name}")
    statement = f"""
    select distinct on (date) * from (
        select {rollup.key_columns}, date, {sums} from rebuilt group by {rollup.key_columns}, date
    ) summed where {rollup.overflows("{name}")} order by date
    """
    rows = connection.execute(text(statement)).mappings().all()
    found = [(row, next(m for m in rollup.measures if abs(row[m.name]) > m.greatest)) for row in rows]
    return [Overflowed(row["date"], measure.name, int(row[measure.name])) for row, measure in found]


def _replace(connection: Connection, rollup: Rollup, timezone: str, days: list[date]) -> None:
    """Puts the recounted days in the place of the stored ones; keys that vanished disappear."""
    parameters = {"rollup": rollup.name, "days": days, "tz": timezone}
    connection.execute(text(f"delete from {rollup.target} where date = any(:days)"), parameters)
    sums = rollup.each_measure("sum({name}) as {name}")
    connection.execute(
        text(
            f"insert into {rollup.target} ({rollup.columns}) select {rollup.key_columns}, date, {sums} "
            f"from rebuilt where date = any(:days) group by {rollup.key_columns}, date"
        ),
        parameters,
    )
    connection.execute(_RECORD, parameters)


def _totals(connection: Connection, rollup: Rollup, days: list[date]) -> list[DayCount]:
    """What the days have now."""
    zeros = rollup.each_measure("coalesce(sum({name}), 0) as {name}")
    rows = connection.execute(
        text(
            f"select d.date, count(t.date) as keys, {zeros} from unnest(cast(:days as date[])) as d (date) "
            f"left join {rollup.target} t on t.date = d.date group by d.date order by d.date"
        ),
        {"days": days},
    ).mappings()
    return [
        DayCount(row["date"], {name: int(row[name]) for name in rollup.measure_names}, row["keys"], "built")
        for row in rows
    ]


_RECORD = text(
    """
    insert into rollup_days (rollup, date, status, timezone, method, built_at, built_by, refreshed_at)
    select :rollup, date, 'built', :tz, 'rebuild', clock_timestamp(), current_setting('application_name'),
           clock_timestamp()
    from unnest(cast(:days as date[])) as d (date)
    on conflict (rollup, date) do update
    set status = excluded.status, timezone = excluded.timezone, method = excluded.method, built_at = excluded.built_at,
        built_by = excluded.built_by, refreshed_at = excluded.refreshed_at,
        sealed_at = null, sealed_by = null, missing = null
    """
)
