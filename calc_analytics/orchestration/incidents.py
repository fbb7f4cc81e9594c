"""What has failed, what was told of it, and what is resolved. Knows neither Dagster nor where alerts go.

An incident opens with the first failure of a subject (and day), is told once, and closes when the same subject is well
again, which is told too. Whatever is due stays due until `told` says that it was delivered. What is told of several
rollups at once for the same reason ("freshness of …") is one line.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from calc_analytics.rollups import STATS

LINES = 10
DETAIL_LENGTH = 600
# Told and still open; beyond that the oldest are forgotten, so that the state a tick leaves stays small.
OPEN_AT_MOST = 200

Span = tuple[str, str]
"""First and last day, YYYY-MM-DD."""


def name_check(name: str, rollup: str) -> str:
    """The check's name for people: with its rollup, where the name does not tell which.

    The checks of the first rollup have the names that they had when it was the only one.
    """
    return name if rollup == STATS.name or rollup in name else f"{name} of {rollup}"


@dataclass(frozen=True)
class Outcome:
    """That a subject failed or is well, at an instant (seconds of the epoch), for a span of days or for none."""

    subject: str
    failed: bool
    at: float
    detail: str = ""
    days: Span | None = None


@dataclass
class Incident:
    """A subject that failed. `over_at` is set when it is resolved and that is yet to be told."""

    subject: str
    days: Span | None
    since: float
    detail: str
    told: bool = False
    over_at: float | None = None

    def is_covered_by(self, outcome: Outcome) -> bool:
        """Whether the outcome speaks of the same subject and of all of these days."""
        if self.subject != outcome.subject or self.days is None or outcome.days is None:
            return self.subject == outcome.subject and self.days == outcome.days
        return outcome.days[0] <= self.days[0] and self.days[1] <= outcome.days[1]

    def line(self, subject: str | None = None) -> str:
        """For example 'failed: check stats_match_logs of 2026-11-24 (since 12:00 UTC): differs by 5'.

        `subject` instead of its own, where one line is about several.
        """
        name = _named(subject or self.subject, self.days)
        if self.over_at is None:
            return f"failed: {name} (since {_clock(self.since)}): {self.detail}"
        told = "" if self.told else f", {self.detail}"
        return f"resolved: {name} (failed {_clock(self.since)}{told}; ok since {_clock(self.over_at)})"


class Incidents:
    """All open incidents."""

    def __init__(self, open_: list[Incident]) -> None:
        self.open = open_

    @classmethod
    def parse(cls, values: Any) -> "Incidents":
        """From what `values` gave; raises KeyError, TypeError or ValueError for anything else."""
        return cls([Incident(**{**value, "days": tuple(value["days"]) if value["days"] else None}) for value in values])

    def values(self) -> list[dict[str, Any]]:
        """Plain values for JSON."""
        return [asdict(incident) for incident in self.open]

    def note(self, outcome: Outcome) -> None:
        """Takes one outcome into account; they must come in the order in which they happened."""
        if not outcome.failed:
            for incident in self.open:
                if incident.is_covered_by(outcome):
                    incident.over_at = incident.over_at or outcome.at
            return
        for incident in self.open:
            if (incident.subject, incident.days) == (outcome.subject, outcome.days):
                incident.over_at = None
                return
        detail = " ".join(outcome.detail.split())[:DETAIL_LENGTH]
        self.open.append(Incident(outcome.subject, outcome.days, outcome.at, detail))

    def due(self) -> list[Incident]:
        """Failures and recoveries that nobody was told of, oldest first."""
        return [incident for incident in self.open if not incident.told or incident.over_at is not None]

    def told(self) -> None:
        """All that was due has been delivered."""
        self.open = [incident for incident in self.open if incident.over_at is None][-OPEN_AT_MOST:]
        for incident in self.open:
            incident.told, incident.detail = True, ""


def message(due: list[Incident], source: str) -> str:
    """One text for all of it, the first ten in full. What has a meaning in Slack's texts (&, <, >) is escaped."""
    groups = _groups(due)
    lines = [group[0].line(_joined(incident.subject for incident in group)) for group in groups[:LINES]]
    if len(groups) > LINES:
        lines.append(f"and {sum(map(len, groups[LINES:])):,} more: see the Dagster UI")
    text = f"{source}: {lines[0]}" if len(lines) == 1 else "\n• ".join([f"{source}:", *lines])
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _groups(due: list[Incident]) -> list[list[Incident]]:
    """Those that share a line: they differ only in what follows ' of ' in their subject, and in their times."""
    found: dict[tuple[Any, ...], list[Incident]] = {}
    for incident in due:
        kind, of, _ = incident.subject.partition(" of ")
        key = (kind, bool(of), incident.days, incident.detail, incident.told, incident.over_at is None)
        found.setdefault(key, []).append(incident)
    return list(found.values())


def _joined(subjects: Iterable[str]) -> str:
    """'freshness of a, b' for 'freshness of a' and 'freshness of b'; a line has the times of the first."""
    first, *others = dict.fromkeys(subjects)
    return ", ".join([first, *(other.partition(" of ")[2] for other in others)])


def _named(subject: str, days: Span | None) -> str:
    """'check a of 2026-11-24', or 'check a of b on 2026-11-24'."""
    if days is None:
        return subject
    span = days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}"
    return f"{subject} {'on' if ' of ' in subject else 'of'} {span}"


def _clock(at: float) -> str:
    moment = datetime.fromtimestamp(at, timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M} UTC"
