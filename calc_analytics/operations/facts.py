"""The facts that health, status, doctor and metrics are made of: read once per request, within one deadline.

Each group is one question, in a thread of its own: a locked table, a silent port or a dead storage takes only its own
group away. Groups follow what can hang: the server, its catalogs, the ledger, the log; and in Dagster's storage
heartbeats, ticks, runs and checks. No judgement here: `health.py` and `doctor.py` make findings of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from calc_analytics.config import Settings
from calc_analytics.database import row_security
from calc_analytics.database.server import Server, describe_server, read_only_settings
from calc_analytics.database.writers import Writer, writers
from calc_analytics.operations.probes import Answer, Prober, Question
from calc_analytics.operations.sources import Sources
from calc_analytics.rollup import diagnosis, install, journal, status
from calc_analytics.rollups import chosen_log

if TYPE_CHECKING:
    from calc_analytics.orchestration.history import FailedRun, FinishedRun, Heartbeat, Instigator, LastCheck

T = TypeVar("T")
# Freshness in /metrics is that of the worst of the last minutes in which rows were counted.
FRESH_MINUTES = timedelta(minutes=5)


class Unanswered(Exception):
    """A fact that is needed could not be read; `answer` says why."""

    def __init__(self, answer: Answer[Any]) -> None:
        super().__init__(answer.error)
        self.answer = answer


@dataclass(frozen=True)
class Daemons:
    """Dagster's daemons: their heartbeats, the processes that are connected, and whether two take turns."""

    heartbeats: list["Heartbeat"]
    connected: list[str]
    is_alternating: bool = False


@dataclass(frozen=True)
class Runs:
    """The last run of the schedule, and the failed runs that no later run has made good."""

    scheduled: "FinishedRun | None"
    failed: list["FailedRun"]


@dataclass(frozen=True)
class Totals:
    """What the journal adds up to, and the ages at which rows were counted in the last minutes."""

    operations: list[dict[str, Any]]
    ages: list[journal.Freshness]


class Group(Generic[T]):
    """An attribute of `Facts`: the value of the answer of its name; raises `Unanswered` if there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, facts: "Facts", owner: type) -> T:
        answer: Answer[T] = facts.answers[self.name]
        if not answer.answered:
            raise Unanswered(answer)
        return cast(T, answer.value)


@dataclass(frozen=True)
class Facts:
    """The answers by name, and the values of those that health is made of."""

    settings: Settings
    answers: Mapping[str, Answer[Any]]
    at: datetime

    interval = Group[float]()
    server = Group[Server]()
    is_installed = Group[bool]()
    hidden = Group[list[row_security.Hidden]]()
    ledger = Group[status.LedgerReport]()
    log = Group[status.LogReport]()
    unseen = Group[list[date]]()
    daemons = Group[Daemons]()
    instigators = Group[dict[str, "Instigator"]]()
    runs = Group[Runs]()
    checks = Group[list["LastCheck"]]()

    def known(self, name: str) -> Any:
        """The value of a group; None if it was not read or not answered."""
        answer = self.answers.get(name)
        return answer.value if answer else None

    def age(self, at: datetime | None) -> float | None:
        """Seconds since that instant, by this machine's clock."""
        return None if at is None else max((self.at - at).total_seconds(), 0.0)


def read(
    sources: Sources,
    prober: Prober,
    names: Iterable[str],
    more: Mapping[str, Question] | None = None,
    at: datetime | None = None,
) -> Facts:
    """Reads these groups and `more` at the same time; returns within the prober's deadline. Ages are measured from
    the beginning, or from `at` where the caller has read the clock already."""
    at = at or datetime.now(timezone.utc)
    questions = {name: partial(READERS[name], sources) for name in names}
    return Facts(sources.settings, prober.ask({**questions, **(more or {})}), at)


def server(sources: Sources) -> Server:
    """On a connection of its own: it answers while every other one waits for a lock."""
    engine = sources.engine("calc_analytics probe")
    found = describe_server(engine)
    return replace(found, resets=tuple(read_only_settings(engine))) if found.is_read_only else found


def _writers(sources: Sources) -> list[Writer]:
    db = sources.database()
    return writers(db.engine, db.log.name)


def _is_installed(sources: Sources) -> bool:
    """Whether everything is there; touches no row of the log nor of the statistics."""
    return install.is_installed(sources.database())


def _hidden(sources: Sources) -> list[row_security.Hidden]:
    """The tables whose policies hide rows from the role; from the catalogs alone, so that a policy cannot hide them."""
    return diagnosis.hidden(sources.database())


def ledger(sources: Sources) -> status.LedgerReport:
    """One transaction."""
    return status.ledger_report(sources.database())


def interval(sources: Sources) -> float:
    """From the settings; no connection."""
    from calc_analytics.orchestration.cron import longest_pause

    return longest_pause(sources.settings.cron).total_seconds()


def daemons(sources: Sources) -> Daemons:
    """Heartbeats are compared with those that this process has seen before."""
    from calc_analytics.orchestration import history

    dagster = sources.dagster()
    beats = history.heartbeats(dagster)
    alternating = sources.heartbeat_ids.take_turns(beat for beat in beats if beat.needed)
    return Daemons(beats, history.daemons(dagster), alternating)


def instigators(sources: Sources) -> "dict[str, Instigator]":
    """With their last ticks."""
    from calc_analytics.orchestration import history

    return history.instigators(sources.dagster())


def _runs(sources: Sources) -> Runs:
    from calc_analytics.orchestration import history

    dagster = sources.dagster()
    return Runs(history.last_finished_run(dagster), history.failed_runs(dagster, chosen_log(sources.settings.rollups)))


def _checks(sources: Sources) -> "list[LastCheck]":
    from calc_analytics.orchestration import history

    return history.last_checks(sources.dagster(), chosen_log(sources.settings.rollups))


def _totals(sources: Sources) -> Totals:
    db = sources.database()
    return Totals(journal.totals(db), journal.freshness(db, datetime.now(timezone.utc) - FRESH_MINUTES))


READERS: dict[str, Callable[[Sources], Any]] = {
    "interval": interval,
    "server": server,
    "is_installed": _is_installed,
    "hidden": _hidden,
    "ledger": ledger,
    "log": lambda sources: status.log_report(sources.database()),
    "unseen": lambda sources: sources.search.days(sources.database()),
    "daemons": daemons,
    "instigators": instigators,
    "runs": _runs,
    "checks": _checks,
    "writers": _writers,
    "totals": _totals,
}
