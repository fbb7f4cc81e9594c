"""Rebuild: recounts whole days from the log rows. Cost: those days' rows; the lock is held for new rows only.

Per chunk of days, one transaction: aggregate the rows visible in a snapshot SA without the lock; lock; refresh; add
what the refresh and those before it counted since SA; judge; replace the days. Running it twice changes nothing. Days
whose log rows were deleted after they were archived are recounted from the archive as well (`from_archive.py`).

A day whose log no longer holds what was counted is left as it is (`judge.py`) until a person decides: `keep` keeps its
statistics and notes the difference as deleted, `allow_shrink` recounts it from what is left.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import chain
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import NEW_ROWS, WHOLE_DAYS, transaction
from calc_analytics.rollup import from_archive, journal, ledger, overflow
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import KEYS_HASH, Rollup
from calc_analytics.rollup.from_archive import ArchiveChanged, ArchivedRows, Part, Reduction, log_table
from calc_analytics.rollup.judge import Decision, Judgement, LedgerDays, judge, recount_table
from calc_analytics.rollup.ledger import ArchivedDay
from calc_analytics.rollup.recount import add_since, count_days
from calc_analytics.rollup.refresh import isolate_overflow, refresh, refresh_locked
from calc_analytics.rollup.reports import LOG_ROWS, DayCount, RebuildReport, SkippedDay
from calc_analytics.rollup.snapshot import Snapshot
from calc_analytics.rollup.totals import keys_hashes, no_totals, totals_by_day
from calc_analytics.rollup.windows import Window, windows

CHUNK_DAYS = 10
# While others archive or erase the same days, these are reduced again, this many times in all.
ATTEMPTS = 3


def rebuild(
    db: Database,
    days: Sequence[date],
    rollups: Sequence[str] | None = None,
    *,
    decision: Decision = Decision.NONE,
    archived: ArchivedRows | None = None,
    progress: Callable[[RebuildReport], None] = lambda report: None,
) -> RebuildReport:
    """Recounts these days of these rollups (None: all), ten per transaction: a stop loses at most ten, a repeat none.

    With `archived`, days whose log rows were deleted are recounted from the archive and the log rows that are not in
    it. Days whose rows are not what was counted are left alone and reported as `refused`, unless a person decided (see
    `Decision`); so are days with a value that does not fit its column. `progress` gets each chunk's report.
    All that was committed before the call is counted. Transient errors are retried.
    """
    started = time.perf_counter()
    refresh(db)
    total = RebuildReport(seconds=time.perf_counter() - started)
    work, wanted = _Rebuild(db, db.log.only(rollups).rollups, decision), sorted(set(days))
    use_archive = archived is not None and decision is not Decision.KEEP
    records = from_archive.days_in_archive(db, wanted) if use_archive else {}
    done = work.from_log([day for day in wanted if day not in records])
    if archived is not None:
        done = chain(done, work.from_archive(archived, records))
    for report in _timed(done):
        progress(report)
        total = total + report
    return total


def _timed(reports: Iterator[RebuildReport]) -> Iterator[RebuildReport]:
    """The reports, each with the time that it took."""
    started = time.perf_counter()
    for report in reports:
        yield replace(report, seconds=time.perf_counter() - started)
        started = time.perf_counter()


def _chunks(days: Sequence[date], size: int = CHUNK_DAYS) -> Iterator[Sequence[date]]:
    return (days[n : n + size] for n in range(0, len(days), size))


@dataclass(frozen=True)
class _Rebuild:
    """A rebuild of these rollups: its parts, each a report."""

    db: Database
    rollups: Sequence[Rollup]
    decision: Decision

    def from_log(self, days: Sequence[date]) -> Iterator[RebuildReport]:
        """Recounts the days from log rows."""
        for chunk in _chunks(days):
            yield isolate_overflow(self.db, partial(self._chunk, chunk, None))

    def from_archive(self, archived: ArchivedRows, records: Mapping[date, ArchivedDay]) -> Iterator[RebuildReport]:
        """Recounts the days from the archive, and from the log rows that are not in it."""
        for batch in from_archive.batches(records):
            reduction = self._reduce(archived, batch)
            for chunk in _chunks(sorted(batch)):
                yield self._replace(archived, chunk, reduction)

    def _reduce(self, archived: ArchivedRows, records: Mapping[date, ArchivedDay]) -> Reduction:
        """Reduces the days; again if the archive was changed meanwhile, whose files may have been gone."""
        for _ in range(ATTEMPTS):
            reduction = archived.reduce(self.rollups, records)
            with transaction(self.db.engine) as connection:
                now = ledger.archived_days(connection, self.db.log, list(records))
            if all(from_archive.is_same(now.get(day), record) for day, record in records.items()):
                break
            records = {day: now.get(day, ArchivedDay(day)) for day in records}
        return reduction

    def _replace(self, archived: ArchivedRows, days: Sequence[date], reduction: Reduction) -> RebuildReport:
        """Replaces the days; those whose archive was changed since they were reduced are reduced again.

        Those that cannot be counted from it any more, and all that are left after the last attempt, are refused.
        """
        left = days
        for _ in range(ATTEMPTS):
            try:
                return self._refuse_changed(set(days) - set(left)) + self._replace_reduced(left, reduction)
            except ArchiveChanged:
                records = from_archive.days_in_archive(self.db, left)
                reduction = self._reduce(archived, records)
                left = sorted(records)
        return self._refuse_changed(days)

    def _refuse_changed(self, days: Collection[date]) -> RebuildReport:
        changed = [from_archive.changed(each, day) for each in self.rollups for day in sorted(days)]
        return RebuildReport(refused=changed)

    def _replace_reduced(self, days: Sequence[date], reduction: Reduction) -> RebuildReport:
        refused = [each for each in reduction.refused if each.day in days]
        if refused:
            with transaction(self.db.engine) as connection:
                _note(connection, self.db, RebuildReport(refused=refused), 0.0)
        report, reduced = RebuildReport(refused=refused), [day for day in days if day in reduction.records]
        if reduced and reduction.tables:
            report = report + isolate_overflow(self.db, partial(self._chunk, reduced, reduction))
        return report

    def _chunk(self, days: Sequence[date], reduction: Reduction | None) -> RebuildReport:
        """One transaction: counts the days' log rows, adds those of the archive, and replaces the statistics."""
        started, db = time.perf_counter(), self.db
        with transaction(db.engine) as connection:
            ledger.keep_out_prune(connection, db.log)
            spans = windows(connection, list(days), db.timezone)
            ledger.read(connection, db)  # refuses before the work rather than after it
            chunk = _Chunk(connection, db, self._rollups_of(reduction), spans, self.decision, reduction)
            report = chunk.rebuild()
            _note(connection, db, report, time.perf_counter() - started)
            return report

    def _rollups_of(self, reduction: Reduction | None) -> list[Rollup]:
        return [each for each in self.rollups if reduction is None or each.name in reduction.tables]


class _Chunk:
    """Days that are rebuilt in one transaction. `sources`: of each day from the archive, where its rows are."""

    def __init__(
        self,
        connection: Connection,
        db: Database,
        rollups: Sequence[Rollup],
        spans: Sequence[Window],
        decision: Decision,
        reduction: Reduction | None,
    ) -> None:
        self.connection, self.db, self.rollups, self.spans = connection, db, rollups, spans
        self.decision, self.engine = decision, "" if reduction is None else reduction.engine
        self.archived = None if reduction is None else Part(connection, db, rollups, spans, reduction)
        self.sources: dict[date, str] = {}
        # Whether a key's rows may be in several parts, to be added up.
        self.has_parts = False

    @property
    def days(self) -> list[date]:
        """The days."""
        return [span.day for span in self.spans]

    def rebuild(self) -> RebuildReport:
        """Counts without the lock; then locks, refreshes, judges and replaces."""
        counted_at = self._count_unlocked()
        now = refresh_locked(self.connection, self.db).snapshot
        ledger.note_cluster(self.connection, self.db.log)
        known, report = LedgerDays.read(self.connection, self.db, self.days), RebuildReport()
        for rollup in self.rollups:
            self._add_since(rollup, counted_at, now)
        if self.archived is not None:
            self.sources, refused = self.archived.put_in_place(known, self.decision is Decision.ALLOW_SHRINK)
            report = RebuildReport(refused=refused)
        left = {each.day for each in report.refused}
        spans = [span for span in self.spans if span.day not in left]
        for rollup in self.rollups:
            report = report + self._settle(rollup, spans, known)
        return report

    def _add_since(self, rollup: Rollup, then: Snapshot, now: Snapshot) -> None:
        """Adds what became visible between the two snapshots."""
        added = add_since(self.connection, self.db, rollup, self.days, then, now)
        if self.archived is not None:
            added += self.archived.add_since(rollup, then, now)
        self.has_parts = self.has_parts or added > 0

    def _count_unlocked(self) -> Snapshot:
        """Aggregates the days into temporary tables; returns the snapshot they are counted at."""
        at, empty = Snapshot.now(self.connection), set[date]()
        if self.archived is not None:
            there = from_archive.days_with_rows(self.connection, self.db, self.spans, at)
            self.archived.load(at, there)
            self.has_parts = bool(there)
            empty = set(self.days) - there
        count_days(self.connection, self.db, self.rollups, self.spans, at, empty)
        return at

    def _settle(self, rollup: Rollup, spans: Sequence[Window], known: LedgerDays) -> RebuildReport:
        """Replaces the recounted days of a rollup that may be replaced; the others are left or kept."""
        connection, db = self.connection, self.db
        overflowed = _overflowed(connection, rollup, self._recounted(rollup), [span.day for span in spans])
        ledger.set_aside(connection, rollup, [each.day for each in overflowed])
        set_aside = {each.day for each in overflowed}
        rest = [span for span in spans if span.day not in set_aside]
        judged = judge(connection, db, rollup, rest, self.decision, known, self.sources)
        rebuilt = self._replace(rollup, judged)
        if judged.add:
            _insert(connection, rollup, self._recounted(rollup), list(judged.add), rollup.or_add)
        added = self._rebuilt(rollup, judged.add)
        for day in added:
            ledger.record_added(connection, rollup, day.day, day.measures)
        return RebuildReport([*rebuilt, *added], [*judged.refused, *overflowed], judged.kept)

    def _replace(self, rollup: Rollup, judged: Judgement) -> list[DayCount]:
        """Replaces the days, but not those from the archive whose stored rows are the recounted ones already.

        These are compared after they are recorded: what another program changes meanwhile is found here, or not
        recorded as counted. Days from the log are always written: in the order of their keys, which those that
        refreshes wrote are not in.
        """
        before, recounted = judged.replace, self._recounted(rollup)
        kept = [day for day, rows in before.items() if rows and day in self.sources]
        rebuilt = self._write(rollup, {day: rows for day, rows in before.items() if day not in kept})
        if kept:
            found = self._record(rollup, {day: before[day] for day in kept})
            differing = _differing(self.connection, rollup, recounted, kept)
            rebuilt += [each for each in found if each.day not in differing]
            rebuilt += self._write(rollup, {day: before[day] for day in kept if day in differing})
        return sorted(rebuilt, key=lambda each: each.day)

    def _write(self, rollup: Rollup, rows_before: Mapping[date, int]) -> list[DayCount]:
        _replace(self.connection, rollup, self._recounted(rollup), list(rows_before))
        return self._record(rollup, rows_before)

    def _record(self, rollup: Rollup, rows_before: Mapping[date, int]) -> list[DayCount]:
        rebuilt = self._rebuilt(rollup, rows_before)
        totals = {day.day: day.measures for day in rebuilt}
        ledger.record_rebuilt(self.connection, self.db, rollup, totals, self._deleted(rollup, totals))
        return rebuilt

    def _recounted(self, rollup: Rollup) -> str:
        """SQL: the recounted rows of the days in :days, one for each key and day."""
        keys, sums = f"{rollup.key_columns}, date", rollup.each_measure("sum({name}) as {name}")
        if not self.has_parts:
            return f"select {rollup.columns} from {recount_table(rollup)} where date = any(:days)"
        return f"select {keys}, {sums} from {recount_table(rollup)} where date = any(:days) group by {keys}"

    def _deleted(self, rollup: Rollup, totals: Mapping[date, dict[str, int]]) -> dict[date, dict[str, int]]:
        """Of days from the archive, what the log does not have of them, and the hash of its keys."""
        days = [day for day in totals if day in self.sources]
        if not days:
            return {}
        nothing, log = no_totals(rollup), totals_by_day(self.connection, rollup, days, log_table(rollup))
        tables = recount_table(rollup), log_table(rollup)
        stored, there = (keys_hashes(self.connection, rollup, days, table) for table in tables)
        found = {}
        for day in days:
            held = log.get(day, nothing).measures
            missing = {name: value - held[name] for name, value in totals[day].items()}
            missing[KEYS_HASH] = stored.get(day, 0) - there.get(day, 0)
            found[day] = missing if any(missing.values()) else {}
        return found

    def _rebuilt(self, rollup: Rollup, rows_before: Mapping[date, int]) -> list[DayCount]:
        """What the rebuilt days have in the target now, and the rows they had before."""
        totals = totals_by_day(self.connection, rollup, list(rows_before)) if rows_before else {}
        found = []
        for day in sorted(rows_before):
            keys, measures = totals.get(day, no_totals(rollup))
            source = self.sources.get(day, LOG_ROWS)
            engine = self.engine if day in self.sources else ""
            rows = measures[rollup.count]
            found.append(DayCount(rollup.name, day, rows, measures, keys, "built", rows_before[day], source, engine))
        return found


def _overflowed(connection: Connection, rollup: Rollup, recounted: str, days: list[date]) -> list[SkippedDay]:
    """Those of the recounted days with a value that its column cannot hold, and the first such value."""
    return [
        SkippedDay(rollup.name, each.day, "overflow", 0, 0, 0, f"{each}. {each.advice}", each.as_dict())
        for each in overflow.misfits(connection, rollup, recounted, {"days": days})
    ]


def _differing(connection: Connection, rollup: Rollup, recounted: str, days: list[date]) -> set[date]:
    """Those of the days of which any stored row is not a recounted one, or the other way round."""
    differs = rollup.each_measure("stored.{name} is distinct from counted.{name}", " or ")
    statement = f"""
    select distinct date
    from (select {rollup.columns} from {rollup.name} where date = any(:days)) stored
         full join ({recounted}) counted using ({rollup.key_columns}, date)
    where {differs}
    """
    connection.execute(WHOLE_DAYS)
    found = set(connection.execute(text(statement), {"days": days}).scalars())
    connection.execute(NEW_ROWS)
    return found


def _replace(connection: Connection, rollup: Rollup, recounted: str, days: list[date]) -> None:
    """Puts the recounted days in the place of the stored ones; keys that vanished disappear."""
    if days:
        connection.execute(text(f"delete from {rollup.name} where date = any(:days)"), {"days": days})
        _insert(connection, rollup, recounted, days)


def _insert(connection: Connection, rollup: Rollup, recounted: str, days: list[date], otherwise: str = "") -> None:
    """Writes the recounted rows of these days; `otherwise` is what happens to keys that are there.

    In the order of the keys: readers find a publisher's rows of a day in one or two pages, not in one page each.
    """
    statement = f"""
    insert into {rollup.name} ({rollup.columns})
    select {rollup.columns} from ({recounted}) recounted order by date, {rollup.key_columns}
    {otherwise}
    """
    connection.execute(text(statement), {"days": days})


def _note(connection: Connection, db: Database, report: RebuildReport, seconds: float) -> None:
    """A rebuild in the journal, with rows before and after per day and rollup; decisions have entries of their own."""
    done: dict[date, dict[str, Any]] = {}
    for day in report.rebuilt:
        where = {"source": day.source, "engine": day.engine} if day.engine else {}
        done.setdefault(day.day, {})[day.rollup] = {"before": day.rows_before, "after": day.rows, **where}
    if done:
        journal.note(connection, db.log, "rebuild", days=done, rows=report.rows, seconds=seconds)
    if refused := _new_refusals(connection, db, report.failed):
        journal.note(connection, db.log, "refuse", days=refused)
    for operation, reason in (("deletion", "announced"), ("keep", "keep")):
        kept: dict[date, dict[str, Any]] = {}
        for each in report.kept:
            if each.reason == reason:
                numbers = {"log_rows": each.log_rows, "counted": each.counted_rows, "deleted": each.deleted_rows}
                kept.setdefault(each.day, {})[each.rollup] = numbers
        if kept:
            journal.note(connection, db.log, operation, days=kept)


def _new_refusals(
    connection: Connection, db: Database, failed: Sequence[SkippedDay]
) -> dict[date, dict[str, dict[str, Any]]]:
    """Why each day and rollup was refused; without those that the archive refused for the same reason the last time."""
    archived = [each.day for each in failed if each.reason == "archive"]
    last = journal.last_outcomes(connection, db.log, archived) if archived else {}
    found: dict[date, dict[str, dict[str, Any]]] = {}
    for each in failed:
        why = {"detail": each.detail} if each.reason == "archive" else each.misfit
        done = {"refused": each.reason, **why}
        if each.reason != "archive" or last.get((str(each.day), each.rollup)) != done:
            found.setdefault(each.day, {})[each.rollup] = done
    return found
