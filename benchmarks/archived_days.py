"""Fills a fifth rollup, declared now, over many archived days whose log rows are gone: by DuckDB, and by Spark.

python -m benchmarks.archived_days --days 1000

Beside them: the rollup with the most keys over a tenth of the days, and PostgreSQL's own rebuild from log rows of as
many. This benchmark writes the days' files as the archive does, a day at a time, without PostgreSQL. Spark
is a cluster of two executors on this machine, if the extra `spark` is installed; SPARK_REMOTE names another.
"""

import io
import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from importlib.util import find_spec

import numpy
import pyarrow
from pyarrow import csv
from sqlalchemy import BigInteger, Column, Date, Integer, MetaData, Table, func

from benchmarks.archive import Peak
from benchmarks.cluster import cluster
from benchmarks.common import DAY, execute, parse_size, plain, project_database, show
from calc_analytics.addresses import ArchiveUrl
from calc_analytics.archive.manifest import ArchivedFile, Manifest, folder_of, name_of_manifest
from calc_analytics.archive.place import Archive
from calc_analytics.archive.rows import arrow_schema, description, parquet_writer
from calc_analytics.config import Settings
from calc_analytics.database.engine import transaction
from calc_analytics.days import ONE_DAY
from calc_analytics.engines.archived import ArchivedDays
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.reports import RebuildReport
from calc_analytics.rollup.snapshot import Snapshot
from calc_analytics.rollups import LATENCY, LOG, STATS

ROWS = 100_000
c = LOG.table.c
FIFTH = Rollup(
    target=Table(
        "calculation_zmanim_daily",
        MetaData(),
        Column("publisher_id", Integer, primary_key=True, autoincrement=False),
        Column("date", Date, primary_key=True),
        Column("zman_count", Integer, primary_key=True, autoincrement=False),
        Column("calculations", BigInteger, nullable=False),
    ),
    key_expressions={"publisher_id": c.publisher_id, "zman_count": func.coalesce(c.zman_count, -1)},
    aggregates={"calculations": func.count()},
    description="Calculations per publisher and number of zmanim.",
)


def main() -> None:
    """Prints a table."""
    number, folder = parse_size(__doc__, "--days", 1_000, f"archived days of {ROWS:,} rows"), tempfile.mkdtemp()
    with project_database() as four, ExitStack() as running:
        running.callback(shutil.rmtree, folder)
        counted = replace(four, log=replace(LOG, rollups=(*LOG.rollups, FIFTH)))
        FIFTH.target.create(counted.engine)
        install(counted)
        place = Archive(replace(counted, archive_url=ArchiveUrl("file", folder)))
        days = [DAY - ONE_DAY * n for n in range(1, number + 1)]
        for day in days:
            archive_rows(place, day)
        execute(counted.engine, "vacuum analyze")
        some, measured, found = days[: max(1, number // 10)], list[tuple[str, ...]](), set[str]()
        for remote in (None, *spark_servers(running)):
            measured.append(fill(place, days, FIFTH, remote))
            found.add(checksum(place.db))
        assert len(found) == 1, "the engines differ"
        measured.append(fill(place, some, LATENCY))
        measured.append(rebuild_from_log_rows(place, [day - ONE_DAY * number for day in some]))
        show(
            f"{number:,} archived days of {ROWS:,} rows",
            ("counted by", "filled", "log rows", "rows of the rollup", "seconds", "log rows/s", "memory"),
            measured,
        )


def spark_servers(running: ExitStack) -> list[str]:
    """The address of the cluster, if there is one."""
    if given := os.environ.get("SPARK_REMOTE"):
        return [given]
    return [running.enter_context(cluster()).remote] if find_spec("pyspark") else []


def fill(place: Archive, days: list[date], rollup: Rollup, remote: str | None = None) -> tuple[str, ...]:
    """A row of the table: from the archive."""
    archived = ArchivedDays(place, Settings(archive_url=place.db.archive_url, spark_remote=remote))
    with Peak() as memory:
        report = rebuild(place.db, days, [rollup.name], archived=archived)
    return row(archived.engine.name, rollup, report, len(days), memory)


def rebuild_from_log_rows(place: Archive, days: list[date]) -> tuple[str, ...]:
    """A row of the table: the same rows as log rows of earlier days, counted by PostgreSQL."""
    for day in days:
        buffer = io.BytesIO()
        table = random_table(place, day).drop_columns(["id", "xact_id"])
        csv.write_csv(table, buffer, csv.WriteOptions(include_header=False))
        with plain(place.db.engine) as connection, connection.cursor() as cursor:
            statement = f"copy calculation_logs ({', '.join(table.column_names)}) from stdin (format csv)"
            with cursor.copy(statement.encode()) as copy:
                copy.write(buffer.getvalue())
    execute(place.db.engine, "vacuum analyze calculation_logs")
    refresh(place.db)  # which finds the new rows, and is no part of the rebuild
    with Peak() as memory:
        report = rebuild(place.db, days, [FIFTH.name])
    return row("PostgreSQL, from log rows", FIFTH, report, len(days), memory)


def row(engine: str, rollup: Rollup, report: RebuildReport, days: int, memory: Peak) -> tuple[str, ...]:
    """A row of the table."""
    assert (report.refused, report.rows) == ([], days * ROWS)
    keys, rate = sum(day.keys for day in report.rebuilt), report.rows / report.seconds
    return engine, rollup.name, f"{report.rows:,}", f"{keys:,}", f"{report.seconds:.0f}", f"{rate:,.0f}", memory.text


def checksum(db: Database) -> str:
    """The same for the same rows of the fifth rollup."""
    statement = f"select cast(sum(hashtextextended(cast(t as text), 0)) as text) from {FIFTH.name} t"
    with plain(db.engine) as connection:
        return str(connection.execute(statement.encode()).fetchall()[0][0])


def archive_rows(place: Archive, day: date) -> None:
    """A day of random rows in the archive; in the first rollup it is built and pruned, in the others it waits."""
    name = f"{place.db.log.name}-00000000-001.parquet"
    with place.store.new_file(f"{folder_of(day)}/{name}") as file:
        with parquet_writer(file, place.db.log) as writer:
            writer.add_key_value_metadata(description(place.db.log, day, place.db.timezone))
            writer.write_table(random_table(place, day))
    with transaction(place.db.engine) as connection:
        snapshot = Snapshot.now(connection)
        file_ = ArchivedFile(name, ROWS, file.bytes, file.sha256)
        manifest = Manifest(place.db.log.name, day, place.db.timezone, snapshot.text, 0, (file_,)).to_text()
        place.store.publish(name_of_manifest(day), manifest.encode())
        archived = ledger.ArchivedDay(day, ROWS, 0, snapshot, manifest)
        ledger.record_archived(connection, place.db.log, archived)
    totals = json.dumps({STATS.count: ROWS})
    execute(
        place.db.engine,
        f"""
        insert into rollup_days (rollup, date, status, timezone, counted, deleted)
        select rollup, '{day}', case rollup when '{STATS.name}' then 'built' else 'pending' end, 'UTC',
               case rollup when '{STATS.name}' then cast('{totals}' as jsonb) end,
               case rollup when '{STATS.name}' then cast('{totals}' as jsonb) end
        from unnest(array{place.db.log.names}) as r (rollup)
        """,
    )


def random_table(place: Archive, day: date) -> pyarrow.Table:
    """Rows as those of `benchmarks.archive`."""
    rng, begin = numpy.random.default_rng(day.toordinal()), (day - date(1970, 1, 1)).days * 86_400_000_000
    instants = numpy.sort(rng.integers(0, 86_400_000_000, ROWS)) + begin
    columns = {
        "id": numpy.arange(ROWS) + day.toordinal() * ROWS,
        "publisher_id": 1 + (200 * rng.random(ROWS) ** 3).astype("i8"),
        "locality_id": 281_184 + (2000 * rng.random(ROWS) ** 2).astype("i8"),
        "date_calculated": pyarrow.array(numpy.full(ROWS, begin // 86_400_000_000, "i4")).view(pyarrow.date32()),
        "cache_hit": rng.random(ROWS) < 0.6,
        "response_time_ms": (400 * rng.random(ROWS) ** 3).astype("i8"),
        "zman_count": rng.integers(10, 40, ROWS),
        "source": rng.integers(1, 4, ROWS),
        "created_at": pyarrow.array(instants).view(pyarrow.timestamp("us", "UTC")),
        "xact_id": numpy.arange(ROWS) // 100 + 1000,
    }
    return pyarrow.table([pyarrow.array(columns[each]) for each in columns], schema=arrow_schema(place.db.log))


if __name__ == "__main__":
    main()
