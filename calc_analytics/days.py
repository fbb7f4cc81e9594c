"""Days: reading them, listing them, and which day it is in the reporting time zone.

The instants at which a day begins and ends are computed by PostgreSQL alone (`rollup/windows.py`), because the
live view must do so too and two time zone databases could disagree.
"""

import re
from datetime import date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from calc_analytics.errors import CalcAnalyticsError

ONE_DAY = timedelta(days=1)
# The days of the instants that are counted (`rollup/windows.py`), in any time zone.
FIRST, LAST = date(1, 1, 2), date(9999, 12, 30)


class InvalidDay(CalcAnalyticsError):
    """A day that is not written YYYY-MM-DD, or a range whose end lies before its beginning."""


def parse_day(text: str) -> date:
    """The day written as YYYY-MM-DD; `InvalidDay` for anything else."""
    try:
        if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError(text)
        day = date.fromisoformat(text)
    except ValueError:
        raise InvalidDay(f"'{text}' is not a day: write it as YYYY-MM-DD, for example 2026-01-31") from None
    if not FIRST <= day <= LAST:
        raise InvalidDay(f"{text} is out of range: days go from {FIRST} to {LAST}")
    return day


def days_between(first: date, last: date) -> list[date]:
    """Every day from `first` to `last`, both included; `InvalidDay` if the first is later than the last."""
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


# The least and the greatest number of each field of a cron line, and the names that may stand for its numbers.
_CRON_FIELDS = (
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day of the month", 1, 31, ""),
    ("month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
    ("day of the week", 0, 7, "sun mon tue wed thu fri sat"),
)
_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def require_cron_line(text: str) -> None:
    """Raises ValueError, with the reason, unless the text is a cron line of five fields whose time comes."""
    fields = text.lower().split()
    if len(fields) != len(_CRON_FIELDS):
        raise ValueError("it does not have five fields")
    values = [_cron_values(field, *each) for field, each in zip(fields, _CRON_FIELDS, strict=True)]
    days, months = values[2], values[3]
    if days and fields[4] == "*" and not any(min(days) <= _LONGEST_MONTHS[month - 1] for month in months):
        raise ValueError("that day never comes")


def _cron_values(field: str, name: str, least: int, greatest: int, names: str) -> set[int]:
    """The numbers that the field stands for; none for the special forms of a day (`l`, `5#2`)."""
    numbers = {word: n for n, word in enumerate(names.split(), start=least)}
    found: set[int] = set()
    for part in field.split(","):
        if name.startswith("day") and re.fullmatch(r"l[0-7]?|[0-7]#[1-5]|[a-z]{3}#[1-5]", part):
            continue
        span, _, step = part.partition("/")
        first, _, last = (f"{least}", "-", f"{greatest}") if span == "*" else span.partition("-")
        begin, end = (str(numbers.get(each, each)) for each in (first, last or first))
        if not all(_is_number(each) and least <= int(each) <= greatest for each in (begin, end)):
            raise ValueError(f"'{part}' is not a {name}, which goes from {least} to {greatest}")
        if "/" in part and not (_is_number(step) and int(step) > 0):
            raise ValueError(f"'/{step}' is not a step")
        is_open = int(begin) > int(end) or (bool(step) and not last)
        found.update(range(int(begin), (greatest if is_open else int(end)) + 1, int(step or 1)))
    return found


def _is_number(text: str) -> bool:
    """Whether the text is ASCII digits only."""
    return text.isascii() and text.isdecimal()
