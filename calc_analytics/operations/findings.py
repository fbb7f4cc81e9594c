"""The one shape of what health and doctor find: a fact, whether it is as it should be, why that matters, what to type.

No database and no Dagster here: findings are made from facts (`facts.py`) by `health.py` and `doctor.py`.
"""

from dataclasses import dataclass, replace
from typing import Any

from calc_analytics.operations.disclosure import NO_ANSWER, Cause
from calc_analytics.operations.probes import Answer

OK, NOTE, WRONG = "ok", "note", "wrong"
INTERNAL = Cause("internal_error", "internal error")


@dataclass(frozen=True)
class Problem:
    """One of several things that a finding is about, such as one day of several that differ. Each is one alert,
    unless `is_posted` is false.

    `command` is what to type, if that is not the finding's.
    """

    subject: str
    detail: str
    level: str = WRONG
    command: str = ""
    kind: str = ""
    """What is wrong with the subject, if that may change, such as 'differs' or 'waits' of a day."""
    is_posted: bool = True
    """Whether it is an alert; otherwise it is only shown."""


@dataclass(frozen=True)
class Finding:
    """What was found. `level` is 'ok', 'note' (works, and could be better) or 'wrong'.

    `command` is what to type, one command per line. `public` and `public_command` are what HTTP discloses, if that is
    less than `fact` and `command`; `code` is for programs. `is_known` is false where facts could not be read: then
    `fact` is the error, or `problems` are those that the other facts show, and may not be all.
    """

    name: str
    level: str
    fact: str
    why: str = ""
    command: str = ""
    public: str = ""
    code: str | None = None
    seconds: float = 0.0
    problems: tuple[Problem, ...] = ()
    is_known: bool = True
    public_command: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.level != WRONG

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the same for a probe of health and a part of doctor."""
        return {
            "name": self.name,
            "ok": self.ok,
            "level": self.level,
            "compared": self.fact,
            "why": self.why or None,
            "next_command": self.command or None,
            "seconds": round(self.seconds, 4),
            "code": self.code,
        }

    def as_public(self) -> "Finding":
        """What HTTP discloses of it."""
        return replace(self, fact=self.public, why="", command=self.public_command or self.command)


def ok(fact: str, public: str = "") -> Finding:
    """As it should be."""
    return Finding("", OK, fact, public=public)


def note(fact: str, why: str = "", command: str = "", public: str = "") -> Finding:
    """Works, and could be better."""
    return Finding("", NOTE, fact, why, command, public)


def wrong(fact: str, why: str = "", command: str = "", public: str = "", code: str | None = None) -> Finding:
    """Not as it should be."""
    return Finding("", WRONG, fact, why, command, public, code)


def unanswered(answer: Answer[Any], why: str = "", command: str = "") -> Finding:
    """The finding for facts that could not be read: their error."""
    cause = answer.cause or INTERNAL
    return Finding(
        "", WRONG, answer.error or "", why, command or cause.command, cause.words, cause.code, is_known=False
    )  # fmt: skip


def is_common_cause(finding: Finding) -> bool:
    """Whether the code says why facts could not be read; 'no answer' may have a different reason each time."""
    return finding.code not in (None, NO_ANSWER)
