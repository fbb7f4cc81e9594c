"""Days: reading them, listing them, and which day it is in the reporting time zone.

The instants at which a day begins and ends are computed by PostgreSQL alone (`rollup/windows.py`), because the
live view must do so too and two time zone databases could disagree.
"""

from datetime import date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from calc_analytics.errors import CalcAnalyticsError

ONE_DAY = timedelta(days=1)
# The days of the instants that are counted (`rollup/windows.py`), whatever the time zone.
FIRST, LAST = date(1, 1, 2), date(9999, 12, 30)


class InvalidDay(CalcAnalyticsError):
    """A day that is not written YYYY-MM-DD, or a range whose end lies before its beginning."""


def parse_day(text: str) -> date:
    """The day written as YYYY-MM-DD; `InvalidDay` for anything else."""
    try:
        if len(text) != 10:
            raise ValueError(text)
        day = datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise InvalidDay(f"'{text}' is not a day: write it as YYYY-MM-DD, for example 2026-01-31") from None
    if not FIRST <= day <= LAST:
        raise InvalidDay(f"{text} is out of range: days go from {FIRST} to {LAST}")
    return day


def days_between(first: date, last: date) -> list[date]:
    """Every day from `first` to `last`, both included; `InvalidDay` if they are the wrong way round."""
    if last < first:
        raise InvalidDay(f"the range ends ({last}) before it begins ({first})")
    return [first + ONE_DAY * n for n in range((last - first).days + 1)]


def zone(name: str) -> tzinfo:
    """The time zone of that IANA name; `ZoneInfoNotFoundError` or `ValueError` if there is none."""
    return ZoneInfo(name)


def today(timezone: str, now: datetime | None = None) -> date:
    """The day that it is in `timezone` at `now` (an aware instant; default: the clock's)."""
    instant = now or datetime.now(tz=ZoneInfo("UTC"))
    return instant.astimezone(zone(timezone)).date()


def today_and_yesterday(timezone: str, now: datetime | None = None) -> list[date]:
    """The two days that the hourly schedule keeps proven, oldest first."""
    day = today(timezone, now)
    return [day - ONE_DAY, day]
