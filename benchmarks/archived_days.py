"""Fills rollups over many archived days whose log rows are gone: a fifth one, declared now, and that with most keys.

python -m benchmarks.archived_days --days 1000

The days' files are written by this benchmark as the archive writes them, a day at a time, without PostgreSQL.
"""

import json
import shutil
import tempfile
import time
from dataclasses import replace
from datetime import date

import numpy
import pyarrow
from sqlalchemy import BigInteger, Column, Date, Integer, MetaData, Table, func

from benchmarks.archive import Peak
from benchmarks.common import DAY, execute, parse_size, project_database, show
from calc_analytics.addresses import ArchiveUrl
from calc_analytics.archive.manifest import ArchivedFile, Manifest, folder_of, name_of_manifest
from calc_analytics.archive.place import Archive
from calc_analytics.archive.rows import arrow_schema, description, parquet_writer
from calc_analytics.config import Settings
from calc_analytics.database.engine import transaction
from calc_analytics.days import ONE_DAY
from calc_analytics.engines.archived import ArchivedDays
from calc_analytics.rollup import ledger
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
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
    with project_database() as four:
        counted = replace(four, log=replace(LOG, rollups=(*LOG.rollups, FIFTH)))
        FIFTH.target.create(counted.engine)
        install(counted)
        place = Archive(replace(counted, archive_url=ArchiveUrl("file", folder)))
        days = [DAY - ONE_DAY * n for n in range(1, number + 1)]
        try:
            for day in days:
                archive_rows(place, day)
            execute(counted.engine, "vacuum analyze")
            show(
                f"{number:,} archived days of {ROWS:,} rows",
                ("filled", "rows of the rollup", "seconds", "log rows/s", "memory"),
                [fill(place, days, FIFTH), fill(place, days, LATENCY)],
            )
        finally:
            shutil.rmtree(folder)


def fill(place: Archive, days: list[date], rollup: Rollup) -> tuple[str, ...]:
    """A row of the table."""
    archived, started = ArchivedDays(place, Settings(archive_url=place.db.archive_url)), time.perf_counter()
    with Peak() as memory:
        report = rebuild(place.db, days, [rollup.name], archived=archived)
    seconds = time.perf_counter() - started
    assert (report.refused, report.rows) == ([], len(days) * ROWS)
    keys = sum(day.keys for day in report.rebuilt)
    return rollup.name, f"{keys:,}", f"{seconds:.0f}", f"{report.rows / seconds:,.0f}", memory.text


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
