"""Reads everything that one report shows, in one transaction, so that all its numbers are of one instant."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pandas
from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.readers.names import LOCALITIES, PUBLISHERS, Named, find_names
from calc_analytics.readers.period import Period, period
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.ledger import NotInstalled
from calc_analytics.rollups import STATS

TOP = 10
# Percentiles of a longer period are per week, merged from the histogram.
DAYS_BY_DAY = 120


class NotKept(CalcAnalyticsError):
    """Reports are made of a rollup that the setting ROLLUPS leaves out."""


class UnknownPublisher(CalcAnalyticsError):
    """No calculation of that publisher was ever counted."""


@dataclass(frozen=True)
class Reading:
    """The state of the statistics at the report's instant.

    `counted_at`: log rows that were committed by then are counted; None: nothing was ever counted. `today` is a day of
    `timezone`. `kept` are the names of the rollups that are kept.
    """

    today: date
    counted_at: datetime | None
    timezone: str
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Totals:
    """Sums over a period. Ratio (0 to 1) and average (milliseconds) are None where there is nothing to divide by."""

    calculations: int
    cache_hits: int
    cache_hit_ratio: float | None
    average_response_time_ms: float | None
    source_web: int
    source_api: int
    source_external: int

    @property
    def source_unknown(self) -> int:
        """Calculations of a source that is not known."""
        return self.calculations - self.source_web - self.source_api - self.source_external


@dataclass(frozen=True)
class Percentiles:
    """Of the response times, in milliseconds, over the `measured` calculations; None where none is measured."""

    measured: int
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Report:
    """One report; `publisher` is None for the platform. Frames, each in the order that is shown:

    - `days`: date, the fields of `Totals` except source_unknown, complete; a row for each day of the period
    - `percentiles_over_time`: first_day, last_day, and the fields of `Percentiles`; a row per day, or per week
    - `hours`: weekday (1: Monday), hour, calculations; 168 rows, or none if hours are not kept
    - `top_localities`, `top_publishers`: rank, id, name (None: unknown), calculations, share, cache_hits,
      cache_hit_ratio; `top_publishers` is None for a publisher
    """

    reading: Reading
    publisher: Named | None
    period: Period
    incomplete_days: tuple[date, ...]
    totals: Totals
    totals_before: Totals
    is_before_complete: bool
    percentiles: Percentiles
    days: pandas.DataFrame
    percentiles_over_time: pandas.DataFrame
    hours: pandas.DataFrame
    top_localities: pandas.DataFrame
    top_publishers: pandas.DataFrame | None
    first_counted: date | None
    """The first day that has calculations, in or outside of the period."""
    last_counted: date | None

    @property
    def complete(self) -> bool:
        """Whether every day of the period that has log rows is built, in every rollup that is kept."""
        return not self.incomplete_days

    @property
    def label(self) -> str:
        """The publisher's name, 'publisher 7', or 'all publishers'."""
        return self.publisher.label if self.publisher else "all publishers"


@contextmanager
def reading_transaction(engine: Engine) -> Iterator[Connection]:
    """One read-only transaction in which every statement sees the same instant."""
    with transaction(engine.execution_options(isolation_level="REPEATABLE READ")) as connection:
        connection.exec_driver_sql("set local transaction_read_only = on")
        connection.execute(WHOLE_DAYS)
        yield connection


def read_report(db: Database, publisher: int | None, first: date | None, last: date | None) -> Report:
    """Reads the report of a publisher (None: the platform) and those days (default: the last 30, today included).

    Raises `UnknownPublisher`, `InvalidDay`, `PeriodTooLong`, `NotInstalled`, `NotKept`, or `DatabaseError`.
    """
    with reading_transaction(db.engine) as connection:
        reading = read_reading(connection, db)
        wanted = period(first, last, reading.today)
        of = _Questions(connection, publisher)
        used = of.counted_days()
        before = of.all_totals(wanted.before)
        top_publishers = of.top("platform_top_publishers", wanted, PUBLISHERS) if publisher is None else None
        return Report(
            reading=reading,
            publisher=of.named(),
            period=wanted,
            incomplete_days=incomplete_days(connection, reading, wanted),
            totals=_totals(of.all_totals(wanted)),
            totals_before=_totals(before),
            is_before_complete=not incomplete_days(connection, reading, wanted.before),
            percentiles=_percentiles(of.all_percentiles(wanted)),
            days=of.days(wanted),
            percentiles_over_time=of.percentiles_over_time(wanted),
            hours=of.hours(wanted),
            top_localities=of.top(of.prefix + "top_localities", wanted, LOCALITIES),
            top_publishers=top_publishers,
            first_counted=used[0],
            last_counted=used[1],
        )


def read_reading(connection: Connection, db: Database) -> Reading:
    """The state of the statistics; `NotInstalled` if there is none, `NotKept` if they lack the totals."""
    row = connection.execute(text("select today, counted_at, timezone, rollups from rollup_reading()")).one_or_none()
    if row is None:
        raise NotInstalled(f"no state for {db.log.name}: run 'calc-analytics migrate' first")
    if STATS.name not in row.rollups:
        raise NotKept(f"reports need {STATS.name}, which ROLLUPS leaves out: add it, and run 'calc-analytics migrate'")
    return Reading(row.today, row.counted_at, row.timezone, tuple(row.rollups))


def counted_days(connection: Connection, publisher: int | None) -> tuple[date | None, date | None]:
    """The first and the last day with calculations; `UnknownPublisher` if a publisher has none at all."""
    first, last = None, None
    if publisher is None or abs(publisher) < 2**63:
        first, last = connection.execute(_COUNTED, {"publisher": publisher}).one()
    if publisher is not None and first is None:
        raise UnknownPublisher(f"no calculation of publisher {publisher} was ever counted: is the number right?")
    return first, last


@dataclass(frozen=True)
class _Questions:
    """The functions of the contract, of one publisher or of the platform."""

    connection: Connection
    publisher: int | None

    @property
    def prefix(self) -> str:
        return "platform_" if self.publisher is None else "publisher_"

    def counted_days(self) -> tuple[date | None, date | None]:
        return counted_days(self.connection, self.publisher)

    def named(self) -> Named | None:
        if self.publisher is None:
            return None
        names = find_names(self.connection, PUBLISHERS, [self.publisher])
        return Named(self.publisher, names.get(self.publisher), "publisher")

    def all_totals(self, of: Period) -> Mapping[str, Any]:
        return self._rows("totals", of)[0]

    def all_percentiles(self, of: Period) -> Mapping[str, Any]:
        return self._rows("percentiles", of)[0]

    def days(self, of: Period) -> pandas.DataFrame:
        return _frame(self._rows("days", of), DAYS)

    def hours(self, of: Period) -> pandas.DataFrame:
        return _frame(self._rows("hours", of), HOURS)

    def percentiles_over_time(self, of: Period) -> pandas.DataFrame:
        """Per day, or per week of a long period, whose buckets are merged."""
        if of.days <= DAYS_BY_DAY:
            rows = self._rows("percentiles_by_day", of)
            return _frame([{**row, "first_day": row["date"], "last_day": row["date"]} for row in rows], SPANS)
        rows = self._rows("percentiles_by_week", of)
        return _frame([{**row, "first_day": row["begins"], "last_day": row["ends"]} for row in rows], SPANS)

    def top(self, function: str, of: Period, table: str) -> pandas.DataFrame:
        """The first ten, with their names."""
        key = "publisher_id" if table == PUBLISHERS else "locality_id"
        rows = self._rows(function.removeprefix(self.prefix), of, n=TOP)
        names = find_names(self.connection, table, [row[key] for row in rows])
        return _frame([{**row, "id": row[key], "name": names.get(row[key])} for row in rows], TOP_ROWS)

    def _rows(self, function: str, of: Period, **more: int) -> Sequence[Mapping[str, Any]]:
        given = {"publisher": self.publisher} if self.publisher is not None else {}
        arguments = ["cast(:publisher as bigint)"] if given else []
        arguments += ["cast(:first as date)", "cast(:last as date)", *(f":{name}" for name in more)]
        statement = text(f"select * from {self.prefix}{function}({', '.join(arguments)})")
        values = {**given, "first": of.first, "last": of.last, **more}
        return [dict(row) for row in self.connection.execute(statement, values).mappings()]


def incomplete_days(connection: Connection, reading: Reading, of: Period) -> tuple[date, ...]:
    """Days of the period that have log rows and are not built in every rollup that is kept."""
    values = {"first": of.first, "last": of.last, "rollups": list(reading.kept)}
    return tuple(connection.execute(_INCOMPLETE, values).scalars())


def _totals(row: Mapping[str, Any]) -> Totals:
    return Totals(**{name: row[name] for name in Totals.__dataclass_fields__})


def _percentiles(row: Mapping[str, Any]) -> Percentiles:
    return Percentiles(**{name: row[name] for name in Percentiles.__dataclass_fields__})


_MEASURES = {
    "calculations": "int64",
    "cache_hits": "int64",
    "cache_hit_ratio": "float64",
    "average_response_time_ms": "float64",
    "source_web": "int64",
    "source_api": "int64",
    "source_external": "int64",
}
_PERCENTILES = {"measured": "int64", **dict.fromkeys(("p50_ms", "p90_ms", "p95_ms", "p99_ms"), "float64")}
# The columns of each frame, with their types; a double is NaN where there is nothing.
DAYS = {"date": "object", **_MEASURES, "complete": "bool"}
SPANS = {"first_day": "object", "last_day": "object", **_PERCENTILES}
HOURS = {"weekday": "int64", "hour": "int64", "calculations": "int64"}
TOP_ROWS = {
    "rank": "int64",
    "id": "int64",
    "name": "object",
    "calculations": "int64",
    "share": "float64",
    "cache_hits": "int64",
    "cache_hit_ratio": "float64",
}


def _frame(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> pandas.DataFrame:
    columns = {name: pandas.Series([row[name] for row in rows], dtype=type_) for name, type_ in types.items()}
    return pandas.DataFrame(columns)


_COUNTED = text(
    f"""
    select min(date), max(date) from {STATS.name}
    where total_calculations > 0 and (cast(:publisher as bigint) is null or publisher_id = cast(:publisher as bigint))
    """
)
_INCOMPLETE = text(
    """
    select cast(:first as date) + n as date
    from generate_series(0, cast(:last as date) - cast(:first as date)) as s (n)
    where exists (
        select from unnest(cast(:rollups as text[])) as r (rollup)
        where not rollup_days_complete(rollup, cast(:first as date) + n, cast(:first as date) + n))
    order by 1
    """
)
