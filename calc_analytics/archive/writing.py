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
from dataclasses import dataclass
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
from calc_analytics.rollup.declaration import KEYS_HASH, Rollup
from calc_analytics.rollup.judge import recount_table
from calc_analytics.rollup.ledger import ArchivedDay, CountedDay, Entry
from calc_analytics.rollup.recount import count_days
from calc_analytics.rollup.snapshot import BEFORE_ANY, Snapshot, visible
from calc_analytics.rollup.totals import keys_hash, no_totals, totals_by_day
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
    late, refused_days = dict[date, DayArchived](), set[date]()
    if replacing is Replacing.NO:
        for day in retry_transient(partial(_days_without_snapshot, place, days)):
            try:
                if found := retry_transient(partial(_find_archived_rows, place, day, progress)):
                    late[day] = found
            except (_NotArchived, DamagedArchive) as refused:
                refused_days.add(day)
                report.left.append(_describe_left(day, refused))
    wanted = retry_transient(partial(_days_to_archive, place)) if days is None else sorted(set(days))
    for day in (day for day in wanted if day not in refused_days):
        try:
            done = retry_transient(partial(_archive_day, place, day, replacing, progress))
        except (_NotArchived, DamagedArchive) as refused:
            left = _describe_left(day, refused)
            report.left.extend([] if day in late and left.reason == "not_built" else [left])
        else:
            if done is not None:
                report.archived.append(done.after(late.pop(day, None)))
                if failure := delete_old_files(place, day):
                    report.left.append(DayNotArchived(day, "old_files", detail=failure))
            elif day not in late:
                report.unchanged.append(day)
    report.archived.extend(late.values())
    return ArchiveReport(report.place, report.archived, report.unchanged, report.left, elapsed(started))


def _describe_left(day: date, refused: "_NotArchived | DamagedArchive") -> DayNotArchived:
    return refused.day if isinstance(refused, _NotArchived) else DayNotArchived(day, "damaged", detail=str(refused))


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
    """After a rebase: finds which of the day's log rows are archived; see `_Work.find_archived_rows`."""
    with place.turn() as connection:
        record = place.record(connection, day)
        if record.manifest is None or record.snapshot is not None:
            return None
        work = _Work(place, connection, place.window(connection, day), record, proven_manifest(place, record))
        return work.find_archived_rows(progress)


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
        done = self._publish(started, base, file, counted.snapshot, missing, {} if is_whole else self.record.erased)
        if self.record.difference:
            record_balance(self.place, self.connection, self.span.day)
        return done

    def find_archived_rows(self, progress: Callable[[int], object]) -> DayArchived | None:
        """After a rebase: records that the day's log rows from before it are archived, if its files have all of them.

        They are compared by their ids and values, whether the day is built or not: with the snapshot it can be rebuilt
        from the archive. The files stay as they are. Late rows that were not archived before the rebase become a
        further file, if log and archive are what was counted until then; returns this.
        """
        assert self.known is not None
        found, done = compare_with_log(self.place, self.connection, self.span, self.known, BEFORE_ANY), None
        if found.changed:
            return None
        if found.unknown:
            missing = self._missing_beside(found.unknown)
            if missing is None:
                return None
            done = self._add_late_rows(found.unknown, missing, progress)
        else:
            ledger.record_snapshot(self.connection, self.place.db.log, self.span.day, BEFORE_ANY)
        record_balance(self.place, self.connection, self.span.day)
        return done

    def _missing_beside(self, late: int) -> int | None:
        """How many counted rows are in no file, once so many log rows from before a rebase are archived.

        None unless the log has what was counted and is not deleted, in every measure and key, and the archive has the
        rest: then these rows are counted ones. An erasure that is owed leaves nothing else missing.
        """
        db, day = self.place.db, self.span.day
        at, known = ledger.read(self.connection, db).snapshot, ledger.entries(self.connection, db.log.rollups, [day])
        whole = {each.rollup: each for each in known.values() if each.is_whole_in(db.timezone)}
        if built := {name: each for name, each in whole.items() if each.status == "built"}:
            whole, late = built, late + ledger.unarchived_rows(self.connection, db, self.span, at, BEFORE_ANY)
        else:
            at = BEFORE_ANY
        rollups = [each for each in db.log.rollups if each.name in whole]
        count_days(self.connection, db, rollups, [self.span], at)
        if not all(self._log_is_as_counted(each, whole[each.name]) for each in rollups):
            return None
        counted = {(whole[each.name].counted or {})[each.count] for each in rollups}
        owed = sum(self.record.erased.values())
        missing = counted.pop() + owed - self.record.rows - late if len(counted) == 1 else -1
        is_explained = missing == self.record.missing if owed else missing >= self.record.missing
        return missing if is_explained else None

    def _log_is_as_counted(self, rollup: Rollup, entry: Entry) -> bool:
        """Whether the log rows that `count_days` has counted are those of the day that are counted and not deleted."""
        day, table, deleted = self.span.day, recount_table(rollup), entry.deleted or {}
        log = totals_by_day(self.connection, rollup, [day], table).get(day, no_totals(rollup)).measures
        if entry.is_different or {name: log[name] + deleted.get(name, 0) for name in log} != entry.counted:
            return False
        if KEYS_HASH not in deleted:
            return True
        there = keys_hash(self.connection, rollup, day, table)
        return there + deleted[KEYS_HASH] == keys_hash(self.connection, rollup, day)

    def _add_late_rows(self, late: int, missing: int, progress: Callable[[int], object]) -> DayArchived:
        """Writes the log rows from before a rebase that are in no file into a further one."""

        def require(rows: int) -> None:
            if rows != late:
                raise _NotArchived(DayNotArchived(self.span.day, "counts", rows, late))

        assert self.known is not None
        started = time.perf_counter()
        self.place.delete_leftovers(self.record)
        tables = unarchived_tables(self.place, self.connection, self.span, self.known, BEFORE_ANY)
        number = next_number(self.known.files)
        file = write_file(self.place, self.span.day, number, tables, require, progress)
        return self._publish(started, self.known.files, file, BEFORE_ANY, missing, self.record.erased)

    def _publish(
        self,
        started: float,
        base: Sequence[ArchivedFile],
        file: ArchivedFile,
        snapshot: Snapshot,
        missing: int,
        erased: Mapping[str, int],
    ) -> DayArchived:
        """Publishes the manifest with the new file, if it has rows, and notes it in the journal."""
        files = (*base, file) if file.rows else (*base,)
        log, timezone = self.place.db.log.name, self.place.db.timezone
        manifest = Manifest(log, self.span.day, timezone, snapshot.text, missing, files)
        publish(self.place, self.connection, manifest, snapshot, self.known, erased)
        done = DayArchived(self.span.day, file.rows, file.bytes, len(files), manifest.rows, missing, elapsed(started))
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
