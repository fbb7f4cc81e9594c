"""The chart of the lag: how old rows were when they were counted, minute by minute, on a logarithmic scale.

Positions across and down are shares of the plot in percent, so that it fits any width while its labels keep their size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from calc_analytics.rollup.journal import Freshness

MINUTE = timedelta(minutes=1)
# The lines of the grid, in seconds.
SCALE = {
    0.01: "10 ms",
    0.1: "0.1 s",
    1.0: "1 s",
    10.0: "10 s",
    60.0: "1 min",
    600.0: "10 min",
    3600.0: "1 h",
    86_400.0: "1 day",
    864_000.0: "10 days",
    8_640_000.0: "100 days",
}


@dataclass(frozen=True)
class Tick:
    """A labelled line of the grid, and where it is; every second one may be left out where there is little room."""

    at: float
    label: str
    is_minor: bool = False


@dataclass(frozen=True)
class Chart:
    """Two lines as paths in a square of 100 by 100, and the ticks beside and below."""

    median: str
    p95: str
    down: list[Tick]
    across: list[Tick]


def chart(minutes: Sequence[Freshness], begin: datetime, hours: int, zone: tzinfo) -> Chart | None:
    """The chart of those minutes; None if there are none. A line has a gap where nothing was counted."""
    if not minutes:
        return None
    scale = _scale(min(each.p50 for each in minutes), max(each.p95 for each in minutes))
    seconds = hours * 3600.0

    def x(at: datetime) -> float:
        return (at - begin).total_seconds() / seconds * 100

    return Chart(
        median=_path(minutes, x, lambda each: _height(each.p50, scale)),
        p95=_path(minutes, x, lambda each: _height(each.p95, scale)),
        down=[Tick(_height(each, scale), SCALE[each]) for each in scale],
        across=_hours(begin, hours, zone, x),
    )


def _scale(least: float, greatest: float) -> list[float]:
    """The lines of the grid from the one below the least value to the one above the greatest, two at least."""
    values = list(SCALE)
    low = max((n for n, value in enumerate(values) if value <= least), default=0)
    high = min((n for n, value in enumerate(values) if value >= greatest), default=len(values) - 1)
    return values[min(low, len(values) - 2) : max(high, low + 1) + 1]


def _height(value: float, scale: Sequence[float]) -> float:
    """0 at the top of the scale, 100 at its bottom."""
    low, high = math.log(scale[0]), math.log(scale[-1])
    return 100 - 100 * (min(max(math.log(value), low), high) - low) / (high - low)


def _path(minutes: Sequence[Freshness], x: Callable[[datetime], float], y: Callable[[Freshness], float]) -> str:
    """A minute without a neighbour is a dot: a line of no length with round ends."""
    parts, before = [], None
    for each in minutes:
        is_joined = before is not None and each.minute - before == MINUTE
        point = f"{x(each.minute):.2f} {y(each):.2f}"
        parts.append(f"L{point}" if is_joined else f"M{point}h.01")
        before = each.minute
    return "".join(parts)


def _hours(begin: datetime, hours: int, zone: tzinfo, x: Callable[[datetime], float]) -> list[Tick]:
    """The whole hours of that time zone."""
    each = (begin + MINUTE * n for n in range(hours * 60))
    whole = [(at, local) for at in each if (local := at.astimezone(zone)).minute == 0]
    return [Tick(x(at), f"{local:%H:%M}", n % 2 == 1) for n, (at, local) in enumerate(whole)]
