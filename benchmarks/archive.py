"""Archives a day of many rows into a folder: rows per second, memory, bytes per row; then proves it with the log.
Rebuilds the day by PostgreSQL from its log rows, and, after these were deleted, by DuckDB from the archive.

python -m benchmarks.archive
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import psutil

from benchmarks.common import DAY, execute, parse_size, plain, project_database, show
from calc_analytics.addresses import ArchiveUrl
from calc_analytics.archive.checking import check, prove_day
from calc_analytics.archive.place import Archive
from calc_analytics.archive.writing import archive
from calc_analytics.config import Settings
from calc_analytics.database.engine import transaction
from calc_analytics.days import ONE_DAY
from calc_analytics.engines.archived import ArchivedDays
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.recount import count_days
from calc_analytics.rollup.reports import DayCount, RebuildReport
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.snapshot import Snapshot
from calc_analytics.rollup.verify import verify
from calc_analytics.rollup.windows import windows
from calc_analytics.rollups import LOG

ROWS = 5_000_000
BATCH_ROWS = 100
REPETITIONS = 3


def main() -> None:
    """Prints a table."""
    rows, folder = parse_size(__doc__, "--rows", ROWS, "log rows of the day"), tempfile.mkdtemp(prefix="ca-")
    with project_database() as counted:
        db = replace(counted, archive_url=ArchiveUrl("file", folder))
        fill_as_the_api_does(db, rows)
        rebuild(db, [DAY - ONE_DAY])
        try:
            place = Archive(db)
            show(
                f"A day of {rows:,} rows",
                ("", "rows/s", "CPU, a million rows", "memory", "bytes/row"),
                [*measure(place), *measure_rebuild(place)],
            )
        finally:
            shutil.rmtree(folder)


def measure(place: Archive) -> list[tuple[str, ...]]:
    """A row for the archiving, and one for the check. The CPU time is this process's, without PostgreSQL's."""
    with Peak() as memory:
        done, cpu = archive(place), memory.cpu_seconds
    bytes_per_row = sum(path.stat().st_size for path in Path(place.store.address.path).rglob("*.parquet")) / done.rows
    written = row("archive", done.rows, done.seconds, cpu, memory)
    with Peak() as memory:
        proven, cpu = check(place), memory.cpu_seconds
    assert (proven.problems, proven.compared) == ([], done.rows)
    return [(*written, f"{bytes_per_row:.1f}"), (*row("archive --check", done.rows, proven.seconds, cpu, memory), "")]


def measure_rebuild(place: Archive) -> list[tuple[str, ...]]:
    """Rows for the counting alone, and for the whole rebuild, by PostgreSQL from log rows and by DuckDB from files.

    Of all four rollups, and the rebuild also of each alone; the best of three. DuckDB counts in this process, so its
    CPU time and memory are this process's. A day that is as the archive has it is compared, and not written.
    """
    day, archived = DAY - ONE_DAY, ArchivedDays(place, Settings(archive_url=place.db.archive_url))
    records, total = days_in(place, day), days_in(place, day)[day].rows
    rows = [
        ("counting by PostgreSQL", *best(lambda: counted(total, lambda: count_log_rows(place.db, day)))),
        ("counting by DuckDB", *best(lambda: counted(total, lambda: archived.reduce(place.db.log.rollups, records)))),
    ]
    rows += rebuilds("from log rows", lambda names: rebuild(place.db, [day], names))
    prune(place.db, DAY, batch_rows=100_000, prove_archived=lambda each: prove_day(place, each))
    execute(place.db.engine, "vacuum analyze calculation_logs")
    rows += rebuilds("from the archive", lambda names: rebuild(place.db, [day], names, archived=archived))
    rows.append(("rebuild of changed statistics", *best(lambda: rebuild_changed(archived, day))))
    assert verify(place.db, [day]).difference == 0
    return rows


def rebuilds(source: str, work: Callable[[list[str]], RebuildReport]) -> list[tuple[str, ...]]:
    """A row for the rebuild of all rollups, and one for that of each."""
    chosen = {f"rebuild {source}": LOG.names, **{f"{name} {source}": [name] for name in LOG.names}}
    return [(what, *best(partial(work, names))) for what, names in chosen.items()]


def rebuild_changed(archived: ArchivedDays, day: date) -> RebuildReport:
    """From the archive, after a change of one row of each table: all of the day's rows are written again."""
    for rollup in archived.place.db.log.rollups:
        one = f"ctid = (select min(ctid) from {rollup.name} where date = '{day}')"
        change = f"update {rollup.name} set {rollup.count} = {rollup.count} + 1 where {one}"
        execute(archived.place.db.engine, change)
    return rebuild(archived.place.db, [day], archived=archived)


def days_in(place: Archive, day: date) -> dict[date, ledger.ArchivedDay]:
    """What the database holds of the archived day."""
    with transaction(place.db.engine) as connection:
        return ledger.archived_days(connection, place.db.log, [day])


def count_log_rows(db: Database, day: date) -> None:
    """What a rebuild aggregates of the log rows, without what becomes of it."""
    with transaction(db.engine) as connection:
        spans = windows(connection, [day], db.timezone)
        count_days(connection, db, db.log.rollups, spans, Snapshot.now(connection))


def counted(rows: int, work: Callable[[], object]) -> RebuildReport:
    """The time of counting, as a rebuild reports it."""
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return RebuildReport([DayCount("", DAY, rows, {}, 0, "built")], seconds=seconds)


def best(work: Callable[[], RebuildReport]) -> tuple[str, ...]:
    """The row's cells, of the quickest repetition."""
    found = list[tuple[float, tuple[str, ...]]]()
    for _ in range(REPETITIONS):
        with Peak() as memory:
            report, cpu = work(), memory.cpu_seconds
        assert report.refused == []
        found.append((report.seconds, (*row("", report.rows, report.seconds, cpu, memory)[1:], "")))
    return min(found)[1]


def row(name: str, rows: int, seconds: float, cpu: float, memory: "Peak") -> tuple[str, ...]:
    """A row of the table."""
    return name, f"{rows / seconds:,.0f}", f"{cpu / rows * 1e6:.2f} s", memory.text


def fill_as_the_api_does(db: Database, rows: int) -> None:
    """Batches of 100 rows of one second, each a transaction of its own; instants and publishers in no order."""
    span = f"(interval '24 hours' / {rows})"
    day = DAY - ONE_DAY
    statement = f"""
        do $$
        begin
            for batch in 0..{rows // BATCH_ROWS - 1} loop
                insert into calculation_logs (publisher_id, locality_id, date_calculated, cache_hit, response_time_ms,
                                              zman_count, source, created_at)
                select 1 + floor(200 * random() ^ 3)::int, 281184 + floor(2000 * random() ^ 2)::int,
                       date '{day}' + floor(365 * random() ^ 4)::int, random() < 0.6, floor(random() ^ 3 * 400)::int,
                       10 + floor(random() * 30)::int, 1 + floor(random() * 3)::int,
                       timestamptz '{day} 00:00Z' + batch * {BATCH_ROWS} * {span} + random() * {BATCH_ROWS} * {span}
                from generate_series(1, {BATCH_ROWS});
                commit;
            end loop;
        end $$
    """
    with plain(db.engine) as connection:
        connection.execute("set synchronous_commit = off")
        connection.execute(statement)
    execute(db.engine, "vacuum analyze calculation_logs")


class Peak:
    """The most memory that this process had resident meanwhile, looked at every 5 ms."""

    def __init__(self) -> None:
        self._over, self._bytes, self._begin = threading.Event(), 0, time.process_time()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._over.is_set():
            self._bytes = max(self._bytes, process.memory_info().rss)
            time.sleep(0.005)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of this process since the beginning."""
        return time.process_time() - self._begin

    @property
    def text(self) -> str:
        """'312 MB'."""
        return f"{self._bytes / 1e6:.0f} MB"

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


if __name__ == "__main__":
    main()
