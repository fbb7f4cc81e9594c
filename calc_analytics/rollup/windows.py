"""When a day begins and ends, computed by PostgreSQL.

`date` is `(created_at at time zone z)::date`. The opposite direction is ambiguous where clocks turn back at
midnight (Havana, Azores) and PostgreSQL picks the later midnight, so the earlier candidates are tried too. Where
two days' windows overlap, local time itself goes back over midnight, and `exact` is false: the row's own date must
then be compared too, which costs as much as the rest of an aggregation.
"""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.adopt import hour
from calc_analytics.days import FIRST, LAST, ONE_DAY


@dataclass(frozen=True)
class Window:
    """A day's instants, half-open: begin <= t < end. If not `exact`, some of them belong to a neighbour."""

    day: date
    begin: datetime
    end: datetime
    exact: bool

    def parameters(self, suffix: str = "") -> dict[str, Any]:
        """The parameters of `of_day`."""
        return {f"day{suffix}": self.day, f"begin{suffix}": self.begin, f"end{suffix}": self.end}


def local_date(event_time: str, timezone: str) -> str:
    """SQL: the day of an instant. The only definition of `date`."""
    return f"cast(({event_time}) at time zone {timezone} as date)"


def has_a_day(day: str) -> str:
    """SQL: the local date is one that a client can hold. At infinity or in the year 10000 a row has no day."""
    return f"{day} between date '{FIRST}' and date '{LAST}'"


def has_no_day(event_time: str, timezone: str) -> str:
    """SQL: the opposite; compared by the hour first, for the index."""
    first, last = "timestamptz '0001-01-04 00:00+00'", f"timestamptz '{LAST} 00:00+00'"
    nearly = f"({hour(event_time)} < {first} or {hour(event_time)} >= {last})"
    return f"{nearly} and not ({has_a_day(local_date(event_time, timezone))})"


def within(event_time: str, begin: str, end: str) -> str:
    """SQL: the instant lies in [begin, end). Compared by the hour as well, which the log's BRIN index holds."""
    return f"({event_time} >= {begin} and {event_time} < {end} and {within_hours(event_time, begin, end)})"


def of_day(event_time: str, span: Window, suffix: str = "") -> str:
    """SQL: the instant belongs to that day; parameters: `span.parameters(suffix)`, and `tz` unless it is exact.

    A day that begins and ends with an hour is compared by the hour alone: half the work, for every row of the day.
    """
    begin, end = f":begin{suffix}", f":end{suffix}"
    by_hour = span.begin.minute == span.begin.second == span.end.minute == span.end.second == 0
    conditions = [within_hours(event_time, begin, end) if by_hour else within(event_time, begin, end)]
    if not span.exact:
        conditions.append(f"{local_date(event_time, ':tz')} = :day{suffix}")
    return " and ".join(conditions)


def within_hours(event_time: str, begin: str, end: str) -> str:
    """SQL: the instant's hour lies in [begin, end), whole hours; the log's BRIN index holds hours."""
    return f"{hour(event_time)} >= {hour(begin)} and {hour(event_time)} < {end}"


def midnight(day: str, timezone: str) -> str:
    """SQL: the last instant at which that day's 00:00 shows on the clock."""
    return f"(cast({day} as timestamp) at time zone {timezone})"


def day_begin(day: str, timezone: str) -> str:
    """SQL: the first instant of that day; clocks have turned back by up to three hours."""
    late = midnight(day, timezone)
    tries = " ".join(
        f"when {local_date(f'{late} - interval {back!r}', timezone)} >= {day} then {late} - interval {back!r}"
        for back in ("3 hours", "2 hours", "1 hour", "30 minutes")
    )
    return f"(case {tries} else {late} end)"


def windows(connection: Connection, days: list[date], timezone: str) -> list[Window]:
    """The windows of these days, in one round trip."""
    rows = connection.execute(_WINDOWS, {"days": days, "next": [d + ONE_DAY for d in days], "tz": timezone})
    return [Window(row.day, row.begin, row.end, row.exact) for row in rows]


_WINDOWS = text(
    f"""
    select day, {day_begin("day", ":tz")} as begin, {midnight("next", ":tz")} as end,
           {day_begin("day", ":tz")} = {midnight("day", ":tz")}
           and {day_begin("next", ":tz")} = {midnight("next", ":tz")} as exact
    from unnest(cast(:days as date[]), cast(:next as date[])) as d (day, next)
    order by day
    """
)
