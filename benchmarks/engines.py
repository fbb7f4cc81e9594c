"""Counts the same days, in all four rollups: PostgreSQL from log rows, DuckDB and a Spark cluster from the archive.

python -m benchmarks.engines                    # 50 million rows over ten days: twelve minutes
python -m benchmarks.engines --rows 200000      # rows of a day

Spark is a cluster of two executors on this machine (`pip install -c constraints.txt -e '.[spark]'`, a Java runtime);
SPARK_REMOTE names another, which must be able to read the temporary folder. Each engine counts all days twice, and the
quicker time is shown. The three results must be the same to the last integer.
"""

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from functools import partial

import pyarrow
from pyarrow import csv

from benchmarks.cluster import cluster
from benchmarks.common import DAY, execute, fill, parse_size, plain, project_database, show
from calc_analytics.addresses import ArchiveUrl
from calc_analytics.archive.place import Archive
from calc_analytics.archive.writing import archive
from calc_analytics.config import Settings
from calc_analytics.database.engine import transaction
from calc_analytics.days import ONE_DAY
from calc_analytics.engines.archived import ArchivedDays
from calc_analytics.engines.query import result_schema
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.from_archive import batches
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.recount import count_days
from calc_analytics.rollup.snapshot import Snapshot
from calc_analytics.rollup.windows import windows

ROWS, DAYS, ROUNDS = 5_000_000, 10, 2
Tables = dict[str, pyarrow.Table]


def main() -> None:
    """Prints a table."""
    rows, folder = parse_size(__doc__, "--rows", ROWS, f"log rows of each of {DAYS} days"), tempfile.mkdtemp()
    days = [DAY - ONE_DAY * n for n in range(DAYS, 0, -1)]
    with project_database() as counted, ExitStack() as running:
        running.callback(shutil.rmtree, folder)
        place = Archive(replace(counted, archive_url=ArchiveUrl("file", folder)))
        make_days(place, days, rows)
        took = {"PostgreSQL, from log rows": best(partial(count_in_postgresql, counted, days))[0]}
        expected = stored(counted, days)
        for remote in (None, os.environ.get("SPARK_REMOTE") or running.enter_context(cluster()).remote):
            archived = ArchivedDays(place, Settings(archive_url=place.db.archive_url, spark_remote=remote))
            seconds, found = best(partial(count_in_archive, archived, days))
            assert all(in_order(found[name]).equals(expected[name]) for name in expected), archived.engine.name
            took[f"{archived.engine.name}, from the archive"] = seconds
        first = next(iter(took.values()))
        show(
            f"{DAYS} days of {rows:,} rows, identical in {sum(map(len, expected.values())):,} rows of four tables",
            ("engine", "seconds", "log rows/s", "times as fast as PostgreSQL"),
            [(name, f"{each:.1f}", f"{DAYS * rows / each:,.0f}", f"{first / each:.2f}") for name, each in took.items()],
        )


def make_days(place: Archive, days: list[date], rows: int) -> None:
    """Days of log rows, counted by PostgreSQL and archived."""
    for day in days:
        fill(place.db.engine, day, rows, rows_per_transaction=20_000)
    execute(place.db.engine, "vacuum analyze calculation_logs")
    assert rebuild(place.db, days).refused == []
    assert len(archive(place).archived) == len(days)


def best(work: Callable[[], Tables]) -> tuple[float, Tables]:
    """The quickest round, and what it returned."""
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        result = work()
        found.append((time.perf_counter() - started, result))
    return min(found, key=lambda each: each[0])


def count_in_postgresql(db: Database, days: list[date]) -> Tables:
    """The first half of a rebuild: the rollups' rows of the days in temporary tables, which are not read here."""
    with transaction(db.engine) as connection:
        spans = windows(connection, days, db.timezone)
        count_days(connection, db, db.log.rollups, spans, Snapshot.now(connection))
    return {}


def count_in_archive(archived: ArchivedDays, days: list[date]) -> Tables:
    """The same of a rebuild from the archive: proves the files, and reduces a batch of days at a time."""
    db, parts = archived.place.db, list[Tables]()
    with transaction(db.engine) as connection:
        records = ledger.archived_days(connection, db.log, days)
    for batch in batches(records):
        reduction = archived.reduce(db.log.rollups, batch)
        assert reduction.refused == [], reduction.refused[0]
        parts.append(dict(reduction.tables))
    return {name: pyarrow.concat_tables([part[name] for part in parts]) for name in db.log.names}


def stored(db: Database, days: list[date]) -> Tables:
    """The rollups' rows in PostgreSQL, as engines return them, in order."""
    found = Tables()
    for rollup in db.log.rollups:
        schema, buffer = result_schema(rollup, db.log), io.BytesIO()
        with plain(db.engine) as connection, connection.cursor() as cursor:
            cursor.execute("set time zone 'UTC'")
            selected = f"select {', '.join(schema.names)} from {rollup.name} where date >= '{days[0]}'"
            with cursor.copy(f"copy ({selected}) to stdout (format csv, header)") as copy:
                for part in copy:
                    buffer.write(part)
        options = csv.ConvertOptions(column_types=dict(zip(schema.names, schema.types, strict=True)))
        buffer.seek(0)
        found[rollup.name] = in_order(csv.read_csv(buffer, convert_options=options))
    return found


def in_order(table: pyarrow.Table) -> pyarrow.Table:
    """The table sorted by all of its columns."""
    return table.sort_by([(name, "ascending") for name in table.column_names]).combine_chunks()


if __name__ == "__main__":
    main()
