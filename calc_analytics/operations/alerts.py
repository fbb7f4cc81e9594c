"""Alerts are transitions of health: what is wrong on two looks in a row is due once, and once more when it is resolved.

Pure state, without a clock, a database or a webhook: `look` takes a health report, `due` returns what is to be posted,
`delivered` notes that it was. Nothing is stored: after a restart what is still wrong is posted again, and nothing
that happened before. What cannot be read, or follows from another failure, is neither resolved nor failed: its alerts
stay as they are.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from calc_analytics.operations.findings import NOTE, OK, Finding, Problem, is_common_cause
from calc_analytics.operations.health import PROBES, Health
from calc_analytics.operations.words import first_of

# A failure is due after so many looks in a row, and its end after so many without it.
LOOKS = 2
# What fails again within this time must pass twice as many looks to count as resolved, up to the limit: a finding that
# flaps stays one open alert.
FLAPPING, LOOKS_LIMIT = timedelta(hours=1), 40
# While the second is wrong, the first is a consequence: ticks stop with the daemon.
FOLLOWS = {"sensor": "daemon"}
LINES, SUBJECTS, DETAIL_LENGTH = 10, 5, 600
Key = tuple[str, str]
"""The probe, and the subject of one of its problems ('' for the finding itself)."""


@dataclass
class Alert:
    """A problem that was seen. `over_at` is set when it is resolved."""

    subject: str
    level: str
    detail: str
    command: str
    since: datetime
    looks_to_resolve: int
    seen: int = 0
    missed: int = 0
    missed_since: datetime | None = None
    is_posted: bool = False
    over_at: datetime | None = None
    kind: str = ""

    def become(self, problem: Problem) -> None:
        """It is another problem of the same subject now, such as a day that waited and now differs: posted again."""
        self.level, self.kind, self.is_posted = problem.level, problem.kind, False

    @property
    def is_due(self) -> bool:
        """Whether the failure or its end is to be posted."""
        return self.over_at is not None or (self.seen >= LOOKS and not self.is_posted)

    def line(self, subjects: str) -> str:
        """'failed: daemon (since 2026-03-01 12:00 UTC): …', about these subjects."""
        if self.over_at is not None:
            detail = "" if self.is_posted else f", {self.detail}"
            return f"resolved: {subjects} (failed {_clock(self.since)}{detail}; ok since {_clock(self.over_at)})"
        word = "warning" if self.level == NOTE else "failed"
        command = f". Next: {' && '.join(self.command.splitlines())}" if self.command else ""
        return f"{word}: {subjects} (since {_clock(self.since)}): {self.detail.rstrip('.')}{command}"


class Alerts:
    """All problems that are open, and those that ended lately."""

    def __init__(self) -> None:
        self._open: dict[Key, Alert] = {}
        self._ended: dict[Key, tuple[datetime, int]] = {}

    def look(self, health: Health) -> None:
        """Takes one report into account; reports must come in the order of their instants."""
        problems = _problems(health)
        for key, (problem, command) in problems.items():
            alert = self._open.get(key) or self._opened(key, problem, health.at)
            if (alert.level, alert.kind) != (problem.level, problem.kind):
                alert.become(problem)
            alert.detail, alert.command = _shorten(problem.detail), command
            alert.seen, alert.missed, alert.over_at = alert.seen + 1, 0, None
            self._open[key] = alert
        undecided = _unknown(health) | _consequences(health)
        for key in [key for key in self._open if key not in problems and key[0] not in undecided]:
            self._miss(key, health.at)

    def due(self) -> list[Alert]:
        """What is to be posted now."""
        return [alert for alert in list(self._open.values()) if alert.is_due]

    def delivered(self, at: datetime) -> None:
        """All that was due was posted."""
        for key, alert in list(self._open.items()):
            if alert.over_at is not None:
                self._ended[key] = (at, alert.looks_to_resolve)
                del self._open[key]
            elif alert.is_due:
                alert.is_posted = True
        self._ended = {key: ended for key, ended in self._ended.items() if at - ended[0] < FLAPPING}

    def _opened(self, key: Key, problem: Problem, at: datetime) -> Alert:
        ended_at, looks = self._ended.get(key, (None, 0))
        is_flapping = ended_at is not None and at - ended_at < FLAPPING
        looks_to_resolve = min(looks * 2, LOOKS_LIMIT) if is_flapping else LOOKS
        return Alert(problem.subject, problem.level, "", "", at, looks_to_resolve, kind=problem.kind)

    def _miss(self, key: Key, at: datetime) -> None:
        """The problem is gone from this look. One that was never confirmed is forgotten."""
        alert = self._open[key]
        if alert.seen < LOOKS:
            del self._open[key]
            return
        if alert.missed == 0:
            alert.missed_since = at
        alert.missed += 1
        if alert.missed >= alert.looks_to_resolve:
            alert.over_at = alert.missed_since


def message(due: list[Alert], source: str) -> str:
    """One text for all of it, ten lines at most; characters with a meaning in Slack's texts (&, <, >) are escaped.

    Alerts that differ in their subject only are one line.
    """
    groups: dict[str, list[Alert]] = {}
    for alert in due:
        groups.setdefault(alert.line(""), []).append(alert)
    lines = [_line(group) for group in list(groups.values())[:LINES]]
    if len(groups) > LINES:
        lines.append(f"and {sum(map(len, list(groups.values())[LINES:])):,} more: see 'calc-analytics status'")
    text = f"{source}: {lines[0]}" if len(lines) == 1 else "\n• ".join([f"{source}:", *lines])
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _line(group: list[Alert]) -> str:
    return group[0].line(first_of([alert.subject for alert in group], SUBJECTS))


def _problems(health: Health) -> dict[Key, tuple[Problem, str]]:
    """What is to be alerted: the problems of each finding, or the finding itself, with the next command.

    What cannot be read because its database does not answer, or for the reason that an earlier finding has, is left
    out, and so is what follows from an earlier one.
    """
    found: dict[Key, tuple[Problem, str]] = {}
    unknown, consequences = _unknown(health), _consequences(health)
    causes: set[str | None] = set()
    for finding in health.findings:
        is_unread = finding.name in unknown and (finding.code in causes or unknown & {*PROBES[finding.name].roots})
        if not is_unread and finding.name not in consequences:
            for key, problem in _each(finding):
                found[finding.name, key] = (problem, problem.command or finding.command)
        if is_common_cause(finding):
            causes.add(finding.code)
    return found


def _unknown(health: Health) -> set[str]:
    return {finding.name for finding in health.findings if not finding.is_known}


def _consequences(health: Health) -> set[str]:
    """The wrong findings that follow from others that are wrong."""
    wrong = {finding.name for finding in health.wrong}
    return {name for name in wrong if FOLLOWS.get(name) in wrong}


def _each(finding: Finding) -> list[tuple[str, Problem]]:
    if finding.level == OK:
        return []
    if finding.problems:
        return [(problem.subject, problem) for problem in finding.problems if problem.is_posted]
    return [("", Problem(finding.name, finding.fact, finding.level))]


def _shorten(detail: str) -> str:
    return " ".join(detail.split())[:DETAIL_LENGTH]


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
