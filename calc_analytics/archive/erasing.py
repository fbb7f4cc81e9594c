"""Takes the rows of some keys (a publisher) out of the archive, after they were erased from log and statistics.

A day's files that hold such rows are written anew without them, a new manifest is published, and the old files are
deleted. Every file is looked into, whatever the statistics say. An interrupted erasure can be repeated: the old files
are noted as leftovers at the commit that publishes the new ones.
"""

import time
from collections.abc import Callable, Collection, Generator
from dataclasses import replace
from datetime import date
from functools import partial

import pyarrow
import pyarrow.compute

from calc_analytics.archive.checking import opened, prove_file
from calc_analytics.archive.manifest import ArchivedFile, DamagedArchive, Manifest, known_manifest, next_number
from calc_analytics.archive.place import Archive
from calc_analytics.archive.report import ArchiveErasure
from calc_analytics.archive.writing import (
    NAME,
    delete_old_files,
    elapsed,
    note_new_file,
    publish,
    record_balance,
    write_file,
)
from calc_analytics.database.engine import transaction
from calc_analytics.database.retries import retry_transient
from calc_analytics.plurals import number
from calc_analytics.rollup import journal, ledger
from calc_analytics.rollup.erasure import Keys, describe_keys


def count_archived(place: Archive, keys: Keys) -> ArchiveErasure:
    """How many rows of the keys are in the files of each day, and the days whose files cannot be read.

    0 for a day of which only old files are still to be deleted, or rows that are in no file to be forgotten.
    """
    with transaction(place.db.engine) as connection:
        ledger.read(connection, place.db)
        records = ledger.archived_days(connection, place.db.log)
    found = ArchiveErasure()
    for day, record in records.items():
        try:
            rows = _rows_of_day(place, keys, day)
        except DamagedArchive as refused:
            found.problems.append(_problem(day, str(refused)))
            continue
        if rows or record.leftovers or describe_keys(keys) in record.erased:
            found.rows[day] = rows
    return found


def erase_archived(
    place: Archive,
    keys: Keys,
    left: Collection[date] = (),
    progress: Callable[[int], object] = lambda rows: None,
) -> ArchiveErasure:
    """Erases the keys' rows from every file; days in `left`, of which log or statistics were left, keep theirs.

    A day with a file that is missing or damaged is a problem; the other days go on. A receipt is in the journal.
    Safe to repeat.
    """
    with transaction(place.db.engine) as connection:
        days = list(ledger.archived_days(connection, place.db.log))
    done, receipt = ArchiveErasure(), None
    for day in days:
        try:
            if day in left:
                if kept := _rows_of_day(place, keys, day):
                    reason = f"its log rows and statistics were left, so {number(kept, 'row')} of it stay: erase again"
                    done.problems.append(_problem(day, reason))
                continue
            rows, receipt = retry_transient(partial(_erase_day, place, keys, day, receipt))
        except DamagedArchive as refused:
            done.problems.append(_problem(day, str(refused)))
            continue
        if rows is not None:
            done.rows[day] = rows
            progress(rows)
        if failure := delete_old_files(place, day):
            done.problems.append(f"{day} of the archive: its old files are still there, so erase again: {failure}")
    return done


def _problem(day: date, reason: str) -> str:
    return f"{day} of the archive was not erased: {reason}"


def _rows_of_day(place: Archive, keys: Keys, day: date) -> int:
    with place.turn() as connection:
        manifest = known_manifest(place.store, place.db, place.record(connection, day))
        return sum(_rows_of(place, name, keys) for name in manifest.names) if manifest is not None else 0


def _erase_day(place: Archive, keys: Keys, day: date, receipt: int | None) -> tuple[int | None, int | None]:
    """Writes the day's files anew where they hold such rows; returns how many rows are gone (None: nothing was to be
    done), and the receipt."""
    started, name = time.perf_counter(), describe_keys(keys)
    with place.turn() as connection:
        record = place.record(connection, day)
        known = known_manifest(place.store, place.db, record)
        place.delete_leftovers(record)
        if known is None:
            return None, receipt
        files = tuple(file for old in known.files for file in _without(place, known, old, keys))
        rows, still_erased = known.rows - sum(file.rows for file in files), dict(record.erased)
        owed = still_erased.pop(name, 0)
        if rows or owed:
            if not rows:
                note_new_file(place, day, next_number(files))
            # Of the keys' rows, those that were in no file are not missing any more.
            gone = owed - rows if 0 <= owed - rows <= known.missing else 0
            manifest = replace(known, files=files, missing=known.missing - gone)
            publish(place, connection, manifest, record.snapshot, known, still_erased)
            record_balance(place, connection, day)
        if rows:
            receipt = journal.note_erased(
                connection, place.db.log, receipt, name, str(day), {NAME: rows}, elapsed(started)
            )
    return rows if rows or owed else None, receipt


def _without(place: Archive, known: Manifest, file: ArchivedFile, keys: Keys) -> list[ArchivedFile]:
    """The file itself if it has no such rows; else one without them, or none."""
    name = known.names[known.files.index(file)]
    if not _rows_of(place, name, keys):
        return [file]
    prove_file(place, known, file, name)
    number = int(file.name.removesuffix(".parquet").rsplit("-", 1)[-1])
    kept = write_file(place, known.day, number, _other_rows(place, name, keys))
    return [kept] if kept.rows else []


def _other_rows(place: Archive, name: str, keys: Keys) -> Generator[pyarrow.Table, None, None]:
    """The file's rows without those of the keys, a row group at a time."""
    with opened(place, name) as file:
        for n in range(file.num_row_groups):
            table = file.read_row_group(n)
            kept = table.filter(pyarrow.compute.invert(_matches(table, keys)))
            if kept.num_rows:
                yield kept


def _rows_of(place: Archive, name: str, keys: Keys) -> int:
    """How many rows of the keys the file holds. Reads their columns alone."""
    found = 0
    with opened(place, name) as file:
        if not keys.keys() <= set(file.schema_arrow.names):
            path = place.store.path(name)
            raise DamagedArchive(f"{path} has other columns or rows than its manifest: this version cannot read it")
        for n in range(file.num_row_groups):
            found += int(pyarrow.compute.sum(_matches(file.read_row_group(n, list(keys)), keys)).as_py() or 0)
    return found


def _matches(table: pyarrow.Table, keys: Keys) -> pyarrow.ChunkedArray:
    """Of each row, whether it is one of the keys'."""
    found = None
    for name, value in keys.items():
        same = pyarrow.compute.fill_null(pyarrow.compute.equal(table.column(name), value), False)
        found = same if found is None else pyarrow.compute.and_(found, same)
    return found
