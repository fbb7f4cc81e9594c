"""What a report asks of the statistics: the functions of the SQL contract, for one publisher or for the platform.

All questions of a report are asked in one transaction (`reading_transaction`), so all answers are of one instant.
"""

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
from calc_analytics.readers.names import LOCALITIES, PUBLISHERS, Entity, find_names
from calc_analytics.readers.period import Period
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.ledger import NotInstalled
from calc_analytics.rollups import STATS

TOP = 10
# Percentiles of a longer period are per week, merged from the histogram.
DAYS_BY_DAY = 120
# With the default of 4 MB, PostgreSQL forgets which rows of a page it looks for, and reads them all.
WORK_MEMORY = "32MB"


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


@contextmanager
def reading_transaction(engine: Engine) -> Iterator[Connection]:
    """One read-only transaction in which every statement sees the same instant."""
    with transaction(engine.execution_options(isolation_level="REPEATABLE READ")) as connection:
        connection.exec_driver_sql("set local transaction_read_only = on")
        connection.exec_driver_sql(f"set local work_mem = '{WORK_MEMORY}'")
        connection.execute(WHOLE_DAYS)
        yield connection


def read_reading(connection: Connection, db: Database) -> Reading:
    """The state of the statistics; `NotInstalled` if there is none, `NotKept` if they lack the totals."""
    row = connection.execute(text("select today, counted_at, timezone, rollups from rollup_reading()")).one_or_none()
    if row is None:
        raise NotInstalled(f"no state for {db.log.name}: run 'calc-analytics migrate' first")
    if STATS.name not in row.rollups:
        raise NotKept(f"reports need {STATS.name}, which ROLLUPS leaves out: add it, and run 'calc-analytics migrate'")
    return Reading(row.today, row.counted_at, row.timezone, tuple(row.rollups))


@dataclass(frozen=True)
class Questions:
    """Asks in the caller's transaction; `publisher` is None for the platform.

    A double is NaN in a frame, and None elsewhere, where there is nothing.
    """

    connection: Connection
    reading: Reading
    publisher: int | None

    def counted_days(self) -> tuple[date | None, date | None]:
        """The first and the last day with calculations; `UnknownPublisher` if a publisher has none at all."""
        first, last = None, None
        if self.publisher is None or abs(self.publisher) < 2**63:
            first, last = self.connection.execute(_COUNTED, {"publisher": self.publisher}).one()
        if self.publisher is not None and first is None:
            raise UnknownPublisher(
                f"no calculation of publisher {self.publisher} was ever counted: is the number right?"
            )
        return first, last

    def find_publisher(self) -> Entity | None:
        """The publisher with its name, if that is known."""
        if self.publisher is None:
            return None
        names = find_names(self.connection, PUBLISHERS, [self.publisher])
        return Entity(self.publisher, names.get(self.publisher), "publisher")

    def incomplete_days(self, of: Period) -> tuple[date, ...]:
        """Days of the period that have log rows and are not built in every rollup that is kept, or differ."""
        values = {"first": of.first, "last": of.last, "rollups": list(self.reading.kept)}
        return tuple(self.connection.execute(_INCOMPLETE, values).scalars())

    def totals(self, of: Period) -> Totals:
        """The sums of the period."""
        return Totals(**_fields(Totals, self._rows("totals", of)[0]))

    def days(self, of: Period) -> pandas.DataFrame:
        """A row for each day: `DAYS`."""
        return _frame(self._rows("days", of), DAYS)

    def hours(self, of: Period) -> pandas.DataFrame:
        """A row for each of the 168 hours of a week: `HOURS`."""
        return _frame(self._rows("hours", of), HOURS)

    def percentiles(self, of: Period) -> tuple[Percentiles, pandas.DataFrame]:
        """Those of the whole period, and a row for each day, or for each week of a long period: `SPANS`."""
        if of.days > DAYS_BY_DAY:
            *weeks, whole = self._rows("percentiles_by_week", of)
            spans = [{**row, "first_day": row["begins"], "last_day": row["ends"]} for row in weeks]
        else:
            (whole,), days = self._rows("percentiles", of), self._rows("percentiles_by_day", of)
            spans = [{**row, "first_day": row["date"], "last_day": row["date"]} for row in days]
        return Percentiles(**_fields(Percentiles, whole)), _frame(spans, SPANS)

    def top_localities(self, of: Period) -> pandas.DataFrame:
        """The ten with most calculations: `TOP_ROWS`."""
        return self._top("top_localities", of, "locality_id", LOCALITIES)

    def top_publishers(self, of: Period) -> pandas.DataFrame | None:
        """The same; None unless of the platform."""
        if self.publisher is not None:
            return None
        return self._top("top_publishers", of, "publisher_id", PUBLISHERS)

    def _top(self, function: str, of: Period, key: str, table: str) -> pandas.DataFrame:
        rows = self._rows(function, of, n=TOP)
        names = find_names(self.connection, table, [row[key] for row in rows])
        return _frame([{**row, "id": row[key], "name": names.get(row[key])} for row in rows], TOP_ROWS)

    def _rows(self, function: str, of: Period, **more: int) -> Sequence[Mapping[str, Any]]:
        """What the function returns for the publisher or the platform."""
        arguments = ["cast(:first as date)", "cast(:last as date)", *(f":{name}" for name in more)]
        values: dict[str, Any] = {"first": of.first, "last": of.last, **more}
        name = f"platform_{function}"
        if self.publisher is not None:
            name, values = f"publisher_{function}", {"publisher": self.publisher, **values}
            arguments.insert(0, "cast(:publisher as bigint)")
        statement = text(f"select * from {name}({', '.join(arguments)})")
        return [dict(row) for row in self.connection.execute(statement, values).mappings()]


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


def _fields(type_: type[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in type_.__dataclass_fields__}


def _frame(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> pandas.DataFrame:
    columns = {name: pandas.Series([row[name] for row in rows], dtype=type_) for name, type_ in types.items()}
    return pandas.DataFrame(columns)


_COUNTED = text(
    f"""
    select min(date), max(date) from {STATS.name}
    where total_calculations > 0 and isfinite(date)
      and (cast(:publisher as bigint) is null or publisher_id = cast(:publisher as bigint))
    """
)
# Where it is not known which days are built, as under row-level security, none is taken for built.
_INCOMPLETE = text(
    """
    select distinct day from unnest(cast(:rollups as text[])) as kept (name)
    cross join unnest(coalesce(
        rollup_days_unbuilt(name, cast(:first as date), cast(:last as date)),
        array(select cast(:first as date) + n
              from generate_series(0, cast(:last as date) - cast(:first as date)) as s (n))
    )) as unbuilt (day)
    order by day
    """
)
