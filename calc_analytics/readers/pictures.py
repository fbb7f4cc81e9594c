"""A picture of the last 30 days: calculations by source as stacked bars, and the 95th percentile below as a line.

Dagster's pages show Markdown of fewer than 1,000 characters without a click, so the picture is an SVG of that size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import text

from calc_analytics.database.engine import transaction
from calc_analytics.readers.day_figures import LIMIT
from calc_analytics.rollup.database import Database

DAYS = 30
# What Dagster's pages show without a click.
CHARACTERS = 1_000
# Pixels: a day's width, the heights of the bars and of the line below.
DAY_WIDTH, LINE_HEIGHT, BAR_HEIGHT = 8, 14, 40
# From the bottom of the stack up.
COLORS = {"source_web": "steelblue", "source_api": "orange", "source_external": "seagreen", "other": "silver"}
LABELS = {
    "source_web": "web blue",
    "source_api": "API orange",
    "source_external": "external green",
    "other": "unknown source grey",
}
ESCAPED = str.maketrans({"<": "%3C", ">": "%3E", " ": "%20"})


@dataclass(frozen=True)
class TrendDay:
    """A day of the picture: calculations, those of each known source, and the 95th percentile in ms, if any."""

    date: date
    calculations: int
    source_web: int
    source_api: int
    source_external: int
    p95_ms: float | None

    @property
    def other(self) -> int:
        """Calculations of unknown sources."""
        return max(self.calculations - self.source_web - self.source_api - self.source_external, 0)


def trend_picture(db: Database, last: date) -> str:
    """The picture of the 30 days up to `last`, of all publishers, as Markdown; database errors are raised within
    seconds."""
    return draw_trend(read_trend(db, last))


def read_trend(db: Database, last: date) -> list[TrendDay]:
    """A row for each of the 30 days, days without calculations included."""
    with transaction(db.engine) as connection:
        connection.execute(LIMIT)
        rows = connection.execute(_TREND, {"first": last - timedelta(days=DAYS - 1), "last": last})
        return [TrendDay(**row) for row in rows.mappings()]


def draw_trend(days: Sequence[TrendDay]) -> str:
    """An image and a line of text, in fewer than 1,000 characters: bars without sources if those do not fit."""
    drawn = _draw(days, COLORS)
    return drawn if len(drawn) < CHARACTERS else _draw(days, {"calculations": "steelblue"})


def _draw(days: Sequence[TrendDay], colors: Mapping[str, str]) -> str:
    size = f"width='{DAY_WIDTH * len(days)}' height='{BAR_HEIGHT + LINE_HEIGHT + 4}'"
    drawn = f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{''.join(_bars(days, colors))}{_line(days)}</svg>"
    return f"![last {len(days)} days](data:image/svg+xml,{drawn.translate(ESCAPED)}) {_legend(days, colors)}"


def _bars(days: Sequence[TrendDay], colors: Mapping[str, str]) -> Iterator[str]:
    """One area per source, the highest first, so that each lower one covers the part below it."""
    greatest = max(day.calculations for day in days) or 1
    tops = [0] * len(days)
    areas = []
    for name, color in colors.items():
        values = [getattr(day, name) for day in days]
        tops = [top + value for top, value in zip(tops, values, strict=True)]
        if any(values):
            areas.append(f"<path fill='{color}' d='{_steps([round(BAR_HEIGHT * top / greatest) for top in tops])}'/>")
    yield from reversed(areas)


def _steps(tops: Sequence[int]) -> str:
    """The outline of bars side by side: equal neighbours are one step."""
    path, before, width = f"M0,{BAR_HEIGHT}", 0, 0
    for top in tops:
        if top != before and width:
            path, width = f"{path}h{width}", 0
        if top != before:
            path += f"v{before - top}"
        before, width = top, width + DAY_WIDTH
    return f"{path}h{width}V{BAR_HEIGHT}z"


def _line(days: Sequence[TrendDay]) -> str:
    """The 95th percentiles from the middle of each day to the next; days without one are gaps."""
    greatest = max((day.p95_ms or 0 for day in days), default=0) or 1
    bottom, path, before = BAR_HEIGHT + LINE_HEIGHT + 2, "", None
    for place, day in enumerate(days):
        y = None if day.p95_ms is None else bottom - round(LINE_HEIGHT * day.p95_ms / greatest)
        if y is not None:
            x = DAY_WIDTH * place + DAY_WIDTH // 2
            path += f"M{x},{y}l" if before is None else f"{DAY_WIDTH},{y - before},"
        before = y
    path = path.rstrip(",l").replace(",-", "-").replace(",M", "M")
    return f"<path fill='none' stroke='crimson' d='{path}'/>" if path else ""


def _legend(days: Sequence[TrendDay], colors: Mapping[str, str]) -> str:
    """'1,204 calculations from 2026-01-02 on: web blue, …; p95 red, 84 ms at most'."""
    total = sum(day.calculations for day in days)
    shown = [LABELS[name] for name in colors if name in LABELS and any(getattr(day, name) for day in days)]
    percentiles = [day.p95_ms for day in days if day.p95_ms is not None]
    line = f"; p95 red, {max(percentiles):,.0f} ms at most" if percentiles else ""
    return f"{total:,} calculations from {days[0].date} on{': ' if shown else ''}{', '.join(shown)}{line}"


_TREND = text(
    """
    select d.date, d.calculations, d.source_web, d.source_api, d.source_external, p.p95_ms
    from platform_days(:first, :last) d join platform_percentiles_by_day(:first, :last) p using (date)
    order by d.date
    """
)
