"""A picture of the last 30 days, small enough to be stored with an event: calculations by source, and response times.

Drawn with matplotlib's objects alone: no window, no state, no font to install. Imported when used: it is heavy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from calc_analytics.database.engine import transaction
from calc_analytics.rollup.database import Database

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DAYS = 30
# Inches, and dots per inch: 750 x 400 dots.
SIZE, DPI = (7.5, 4.0), 100
SOURCES = {
    "source_web": ("web", "#4c78a8"),
    "source_api": ("API", "#f2a541"),
    "source_external": ("external", "#6b9e78"),
}
OTHER = ("unknown source", "#b5b5b5")
P50, P95, QUIET, WEEKEND = "#4c78a8", "#c44e52", "#666666", "#f3f3f3"


@dataclass(frozen=True)
class TrendDay:
    """A day of the picture: calculations, those of each known source, and percentiles in milliseconds, if any."""

    date: date
    calculations: int
    source_web: int
    source_api: int
    source_external: int
    p50_ms: float | None
    p95_ms: float | None

    @property
    def other(self) -> int:
        """Calculations of unknown sources."""
        return max(self.calculations - self.source_web - self.source_api - self.source_external, 0)


@dataclass(frozen=True)
class Picture:
    """A PNG, and what it shows in words."""

    png: bytes
    text: str


def trend_picture(db: Database, last: date) -> Picture:
    """The picture of the 30 days up to `last`, of all publishers; database errors are raised within seconds."""
    days = read_trend(db, last)
    words = f"{sum(day.calculations for day in days):,} calculations from {days[0].date} to {last}"
    return Picture(draw_trend(days), words)


def read_trend(db: Database, last: date) -> list[TrendDay]:
    """A row for each of the 30 days, days without calculations included."""
    with transaction(db.engine) as connection:
        connection.execute(text("set local statement_timeout = '15s'"))
        rows = connection.execute(_TREND, {"first": last - timedelta(days=DAYS - 1), "last": last})
        return [TrendDay(**row) for row in rows.mappings()]


def draw_trend(days: Sequence[TrendDay]) -> bytes:
    """The PNG, at most about 30 kB: bars by source above, lines of p50 and p95 below, weekends in grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_calculations(above, days)
    _draw_response_times(below, days)
    for axes in (above, below):
        _tidy(axes, days)
    return _png(figure)


def _draw_calculations(axes: "Axes", days: Sequence[TrendDay]) -> None:
    shown = {name: (label, color, [getattr(day, name) for day in days]) for name, (label, color) in SOURCES.items()}
    shown["other"] = (*OTHER, [day.other for day in days])
    bottom = [0] * len(days)
    for label, color, values in shown.values():
        if any(values):
            axes.bar([day.date for day in days], values, 0.8, bottom, color=color, label=label)  # type: ignore[arg-type]
            bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    _title(axes, "Calculations per day", any(bottom))


def _draw_response_times(axes: "Axes", days: Sequence[TrendDay]) -> None:
    for label, color, name in (("p95", P95, "p95_ms"), ("p50", P50, "p50_ms")):
        values: list[Any] = [getattr(day, name) for day in days]
        if any(value is not None for value in values):
            numbers = [float("nan") if value is None else value for value in values]
            dates: Any = [day.date for day in days]
            axes.plot(dates, numbers, color=color, label=label, linewidth=1.6, marker="o", markersize=2.5)
    _title(axes, "Response time, ms", bool(axes.lines))


def _title(axes: "Axes", title: str, has_data: bool) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    if has_data:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.005, 0.97), ncols=4, frameon=False, fontsize=8.5, handlelength=1
        )
    else:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=QUIET)


def _tidy(axes: "Axes", days: Sequence[TrendDay]) -> None:
    from matplotlib.dates import DateFormatter, DayLocator, date2num
    from matplotlib.ticker import EngFormatter, MaxNLocator

    half, first, last = 0.5, float(date2num(days[0].date)), float(date2num(days[-1].date))
    for day in days:
        if day.date.weekday() >= 5:
            axes.axvspan(float(date2num(day.date)) - half, float(date2num(day.date)) + half, color=WEEKEND, zorder=0)
    axes.set_xlim(first - half, last + half)
    axes.margins(y=0.08)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    # Mondays only.
    axes.xaxis.set_major_locator(DayLocator(interval=7))
    axes.xaxis.set_ticks([float(date2num(day.date)) for day in days if day.date.weekday() == 0])
    axes.xaxis.set_major_formatter(DateFormatter("%d %b"))
    axes.tick_params(labelsize=8.5, color=QUIET, labelcolor=QUIET, length=3)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")


def _png(figure: "Figure") -> bytes:
    """With a palette of 64 colors, which is half the size."""
    from PIL import Image

    drawn, packed = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(64).save(packed, format="png", optimize=True)
    return packed.getvalue()


_TREND = text(
    """
    select d.date, d.calculations, d.source_web, d.source_api, d.source_external, p.p50_ms, p.p95_ms
    from platform_days(:first, :last) d join platform_percentiles_by_day(:first, :last) p using (date)
    order by d.date
    """
)
