"""The figures of a report as SVG: matplotlib draws, the page's style sheet colours, the browser sets the text.

Each figure is drawn twice, wide and narrow, so that its text can be read on a phone.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date

import matplotlib
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from calc_analytics.readers.period import Period
from calc_analytics.readers.report import Report
from calc_analytics.readers.svg import DRAWN, Size, as_html

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SOURCES = ("web", "api", "external", "unknown")
PERCENTILES = ("p50", "p95", "p99")
# A longer trend is drawn per week.
DAYS_DRAWN = 750
FONT = 12.0
# matplotlib's settings are global.
_drawing = threading.Lock()


SIZES = (Size("wide", 760, 240, 9), Size("narrow", 340, 230, 4))
Draw = Callable[[Axes, Report, Size], None]


@dataclass(frozen=True)
class Picture:
    """A figure: what it shows, in a few words and in a sentence, and its `svg` element in each size."""

    title: str
    words: str
    forms: list[str]


def draw_pictures(report: Report) -> dict[str, Picture]:
    """The figures that the report has numbers for, by name: trend, hours, percentiles, ratio."""
    found: dict[str, tuple[str, str, Draw]] = {}
    span = "week" if report.period.days > DAYS_DRAWN else "day"
    if report.totals.calculations:
        ratios = _range_words(_ratios(by_span(report)[1]), as_percent)
        found["trend"] = f"Calculations per {span}, by source", _trend_words(report), draw_trend
        found["ratio"] = f"Cache-hit ratio per {span}", ratios, draw_ratio
    if report.hours["calculations"].sum():
        found["hours"] = "Calculations by weekday and hour", _hours_words(report), draw_hours
    if report.percentiles.measured:
        words = _range_words(report.percentiles_over_time["p95_ms"], as_milliseconds)
        found["percentiles"] = "Percentiles of the response time", f"95th percentile: {words}", draw_percentiles
    with _drawing, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", fonttype="none", hashsalt="calc_analytics")
        matplotlib.rc("font", size=FONT)
        matplotlib.rc("path", simplify=False)
        return {
            name: Picture(
                title, words, [as_html(_draw_figure(draw, report, size), size, name, title, words) for size in SIZES]
            )
            for name, (title, words, draw) in found.items()
        }


def _draw_figure(draw: Draw, report: Report, size: Size) -> Figure:
    figure = Figure(figsize=(size.width / 72, size.height / 72))
    FigureCanvasSVG(figure)
    left, right, below, above = 54, 10, 26, 10
    box = (
        left / size.width,
        below / size.height,
        1 - (left + right) / size.width,
        1 - (below + above) / size.height,
    )
    axes = figure.add_axes(box)
    _prepare(axes)
    draw(axes, report, size)
    return figure


def _prepare(axes: Axes) -> None:
    """No frame, no ticks; labels and the lines of the grid in the page's colours."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.patch.set_visible(False)
    axes.tick_params(which="both", bottom=False, left=False, labelcolor=DRAWN["muted"])
    axes.tick_params(axis="x", pad=7)
    axes.grid(True, axis="y", color=DRAWN["line"], linewidth=1)
    axes.set_axisbelow(True)


def draw_trend(axes: Axes, report: Report, size: Size) -> None:
    """Calculations per day (per week of a long period), the sources on top of each other."""
    edges, frame = by_span(report)
    base = numpy.zeros(len(frame))
    for source in SOURCES:
        top = base + frame[source].to_numpy(dtype=float)
        if top.sum() > base.sum():
            axes.stairs(top, edges, baseline=base, fill=True, facecolor=DRAWN[source], linewidth=0)
        base = top
    axes.set_ylim(0, max(float(base.max()), 1.0) * 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    _label_days(axes, report.period, size)


def draw_ratio(axes: Axes, report: Report, size: Size) -> None:
    """Cache hits per calculation of each day; a gap where there is no calculation."""
    edges, frame = by_span(report)
    axes.stairs(_ratios(frame).to_numpy(dtype=float), edges, baseline=None, color=DRAWN["ratio"], linewidth=2)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    _label_days(axes, report.period, size)


def _ratios(frame: pandas.DataFrame) -> pandas.Series:
    return frame["cache_hits"] / frame["calculations"].where(frame["calculations"] > 0)


def draw_percentiles(axes: Axes, report: Report, size: Size) -> None:
    """Three percentiles, per day or per week, on a scale that is logarithmic above 1 ms; a gap where none is known."""
    frame = report.percentiles_over_time
    edges = _edges(frame["first_day"], frame["last_day"])
    for name in PERCENTILES:
        values = frame[f"{name}_ms"].to_numpy(dtype=float)
        axes.stairs(values, edges, baseline=None, color=DRAWN[name], linewidth=1.5 if name != "p50" else 2.5)
    known = frame[[f"{name}_ms" for name in PERCENTILES]].to_numpy(dtype=float)
    ticks = _scale(float(numpy.nanmin(known)), float(numpy.nanmax(known)))
    axes.set_yscale("symlog", linthresh=1, linscale=0.3)
    axes.set_ylim(ticks[0], ticks[-1] * 1.03)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: as_milliseconds(value)))
    _label_days(axes, report.period, size)


def draw_hours(axes: Axes, report: Report, size: Size) -> None:
    """A cell for each weekday and hour; the stronger its colour, the more calculations on an average such day."""
    averages = hour_averages(report)
    most = averages.max() or 1.0
    axes.grid(False)
    for weekday, hour in numpy.ndindex(averages.shape):
        strength = 0.06 + 0.94 * averages[weekday, hour] / most if averages[weekday, hour] else 0.03
        colour = (*matplotlib.colors.to_rgb(DRAWN["heat"]), round(float(strength), 2))
        axes.add_patch(Rectangle((hour + 0.04, weekday + 0.05), 0.92, 0.9, facecolor=colour, linewidth=0))
    axes.set_xlim(0, 24)
    axes.set_ylim(7, 0)
    hours = list(range(0, 24, 2 if size.name == "wide" else 4))
    axes.set_xticks([hour + 0.5 for hour in hours], [f"{hour:02}" for hour in hours])
    axes.set_yticks([day + 0.5 for day in range(7)], [name[:3] for name in WEEKDAYS])


def hour_averages(report: Report) -> numpy.ndarray:
    """Calculations per hour of an average Monday, Tuesday, …: 7 × 24; days after today are not averaged."""
    sums = report.hours["calculations"].to_numpy(dtype=float).reshape(7, 24)
    return sums / numpy.maximum(weekday_counts(report), 1)[:, None]


def weekday_counts(report: Report) -> numpy.ndarray:
    """How many Mondays, Tuesdays, … the period has, up to today."""
    last = min(report.period.last, max(report.reading.today, report.period.first))
    weekdays = [each.first.weekday() for each in Period(report.period.first, last).spans(is_by_week=False)]
    return numpy.bincount(weekdays, minlength=7)


def by_span(report: Report) -> tuple[list[int], pandas.DataFrame]:
    """The trend, per day or, of a long period, per week: the edges of the spans, and their sums.

    Columns: first_day, last_day, calculations, cache_hits, web, api, external, unknown.
    """
    frame = sum_by_span(report, report.period.days > DAYS_DRAWN)
    return _edges(frame["first_day"], frame["last_day"]), frame


def sum_by_span(report: Report, is_by_week: bool) -> pandas.DataFrame:
    """The days of the report summed up by span: see `by_span`."""
    days = report.days
    spans = list(report.period.spans(is_by_week))
    numbers = numpy.repeat(numpy.arange(len(spans)), [span.days for span in spans])
    parts = days[["calculations", "cache_hits", "source_web", "source_api", "source_external"]]
    sums = parts.groupby(numbers).sum().rename(columns=lambda name: name.removeprefix("source_"))
    sums["unknown"] = sums["calculations"] - sums["web"] - sums["api"] - sums["external"]
    return sums.assign(first_day=[span.first for span in spans], last_day=[span.last for span in spans])


def _edges(firsts: Iterable[date], lasts: Iterable[date]) -> list[int]:
    """Where each span begins, and where the last one ends, as days of the calendar."""
    return [*(day.toordinal() for day in firsts), list(lasts)[-1].toordinal() + 1]


def _label_days(axes: Axes, period: Period, size: Size) -> None:
    axes.set_xlim(period.first.toordinal(), period.last.toordinal() + 1)
    ticks = dict(_day_labels(period, size.labels))
    axes.set_xticks([day.toordinal() + 0.5 for day in ticks], list(ticks.values()))


def _day_labels(period: Period, most: int) -> Iterator[tuple[date, str]]:
    """Days of at most ten weeks, first days of months of a longer period, at most so many; the year where it begins."""
    if period.days <= 70:
        step = math.ceil(period.days / most)
        for n in range(0, period.days, step):
            day = date.fromordinal(period.first.toordinal() + n)
            yield day, f"{day.day} {MONTHS[day.month - 1]}"
        return
    months = [each.first for each in period.spans(is_by_week=False) if each.first.day == 1]
    step = next(n for n in (1, 2, 3, 4, 6, 12, 24, 60, 120) if len(months) <= n * most)
    for day in (each for each in months if (each.month - 1 + 12 * (each.year % 10)) % step == 0):
        is_named = step >= 12 or (day.month - 1) < step
        yield day, str(day.year) if step >= 12 else MONTHS[day.month - 1] + (f" {day.year}" if is_named else "")


def _scale(least: float, greatest: float) -> list[float]:
    """0, 1, 2, 5, 10, … from below the least value to above the greatest. Few enough to be read."""
    steps = [0.0, *(factor * 10.0**power for power in range(7) for factor in (1, 2, 5))]
    low = max((n for n, step in enumerate(steps) if step < least), default=0)
    high = min(n for n, step in enumerate(steps) if step >= min(greatest, steps[-1]) and n > low)
    found = steps[low : high + 1]
    return (
        found
        if len(found) <= 7
        else [found[0], *(step for step in found[1:-1] if step in (1, 10, 100, 1e3, 1e4)), found[-1]]
    )


def _trend_words(report: Report) -> str:
    busiest = report.days.loc[report.days["calculations"].idxmax()]
    total = report.totals.calculations
    return f"{total:,} in total; most on {busiest['date']}: {busiest['calculations']:,}."


def _range_words(values: pandas.Series, shown: Callable[[float], str]) -> str:
    known = values.dropna()
    return f"from {shown(known.min())} to {shown(known.max())}." if len(known) else "not known."


def _hours_words(report: Report) -> str:
    averages = hour_averages(report)
    weekday, hour = numpy.unravel_index(int(averages.argmax()), averages.shape)
    return f"Most on {WEEKDAYS[int(weekday)]} from {int(hour):02}:00 to {int(hour) + 1:02}:00."


def as_percent(share: float) -> str:
    """'59.8 %', not broken between the two."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def as_milliseconds(value: float) -> str:
    """'0.4 ms', '12 ms', '1.25 s', not broken between the two."""
    if value >= 1000:
        return f"{value / 1000:,.3g}\N{NO-BREAK SPACE}s"
    return f"{value:.3g}\N{NO-BREAK SPACE}ms" if value < 100 else f"{value:.0f}\N{NO-BREAK SPACE}ms"


def compact(value: float) -> str:
    """'950', '1.2k', '35M'."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"
