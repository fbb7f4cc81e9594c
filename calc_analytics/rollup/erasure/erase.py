"""Erase: deletes the rows of some keys (a publisher) from the log and from the statistics; the opposite of prune.

Day by day. A batch is one transaction that holds the state's lock: the log rows that it deletes are taken out of the
statistics and of the ledger at the same commit, as a refresh would have added them. At the end of a day the rest of the
keys' statistics goes, whose log rows were deleted before; the day's `deleted` falls with it. So both equations hold at
each commit; what differed before differs as much afterwards; an interrupted erasure can be repeated.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.retries import retry_transient
from calc_analytics.database.sql import quote_literal
from calc_analytics.database.tables import READER_TABLES
from calc_analytics.plurals import number
from calc_analytics.rollup import journal, ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.erasure.holdings import Holdings, NothingToErase, holdings, summing
from calc_analytics.rollup.erasure.keys import Keys, day_name, describe_keys, matches, parameters
from calc_analytics.rollup.erasure.quiet import require_quiet, still_open
from calc_analytics.rollup.erasure.report import EraseReport, LeftDay
from calc_analytics.rollup.erasure.take_out import Books, DayLeft
from calc_analytics.rollup.snapshot import Snapshot, between, rows_between
from calc_analytics.rollup.verify import verify
from calc_analytics.rollup.windows import Window, has_no_day, of_day, windows

# The lock is held for some tens of milliseconds per batch.
BATCH_ROWS = 5_000
# While a publisher is still being written, rows that arrive meanwhile are erased this many times in all.
PASSES = 3


def erase(
    db: Database,
    keys: Keys,
    *,
    also: Sequence[Rollup] = (),
    even_if_writing: bool = False,
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[int], object] = lambda rows: None,
) -> EraseReport:
    """Erases all rows with these values of the log's columns from the log and from every rollup; may be repeated.

    `also`: rollups that are not kept, whose tables hold rows from before. Days that differ or wait for a rebuild are
    left as they are. `progress` gets the log rows of each batch. Raises `NothingToErase`, `CannotErase`, and, unless
    `even_if_writing`, `StillWriting`; logs and statistics are unchanged then. Transient errors are retried.
    """
    started = time.perf_counter()
    held = retry_transient(partial(holdings, db, keys, also))
    if not held.tables:
        if computed := retry_transient(partial(_erase_computed, db, keys)):
            rows = ", ".join(f"{number(count, 'row')} of {name}" for name, count in computed.items())
            raise NothingToErase(f"{describe_keys(keys)} has no log rows and no statistics: erased {rows} only")
        raise NothingToErase(f"{describe_keys(keys)} has no log rows and no statistics: nothing was erased")
    if not even_if_writing:
        require_quiet(db, keys)
    work = _Erasure(db, keys, also, batch_rows, progress)
    for _ in range(PASSES):
        work.erase_days(held)
        open_writers = [] if even_if_writing else still_open(db)
        held = retry_transient(partial(holdings, db, keys, also)).without([each.day for each in work.left])
        if not held.tables or not even_if_writing:
            break
    retry_transient(partial(_erase_computed, db, keys))
    seconds = time.perf_counter() - started
    return EraseReport(keys, work.erased, work.left, held.rows(db.log.name), open_writers, seconds)


def _erase_computed(db: Database, keys: Keys) -> dict[str, int]:
    """Deletes the keys' rows of the tables that are computed from statistics; all rows where they have other keys.

    Last: it waits for a computation that may have read the statistics before they were erased. Returns the rows that
    were deleted, by table.
    """
    deleted = {}
    with transaction(db.engine) as connection:
        for table in READER_TABLES:
            condition = matches(keys) if set(keys) <= set(table.columns.keys()) else "true"
            statement = text(f"delete from {table.name} where {condition}")
            deleted[table.name] = connection.execute(statement, parameters(keys)).rowcount
    return {name: rows for name, rows in deleted.items() if rows}


def would_be_left(db: Database, keys: Keys, days: Sequence[date | None]) -> list[LeftDay]:
    """Those of these days that would be left, according to the ledger now; nothing is compared."""
    left = list[LeftDay]()
    with transaction(db.engine) as connection:
        snapshot = ledger.read(connection, db).snapshot
        for day in days:
            try:
                if day is not None:
                    Books(connection, db, keys, snapshot).whole_rollups(day)
            except DayLeft as reason:
                left.append(reason.day)
    return left


class _Erasure:
    """One erasure: what it has erased so far."""

    def __init__(
        self, db: Database, keys: Keys, also: Sequence[Rollup], batch_rows: int, progress: Callable[[int], object]
    ) -> None:
        self.db, self.keys, self.also, self.batch_rows, self.progress = db, keys, also, batch_rows, progress
        self.erased: dict[str, dict[str, int]] = {}
        self.left: list[LeftDay] = []
        self.receipt: int | None = None

    def erase_days(self, held: Holdings) -> None:
        """Erases each of the days; those that cannot be erased are noted in `left`."""
        for day in held.days:
            try:
                retry_transient(self._erase_rows_without_a_day if day is None else partial(self._erase_day, day))
            except DayLeft as reason:
                self.left.append(reason.day)

    def _erase_day(self, day: date) -> None:
        if any(proof.is_different for proof in verify(self.db, [day]).days):
            raise DayLeft(LeftDay(day, "differs"))
        with transaction(self.db.engine) as connection:
            (span,) = windows(connection, [day], self.db.timezone)
            since = Snapshot.now(connection)
        if summing(self.db.log, self.keys):
            with self._books(day) as (books, _):
                books.require_known(span)
        for ids in self._batches(of_day(self.db.log.event_time, span), {**span.parameters(), "tz": self.db.timezone}):
            with self._books(day) as (books, note):
                note(books.take_out_rows(span, ids))
        self._finish_day(span, since)

    def _finish_day(self, span: Window, since: Snapshot) -> None:
        """Erases log rows that arrived during the batches, and the statistics whose log rows were deleted before."""
        with self._books(span.day) as (books, note):
            done = books.take_out_rows(span, self._new_ids(books.connection, span, since))
            books.owe_deleted_rows(span.day)
            for rollup in [*self.db.log.rollups, *self.also]:
                rows = books.delete_statistics(rollup, span.day, is_kept=rollup not in self.also)
                done[rollup.name] = done.get(rollup.name, 0) + rows
            note(done)

    @contextmanager
    def _books(self, day: date | None) -> Iterator[tuple[Books, Callable[[Mapping[str, int]], None]]]:
        """A transaction in which rows are taken out, and a function that notes how many in the receipt."""
        started, noted = time.perf_counter(), dict[str, int]()

        def note(erased: Mapping[str, int]) -> None:
            noted.update({table: rows for table, rows in erased.items() if rows})

        with transaction(self.db.engine) as connection:
            ledger.keep_out_rebuilds(connection, self.db.log)
            yield Books(connection, self.db, self.keys, ledger.lock(connection, self.db).snapshot), note
            if noted:
                seconds = time.perf_counter() - started
                self.receipt = journal.note_erased(
                    connection, self.db.log, self.receipt, describe_keys(self.keys), day_name(day), noted, seconds
                )
        for table, rows in noted.items():
            tables = self.erased.setdefault(day_name(day), {})
            tables[table] = tables.get(table, 0) + rows
        self.progress(noted.get(self.db.log.name, 0))

    def _batches(self, condition: str, parameters_: Mapping[str, Any]) -> Iterator[Sequence[int]]:
        """The ids of the keys' log rows under that condition, from one scan."""
        log = self.db.log
        with transaction(self.db.engine) as connection:
            connection.execute(WHOLE_DAYS)
            statement = text(f"select {log.id_column} from {log.name} where {condition} and {matches(self.keys)}")
            found = connection.execution_options(stream_results=True).execute(
                statement, {**parameters(self.keys), **parameters_}
            )
            yield from found.scalars().partitions(self.batch_rows)

    def _new_ids(self, connection: Connection, span: Window, since: Snapshot) -> Sequence[int]:
        """The ids of the day's rows that were committed since that snapshot. Cost: the rows written since."""
        log = self.db.log
        rows = rows_between(log, f"{log.id_column}, {log.event_time}, {', '.join(self.keys)}")
        statement = (
            f"select {log.id_column} from {rows} l where {of_day(log.event_time, span)} and {matches(self.keys)}"
        )
        span_parameters = {**span.parameters(), "tz": self.db.timezone, **parameters(self.keys)}
        now = between(since, Snapshot.now(connection))
        return connection.execute(text(statement), {**span_parameters, **now}).scalars().all()

    def _erase_rows_without_a_day(self) -> None:
        """Erases log rows at infinity, or beyond the calendar, which are in no statistic."""
        log = self.db.log
        condition = has_no_day(log.event_time, quote_literal(self.db.timezone))
        for ids in self._batches(condition, {}):
            with self._books(None) as (books, note):
                statement = (
                    f"delete from {log.name} where {log.id_column} = any(:ids) and {condition} and {matches(self.keys)}"
                )
                deleted = books.connection.execute(text(statement), {"ids": ids, **parameters(self.keys)}).rowcount
                note({log.name: deleted})
