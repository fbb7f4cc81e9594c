"""Retention: deletes log rows that are counted in built days of every rollup, and only those; statistics stay.

A batch is one transaction that holds the state's lock: what it deletes is visible in the stored snapshot, so it is
counted, and what it deleted is noted with the day of every rollup at the same commit. A day is proven before its first
row is deleted, and its statistics get a checksum: afterwards the log can no longer prove each key. Where days are
archived, only archived rows are deleted, after the archive was compared with the log.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial

from sqlalchemy import text

from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.retries import retry_transient
from calc_analytics.rollup import journal, ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import KEYS_HASH
from calc_analytics.rollup.reports import PruneReport
from calc_analytics.rollup.snapshot import visible
from calc_analytics.rollup.verify import verify
from calc_analytics.rollup.windows import Window, of_day, windows

# The lock is held for some tens of milliseconds per batch.
BATCH_ROWS = 5_000
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


def prune(
    db: Database,
    before: date,
    *,
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[int], object] = lambda rows: None,
    prove_archived: Callable[[date], str | None] | None = None,
) -> PruneReport:
    """Deletes the counted log rows of built days before that one, in batches; may be stopped and repeated.

    `progress` gets the rows of each batch. Rows that are not counted yet, days that are not built in every rollup, and
    days that differ from the log keep theirs. With an `archive_url`, `prove_archived` is required: it returns why the
    day's files do not have its log rows, or None if they do. Transient errors are retried; a batch whose commit was
    lost with its connection is not in the report.
    """
    if db.archive_url is not None and prove_archived is None:
        raise ValueError("days are archived: prove_archived is required")
    started, work = time.perf_counter(), _Pruning(db, batch_rows, progress, prove_archived)
    unarchived = retry_transient(partial(not_archived, db, before))
    days = [day for day in retry_transient(partial(prunable, db, before)) if day not in unarchived]
    for span in retry_transient(partial(_windows, db, days)):
        retry_transient(partial(work.prune_day, span))
    left = retry_transient(partial(not_built, db, before))
    rows_by_day = {day: rows for day, rows in work.deleted.items() if rows}
    seconds = time.perf_counter() - started
    return PruneReport(rows_by_day, left, seconds, sorted(work.different), unarchived, work.refused)


@dataclass
class _Pruning:
    """One prune: what it has deleted so far, and the days that it left."""

    db: Database
    batch_rows: int
    progress: Callable[[int], object]
    prove_archived: Callable[[date], str | None] | None
    deleted: dict[date, int] = field(default_factory=dict)
    different: set[date] = field(default_factory=set)
    refused: dict[date, str] = field(default_factory=dict)

    def prune_day(self, span: Window) -> None:
        """Proves the day, and deletes its counted log rows."""
        if self.prove_archived is not None and (reason := self.prove_archived(span.day)):
            self.refused[span.day] = reason
            return
        if not _is_provable(self.db, span.day):
            self.different.add(span.day)
            return
        for ids in _batches(self.db, span, self.batch_rows):
            rows = _delete_counted(self.db, span, ids)
            self.deleted[span.day] = self.deleted.get(span.day, 0) + rows
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
        select sum({rollup.count}) as rows, {rollup.totals_json()}
               || jsonb_build_object('{KEYS_HASH}', sum({rollup.keys_hash("{name}")})) as totals
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
