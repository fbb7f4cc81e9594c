"""Rebuild: recounts whole days from the log rows. Cost: those days' rows; the lock is held for new rows only.

Per chunk of days, one transaction: aggregate the rows visible in a snapshot SA without the lock; lock; refresh; add
what the refresh and those before it counted since SA; judge; replace the days. Running it twice changes nothing.

A day whose log no longer holds what was counted is left as it is (`judge.py`) until a person decides: `keep` keeps its
statistics and notes the difference as deleted, `allow_shrink` recounts it from what is left.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import NEW_ROWS, WHOLE_DAYS, transaction
from calc_analytics.rollup import journal, ledger, overflow
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.judge import Decision, LedgerDays, judge, recount_table
from calc_analytics.rollup.refresh import isolate_overflow, refresh, refresh_locked
from calc_analytics.rollup.refresh_sql import counts_between
from calc_analytics.rollup.reports import DayCount, RebuildReport, SkippedDay
from calc_analytics.rollup.snapshot import Snapshot, between, visible
from calc_analytics.rollup.totals import no_totals, totals_by_day
from calc_analytics.rollup.windows import Window, of_day, windows

CHUNK_DAYS = 10


def rebuild(
    db: Database,
    days: Sequence[date],
    rollups: Sequence[str] | None = None,
    *,
    decision: Decision = Decision.NONE,
    progress: Callable[[RebuildReport], None] = lambda report: None,
) -> RebuildReport:
    """Recounts these days of these rollups (None: all), ten per transaction: a stop loses at most ten, a repeat none.

    Days whose log is not what was counted are left alone and reported as `refused`, unless a person decided (see
    `Decision`); so are days with a value that does not fit its column. `progress` gets each chunk's report.
    All that was committed before the call is counted. Transient errors are retried.
    """
    started = time.perf_counter()
    refresh(db)
    total = RebuildReport(seconds=time.perf_counter() - started)
    chosen = db.log.only(rollups).rollups
    for chunk in _chunks(sorted(set(days)), CHUNK_DAYS):
        started = time.perf_counter()
        done = isolate_overflow(db, partial(_rebuild_chunk, db, chosen, chunk, decision))
        report = replace(done, seconds=time.perf_counter() - started)
        progress(report)
        total = total + report
    return total


def _chunks(days: Sequence[date], size: int) -> Iterator[Sequence[date]]:
    return (days[n : n + size] for n in range(0, len(days), size))


def _rebuild_chunk(db: Database, rollups: Sequence[Rollup], days: Sequence[date], decision: Decision) -> RebuildReport:
    started = time.perf_counter()
    with transaction(db.engine) as connection:
        ledger.keep_out_prune(connection, db.log)
        spans = windows(connection, list(days), db.timezone)
        ledger.read(connection, db)  # refuses before the work rather than after it
        counted_at = _count_unlocked(connection, db, rollups, spans)
        now = refresh_locked(connection, db).snapshot
        ledger.note_cluster(connection, db.log)
        report, known = RebuildReport(), LedgerDays.read(connection, db, days)
        for rollup in rollups:
            _add_since(connection, db, rollup, days, counted_at, now)
            report = report + _settle(connection, db, rollup, spans, decision, known)
        _note(connection, db, report, time.perf_counter() - started)
        return report


def _settle(
    connection: Connection, db: Database, rollup: Rollup, spans: list[Window], decision: Decision, known: LedgerDays
) -> RebuildReport:
    """Replaces the recounted days of a rollup that may be replaced; the others are left or kept."""
    overflowed = _overflowed(connection, rollup)
    ledger.set_aside(connection, rollup, [each.day for each in overflowed])
    set_aside = {each.day for each in overflowed}
    judged = judge(connection, db, rollup, [span for span in spans if span.day not in set_aside], decision, known)
    _replace(connection, rollup, list(judged.replace))
    rebuilt = _rebuilt(connection, rollup, judged.replace)
    ledger.record_rebuilt(connection, db, rollup, {day.day: day.measures for day in rebuilt})
    if judged.add:
        _insert(connection, rollup, list(judged.add), rollup.or_add)
    added = _rebuilt(connection, rollup, judged.add)
    for day in added:
        ledger.record_added(connection, rollup, day.day, day.measures)
    return RebuildReport([*rebuilt, *added], [*judged.refused, *overflowed], judged.kept)


def _count_unlocked(connection: Connection, db: Database, rollups: Sequence[Rollup], spans: list[Window]) -> Snapshot:
    """Aggregates the days into temporary tables, one for each rollup; returns the snapshot they are counted at."""
    counted_at = Snapshot.now(connection)
    parameters: dict[str, Any] = {"tz": db.timezone, **counted_at.bind("sa")}
    for n, span in enumerate(spans):
        parameters.update(span.parameters(f"_{n}"))
    connection.execute(WHOLE_DAYS)
    for rollup in rollups:
        statement = count_sql(db, rollup, spans)
        create = f"create temporary table {recount_table(rollup)} on commit drop as {statement}"
        connection.execute(text(create), parameters)
    connection.execute(NEW_ROWS)
    return counted_at


def count_sql(db: Database, rollup: Rollup, spans: list[Window]) -> str:
    """The days' measures, a branch per day, which may run on several processors."""
    return " union all ".join(_count_day_sql(db, rollup, n, span) for n, span in enumerate(spans))


def _count_day_sql(db: Database, rollup: Rollup, n: int, span: Window) -> str:
    return f"""
    select {rollup.key_selects}, cast(:day_{n} as date) as date, {rollup.measure_selects}
    from {db.log.name}
    where {of_day(db.log.event_time, span, f"_{n}")} and {visible("sa")}
    group by {rollup.group_by}
    """


def _add_since(
    connection: Connection, db: Database, rollup: Rollup, days: Sequence[date], then: Snapshot, now: Snapshot
) -> None:
    """Adds the days' rows that became visible between the two snapshots."""
    statement = f"""
    insert into {recount_table(rollup)} ({rollup.columns})
    select {rollup.columns} from ({counts_between(db, rollup)}) since where date = any(:days)
    """
    connection.execute(text(statement), {"days": list(days), **between(then, now)})


def _overflowed(connection: Connection, rollup: Rollup) -> list[SkippedDay]:
    """The recounted days with a value that its column cannot hold, and the first such value."""
    sums = rollup.each_measure("sum({name}) as {name}")
    keys = f"{rollup.key_columns}, date"
    recounted = f"select {keys}, {sums} from {recount_table(rollup)} group by {keys}"
    return [
        SkippedDay(rollup.name, each.day, "overflow", 0, 0, 0, f"{each}. {each.advice}", each.as_dict())
        for each in overflow.misfits(connection, rollup, recounted, {})
    ]


def _replace(connection: Connection, rollup: Rollup, days: list[date]) -> None:
    """Puts the recounted days in the place of the stored ones; keys that vanished disappear."""
    if days:
        connection.execute(text(f"delete from {rollup.name} where date = any(:days)"), {"days": days})
        _insert(connection, rollup, days)


def _insert(connection: Connection, rollup: Rollup, days: list[date], otherwise: str = "") -> None:
    """Writes the recounted rows of these days; `otherwise` is what happens to keys that are there.

    In the order of the keys: readers find a publisher's rows of a day in one or two pages, not in one page each.
    """
    sums = rollup.each_measure("sum({name}) as {name}")
    statement = f"""
    insert into {rollup.name} ({rollup.columns})
    select {rollup.key_columns}, date, {sums}
    from {recount_table(rollup)} where date = any(:days) group by {rollup.key_columns}, date
    order by date, {rollup.key_columns}
    {otherwise}
    """
    connection.execute(text(statement), {"days": days})


def _rebuilt(connection: Connection, rollup: Rollup, rows_before: Mapping[date, int]) -> list[DayCount]:
    """What the rebuilt days have in the target now, and the rows they had before."""
    totals = totals_by_day(connection, rollup, list(rows_before)) if rows_before else {}
    found = []
    for day in sorted(rows_before):
        keys, measures = totals.get(day, no_totals(rollup))
        rows = measures[rollup.count]
        found.append(DayCount(rollup.name, day, rows, measures, keys, "built", rows_before[day]))
    return found


def _note(connection: Connection, db: Database, report: RebuildReport, seconds: float) -> None:
    """A rebuild in the journal, with rows before and after per day and rollup; decisions have entries of their own."""
    done: dict[date, dict[str, Any]] = {}
    for day in report.rebuilt:
        done.setdefault(day.day, {})[day.rollup] = {"before": day.rows_before, "after": day.rows}
    if done:
        journal.note(connection, db.log, "rebuild", days=done, rows=report.rows, seconds=seconds)
    refused: dict[date, dict[str, Any]] = {}
    for each in report.failed:
        refused.setdefault(each.day, {})[each.rollup] = {"refused": each.reason, **each.misfit}
    if refused:
        journal.note(connection, db.log, "refuse", days=refused)
    for operation, reason in (("deletion", "announced"), ("keep", "keep")):
        kept: dict[date, dict[str, Any]] = {}
        for each in report.kept:
            if each.reason == reason:
                numbers = {"log_rows": each.log_rows, "counted": each.counted_rows, "deleted": each.deleted_rows}
                kept.setdefault(each.day, {})[each.rollup] = numbers
        if kept:
            journal.note(connection, db.log, operation, days=kept)
