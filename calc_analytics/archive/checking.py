"""Proves the archive: files against manifests, manifests against the database, and rows against the log.

Nothing is changed. A file that is missing, damaged, or unknown is named.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow
import pyarrow.compute
from pyarrow import parquet
from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.archive.manifest import (
    NAME,
    ArchivedFile,
    DamagedArchive,
    Manifest,
    folder_of,
    known_manifest,
    name_of_manifest,
)
from calc_analytics.archive.place import Archive
from calc_analytics.archive.report import CheckReport
from calc_analytics.archive.rows import KEY, TRANSACTION, RowReader, as_declared, is_readable
from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.rollup import ledger
from calc_analytics.rollup.snapshot import Snapshot, visible
from calc_analytics.rollup.windows import Window, of_day

_BLOCK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Comparison:
    """Rows of a day's files that the log has too, those of them with other values, and log rows without a file."""

    matched: int
    changed: int
    unknown: int


def check(
    place: Archive, days: Sequence[date] | None = None, progress: Callable[[int], object] = lambda rows: None
) -> CheckReport:
    """Proves these archived days (None: all), and that no file is unknown; see the module's docstring."""
    started, problems = time.perf_counter(), list[str]()
    with transaction(place.db.engine) as connection:
        ledger.read(connection, place.db)
        records = ledger.archived_days(connection, place.db.log, days)
    proven, rows, compared = list[date](), 0, 0
    for day in (record.day for record in records.values() if record.manifest is not None):
        with place.turn() as connection:
            try:
                manifest, matched = _check_day(place, connection, place.record(connection, day))
                rows, compared = rows + manifest.rows, compared + matched
                proven.append(day)
                progress(manifest.rows)
            except DamagedArchive as refused:
                problems.append(str(refused))
    problems += [_describe_unknown(place, name) for name in _unknown_files(place, days)]
    return CheckReport(place.store.address.shown, proven, rows, compared, problems, time.perf_counter() - started)


def _check_day(place: Archive, connection: Connection, record: ledger.ArchivedDay) -> tuple[Manifest, int]:
    """Proves a day; returns its manifest and how many of its rows are in the log. Raises `DamagedArchive`."""
    manifest = proven_manifest(place, record)
    span = place.window(connection, record.day)
    balance = ledger.balance(connection, place.db, span)
    if balance is not None and balance.difference:
        raise DamagedArchive(str(balance))
    if record.snapshot is None:
        return manifest, 0
    found = compare_with_log(place, connection, span, manifest, record.snapshot)
    require_equal(place, record.day, found)
    return manifest, found.matched


def prove_day(place: Archive, day: date) -> str | None:
    """Why the day's files do not have its log rows as they are now; None if they have all that are archived.

    What `prune` asks before it deletes them. Raises `CannotUseArchive`.
    """
    try:
        with place.turn() as connection:
            record = place.record(connection, day)
            if record.snapshot is None:
                return f"it is not archived: run 'calc-analytics archive --day {day}'"
            _check_day(place, connection, record)
    except DamagedArchive as refused:
        return str(refused)
    return None


def require_equal(place: Archive, day: date, found: Comparison) -> None:
    """Raises `DamagedArchive` if log rows differ from the archived ones."""
    if found.changed or found.unknown:
        raise DamagedArchive(
            f"{place.store.path(folder_of(day))} differs from the log: {found.changed:,} rows have other values, "
            f"{found.unknown:,} are not in the archive. If log rows were corrected, run 'calc-analytics archive "
            f"--replace --day {day}'"
        )


def proven_manifest(place: Archive, record: ledger.ArchivedDay) -> Manifest:
    """The day's manifest, after every file that it names was proven by its checksum. Raises `DamagedArchive`."""
    manifest = known_manifest(place.store, place.db, record)
    if manifest is None:
        return Manifest(place.db.log.name, record.day, place.db.timezone, None, 0, ())
    for file, name in zip(manifest.files, manifest.names, strict=True):
        prove_file(place, manifest, file, name)
    return manifest


def prove_file(place: Archive, manifest: Manifest, file: ArchivedFile, name: str) -> None:
    """Raises `DamagedArchive` unless the file is the one that was written, by size, checksum and rows."""
    path, read, found = place.store.path(name), 0, hashlib.sha256()
    try:
        with place.store.open(name) as content:
            while block := content.read(_BLOCK):
                read += len(block)
                found.update(block)
    except FileNotFoundError:
        raise DamagedArchive(f"{path} is missing: restore it from a backup of the archive") from None
    if read != file.bytes or found.hexdigest() != file.sha256:
        raise DamagedArchive(
            f"{path} is damaged: {read:,} bytes of another content than the {file.bytes:,} that were written. Restore "
            "it from a backup of the archive"
        )
    with opened(place, name) as content:
        if content.metadata.num_rows != file.rows or not is_readable(content.schema_arrow, place.db.log):
            raise DamagedArchive(f"{path} has other columns or rows than its manifest: this version cannot read it")
        described = json.loads((content.metadata.metadata or {}).get(KEY, b"{}"))
        if (described.get("log"), described.get("date")) != (manifest.log, str(manifest.day)):
            what = f"{described.get('log')}, {described.get('date')}"
            raise DamagedArchive(f"{path} is of {what}: it lies at the wrong place")


@contextmanager
def opened(place: Archive, name: str) -> Iterator[parquet.ParquetFile]:
    """A file of the archive as Parquet. Raises `DamagedArchive`, also while it is read in the block."""
    path = place.store.path(name)
    try:
        with place.store.open(name) as content, _refuse_damage(path):
            with parquet.ParquetFile(content, page_checksum_verification=True) as file:
                yield file
    except FileNotFoundError:
        raise DamagedArchive(f"{path} is missing: restore it from a backup of the archive") from None


@contextmanager
def _refuse_damage(path: str) -> Iterator[None]:
    """Turns what Arrow raises for content that is no Parquet, or has a wrong checksum, into `DamagedArchive`."""
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        # Arrow's own OSError has no number; those of the file system and of the object storage are not the file's.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        reason = " ".join(str(error).split())
        raise DamagedArchive(f"{path} is damaged: {reason}. Restore it from a backup of the archive") from error


def _unknown_files(place: Archive, days: Sequence[date] | None) -> list[str]:
    """Files in the folders of days that neither a manifest nor an unfinished operation names, at two moments: another
    process may write and delete files meanwhile."""
    found = _unknown_now(place, days)
    return sorted(found & _unknown_now(place, days)) if found else []


def _unknown_now(place: Archive, days: Sequence[date] | None) -> set[str]:
    names = place.store.sizes()
    with transaction(place.db.engine) as connection:
        records = ledger.archived_days(connection, place.db.log)
    known = {name for record in records.values() for name in _known_files(record)}
    folders = None if days is None else {folder_of(day) for day in days}
    return {name for name in set(names) - known if _is_of_a_day(name, folders)}


def _known_files(record: ledger.ArchivedDay) -> Iterator[str]:
    """The files that the database names: of the archive, and leftovers."""
    yield from record.leftovers
    if record.manifest is not None or record.leftovers:
        yield name_of_manifest(record.day)
    if record.manifest is not None:
        yield from (f"{folder_of(record.day)}/{file['name']}" for file in json.loads(record.manifest)["files"])


def _is_of_a_day(name: str, folders: Collection[str] | None) -> bool:
    """Whether a file lies where the archive's files are (in one of the folders), and looks like one."""
    folder, _, file = name.partition("/")
    is_ours = folder.startswith("date=") and (file.endswith(".parquet") or file == NAME)
    return is_ours and (folders is None or folder in folders)


def _describe_unknown(place: Archive, name: str) -> str:
    refused = DamagedArchive(
        f"{place.store.path(name)} is unknown: no manifest names it, and it is not part of the archive. Move it away: "
        "programs that read every file of the folder would read it"
    )
    return str(refused)


def compare_with_log(
    place: Archive, connection: Connection, span: Window, manifest: Manifest, snapshot: Snapshot
) -> Comparison:
    """Compares the archived rows with those log rows of the day that are visible in the snapshot, by their ids.

    A row group at a time: cost, and memory, of the rows whose ids lie between its least and its greatest.
    """
    reader, log = RowReader.of(connection, place.db.log), place.db.log
    connection.execute(WHOLE_DAYS)
    condition, parameters = visible_rows(place, span, snapshot)
    matched = changed = 0
    for name in manifest.names:
        with opened(place, name) as file:
            for n in range(file.num_row_groups):
                archived = as_declared(file.read_row_group(n), log)
                ids = archived.column(log.id_column)
                bounds = {"least": ids[0].as_py(), "greatest": ids[-1].as_py()}
                between = f"{condition} and {log.id_column} between :least and :greatest"
                with closing(reader.tables(connection, between, {**parameters, **bounds})) as tables:
                    for table in tables:
                        same, other = _match(archived, table, log.id_column)
                        matched, changed = matched + same, changed + other
    total = connection.execute(text(f"select count(*) from {log.name} where {condition}"), parameters).scalar_one()
    return Comparison(matched + changed, changed, int(total) - matched - changed)


def unarchived_tables(
    place: Archive, connection: Connection, span: Window, manifest: Manifest, snapshot: Snapshot
) -> Generator[pyarrow.Table, None, None]:
    """The day's log rows that are visible in the snapshot and whose ids are in no file; a row group of each at a time.

    To be closed before the transaction ends, if it is not read to its end.
    """
    reader, log = RowReader.of(connection, place.db.log), place.db.log
    connection.execute(WHOLE_DAYS)
    with closing(reader.tables(connection, *visible_rows(place, span, snapshot))) as tables:
        for table in tables:
            for archived in _archived_ids(place, manifest, table.column(log.id_column)):
                is_archived = pyarrow.compute.is_in(table.column(log.id_column), archived)
                table = table.filter(pyarrow.compute.invert(is_archived))
            if table.num_rows:
                yield table


def _archived_ids(place: Archive, manifest: Manifest, ids: pyarrow.ChunkedArray) -> Iterator[pyarrow.Array]:
    """The ids in the row groups that may hold one of these, which are sorted as those of each group are."""
    column, least, greatest = place.db.log.id_column, ids[0].as_py(), ids[-1].as_py()
    for name in manifest.names:
        with opened(place, name) as file:
            index = file.schema_arrow.get_field_index(column)
            for n in range(file.num_row_groups):
                known = file.metadata.row_group(n).column(index).statistics
                if known is None or not known.has_min_max or (known.min <= greatest and least <= known.max):
                    yield file.read_row_group(n, [column]).column(column).combine_chunks()


def rows_missing_in_log(
    place: Archive, connection: Connection, span: Window, manifest: Manifest, snapshot: Snapshot
) -> int:
    """How many rows of the day's files the log does not have, by their ids, whatever their values are now."""
    return manifest.rows - compare_with_log(place, connection, span, manifest, snapshot).matched


def visible_rows(place: Archive, span: Window, snapshot: Snapshot) -> tuple[str, dict[str, Any]]:
    """SQL, and its parameters: the day's log rows that are visible in the snapshot."""
    condition = f"{of_day(place.db.log.event_time, span)} and {visible('s1')}"
    parameters = {**span.parameters(), "tz": place.db.timezone, **snapshot.bind("s1")}
    if span.exact:
        del parameters["tz"], parameters["day"]
    return condition, parameters


def _match(archived: pyarrow.Table, log: pyarrow.Table, id_column: str) -> tuple[int, int]:
    """Of the log rows whose ids are among the archived ones: how many have the same values, and how many others.

    Transaction ids are not compared: a rebase forgets them.
    """
    positions = pyarrow.compute.index_in(log.column(id_column), archived.column(id_column).combine_chunks())
    is_known = pyarrow.compute.is_valid(positions)
    log, positions = log.filter(is_known), positions.filter(is_known)
    there = archived.take(positions)
    is_same = pyarrow.array([True] * log.num_rows, pyarrow.bool_())
    for name in log.column_names:
        if name != TRANSACTION:
            is_same = pyarrow.compute.and_(is_same, _equal(log.column(name), there.column(name)))
    same = int(pyarrow.compute.sum(is_same).as_py() or 0)
    return same, log.num_rows - same


def _equal(left: Any, right: Any) -> Any:
    """Element by element; two nulls are equal."""
    both_null = pyarrow.compute.and_(pyarrow.compute.is_null(left), pyarrow.compute.is_null(right))
    return pyarrow.compute.or_(both_null, pyarrow.compute.fill_null(pyarrow.compute.equal(left, right), False))
