"""When a day begins and ends, computed by PostgreSQL.

`date` is `(created_at at time zone z)::date`. The opposite direction is ambiguous where clocks turn back at
midnight (Havana, Azores) and PostgreSQL picks the later midnight, so the earlier candidates are tried too. Where
two days' windows overlap, local time itself goes back over midnight, and `exact` is false: the caller must then
also compare the row's own date.
"""

from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.adopt import hour
from calc_analytics.days import ONE_DAY


@dataclass(frozen=True)
class Window:
    """A day's instants, half-open: begin <= t < end. If not `exact`, some of them belong to a neighbour."""

    day: date
    begin: datetime
    end: datetime
    exact: bool


def local_date(event_time: str, timezone: str) -> str:
    """SQL: the day of an instant. The only definition of `date`."""
    return f"cast(({event_time}) at time zone {timezone} as date)"


def within(event_time: str, begin: str, end: str) -> str:
    """SQL: the instant lies in [begin, end). Said again by the hour, which is what the log's BRIN index holds."""
    by_hour = f"{hour(event_time)} >= {hour(begin)} and {hour(event_time)} < {end}"
    return f"({event_time} >= {begin} and {event_time} < {end} and {by_hour})"


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
