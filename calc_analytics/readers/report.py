"""The report: everything that its page shows, read in one transaction, so that all its numbers are of one instant."""

from dataclasses import dataclass
from datetime import date

import pandas

from calc_analytics.readers.names import Entity
from calc_analytics.readers.period import Period, period
from calc_analytics.readers.questions import (
    Percentiles,
    Questions,
    Reading,
    Totals,
    read_reading,
    reading_transaction,
)
from calc_analytics.rollup.database import Database


@dataclass(frozen=True)
class Report:
    """One report; `publisher` is None for the platform. Frames, each in the order that is shown:

    - `days`: date, the fields of `Totals` except source_unknown, complete; a row for each day of the period
    - `percentiles_over_time`: first_day, last_day, and the fields of `Percentiles`; a row per day, or per week
    - `hours`: weekday (1: Monday), hour, calculations; 168 rows
    - `top_localities`, `top_publishers`: rank, id, name (None: unknown), calculations, share, cache_hits,
      cache_hit_ratio; `top_publishers` is None for a publisher
    """

    reading: Reading
    publisher: Entity | None
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
    counted_days: tuple[date | None, date | None]
    """The first and the last day that have calculations, in or outside of the period."""

    @property
    def complete(self) -> bool:
        """Whether every day of the period that has log rows is built, in every rollup that is kept."""
        return not self.incomplete_days

    @property
    def label(self) -> str:
        """The publisher's name, 'publisher 7', or 'all publishers'."""
        return self.publisher.label if self.publisher else "all publishers"


def read_report(db: Database, publisher: int | None, first: date | None, last: date | None) -> Report:
    """Reads the report of a publisher (None: the platform) and those days (default: the last 30, today included).

    Raises `UnknownPublisher`, `InvalidDay`, `PeriodTooLong`, `NotInstalled`, `NotKept`, or `DatabaseError`.
    """
    with reading_transaction(db.engine) as connection:
        reading = read_reading(connection, db)
        wanted = period(first, last, reading.today)
        ask = Questions(connection, reading, publisher)
        counted_days = ask.counted_days()
        percentiles, percentiles_over_time = ask.percentiles(wanted)
        return Report(
            reading=reading,
            counted_days=counted_days,
            publisher=ask.find_publisher(),
            period=wanted,
            incomplete_days=ask.incomplete_days(wanted),
            totals=ask.totals(wanted),
            totals_before=ask.totals(wanted.before),
            is_before_complete=not ask.incomplete_days(wanted.before),
            percentiles=percentiles,
            days=ask.days(wanted),
            percentiles_over_time=percentiles_over_time,
            hours=ask.hours(wanted),
            top_localities=ask.top_localities(wanted),
            top_publishers=ask.top_publishers(wanted),
        )
