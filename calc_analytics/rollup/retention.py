"""Retention: deletes log rows that are counted in built days of every rollup, and only those; statistics stay.

A batch is one transaction that holds the state's lock: what it deletes is visible in the stored snapshot, so it is
counted, and what it deleted is noted with the day of every rollup at the same commit. A day is proven before its first
row is deleted, and its statistics get a checksum: afterwards the log can no longer prove each key. Where days are
archived, only archived rows are deleted, after the archive was compared with the log. A partition of the log all of
whose rows may be deleted is dropped instead (`dropping.py`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial

from sqlalchemy import text

from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.log_partitions import Partition
from calc_analytics.database.retries import retry_transient
from calc_analytics.rollup import journal, ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.dropping import (
    NOT_COUNTED,
    NOT_PROVEN,
    WRITTEN_TO,
    DaysBefore,
    DropResult,
    drop_partition,
    droppable,
)
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.reports import PruneReport
from calc_analytics.rollup.snapshot import visible
from calc_analytics.rollup.verify import verify
from calc_analytics.rollup.windows import Window, of_day, windows

# The lock is held for some tens of milliseconds per batch.
BATCH_ROWS = 5_000
# Rows that are committed while a partition is proven are counted, and the partition is tried again.
DROP_ATTEMPTS = 3
# Rows that arrive during a proof leave the day without a checksum: it is proven again.
CHECKSUM_ATTEMPTS = 5


def prunable(db: Database, before: date) -> dict[date, int]:
    """Days before that one, built in every rollup, whose counted log rows are there, and how many. Reads the ledger."""
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        return ledger.prunable_days(connection, db.log, before)


def not_built(db: Database, before: date) -> list[date]:
    """Days before that one that are on record, but not built in every rollup: their log rows stay until they are."""
    days = ledger.days_by_status(db, ["pending", "stale", "overflow", "frozen"])
    return [day for day in days if day < before]


def not_archived(db: Database, before: date) -> list[date]:
    """Days before that one with counted log rows that are not archived, if days are archived: their log rows stay."""
    if db.archive_url is None:
        return []
    with transaction(db.engine) as connection:
        there = ledger.prunable_days(connection, db.log, before)
        return [day for day in ledger.days_to_archive(connection, db.log, before) if day in there]


def days_before(db: Database, before: date) -> DaysBefore:
    """What is known of the days before that one that decides which partitions may be dropped. Reads the ledger."""
    with transaction(db.engine) as connection:
        (limit,) = windows(connection, [before], db.timezone)
    unarchived = not_archived(db, before)
    there = {day: rows for day, rows in prunable(db, before).items() if day not in unarchived}
    return DaysBefore(before, limit.begin, there, not_built(db, before), unarchived)


def prune(
    db: Database,
    before: date,
    *,
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[int], object] = lambda rows: None,
    prove_archived: Callable[[date], str | None] | None = None,
    only_partitions: bool = False,
) -> PruneReport:
    """Deletes the counted log rows of built days before that one, in batches; may be stopped and repeated.

    `progress` gets the rows of each batch. Rows that are not counted yet, days that are not built in every rollup, and
    days that differ from the log keep theirs. With an `archive_url`, `prove_archived` is required: it returns why the
    day's files do not have its log rows, or None if they do. Partitions all of whose rows may be deleted are dropped;
    with `only_partitions` nothing else is deleted. Transient errors are retried; a batch whose commit was lost with its
    connection is not in the report.
    """
    if db.archive_url is not None and prove_archived is None:
        raise ValueError("days are archived: prove_archived is required")
    started, work = time.perf_counter(), _Pruning(db, batch_rows, progress, prove_archived)
    work.drop_partitions(before)
    days = [] if only_partitions else retry_transient(partial(work.days_to_delete, before))
    for span in retry_transient(partial(_windows, db, days)):
        retry_transient(partial(work.prune_day, span))
    return work.report(before, time.perf_counter() - started)


@dataclass
class _Pruning:
    """One prune: what it has deleted so far, and the days and partitions that it left."""

    db: Database
    batch_rows: int
    progress: Callable[[int], object]
    prove_archived: Callable[[date], str | None] | None
    deleted: dict[date, int] = field(default_factory=dict)
    different: set[date] = field(default_factory=set)
    refused: dict[date, str] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    busy: list[Partition] = field(default_factory=list)
    proven: set[date] = field(default_factory=set)

    def drop_partitions(self, before: date) -> None:
        """Drops the partitions all of whose rows may be deleted."""
        found, left = retry_transient(partial(droppable, self.db, self.days_before(before)))
        self.kept.update(left)
        for partition in found:
            self._note_dropped(partition, self.drop(partition, before))

    def days_before(self, before: date) -> DaysBefore:
        """What is known of the days now."""
        return retry_transient(partial(days_before, self.db, before))

    def drop(self, partition: Partition, before: date) -> DropResult:
        """Drops the partition, once its days are proven. Rows that have come meanwhile are counted first."""
        done = DropResult()
        for _ in range(DROP_ATTEMPTS):
            now = self.days_before(before)
            if reason := now.obstacle(partition, self.db.timezone):
                return DropResult(reason=reason)
            of_days = now.days_of(partition, self.db.timezone)
            if wrong := [day for day in of_days if not retry_transient(partial(self.is_proven, day))]:
                return DropResult(reason=f"{wrong[0]} is not proven")
            done = drop_partition(self.db, partition, of_days)
            if done.reason not in (NOT_COUNTED, NOT_PROVEN, WRITTEN_TO):
                break
            self.proven.difference_update(of_days)
            if done.reason != NOT_PROVEN:
                refresh(self.db)
        return done

    def report(self, before: date, seconds: float) -> PruneReport:
        """What was deleted, and what was left."""
        return PruneReport(
            {day: rows for day, rows in sorted(self.deleted.items()) if rows},
            retry_transient(partial(not_built, self.db, before)),
            seconds,
            sorted(self.different),
            retry_transient(partial(not_archived, self.db, before)),
            self.refused,
            self.dropped,
            self.kept,
            [each.name for each in self.busy],
        )

    def _note_dropped(self, partition: Partition, done: DropResult) -> None:
        for day, rows in done.rows_by_day.items():
            self._note(day, rows)
        if done.reason is None or done.rows:
            self.dropped[partition.name] = done.rows
        if done.reason is not None:
            self.kept[partition.name] = done.reason
        if done.is_busy:
            self.busy.append(partition)

    def days_to_delete(self, before: date) -> list[date]:
        """The days whose log rows are to be deleted one by one, after partitions were dropped."""
        now = days_before(self.db, before)
        left = {
            *self.different,
            *self.refused,
            *(day for each in self.busy for day in now.days_of(each, self.db.timezone)),
        }
        return [day for day in now.prunable if day not in left]

    def is_proven(self, day: date) -> bool:
        """Whether the archive of the day, and its statistics, are what they should be; gives it checksums."""
        if day in self.proven:
            return True
        if self.prove_archived is not None and (reason := self.prove_archived(day)):
            self.refused[day] = reason
            return False
        if not _is_provable(self.db, day):
            self.different.add(day)
            return False
        self.proven.add(day)
        return True

    def prune_day(self, span: Window) -> None:
        """Proves the day, and deletes its counted log rows."""
        if self.is_proven(span.day):
            for ids in _batches(self.db, span, self.batch_rows):
                self._note(span.day, _delete_counted(self.db, span, ids))

    def _note(self, day: date, rows: int) -> None:
        self.deleted[day] = self.deleted.get(day, 0) + rows
        self.progress(rows)


def _is_provable(db: Database, day: date) -> bool:
    """Whether the day equals its log in every rollup now; gives it checksums.

    An older proof does not count: statistics that were changed since could not be corrected without the log rows.
    """
    for _ in range(CHECKSUM_ATTEMPTS):
        report = verify(db, [day], with_checksum=True)
        if not report.days or not all(proof.is_proven for proof in report.days):
            return False
        with transaction(db.engine) as connection:
            known = ledger.entries(connection, db.log.rollups, [day]).values()
        if all(each.has_checksum for each in known):
            return True
    return False


def _windows(db: Database, days: list[date]) -> list[Window]:
    with transaction(db.engine) as connection:
        return windows(connection, days, db.timezone)


def _batches(db: Database, span: Window, size: int) -> Iterator[Sequence[int]]:
    """The ids of a day's rows, from one scan of it."""
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        connection.execute(WHOLE_DAYS)
        statement = text(f"select id from {db.log.name} where {of_day(db.log.event_time, span)}")
        parameters = {**span.parameters(), "tz": db.timezone}
        found = connection.execution_options(stream_results=True).execute(statement, parameters)
        yield from found.scalars().partitions(size)


def _delete_counted(db: Database, span: Window, ids: Sequence[int]) -> int:
    """Of these rows of a day, deletes those that are counted, and notes them with every rollup; returns how many."""
    started, statement = time.perf_counter(), text(_delete_sql(db, of_day(db.log.event_time, span)))
    with transaction(db.engine) as connection:
        ledger.keep_out_rebuilds(connection, db.log)
        deletable = ledger.lock(connection, db).snapshot
        if db.archive_url is not None:
            archived = ledger.archived_days(connection, db.log, [span.day]).get(span.day)
            if archived is None or archived.snapshot is None:
                return 0
            deletable = archived.snapshot
        parameters = {"tz": db.timezone, "ids": ids, **span.parameters(), **deletable.bind("s1")}
        parameters.update(rollups=db.log.names, number=len(db.log.names))
        rows = int(connection.execute(statement, parameters).scalar_one())
        if rows:
            journal.note_summed(connection, db.log, "prune", span.day, rows, time.perf_counter() - started)
        return rows


def _delete_sql(db: Database, is_of_day: str) -> str:
    """Each measure of the deleted rows, and the hash of their keys, is added to what is recorded as deleted of the day.

    Nothing is deleted unless the day is built in every rollup, differs in none, and its rows have checksums.
    """
    totals = "".join(
        f""",
    part_{n} as (select {rollup.key_selects}, {rollup.measure_selects} from gone group by {rollup.group_by}),
    total_{n} as (
        select sum({rollup.count}) as rows, {ledger.totals_with_keys(rollup)} as totals
        from part_{n}
    ),
    {ledger.deleted_cte(rollup, f"noted_{n}", f"total_{n}.totals", f"total_{n}")}"""
        for n, rollup in enumerate(db.log.rollups)
    )
    return f"""
    with gone as (
        delete from {db.log.name}
        where id = any(:ids) and {is_of_day} and {visible("s1")}
          and {ledger.is_prunable_sql(db.log)}
        returning {", ".join(db.log.reads)}
    ){totals}
    select count(*) from gone
    """
