"""Archives days: writes the counted log rows that are not in the archive yet into a file, and publishes a manifest.

A day is one transaction in which no log row of it is deleted. The rows are those that are visible in the stored
snapshot, as they are counted, and not in the one up to which the day is archived. They must be as many as were counted,
else no file appears. Order: the file's name is noted in the database, the file is written, the manifest is published,
the transaction commits. After a kill at any moment the state that was committed last is valid.
"""

import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from enum import Enum
from functools import partial
from itertools import chain

import pyarrow
from sqlalchemy.engine import Connection

from calc_analytics.archive.checking import (
    compare_with_log,
    proven_manifest,
    rows_missing_in_log,
    unarchived_tables,
    visible_rows,
)
from calc_analytics.archive.manifest import (
    ArchivedFile,
    DamagedArchive,
    Manifest,
    folder_of,
    known_manifest,
    name_of_manifest,
    next_number,
)
from calc_analytics.archive.place import Archive
from calc_analytics.archive.report import ArchiveReport, DayArchived, DayNotArchived
from calc_analytics.archive.rows import RowReader, description, parquet_writer
from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.retries import retry_transient
from calc_analytics.days import today
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup import journal, ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.ledger import ArchivedDay, CountedDay
from calc_analytics.rollup.snapshot import BEFORE_ANY, Snapshot, visible
from calc_analytics.rollup.windows import Window

# What the journal calls the archive, where it names rollups.
NAME = "archive"


class Replacing(Enum):
    """Whether a day's files are written anew from the log, though nothing new is counted."""

    NO = "no"
    WHOLE = "if the log has all of their rows"
    ALLOW_SHRINK = "even if the log has no longer all of them"


class _NotArchived(Exception):
    """The day is left as it is."""

    def __init__(self, day: DayNotArchived) -> None:
        super().__init__(str(day))
        self.day = day


def archive(
    place: Archive,
    days: Sequence[date] | None = None,
    *,
    replacing: Replacing = Replacing.NO,
    progress: Callable[[int], object] = lambda rows: None,
) -> ArchiveReport:
    """Archives these days (None: all that are over, built, and not archived whole); safe to repeat and to stop.

    `replacing`: whether files are written anew from the log. `progress` gets the rows of each batch. Days that cannot
    be archived are left and named. Raises `CannotUseArchive`, `NoArchive`, `CannotArchiveColumn`.
    """
    started = time.perf_counter()
    report = ArchiveReport(place.store.address.shown, [], [], [], 0.0)
    for day in retry_transient(partial(_days_without_snapshot, place, days)):
        try:
            found = retry_transient(partial(_find_archived_rows, place, day, progress))
        except DamagedArchive as refused:
            report.left.append(DayNotArchived(day, "damaged", detail=str(refused)))
        else:
            report.archived.extend([] if found is None else [found])
    damaged = {left.day for left in report.left}
    wanted = retry_transient(partial(_days_to_archive, place)) if days is None else sorted(set(days))
    for day in (day for day in wanted if day not in damaged):
        try:
            done = retry_transient(partial(_archive_day, place, day, replacing, progress))
        except _NotArchived as reason:
            report.left.append(reason.day)
        except DamagedArchive as refused:
            report.left.append(DayNotArchived(day, "damaged", detail=str(refused)))
        else:
            if done is not None:
                report.archived.append(done)
            elif all(day != each.day for each in report.archived):
                report.unchanged.append(day)
            if done is not None and (failure := delete_old_files(place, day)):
                report.left.append(DayNotArchived(day, "old_files", detail=failure))
    return ArchiveReport(report.place, report.archived, report.unchanged, report.left, elapsed(started))


def rows_to_drop(place: Archive, days: Sequence[date]) -> dict[date, int]:
    """How many archived rows `Replacing.ALLOW_SHRINK` would drop of each day, because the log does not have them.

    Days that cannot be archived drop none. Of a day with a file that cannot be read it is all rows.
    """
    found = {day: retry_transient(partial(_rows_to_drop, place, day)) for day in sorted(set(days))}
    return {day: rows for day, rows in found.items() if rows}


def _rows_to_drop(place: Archive, day: date) -> int:
    with place.turn() as connection:
        record = place.record(connection, day)
        try:
            known = known_manifest(place.store, place.db, record)
            return _Work(place, connection, place.window(connection, day), record, known).rows_to_drop()
        except (_NotArchived, DamagedArchive):
            return 0


def _days_without_snapshot(place: Archive, days: Sequence[date] | None) -> list[date]:
    with transaction(place.db.engine) as connection:
        ledger.read(connection, place.db)
        records = ledger.archived_days(connection, place.db.log, days).values()
    return [each.day for each in records if each.manifest is not None and each.snapshot is None]


def _find_archived_rows(place: Archive, day: date, progress: Callable[[int], object]) -> DayArchived | None:
    """After a rebase: records that the day's log rows from before it are archived, if its files have all of them.

    They are compared by their ids and values, whether the day is built or not: with the snapshot it can be rebuilt from
    the archive. The files stay as they are. Late rows that were not archived before the rebase become a further file,
    if everything that was counted is there then; returns this.
    """
    with place.turn() as connection:
        record = place.record(connection, day)
        if record.manifest is None or record.snapshot is not None:
            return None
        known, span = proven_manifest(place, record), place.window(connection, day)
        found, done = compare_with_log(place, connection, span, known, BEFORE_ANY), None
        if found.changed or (found.unknown and not _completes(connection, place.db, span, record, found.unknown)):
            return None
        if found.unknown:
            place.delete_leftovers(record)
            done = _Work(place, connection, span, record, known).add_late_rows(found.unknown, progress)
        else:
            ledger.record_snapshot(connection, place.db.log, day, BEFORE_ANY)
        record_balance(place, connection, day)
        return done


def _completes(connection: Connection, db: Database, span: Window, record: ArchivedDay, rows: int) -> bool:
    """Whether so many log rows from before a rebase are all that the archive lacks of what was counted until then."""
    state = ledger.counted_day(connection, db, span.day)
    known = ledger.entries(connection, db.log.rollups, [span.day]).values()
    counts = {each.name: each.count for each in db.log.rollups}
    if state.counted:
        since, counted = ledger.unarchived_rows(connection, db, span, state.snapshot, BEFORE_ANY), state.counted
    else:
        since, counted = 0, {each.rollup: (each.counted or {}).get(counts[each.rollup], 0) for each in known}
    return not record.erased and {*counted.values()} == {record.accounted + rows + since}


def _days_to_archive(place: Archive) -> list[date]:
    with transaction(place.db.engine) as connection:
        ledger.read(connection, place.db)
        return ledger.days_to_archive(connection, place.db.log, today(place.db.timezone))


def _archive_day(
    place: Archive, day: date, replacing: Replacing, progress: Callable[[int], object]
) -> DayArchived | None:
    """Archives what is not archived of the day; None if that is nothing."""
    if day >= today(place.db.timezone):
        raise _NotArchived(DayNotArchived(day, "not_over"))
    with place.turn() as connection:
        record = place.record(connection, day)
        known = known_manifest(place.store, place.db, record)
        place.delete_leftovers(record)
        return _Work(place, connection, place.window(connection, day), record, known).archive(replacing, progress)


def delete_old_files(place: Archive, day: date) -> str | None:
    """Deletes the files that the manifest, published just now, no longer names; why that failed, else None.

    What was published is valid without it, and the next archiving or erasure of the day deletes them.
    """
    try:
        retry_transient(partial(_delete_old_files, place, day))
    except CalcAnalyticsError as error:
        return str(error)
    return None


def _delete_old_files(place: Archive, day: date) -> None:
    with place.turn() as connection:
        place.delete_leftovers(place.record(connection, day))


@dataclass(frozen=True)
class _Work:
    """One day that is being archived, in a transaction that keeps out others."""

    place: Archive
    connection: Connection
    span: Window
    record: ArchivedDay
    known: Manifest | None

    def archive(self, replacing: Replacing, progress: Callable[[int], object]) -> DayArchived | None:
        """Writes and publishes what is missing; None if that is nothing."""
        started, counted = time.perf_counter(), self._require_counted()
        if self.record.erased and replacing is Replacing.NO:
            raise _NotArchived(
                DayNotArchived(self.span.day, "to_be_erased", detail=" and of ".join(self.record.erased))
            )
        is_whole = replacing is not Replacing.NO or self.known is None or self.record.snapshot is None
        if not self._has_work(counted, is_whole):
            return None
        if is_whole and self.known is not None and replacing is not Replacing.ALLOW_SHRINK:
            self._require_copy(counted.snapshot)
        base = () if is_whole or self.known is None else self.known.files
        require = partial(self._require_as_counted, counted, is_whole)
        file = self._write(counted.snapshot, base, is_whole, require, progress)
        missing = require(file.rows)
        files = (*base, file) if file.rows else base
        log, timezone = self.place.db.log.name, self.place.db.timezone
        manifest = Manifest(log, self.span.day, timezone, counted.snapshot.text, missing, tuple(files))
        erased = {} if is_whole else self.record.erased
        publish(self.place, self.connection, manifest, counted.snapshot, self.known, erased)
        if self.record.difference:
            record_balance(self.place, self.connection, self.span.day)
        done = DayArchived(self.span.day, file.rows, file.bytes, len(files), manifest.rows, missing, elapsed(started))
        self._note(done)
        return done

    def add_late_rows(self, rows: int, progress: Callable[[int], object]) -> DayArchived:
        """Writes the log rows from before a rebase that are in no file into a further one; `rows` as counted before."""
        assert self.known is not None
        started = time.perf_counter()
        tables = unarchived_tables(self.place, self.connection, self.span, self.known, BEFORE_ANY)
        file = write_file(self.place, self.span.day, next_number(self.known.files), tables, progress=progress)
        assert file.rows == rows, f"{file.rows} late rows of {self.span.day} instead of {rows}"
        manifest = replace(self.known, snapshot=BEFORE_ANY.text, files=(*self.known.files, file))
        publish(self.place, self.connection, manifest, BEFORE_ANY, self.known, {})
        done = DayArchived(
            self.span.day, rows, file.bytes, len(manifest.files), manifest.rows, manifest.missing, elapsed(started)
        )
        self._note(done)
        return done

    def rows_to_drop(self) -> int:
        """How many rows of the day's files the log does not have; all, if they cannot be read."""
        if self.known is None:
            return 0
        snapshot = self._require_counted().snapshot
        try:
            return rows_missing_in_log(self.place, self.connection, self.span, self.known, snapshot)
        except DamagedArchive:
            return self.known.rows

    def _has_work(self, counted: CountedDay, is_whole: bool) -> bool:
        """Whether rows are counted of the day that are not archived, or it is to be written anew."""
        if self.known is None or not counted.counted:
            return any(counted.counted.values())
        return is_whole or counted.counted[self._first] != self.record.accounted

    @property
    def _first(self) -> str:
        return self.place.db.log.names[0]

    def _require_counted(self) -> CountedDay:
        """What is counted of the day; raises unless it is built in every rollup, and differs in none."""
        counted = ledger.counted_day(self.connection, self.place.db, self.span.day)
        is_unbuilt = counted.unbuilt or (self.record.accounted and not counted.counted)
        if is_unbuilt or counted.differing:
            reason = "not_built" if is_unbuilt else "differs"
            raise _NotArchived(DayNotArchived(self.span.day, reason))
        return counted

    def _require_copy(self, snapshot: Snapshot) -> None:
        """Raises unless the log has every row of the day's files, which are about to be replaced."""
        assert self.known is not None
        gone = rows_missing_in_log(self.place, self.connection, self.span, self.known, snapshot)
        if gone:
            raise _NotArchived(DayNotArchived(self.span.day, "only_copy", rows=gone))

    def _write(
        self,
        snapshot: Snapshot,
        base: Sequence[ArchivedFile],
        is_whole: bool,
        require: Callable[[int], object],
        progress: Callable[[int], object],
    ) -> ArchivedFile:
        """Writes the rows that are visible in the snapshot, and not archived, into a new file."""
        reader = RowReader.of(self.connection, self.place.db.log)
        condition, parameters = visible_rows(self.place, self.span, snapshot)
        if not is_whole:
            assert self.record.snapshot is not None
            condition += f" and not ({visible('s0')})"
            parameters.update(self.record.snapshot.bind("s0"))
        self.connection.execute(WHOLE_DAYS)
        tables = reader.tables(self.connection, condition, parameters)
        return write_file(self.place, self.span.day, next_number(base), tables, require, progress)

    def _require_as_counted(self, counted: CountedDay, is_whole: bool, rows: int) -> int:
        """How many counted rows are in no file; raises unless the new file has as many rows as it must have."""
        for name, of_rollup in counted.counted.items():
            if is_whole:
                expected = of_rollup - counted.deleted[name]
                is_right = rows == expected
            else:
                expected = of_rollup - self.record.accounted
                is_right = 0 <= expected - rows <= self._may_be_missing(counted.deleted[name], expected - rows)
            if not is_right:
                raise _NotArchived(DayNotArchived(self.span.day, "counts", rows, expected))
        return counted.deleted[self._first] if is_whole else counted.counted[self._first] - self.record.rows - rows

    def _may_be_missing(self, deleted: int, vanished: int) -> int:
        """How many more rows may have been deleted before they were archived. Those that were deleted after it are no
        reason for a row to be in no file."""
        if not vanished:
            return 0
        assert self.record.snapshot is not None
        still_there = ledger.count_visible_rows(self.connection, self.place.db, self.span, self.record.snapshot)
        return deleted - (self.record.rows - still_there) - self.record.missing

    def _note(self, done: DayArchived) -> None:
        """The entry in the journal."""
        of_day = {NAME: {"rows": done.rows, "bytes": done.bytes, "files": done.files}}
        journal.note(
            self.connection,
            self.place.db.log,
            "archive",
            days={done.day: of_day},
            rows=done.rows,
            seconds=done.seconds,
            detail=self.place.store.address.shown,
        )


def elapsed(started: float) -> float:
    """Seconds since then."""
    return time.perf_counter() - started


def note_new_file(place: Archive, day: date, number: int) -> str:
    """The name of the day's next file, noted in the database.

    Without a file too: the manifest that follows is then known as this operation's, if it is killed.
    """
    name = f"{place.db.log.name}-{uuid.uuid4().hex[:8]}-{number:03}.parquet"
    with transaction(place.db.engine) as connection:
        ledger.note_leftovers(connection, place.db.log, day, [f"{folder_of(day)}/{name}"])
    return name


def write_file(
    place: Archive,
    day: date,
    number: int,
    tables: Generator[pyarrow.Table, None, None],
    require: Callable[[int], object] = lambda rows: None,
    progress: Callable[[int], object] = lambda rows: None,
) -> ArchivedFile:
    """Writes the tables into a new file of the day, whose name is noted in the database first. Without rows there is
    no file, nor if `require`, which gets the number of rows, raises."""
    log, rows = place.db.log, 0
    # Closed on an error too: PostgreSQL is asked to stop sending rows, before its transaction ends.
    with closing(tables):
        first = next(tables, None)
        if first is None:
            require(0)
        name = note_new_file(place, day, number)
        if first is None:
            return ArchivedFile(name, 0, 0, "")
        path = f"{folder_of(day)}/{name}"
        with place.store.new_file(path) as file:
            with parquet_writer(file, log, first.schema) as writer:
                writer.add_key_value_metadata(description(log, day, place.db.timezone))
                for table in chain([first], tables):
                    writer.write_table(table, row_group_size=table.num_rows)
                    rows += table.num_rows
                    progress(table.num_rows)
            require(rows)
    return ArchivedFile(name, rows, file.bytes, file.sha256)


def record_balance(place: Archive, connection: Connection, day: date) -> None:
    """Records, after a change of the day's archive, whether its rows add up to what was counted."""
    connection.execute(WHOLE_DAYS)
    found = ledger.balance(connection, place.db, place.window(connection, day))
    if found is not None:
        ledger.record_balance(connection, place.db.log, found)


def publish(
    place: Archive,
    connection: Connection,
    manifest: Manifest,
    snapshot: Snapshot | None,
    known: Manifest | None,
    erased: Mapping[str, int],
) -> None:
    """Publishes the manifest, and records it in the caller's transaction.

    Files that only `known`, the manifest before it, names are leftovers from the commit on. `erased`: the rows that are
    still to be erased from the day, as `ArchivedDay` has them.
    The transaction is asked first whether it is still there: without it another process may have the turn.
    """
    ledger.note_leftovers(connection, place.db.log, manifest.day, [])
    old = [] if known is None else [name for name in known.names if name not in manifest.names]
    text = manifest.to_text()
    place.store.publish(name_of_manifest(manifest.day), text.encode())
    ledger.record_archived(
        connection,
        place.db.log,
        ArchivedDay(manifest.day, manifest.rows, manifest.missing, snapshot, text, tuple(old), erased),
    )
