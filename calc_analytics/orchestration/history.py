"""What Dagster has on record of this project: heartbeats, ticks, the last run, the last check results, retention.

Read through Dagster's own instance and handed on as plain values, so that the service needs to know nothing of
Dagster. Each function asks its own question of the storage; trouble there is `DagsterTrouble`, in one line.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    DagsterError,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunsFilter,
)
from sqlalchemy.exc import DBAPIError

from calc_analytics.config import Settings, dagster_home, redact_url
from calc_analytics.database import dagster_tables
from calc_analytics.database.engine import engine_for, transaction, with_timeouts
from calc_analytics.database.errors import DatabaseError
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.orchestration import event_log
from calc_analytics.orchestration.dagster_internals import DagsterPostgresException, InstigatorType
from calc_analytics.orchestration.incidents import name_check
from calc_analytics.orchestration.storage import DAEMON, without_plugin
from calc_analytics.rollups import LOG, chosen_log

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from calc_analytics.orchestration.dagster_internals import InstigatorState

# What counting and the hourly rebuild need; others (backfills, freshness) are reported, but nothing stops with them.
NEEDED_DAEMONS = ("SENSOR", "SCHEDULER", "QUEUED_RUN_COORDINATOR")
# Names of all checks; one that several rollups have, once.
CHECKS = tuple(dict.fromkeys(name for rollup in LOG.rollups for name in rollup.check_names))
SENSOR, SCHEDULE, HOUSEKEEPING = "new_log_batches", "hourly_rollup", "daily_housekeeping"
FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]


class DagsterTrouble(CalcAnalyticsError):
    """Dagster's storage did not answer, or its configuration cannot be read."""

    transient = True


@dataclass(frozen=True)
class Heartbeat:
    """When a daemon last said that it lives (None: never), and whether the project's counting needs it."""

    daemon: str
    at: datetime | None
    needed: bool
    errors: int = 0
    daemon_id: str | None = None
    """The process that sent it; a new one at each start."""


@dataclass(frozen=True)
class Tick:
    """One evaluation of a sensor or schedule: started, success, skipped or failure, and what a failed one said."""

    at: datetime
    status: str
    failures_in_a_row: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Instigator:
    """A sensor or schedule that the daemon has seen: whether it is turned on, and its last tick that ended."""

    name: str
    on: bool
    last_tick: Tick | None
    started_at: datetime | None
    """When the last tick began, ended or not."""


@dataclass(frozen=True)
class LastRun:
    """The last run that ended, of those that the schedule asked for."""

    run_id: str
    succeeded: bool
    partition: str | None
    ended_at: datetime


@dataclass(frozen=True)
class LastCheck:
    """The last results of a check in all of its partitions; a warning does not count as failed.

    It passed if it passed in each of them; otherwise `description` is about those that failed. `at` is the instant of
    its last evaluation of all, or of the newest that failed.
    """

    name: str
    passed: bool
    warning: bool
    at: datetime
    description: str


@lru_cache(maxsize=1)
def instance() -> DagsterInstance:
    """The instance of DAGSTER_HOME (the project folder's without it), kept for the life of the process."""
    with _translate_db_errors():
        return DagsterInstance.from_config(str(dagster_home()))


def require_answer(dagster: DagsterInstance) -> None:
    """Raises `DagsterTrouble` at once if the storage's server does not answer; dagster-postgres tries for 12 s."""
    url = getattr(dagster.run_storage, "postgres_url", None)
    if url is not None:
        with _translate_db_errors(), transaction(_engine(url)) as connection:
            connection.exec_driver_sql("select 1")


def storage(dagster: DagsterInstance) -> str:
    """Where the instance keeps its record, without a password."""
    url = getattr(dagster.run_storage, "postgres_url", None)
    return type(dagster.run_storage).__name__ if url is None else redact_url(without_plugin(url))


@lru_cache(maxsize=2)
def _engine(url: str) -> "Engine":
    return engine_for(with_timeouts(without_plugin(url)), "calc_analytics service", statement_seconds=3)


def heartbeats(dagster: DagsterInstance) -> list[Heartbeat]:
    """Every daemon that this instance's configuration asks for."""
    with _translate_db_errors():
        found = dagster.get_daemon_heartbeats()
        return [
            Heartbeat(
                daemon=name,
                at=_instant(found[name].timestamp) if name in found else None,
                needed=name in NEEDED_DAEMONS,
                errors=len(found[name].errors or []) if name in found else 0,
                daemon_id=found[name].daemon_id if name in found else None,
            )
            for name in dagster.get_required_daemon_types()
        ]


def daemons(dagster: DagsterInstance) -> list[str]:
    """The daemons that are connected to the storage now, each with its process id and its machine."""
    url = getattr(dagster.run_storage, "postgres_url", None)
    with _translate_db_errors():
        return [] if url is None else dagster_tables.sessions(_engine(url), DAEMON)


def sensor(dagster: DagsterInstance) -> Instigator | None:
    """The sensor `new_log_batches`; None if no daemon has ever seen it."""
    return _instigator(dagster, InstigatorType.SENSOR, SENSOR)


def schedule(dagster: DagsterInstance, name: str = SCHEDULE) -> Instigator | None:
    """The schedule of that name; None if no daemon has ever seen it."""
    return _instigator(dagster, InstigatorType.SCHEDULE, name)


def last_run(dagster: DagsterInstance, schedule: str = SCHEDULE) -> LastRun | None:
    """The last run of the schedule that ended."""
    wanted = RunsFilter(tags={"dagster/schedule_name": schedule}, statuses=FINISHED)
    with _translate_db_errors():
        for record in dagster.get_run_records(wanted, limit=1):
            run: DagsterRun = record.dagster_run
            ended = _instant(record.end_time) if record.end_time else record.update_timestamp
            return LastRun(run.run_id, run.is_success, run.tags.get("dagster/partition"), ended)
    return None


def last_checks(dagster: DagsterInstance) -> list[LastCheck]:
    """The last results of each check that was ever evaluated, of the rollups that are kept; two queries.

    In each partition the last evaluation counts, whatever was evaluated in other partitions since.
    """
    rollups = chosen_log(Settings.from_environment().rollups).rollups
    names = {
        AssetCheckKey(AssetKey(rollup.name), name): name_check(name, rollup.name)
        for rollup in rollups
        for name in rollup.check_names
    }
    with _translate_db_errors():
        results = event_log.last_results(dagster, list(names))
    return [_last_check(names[key], result) for key, result in results.items()]


def tick_retention_days(dagster: DagsterInstance) -> dict[str, int]:
    """For how many days ticks of the sensor are kept, by how they ended; -1 is for ever."""
    with _translate_db_errors():
        kept = dagster.get_tick_retention_settings(InstigatorType.SENSOR)
    return {status.value.lower(): days for status, days in kept.items()}


def _instigator(dagster: DagsterInstance, kind: InstigatorType, name: str) -> Instigator | None:
    """Of several that have the name (code locations come and go), the one that ticked last."""
    with _translate_db_errors():
        states = [s for s in dagster.all_instigator_state(instigator_type=kind) if s.instigator_name == name]
        found = [_with_ticks(dagster, state) for state in states]
    return max(found, key=lambda each: each.started_at or _instant(0), default=None)


def _with_ticks(dagster: DagsterInstance, state: "InstigatorState") -> Instigator:
    ticks = dagster.get_ticks(state.instigator_origin_id, state.selector_id, limit=5)
    ended = [tick for tick in ticks if tick.status.value != "STARTED"]
    last = None
    if ended:
        error = _last_cause(ended[0].error) if ended[0].error else None
        count = ended[0].consecutive_failure_count if ended[0].status.value == "FAILURE" else 0
        last = Tick(_instant(ended[0].timestamp), ended[0].status.value.lower(), max(count, bool(error)), error)
    return Instigator(state.instigator_name, state.is_running, last, _instant(ticks[0].timestamp) if ticks else None)


def _last_cause(error: Any) -> str:
    """The innermost cause in one line, as the project's own errors are written."""
    while error.cause:
        error = error.cause
    return str(error.message).strip().splitlines()[0].removeprefix(f"{error.cls_name}: ")


def _last_check(name: str, result: event_log.LastResults) -> LastCheck:
    if not result.failed:
        return LastCheck(name, passed=True, warning=False, at=result.at, description="")
    errors = [each for each in result.failed if each[1].severity == AssetCheckSeverity.ERROR]
    at, newest = (errors or result.failed)[0]
    description, more = newest.description or "no description", result.failed_partitions - 1
    if newest.partition and newest.partition not in description:
        description = f"{newest.partition}: {description}"
    if more:
        description += f"; {more:,} more {'day' if more == 1 else 'days'}"
    return LastCheck(name, passed=False, warning=not errors, at=at, description=description)


def _instant(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, timezone.utc)


@contextmanager
def _translate_db_errors() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        raise DagsterTrouble(f"Dagster's storage: {error}") from error
    except DBAPIError as error:
        said = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
        raise DagsterTrouble(f"Dagster's storage: {said[0]}") from error
    except (DagsterPostgresException, DagsterError) as error:
        raise DagsterTrouble(f"Dagster's storage or configuration: {str(error).splitlines()[0]}") from error
