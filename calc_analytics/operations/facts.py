"""The facts that health, status, doctor and metrics are made of: read once per request, within one deadline.

Each source is one question, in a thread of its own, which reads its facts in turn: a transaction for the server and its
catalogs, one for the project's tables, one for the log, and one reading of Dagster's record. So a locked table, a
silent port or a dead storage takes only the facts of its source away. No judgement here: `health.py` and `doctor.py`
make findings of them.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from calc_analytics.config import Settings, redact_url
from calc_analytics.database import row_security
from calc_analytics.database.server import Server, describe_server, read_only_settings
from calc_analytics.database.writers import writers
from calc_analytics.operations.probes import Answer, Prober, Question
from calc_analytics.operations.sources import Sources
from calc_analytics.rollup import diagnosis, install, journal, status
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.partitions import Outlook, outlook
from calc_analytics.rollup.unseen import SearchReport
from calc_analytics.rollups import chosen_log

if TYPE_CHECKING:
    from calc_analytics.orchestration.history import FailedRun, FinishedRun, Heartbeat, Instigator, LastCheck, Record

T = TypeVar("T")
Readers = Mapping[str, Callable[[Any], Any]]
"""Each reads one fact, from what its source gives."""
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
    partitions = Group[Outlook | None]()
    ledger = Group[status.LedgerReport]()
    log = Group[status.LogReport]()
    unseen = Group[SearchReport]()
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
    more: Mapping[str, Readers] | None = None,
    at: datetime | None = None,
) -> Facts:
    """Reads the facts of these names, and after them `more`, by source; returns within the prober's deadline.

    Ages are measured from the beginning, or from `at` where the caller has read the clock already.
    """
    at, wanted, asked = at or datetime.now(timezone.utc), {*names}, []
    for name, source in questions(sources).items():
        chosen = {fact: reader for fact, reader in source.readers.items() if fact in wanted}
        readers = {**chosen, **(more or {}).get(name, {})}
        if readers:
            asked.append(replace(source, readers=readers))
    return Facts(sources.settings, prober.ask(asked), at)


def questions(sources: Sources) -> dict[str, Question]:
    """The question of each source, with all its facts in the order in which they are read.

    The catalogs are read on a new connection: whether the server accepts one is a part of the answer.
    """
    return {
        "settings": Question(
            nullcontext, {"interval": lambda _: interval(sources.settings), "url": lambda _: redact_url(sources.url())}
        ),
        "catalogs": Question(
            partial(sources.reading, connects=True),
            {
                "server": _server,
                "hidden": diagnosis.hidden,
                "partitions": lambda db: outlook(db, datetime.now(timezone.utc)),
                "writers": lambda db: writers(db.engine, db.log.name),
            },
        ),
        "tables": Question(sources.reading, {"ledger": status.ledger_report, "totals": _totals}),
        # The search is the last: where it is stopped, the transaction is over.
        "log": Question(
            sources.reading,
            {"is_installed": install.is_installed, "log": status.log_report, "unseen": sources.search.report},
        ),
        "dagster": Question(
            sources.dagster,
            {
                "daemons": partial(_daemons, sources),
                "instigators": _instigators,
                "runs": partial(_runs, sources),
                "checks": partial(_checks, sources),
            },
        ),
    }


def interval(settings: Settings) -> float:
    """The longest time between two runs of the schedule, in seconds; `InvalidSetting` if it cannot be loaded."""
    from calc_analytics.orchestration.cron import longest_pause

    return longest_pause(settings.cron).total_seconds()


def _server(db: Database) -> Server:
    found = describe_server(db.engine)
    return replace(found, resets=tuple(read_only_settings(db.engine))) if found.is_read_only else found


def _totals(db: Database) -> Totals:
    return Totals(journal.totals(db), journal.freshness(db, datetime.now(timezone.utc) - FRESH_MINUTES))


def _daemons(sources: Sources, record: "Record") -> Daemons:
    """Heartbeats are compared with those that this process has seen before."""
    from calc_analytics.orchestration import history

    connected = history.connected_daemons(record.dagster)
    beats = history.heartbeats(record.dagster)
    return Daemons(beats, connected, sources.heartbeat_ids.take_turns(beat for beat in beats if beat.needed))


def _instigators(record: "Record") -> "dict[str, Instigator]":
    from calc_analytics.orchestration import history

    return history.instigators(record)


def _runs(sources: Sources, record: "Record") -> Runs:
    from calc_analytics.orchestration import history

    log = chosen_log(sources.settings.rollups)
    return Runs(history.last_finished_run(record.dagster), history.failed_runs(record, log))


def _checks(sources: Sources, record: "Record") -> "list[LastCheck]":
    from calc_analytics.orchestration import history

    return history.last_checks(record.dagster, chosen_log(sources.settings.rollups))
