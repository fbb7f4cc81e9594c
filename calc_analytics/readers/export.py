"""A report as data: its days as CSV or Parquet, all of it as JSON.

The table has a row for each day of one publisher, or for each publisher and day that has calculations; it is streamed
from one transaction, so its size does not matter. Ids only, no names: a name could be read as a formula.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from typing import IO, Any

import pandas
import pyarrow
from pyarrow import csv, parquet
from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.readers.period import Period, period
from calc_analytics.readers.questions import Questions, Reading, Totals, read_reading, reading_transaction
from calc_analytics.readers.report import Report
from calc_analytics.rollup.database import Database
from calc_analytics.rollups import LATENCY, LOG, STATS

ROWS_AT_ONCE = 20_000
_WHOLE, _DOUBLE = pyarrow.int64(), pyarrow.float64()
COLUMNS = {
    "date": pyarrow.date32(),
    "publisher_id": _WHOLE,
    "calculations": _WHOLE,
    "cache_hits": _WHOLE,
    "cache_hit_ratio": _DOUBLE,
    "measured": _WHOLE,
    "average_response_time_ms": _DOUBLE,
    "source_web": _WHOLE,
    "source_api": _WHOLE,
    "source_external": _WHOLE,
    "complete": pyarrow.bool_(),
}
"""The table of the platform. That of one publisher has the percentiles of each day as well."""
PERCENTILES = dict.fromkeys(("p50_ms", "p90_ms", "p95_ms", "p99_ms"), _DOUBLE)


@dataclass(frozen=True)
class DayTable:
    """Days as a table: what it is about, its columns, and its rows, which are read as they are taken."""

    publisher: int | None
    period: Period
    reading: Reading
    incomplete_days: tuple[date, ...]
    schema: pyarrow.Schema
    batches: Iterator[pyarrow.RecordBatch]


@contextmanager
def day_table(db: Database, publisher: int | None, first: date | None, last: date | None) -> Iterator[DayTable]:
    """The days of a publisher (None: of every publisher), by publisher and date, while the transaction lasts.

    Raises what `read_report` raises.
    """
    with reading_transaction(db.engine) as connection:
        reading = read_reading(connection, db)
        wanted = period(first, last, reading.today)
        ask = Questions(connection, reading, publisher)
        ask.counted_days()
        schema = pyarrow.schema({**COLUMNS, **({} if publisher is None else PERCENTILES)}.items())
        kept = [each.name for each in (STATS, LATENCY) if each.name in reading.kept]
        batches = _batches(connection, publisher, wanted, kept, schema)
        missing = ask.incomplete_days(wanted)
        yield DayTable(publisher, wanted, reading, missing, schema, batches)


def write_csv(table: DayTable, sink: IO[bytes]) -> None:
    """UTF-8 with a header, dates as YYYY-MM-DD, nothing between the commas for null."""
    sink.write((",".join(table.schema.names) + "\n").encode())
    options = csv.WriteOptions(include_header=False)
    with csv.CSVWriter(sink, table.schema, write_options=options) as writer:
        for batch in table.batches:
            writer.write_batch(batch)


def write_parquet(table: DayTable, sink: IO[bytes]) -> None:
    """Parquet; the file's metadata `calc_analytics` says what it is about, in JSON."""
    about = json.dumps(
        {"publisher_id": table.publisher, **_about(table.reading, table.period, not table.incomplete_days)}
    )
    schema = table.schema.with_metadata({"calc_analytics": about})
    with parquet.ParquetWriter(sink, schema) as writer:
        for batch in table.batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def write_json(report: Report, sink: IO[bytes]) -> None:
    """All of the report in one object, `as_plain`."""
    sink.write(json.dumps(as_plain(report), ensure_ascii=False, indent=2).encode())
    sink.write(b"\n")


def as_plain(report: Report) -> dict[str, Any]:
    """The report as numbers, texts, lists and objects; null where there is nothing."""
    publisher = report.publisher
    return {
        "publisher": {"id": publisher.id, "name": publisher.name} if publisher else None,
        **_about(report.reading, report.period, report.complete),
        "incomplete_days": [str(day) for day in report.incomplete_days],
        "not_kept": [name for name in LOG.names if name not in report.reading.kept],
        "totals": _totals(report.totals),
        "before": {
            "first_day": str(report.period.before.first),
            "last_day": str(report.period.before.last),
            "complete": report.is_before_complete,
            "totals": _totals(report.totals_before),
        },
        "percentiles": asdict(report.percentiles),
        "days": _rows(report.days),
        "percentiles_over_time": _rows(report.percentiles_over_time),
        "hours": _rows(report.hours),
        "top_localities": _rows(report.top_localities),
        "top_publishers": None if report.top_publishers is None else _rows(report.top_publishers),
    }


def _about(reading: Reading, of: Period, is_complete: bool) -> dict[str, Any]:
    return {
        "first_day": str(of.first),
        "last_day": str(of.last),
        "timezone": reading.timezone,
        "today": str(reading.today),
        "counted_at": reading.counted_at and reading.counted_at.isoformat(),
        "complete": is_complete,
    }


def _totals(totals: Totals) -> dict[str, Any]:
    return {**asdict(totals), "source_unknown": totals.source_unknown}


def _rows(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    return [{name: _plain(value) for name, value in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return None
    return str(value) if isinstance(value, date) else value


def _batches(
    connection: Connection, publisher: int | None, of: Period, kept: list[str], schema: pyarrow.Schema
) -> Iterator[pyarrow.RecordBatch]:
    """The rows. `kept`: the rollups of the columns; a row is complete if its day is built in each of them."""
    values = {"first": of.first, "last": of.last, "rollups": kept, "publisher": publisher}
    statement = _OF_ALL if publisher is None else _OF_ONE
    rows = connection.execute(
        statement, values, execution_options={"stream_results": True, "yield_per": ROWS_AT_ONCE}
    ).mappings()
    for some in rows.partitions():
        yield pyarrow.RecordBatch.from_pylist([dict(row) for row in some], schema=schema)


# Of each day, for both tables.
_DAYS = """
    with quality as materialized (
        select date, coalesce(date <> all (untimed), false) as is_measured, not exists (
            select from unnest(cast(:rollups as text[])) as r (name) where not rollup_days_complete(name, date, date)
        ) as complete
        from (
            select cast(:first as date) + n as date
            from generate_series(0, cast(:last as date) - cast(:first as date)) as s (n)
        ) days cross join rollup_days_untimed(cast(:first as date), cast(:last as date)) as untimed
    )
"""
_OF_ONE = text(
    f"""
    {_DAYS}
    select d.date, cast(:publisher as bigint) as publisher_id, d.calculations, d.cache_hits, d.cache_hit_ratio,
           case when q.is_measured then p.measured end as measured,
           d.average_response_time_ms, d.source_web, d.source_api, d.source_external, q.complete,
           p.p50_ms, p.p90_ms, p.p95_ms, p.p99_ms
    from publisher_days(cast(:publisher as bigint), cast(:first as date), cast(:last as date)) d
    join publisher_percentiles_by_day(cast(:publisher as bigint), cast(:first as date), cast(:last as date)) p
        using (date)
    join quality q using (date)
    order by date
    """
)
_OF_ALL = text(
    f"""
    {_DAYS}
    select date, publisher_id, calculations, cache_hits, cache_hit_ratio,
           case when q.is_measured then d.measured end as measured, average_response_time_ms,
           source_web, source_api, source_external, q.complete
    from platform_publisher_days(cast(:first as date), cast(:last as date)) d join quality q using (date)
    order by publisher_id, date
    """
)
