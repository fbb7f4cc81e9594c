"""The calendar of the page: months as weeks of days, each with its state and its count in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from calc_analytics.days import ONE_DAY
from calc_analytics.rollup.overview import DayOverview

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A day of a month. `state` is empty for a day that is not on record; `words` say state and count."""

    number: int
    state: str
    words: str
    is_today: bool


@dataclass(frozen=True)
class Month:
    """A month: weeks from Monday to Sunday, None where a day belongs to a neighbour."""

    name: str
    weeks: list[list[Cell | None]]


def months(first: date, last: date, today: date, days: Mapping[date, DayOverview], noun: str) -> list[Month]:
    """The months from `first` to `last`, newest first. `noun` is what is counted: 'calculations'."""
    found, begin = [], first.replace(day=1)
    while begin <= last:
        each = [begin + ONE_DAY * n for n in range((last_day(begin) - begin).days + 1)]
        cells: list[Cell | None] = [None] * begin.weekday()
        cells += [_cell(day, today, days.get(day), noun) for day in each]
        cells += [None] * (-len(cells) % 7)
        weeks = [cells[n : n + 7] for n in range(0, len(cells), 7)]
        found.append(Month(f"{MONTHS[begin.month - 1]} {begin.year}", weeks))
        begin = shift_months(begin, 1)
    return found[::-1]


def in_words(day: date) -> str:
    """'Thursday, 26 November 2026', whatever the locale of the process."""
    return f"{WEEKDAYS[day.weekday()]}, {day.day} {MONTHS[day.month - 1]} {day.year}"


def shift_months(day: date, number: int) -> date:
    """The first day of the month that lies so many months after (or before) the day's."""
    month = day.year * 12 + day.month - 1 + number
    return date(month // 12, month % 12 + 1, 1)


def last_day(day: date) -> date:
    """The last day of the day's month."""
    return shift_months(day, 1) - ONE_DAY


def _cell(day: date, today: date, known: DayOverview | None, noun: str) -> Cell:
    if known is None:
        words = "in the future" if day > today else "not on record"
        return Cell(day.day, "", words, day == today)
    rows = "never counted" if known.rows is None else f"{known.rows:,} {noun}"
    return Cell(day.day, known.state, f"{known.state}, {rows}", day == today)
