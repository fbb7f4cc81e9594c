"""The days of a report, the period before them, and the spans over which percentiles are merged."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from calc_analytics.days import ONE_DAY, InvalidDay
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.plurals import number

DEFAULT_DAYS = 30
LONGEST_DAYS = 3660
"""Ten years: a report of them is still read in seconds and still fits a page."""


class PeriodTooLong(CalcAnalyticsError):
    """The period has more days than a report can show."""


@dataclass(frozen=True)
class Period:
    """The days from `first` to `last`, both included."""

    first: date
    last: date

    @property
    def days(self) -> int:
        """How many days it has."""
        return (self.last - self.first).days + 1

    @property
    def before(self) -> "Period":
        """The period of the same length that ends the day before; shorter where the calendar begins."""
        last = self.first - ONE_DAY
        return Period(date.fromordinal(max(last.toordinal() - self.days + 1, 1)), last)

    def spans(self, is_by_week: bool) -> Iterator["Period"]:
        """Its days one by one, or its weeks from Monday to Sunday, of which the first and the last may be shorter."""
        first = self.first
        while first <= self.last:
            last = min(first + ONE_DAY * (6 - first.weekday()), self.last) if is_by_week else first
            yield Period(first, last)
            first = last + ONE_DAY

    @property
    def in_words(self) -> str:
        """'2026-11-01 to 2026-11-30', or the one day."""
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"


def period(first: date | None, last: date | None, today: date) -> Period:
    """The period of a report: `last` is today unless given, `first` is 29 days before.

    Raises `InvalidDay` if the end lies before the beginning, `PeriodTooLong` for more than `LONGEST_DAYS`.
    """
    last = last or today
    first = first or date.fromordinal(max(last.toordinal() - DEFAULT_DAYS + 1, 1))
    if last < first:
        raise InvalidDay(f"the range ends ({last}) before it begins ({first})")
    found = Period(first, last)
    if found.days > LONGEST_DAYS:
        raise PeriodTooLong(
            f"the period has {number(found.days, 'day')}, a report at most {LONGEST_DAYS:,}: choose a shorter one"
        )
    return found
