"""The report as one HTML file: no script, no network, no other file; the same report gives the same bytes.

Every text is escaped by the template. Names stand in `bdi`, so that right-to-left ones do not move what is beside them.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy
import pandas
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from calc_analytics import __version__, days
from calc_analytics.plurals import number
from calc_analytics.readers.figures import (
    SOURCES,
    WEEKDAYS,
    as_milliseconds,
    as_percent,
    draw_pictures,
    sum_by_span,
    weekday_counts,
)
from calc_analytics.readers.names import Entity
from calc_analytics.readers.questions import DAYS_BY_DAY, Totals
from calc_analytics.readers.report import Report
from calc_analytics.rollups import HOURS, LATENCY, LOCALITIES

FOLDER = Path(__file__).parent
NONE = "–"
SOURCE_WORDS = {"web": "web UI", "api": "authenticated API", "external": "external API", "unknown": "unknown source"}
DAYS_LISTED = 7
# A growth to so many times is not shown in percent.
TIMES = 10
_PARTS = {"hours": HOURS.name, "percentiles": LATENCY.name, "localities": LOCALITIES.name}


@dataclass(frozen=True)
class Line:
    """One total: its name, its value, that of the period before, and the change in words."""

    name: str
    value: str
    before: str
    change: str


def policy() -> str:
    """The Content-Security-Policy of the page: its own style, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def render(report: Report) -> str:
    """The page. Times are those of the reporting time zone."""
    return _template().render(report=report, **_words(report), **_numbers(report), **_document())


def _document() -> dict[str, Any]:
    return {"version": __version__, "policy": policy(), "style": Markup(_style())}


def _words(report: Report) -> dict[str, Any]:
    """What the page says besides numbers; '' where there is nothing to say."""
    reading = report.reading
    return {
        "title": f"{_isolated(report.label)}, {report.period.in_words}",
        "period": f"{report.period.in_words}, {number(report.period.days, 'day')}",
        "counted_at": reading.counted_at and _moment(reading.counted_at.astimezone(days.zone(reading.timezone))),
        "notes": list(_notes(report)),
        "incomplete": _incomplete_words(report),
        "empty": _empty_words(report),
        "uneven": _uneven_words(report),
        "measured": number(report.percentiles.measured, "calculation"),
        "missing": {part: name for part, name in _PARTS.items() if name not in reading.kept},
    }


def _numbers(report: Report) -> dict[str, Any]:
    """Figures, and the tables below them."""
    is_by_week = report.period.days > DAYS_BY_DAY
    trend = sum_by_span(report, is_by_week)
    return {
        "lines": _lines(report),
        "has_before": report.totals_before.calculations > 0,
        "pictures": {
            name: (each, [Markup(form) for form in each.forms]) for name, each in draw_pictures(report).items()
        },
        "span": "Week from" if is_by_week else "Day",
        "trend": trend,
        "sources": {name: SOURCE_WORDS[name] for name in SOURCES if trend[name].any()},
        "hours": report.hours["calculations"].to_numpy().reshape(7, 24),
        "weekdays": WEEKDAYS,
        "tops": list(_tops(report)),
    }


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


def _isolated(name: str) -> str:
    """The name between the characters that isolate its direction, for the title, which takes no markup."""
    return f"\u2068{name}\u2069"


def _notes(report: Report) -> Iterator[str]:
    """What a reader has to know to read the numbers right."""
    today, last = report.reading.today, report.period.last
    if report.period.first <= today <= last:
        yield f"Today, {today}, is not over: its numbers still grow."
    if last > today:
        yield f"Days after today, {today}, are part of the period."
    begin = report.counted_days[0]
    if report.totals_before.calculations and begin and begin > report.period.before.first:
        yield f"The first calculation is of {begin}, within the period before."
    if note := _average_note(report):
        yield note
    if report.totals_before.calculations and not report.is_before_complete:
        yield f"The period before, {report.period.before.in_words}, is not complete: the changes may be too large."


def _average_note(report: Report) -> str | None:
    if not report.totals.calculations or report.totals.average_response_time_ms is not None:
        return None
    return "There is no average response time: no row has one, or the days' response times are not counted yet."


def _incomplete_words(report: Report) -> str:
    """'' if the period is complete."""
    missing = report.incomplete_days
    if not missing:
        return ""
    listed = ", ".join(str(day) for day in missing[:DAYS_LISTED])
    more = f" and {len(missing) - DAYS_LISTED:,} more" if len(missing) > DAYS_LISTED else ""
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{number(len(missing), 'day')} of the period {verb} not built, or found to differ ({listed}{more}): "
        "the numbers may be wrong, most often too low. The operator's 'calc-analytics status' says why."
    )


def _empty_words(report: Report) -> str:
    """'' if there are calculations in the period."""
    if report.totals.calculations:
        return ""
    first, last = report.counted_days
    if first is None:
        return "No calculation was ever counted."
    known = f"on {first}" if first == last else f"from {first} to {last}"
    return f"No calculations in this period. There are calculations {known}."


def _lines(report: Report) -> list[Line]:
    now, before = report.totals, report.totals_before
    found = [
        Line("Calculations", *_counts(now.calculations, before.calculations)),
        Line("Cache hits", *_counts(now.cache_hits, before.cache_hits)),
        _ratio_line(now, before),
        _average_line(now, before),
    ]
    for source in SOURCES:
        value, past = getattr(now, f"source_{source}"), getattr(before, f"source_{source}")
        if value or past or source != "unknown":
            found.append(Line(f"From {SOURCE_WORDS[source]}", *_counts(value, past)))
    return found


def _counts(now: int, before: int) -> tuple[str, str, str]:
    if not before:
        change = "none before" if now else NONE
    elif now >= TIMES * before:
        change = f"{now / before:,.{1 if now < 100 * before else 0}f} times"
    else:
        change = _signed(100 * (now - before) / before, "%")
    return f"{now:,}", f"{before:,}", change


def _ratio_line(now: Totals, before: Totals) -> Line:
    value, past = now.cache_hit_ratio, before.cache_hit_ratio
    change = NONE if value is None or past is None else _signed(100 * (value - past), "points")
    return Line("Cache-hit ratio", _or_none(value, as_percent), _or_none(past, as_percent), change)


def _average_line(now: Totals, before: Totals) -> Line:
    value, past = now.average_response_time_ms, before.average_response_time_ms
    change = _signed(100 * (value - past) / past, "%") if value is not None and past else NONE
    return Line("Average response time", _or_none(value, as_milliseconds), _or_none(past, as_milliseconds), change)


def _signed(value: float, unit: str) -> str:
    rounded = round(value, 1)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else "±"
    return f"{sign}{abs(rounded):,.1f}\N{NO-BREAK SPACE}{unit}"


def _or_none(value: Any, shown: Any) -> str:
    return NONE if value is None or value != value else str(shown(value))


def _uneven_words(report: Report) -> str:
    """'' if the period has as many of each weekday."""
    counts = weekday_counts(report)
    if numpy.unique(counts).size == 1:
        return ""
    return f"The period has {counts.min()} to {counts.max()} of each weekday: colours show averages, the table sums."


def _tops(report: Report) -> Iterator[dict[str, Any]]:
    """The tables of localities and, for the platform, of publishers."""
    if report.top_publishers is not None:
        yield {"name": "publishers", "title": "Top publishers", "rows": _top_rows(report.top_publishers, "publisher")}
    yield {"name": "localities", "title": "Top localities", "rows": _top_rows(report.top_localities, "locality")}


def _top_rows(frame: pandas.DataFrame, kind: str) -> Sequence[dict[str, Any]]:
    largest = frame["share"].max() if len(frame) else 1.0
    return [
        {**row, "entity": Entity(row["id"], row["name"], kind), "width": round(100 * row["share"] / largest, 1)}
        for row in frame.to_dict("records")
    ]


@lru_cache
def _style() -> str:
    return (FOLDER / "page.css").read_text(encoding="utf-8")


@lru_cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda value: _or_none(value, as_percent),
        milliseconds=lambda value: _or_none(value, as_milliseconds),
        count=lambda value: f"{int(value):,}",
    )
    return environment.get_template("page.html")
