"""The page: the health report and the figures in words, put into `page.html`.

Every text is escaped by the template; only public texts come in (`Health.public`, `disclosure.Cause`). What was not
answered is a sentence that says so, never an empty part or a green one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calc_analytics import days
from calc_analytics.html import Page
from calc_analytics.operations.disclosure import NO_ANSWER
from calc_analytics.operations.findings import NOTE, OK
from calc_analytics.operations.page import calendar
from calc_analytics.operations.page.chart import chart
from calc_analytics.operations.page.figures import LAG_HOURS, Figures
from calc_analytics.operations.probes import Answer
from calc_analytics.operations.sources import SEARCH_LIMIT_SECONDS
from calc_analytics.operations.words import ago, in_rollups
from calc_analytics.plurals import number
from calc_analytics.rollup import status
from calc_analytics.rollup.overview import DayOverview
from calc_analytics.rollup.status import LAG_ROWS_LIMIT

REFRESH_SECONDS = 15
# The sign of each state beside its colour, and what it means.
MEANINGS = {
    "built": ("✓", "exact: every row that was committed before the last count is in it"),
    "pruned": ("−", "built; some of its log rows were deleted since, the statistics keep them"),
    "frozen": ("=", "not rebuilt, because its log rows are gone; the statistics are kept as they are"),
    "pending": ("…", "seen but never counted whole: it waits for a rebuild"),
    "stale": ("~", "to be rebuilt after a rebase, or after ROLLUPS was changed; the statistics are the old ones"),
    "overflow": ("↑", "set aside, because a value does not fit its column"),
    "differs": ("≠", "differs from the log, or from what was counted, when last compared"),
    "unrecorded": ("?", "one of the rollups has no record of it"),
    "unseen": ("!", "has log rows and no record, so no count has them; it waits for a rebuild"),
}
# In the order of the legend.
STATES = {state: MEANINGS[state] for state in reversed(status.STATES)}
EXACT = ("built", "pruned")
URGENT = status.STATES[: status.STATES.index("frozen")]
URGENT_LIMIT = 20


@dataclass(frozen=True)
class Sentence:
    """A statement and how good it is: ok, note, wait, bad, or unknown."""

    mood: str
    text: str


def headers() -> dict[str, str]:
    """Those of the page."""
    return {**PAGE.headers(), "Vary": "Accept"}


def render(health: Mapping[str, Any], figures: Figures, timezone: str, dagster_url: str | None, is_open: bool) -> str:
    """The page for this report (`Health.public`) and these figures; `is_open`: whether reports are.

    Times are those of that time zone.
    """
    zone = days.zone(timezone)
    return PAGE.render(
        health=health,
        headline=headline(health["probes"]),
        failing=_findings([probe for probe in health["probes"] if not probe["ok"]]),
        notes=_findings([probe for probe in health["probes"] if probe["level"] == NOTE]),
        passed=[probe for probe in health["probes"] if probe["level"] == OK],
        figures=figures,
        timezone=timezone,
        clock=lambda at: at.astimezone(zone).strftime("%H:%M:%S"),
        moment=lambda at: at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S"),
        age=lambda at: ago(max((figures.now - at).total_seconds(), 0.0)),
        today=_today(figures),
        chart=chart(figures.ages.value or [], figures.since, LAG_HOURS, zone),
        lag_hours=LAG_HOURS,
        days=_days(figures) if figures.overview.value else None,
        states=STATES,
        weekdays=calendar.WEEKDAYS,
        dagster_url=dagster_url,
        is_report_open=is_open,
        refresh_seconds=REFRESH_SECONDS,
        search_limit=SEARCH_LIMIT_SECONDS,
    )


def headline(probes: Sequence[Mapping[str, Any]]) -> Sentence:
    """How many probes pass, have a note, fail or gave no answer."""
    silent = sum(probe["code"] == NO_ANSWER for probe in probes)
    failing = sum(not probe["ok"] for probe in probes) - silent
    notes = sum(probe["level"] == NOTE for probe in probes)
    noted = f"; {notes} {'has a note' if notes == 1 else 'have notes'}" if notes else ""
    if not failing and not silent:
        passed = number(len(probes) - notes, "probe")
        return Sentence("note" if notes else "ok", f"{passed} passed, none failed{noted}.")
    counts = [f"{failing} of {number(len(probes), 'probe')} failed"] if failing else []
    counts += [f"{silent} of {number(len(probes), 'probe')} did not answer"] if silent else []
    return Sentence("bad", f"{' and '.join(counts)}{noted}.")


def missing(answer: Answer[Any]) -> str:
    """Why a part is not there, in general words."""
    return as_sentence(_unknown(answer))


def _unknown(answer: Answer[Any]) -> str:
    return f"not known: {_cause(answer)}"


def _cause(answer: Answer[Any]) -> str:
    return answer.cause.words if answer.cause else "internal error"


def label(name: str) -> str:
    """'Total response time (ms)' for total_response_time_ms."""
    words, unit = (name[:-3], " (ms)") if name.endswith("_ms") else (name, "")
    spelled = " ".join("API" if word == "api" else word for word in words.replace("_", " ").split())
    return spelled[:1].upper() + spelled[1:] + unit


def as_sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _findings(probes: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What these probes say; those that say the same and ask for the same command are one."""
    found: dict[tuple[str, str], list[str]] = {}
    for probe in probes:
        found.setdefault((probe["compared"], probe["next_command"] or ""), []).append(probe["name"])
    return [
        {"names": label(", ".join(names)), "text": as_sentence(text), "command": command}
        for (text, command), names in found.items()
    ]


def _today(figures: Figures) -> dict[str, Any]:
    """Today's date and totals, and whether they are exact."""
    found = figures.overview.value
    totals = {label(name): f"{value:,}" for name, value in (found.totals or {}).items()} if found else {}
    return {"date": calendar.in_words(figures.today), "totals": totals, "sentences": _exact(figures)}


def _exact(figures: Figures) -> list[Sentence]:
    """Whether today's totals are exact, and how many rows wait."""
    if not figures.overview.value:
        return [Sentence("unknown", missing(figures.overview)), *([_lag(figures)] if figures.lag.answered else [])]
    known = next((day for day in figures.overview.value.days if day.day == figures.today), None)
    if known is None:
        return [Sentence("unknown", "Not on record: no row of today is counted yet."), _lag(figures)]
    if known.state not in EXACT:
        where = in_rollups([name for name, word in known.rollups.items() if word == known.state], len(known.rollups))
        meaning = as_sentence(STATES[known.state][1])
        return [Sentence("bad", f"Not exact: the state of today is {known.state} in {where}. {meaning}"), _lag(figures)]
    if figures.lag.value and not figures.lag.value.rows:
        return [Sentence("ok", "Exact: every committed row is counted.")]
    return [Sentence("wait", "Exact up to the last count."), _lag(figures)]


def _lag(figures: Figures) -> Sentence:
    """How many rows wait, and for how long."""
    lag = figures.lag.value
    if lag is None:
        return Sentence("unknown", f"It is not known how many rows wait: {_cause(figures.lag)}.")
    if not lag.rows:
        return Sentence("ok", "No committed row waits to be counted.")
    rows = f"At least {LAG_ROWS_LIMIT:,} rows wait" if lag.rows >= LAG_ROWS_LIMIT else _wait(lag.rows)
    return Sentence("wait", f"{rows} to be counted; the oldest has waited for {ago(lag.seconds)} at most.")


def _wait(rows: int) -> str:
    return f"{number(rows, 'row')} {'waits' if rows == 1 else 'wait'}"


def _days(figures: Figures) -> dict[str, Any]:
    """The calendar, the days that need attention, the days outside the calendar, and how many have each state."""
    found = figures.overview.value
    assert found is not None
    by_day = {day.day: day for day in found.days}
    begin = min([*by_day, figures.today])
    urgent = [day for day in reversed(found.days) if day.state in URGENT]
    noun = found.count.removeprefix("total_").replace("_", " ")
    return {
        "noun": noun,
        "months": calendar.months(begin, figures.last, figures.today, by_day, noun),
        "counts": {state: count for state in STATES if (count := _count(figures, state))},
        "urgent": [_urgent(day) for day in urgent[:URGENT_LIMIT]],
        "more": len(urgent) - URGENT_LIMIT,
        "others": found.others,
    }


def _count(figures: Figures, state: str) -> int:
    found = figures.overview.value
    assert found is not None
    inside = sum(day.state == state for day in found.days)
    return inside + sum(each.days for each in found.others if each.state == state)


def _urgent(day: DayOverview) -> dict[str, str]:
    """The day and its rollups that need attention, with their state where that is not the day's."""
    words: dict[str, list[str]] = {}
    for name, word in day.rollups.items():
        if word in URGENT:
            words.setdefault(word, []).append(name)
    where = [
        in_rollups(names, len(day.rollups)) + ("" if word == day.state else f" ({word})")
        for word, names in words.items()
    ]
    return {"date": str(day.day), "state": day.state, "where": "; ".join(where)}


PAGE = Page(
    Path(__file__).parent,
    filters={"ago": ago, "label": label, "as_sentence": as_sentence},
    functions={"missing": missing},
)
