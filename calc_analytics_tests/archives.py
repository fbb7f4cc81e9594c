"""What tests of the archive share: an archive of a database, and its rows as other programs read them."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
from sqlalchemy import text

from calc_analytics.addresses import read_archive_url
from calc_analytics.archive.manifest import Manifest, known_manifest, name_of_manifest
from calc_analytics.archive.place import Archive
from calc_analytics.config import Settings
from calc_analytics.engines.archived import ArchivedDays
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database

COLUMNS = (
    "id, publisher_id, locality_id, date_calculated, cache_hit, response_time_ms, zman_count, source, created_at, "
    "xact_id"
)


def archive_in(db: Database, address: str | Path) -> Archive:
    """The archive of the database at that address."""
    return Archive(replace(db, archive_url=read_archive_url(str(address), Path("/"))))


def counted_in(place: Archive) -> ArchivedDays:
    """The days of the archive as a rebuild takes them, counted by DuckDB."""
    return ArchivedDays(place, Settings(archive_url=place.db.archive_url))


def log_rows(db: Database, day: date) -> list[tuple[Any, ...]]:
    """The committed log rows of a day (UTC), by id."""
    statement = (
        f"select {COLUMNS} from calculation_logs where cast(created_at at time zone 'UTC' as date) = :day order by 1"
    )
    with db.engine.begin() as connection:
        return [tuple(row) for row in connection.execute(text(statement), {"day": day})]


def archived_rows(folder: Path, day: date) -> list[tuple[Any, ...]]:
    """The rows of a day as DuckDB reads every Parquet file of its folder, by id. Read as any program does."""
    with duckdb.connect() as reader:
        reader.execute("set timezone = 'UTC'")
        found = reader.execute(
            f"select {COLUMNS.replace('created_at', 'epoch_us(created_at)')} "
            f"from read_parquet('{folder}/date={day}/*.parquet', hive_partitioning = false) order by 1"
        )
        return found.fetchall()


def as_microseconds(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Log rows with instants as DuckDB's `epoch_us` returns them."""
    return [(*row[:8], round(row[8].timestamp() * 1_000_000), row[9]) for row in rows]


def record(place: Archive, day: date) -> ledger.ArchivedDay:
    """What the database holds of a day."""
    with place.db.engine.begin() as connection:
        return place.record(connection, day)


def manifest(place: Archive, day: date) -> Manifest:
    """The published manifest of a day, which the database knows."""
    found = known_manifest(place.store, place.db, record(place, day))
    assert found is not None
    return found


def files_of(place: Archive, day: date) -> list[str]:
    """The names in the day's folder, without the manifest."""
    return sorted(name for name in place.store.sizes(f"date={day}") if name != name_of_manifest(day))
