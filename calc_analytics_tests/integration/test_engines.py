"""Engines count archived rows as PostgreSQL counts log rows, to the last integer, whatever the rows hold."""

import random
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, Date, DateTime, Integer, MetaData, Table, case, cast, func, or_, text

from calc_analytics.addresses import ArchiveUrl, read_archive_url
from calc_analytics.archive.rows import RowReader, parquet_writer
from calc_analytics.engines import EngineFailed
from calc_analytics.engines.duckdb import DuckDB
from calc_analytics.engines.query import result_schema
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.expressions import utc_hour
from calc_analytics.rollup.recount import count_sql
from calc_analytics.rollup.snapshot import Snapshot
from calc_analytics.rollup.widen import widen
from calc_analytics.rollup.windows import of_day, windows
from calc_analytics.rollups import LOG
from calc_analytics_tests.logs import Row, row, utc, write

c = LOG.table.c
# Clocks go forward on the first day in Berlin, and back on the last.
SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)
DAYS = [SPRING - timedelta(days=1), SPRING, SPRING + timedelta(days=1), AUTUMN, date(1969, 12, 31)]
ODD_TIMES = [None, -1, -(2**63), 2**63 - 1, 0, 127, 128, 129, 255, 256, 257, 2**31 - 1, 2**31, 2**31 + 1, 2**62]


def odd_rows(rng: random.Random, count: int) -> list[Row]:
    """Rows of these days and their neighbours, with values at every limit."""
    return [
        row(
            utc(day.year, day.month, day.day) + timedelta(microseconds=rng.randrange(-7_200_000_000, 86_400_000_000)),
            publisher=rng.choice([1, 2, 3, 0, -(2**31), 2**31 - 1]),
            locality_id=rng.choice([281184, -(2**62), 2**62]),
            cache_hit=rng.random() < 0.6,
            date_calculated=rng.choice([date(1, 1, 1), date(2030, 1, 1), date(9999, 12, 31)]),
            response_time_ms=rng.choice([*ODD_TIMES, rng.randrange(2**16)]),
            source=rng.choice([1, 2, 3, 0, -1, 32767]),
        )
        for day in rng.choices(DAYS, k=count)
    ]


def of(key: Any, measure: Any, type_: Any = BigInteger) -> Rollup:
    """A rollup with that key and that measure besides the count."""
    columns = [Column("key", type_, primary_key=True), Column("date", Date, primary_key=True)]
    target = Table(
        "fifth", MetaData(), *columns, Column("rows", BigInteger), Column("measure", BigInteger), comment="A fifth."
    )
    return Rollup(target, {"key": key}, {"rows": func.count(), "measure": measure}, "A fifth.")


OTHERS = {
    "division": of((c.locality_id + 5) // 1000 // 7 % 3, func.sum(c.response_time_ms // 10)),
    "negation": of(-(c.source - 3), func.sum(func.abs(c.source))),
    "conditions": of(
        case((or_(c.source.in_([1, 2]), c.cache_hit), 1), (c.source.between(-1, 0), 2), else_=3),
        func.sum(cast(c.cache_hit, Integer)).filter(c.source.not_in([1, 2])),
    ),
    "nulls": of(
        case((c.response_time_ms.is_(None), 1), (c.response_time_ms.is_distinct_from(127), 2), else_=3),
        func.count(c.response_time_ms) - func.count(func.nullif(c.source, 3)),
    ),
    "greatest": of(func.greatest(c.source, 2), func.coalesce(func.sum(func.least(c.response_time_ms, 5)), 0)),
    "operand": of(case({1: 7, 2: 8}, value=c.source, else_=9), func.count().filter(c.cache_hit.is_(True))),
    "date": of(c.date_calculated, func.sum(c.response_time_ms) + func.count(), Date),
    "hour": of(utc_hour(c.created_at), func.sum(-c.source), DateTime(timezone=True)),
}
ROLLUPS = [*LOG.rollups, *OTHERS.values()]


def counted_by_postgres(db, rollup: Rollup, days: list[date]) -> list[tuple[Any, ...]]:
    """What a rebuild aggregates of the days' log rows."""
    with db.engine.begin() as connection:
        spans = windows(connection, days, db.timezone)
        parameters: dict[str, Any] = {"tz": db.timezone, **Snapshot.now(connection).bind("sa")}
        for n, span in enumerate(spans):
            parameters.update(span.parameters(f"_{n}"))
        names = ", ".join(["date", *rollup.keys, *rollup.measure_names])
        rows = connection.execute(text(f"select {names} from ({count_sql(db, rollup, spans)}) d"), parameters)
        return sorted(tuple(each) for each in rows)


def files_of_days(db, days: list[date], folder: Path) -> dict[date, list[str]]:
    """Every log row of these days in Parquet files as the archive writes them, also of days that do not fit."""
    with db.engine.begin() as connection:
        reader = RowReader.of(connection, db.log)
        for span in windows(connection, days, db.timezone):
            name = folder / f"date={span.day}" / "rows.parquet"
            name.parent.mkdir()
            condition, bound = of_day(db.log.event_time, span), {**span.parameters(), "tz": db.timezone}
            parameters = {each: bound[each] for each in bound if f":{each}" in condition}
            with parquet_writer(name, db.log) as writer:
                for table in reader.tables(
                    connection, condition, {k: parameters[k] for k in parameters if f":{k}" in condition}
                ):
                    writer.write_table(table)
    return {day: [f"date={day}/rows.parquet"] for day in days}


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_duckdb_counts_exactly_what_postgresql_counts(db, owner, connect, tmp_path: Path, zone: str):
    widen(replace(db, engine=owner), "response_time_ms", "bigint")
    db = replace(db, timezone=zone)
    write(connect(), odd_rows(random.Random(zone), 3000))
    engine, files = DuckDB(LOG, ArchiveUrl("file", str(tmp_path))), files_of_days(db, DAYS, tmp_path)
    for rollup in ROLLUPS:
        found = engine.reduce(rollup, files)
        assert found.schema == result_schema(rollup, LOG)
        counted = sorted(tuple(each.values()) for each in found.to_pylist())
        assert counted == counted_by_postgres(db, rollup, sorted(DAYS)), rollup.aggregates


def test_an_error_of_the_buckets_client_is_one_line_without_secrets():
    lost = read_archive_url("s3://ACCESSKEY:HIDDEN@bucket/archive?endpoint_url=http://127.0.0.1:9", Path("/"))
    with pytest.raises(EngineFailed) as refused:
        DuckDB(LOG, lost).reduce(LOG.rollups[0], {date(2026, 3, 1): ["date=2026-03-01/1.parquet"]})
    message = str(refused.value)
    assert "could not count the archived rows of calculation_stats_daily: " in message
    assert "127.0.0.1:9" in message
    for word in ("Traceback", "\n", "ACCESSKEY", "HIDDEN", ".py"):
        assert word not in message, message
