"""What Dagster has on record of this project: heartbeats, ticks, runs, the last check results, retention.

Read through Dagster's own instance and handed on as plain values, so that `operations/` needs to know nothing of
Dagster. An error of the storage is `DagsterUnavailable`, in one line.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    DagsterError,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunsFilter,
)
from sqlalchemy.exc import DBAPIError

from calc_analytics.config import dagster_home, redact_url
from calc_analytics.database import dagster_tables
from calc_analytics.database.engine import engine_for, with_timeouts
from calc_analytics.database.errors import DatabaseError
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.orchestration import event_log
from calc_analytics.orchestration.dagster_internals import (
    WILL_RETRY_TAG,
    DagsterPostgresException,
    InstigatorType,
    location_of_instigator,
)
from calc_analytics.orchestration.names import HOUSEKEEPING, SCHEDULE, SENSOR, SUMMARY
from calc_analytics.orchestration.runs import FINISHED, is_ours
from calc_analytics.orchestration.storage import DAEMON, without_plugin
from calc_analytics.rollup.status import RECENT_DAYS
from calc_analytics.rollups import STATS

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from calc_analytics.orchestration.dagster_internals import InstigatorState
    from calc_analytics.rollup.declaration import Log

# What counting and the hourly rebuild need; others (backfills, freshness) are reported, but nothing stops with them.
# How often each writes a heartbeat; the scheduler sleeps from minute to minute.
HEARTBEAT_SECONDS = {"SENSOR": 30, "SCHEDULER": 60, "QUEUED_RUN_COORDINATOR": 30}
NEEDED_DAEMONS = tuple(HEARTBEAT_SECONDS)

# Every sensor and schedule of the code location; the storage may know others, which earlier versions had.
INSTIGATORS = {
    SENSOR: InstigatorType.SENSOR,
    SCHEDULE: InstigatorType.SCHEDULE,
    HOUSEKEEPING: InstigatorType.SCHEDULE,
}
# Runs that failed within RECENT_DAYS are reported until the same days succeed; at most so many.
FAILED_RUNS_LIMIT, FINISHED_RUNS_LIMIT = 50, 1000
# A run of the summary alone, which is of no day.
OF_SUMMARY = f"the computation of {SUMMARY}"
Span = tuple[date, date]
"""First and last day."""


class DagsterUnavailable(CalcAnalyticsError):
    """Dagster's storage did not answer, or its configuration cannot be read."""

    transient = True


@dataclass(frozen=True)
class Heartbeat:
    """When a daemon last sent a heartbeat (None: never), and whether the project's counting needs it."""

    daemon: str
    at: datetime | None
    needed: bool
    daemon_id: str | None = None
    """The process that sent it; a new one at each start."""


@dataclass(frozen=True)
class Tick:
    """One evaluation of a sensor or schedule: started, success, skipped or failure, and the error of a failed one."""

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
class FinishedRun:
    """The last run that ended, of those that the schedule requested. `will_retry`: Dagster starts it again."""

    run_id: str
    succeeded: bool
    partition: str | None
    ended_at: datetime
    will_retry: bool = False


@dataclass(frozen=True)
class FailedRun:
    """A run that ended in an error, is not retried, and was not followed by a run of the same days that succeeded.

    `subject` is what it was to do, for `days` or for none: 'the rebuild', 'the rebuild of calculation_stats_hourly',
    'job housekeeping'.
    """

    run_id: str
    subject: str
    days: Span | None
    ended_at: datetime
    error: str


@dataclass(frozen=True)
class FailedDay:
    """A day for which a check's last result failed."""

    day: str
    warning: bool
    description: str


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
    failed: tuple[FailedDay, ...] = ()
    """The newest days that failed, newest first."""
    is_advice: bool = False
    """Whether it is about what was asked for, and not about the numbers: shown for some days, and not an alert."""


@lru_cache(maxsize=1)
def instance() -> DagsterInstance:
    """The instance of DAGSTER_HOME (the project folder's without it), kept for the life of the process."""
    with _translate_db_errors():
        return DagsterInstance.from_config(str(dagster_home()))


@dataclass
class Record:
    """The record in Dagster's storage, for one report: what several questions need is read once."""

    dagster: DagsterInstance

    @cached_property
    def states(self) -> "Sequence[InstigatorState]":
        """The sensors and schedules of every code location."""
        with _translate_db_errors():
            return self.dagster.all_instigator_state()


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
                daemon_id=found[name].daemon_id if name in found else None,
            )
            for name in dagster.get_required_daemon_types()
        ]


def connected_daemons(dagster: DagsterInstance) -> list[str]:
    """The daemons that are connected to the storage now, each with its process id and its machine.

    To be asked first: raises `DagsterUnavailable` at once if the server does not answer; Dagster itself tries for 12 s.
    """
    url = getattr(dagster.run_storage, "postgres_url", None)
    with _translate_db_errors():
        return [] if url is None else dagster_tables.sessions(_engine(url), DAEMON)


def instigators(record: Record) -> dict[str, Instigator]:
    """The project's sensors and schedules by name; those that no daemon has ever seen are left out."""
    with _translate_db_errors():
        found: dict[str, list[Instigator]] = {}
        for state in record.states:
            if INSTIGATORS.get(state.instigator_name) == state.instigator_type:
                found.setdefault(state.instigator_name, []).append(_with_ticks(record.dagster, state))
    # Of several that have the name (code locations come and go), the one that ticked last.
    return {name: max(each, key=lambda one: one.started_at or _instant(0)) for name, each in found.items()}


def last_finished_run(dagster: DagsterInstance) -> FinishedRun | None:
    """The last run of the hourly schedule that ended."""
    wanted = RunsFilter(tags={"dagster/schedule_name": SCHEDULE}, statuses=FINISHED)
    with _translate_db_errors():
        for record in dagster.get_run_records(wanted, limit=1):
            run: DagsterRun = record.dagster_run
            ended = _instant(record.end_time) if record.end_time else record.update_timestamp
            partition, will_retry = run.tags.get("dagster/partition"), run.tags.get(WILL_RETRY_TAG) == "true"
            return FinishedRun(run.run_id, run.is_success, partition, ended, will_retry and not run.is_success)
    return None


def failed_runs(record: Record, log: "Log") -> list[FailedRun]:
    """The failed runs of the last days that no later run has made good, oldest first. `log` has the rollups that are
    kept. The number of queries does not depend on how many failed."""
    since = datetime.now(timezone.utc) - timedelta(days=RECENT_DAYS)
    failed, dagster = RunsFilter(statuses=[DagsterRunStatus.FAILURE], updated_after=since), record.dagster
    with _translate_db_errors():
        records = list(dagster.get_run_records(failed, limit=FAILED_RUNS_LIMIT))
        if not records:
            return []
        oldest = min(record.create_timestamp for record in records)
        passed = RunsFilter(statuses=[DagsterRunStatus.SUCCESS], updated_after=oldest)
        records += dagster.get_run_records(passed, limit=FINISHED_RUNS_LIMIT)
        # The names under which the daemon knows this code location, now and before.
        locations = {location_of_instigator(state) for state in record.states if state.instigator_name == SENSOR}
        records = [each for each in records if is_ours(each.dagster_run, locations)]
        left = _not_made_good(sorted(records, key=lambda record: record.end_time or 0.0), log)
        reasons = _reasons(dagster) if left else {}
    return [_failed_run(record, subject, reasons) for record, subject in left]


def _not_made_good(records: "Sequence[Any]", log: "Log") -> list[tuple[Any, str]]:
    """The failed of these run records, with what each was to do, that no later one covers."""
    left: dict[tuple[str, Span | None], Any] = {}
    for record in records:
        run = record.dagster_run
        if run.tags.get(WILL_RETRY_TAG) == "true":
            continue
        for subject in _subjects(run, log):
            if run.is_success:
                days = None if subject == OF_SUMMARY else _days(run)
                covered = [key for key in left if key[0] == subject and _covers(days, key[1])]
                for key in covered:
                    del left[key]
            else:
                left[subject, _days(run)] = record
    return [(record, subject) for (subject, _), record in left.items()]


def _covers(days: Span | None, failed: Span | None) -> bool:
    if days is None or failed is None:
        return days == failed
    return days[0] <= failed[0] and failed[1] <= days[1]


def _reasons(dagster: DagsterInstance) -> dict[str, str]:
    """Why the runs that failed last did, by run id; one query."""
    found: dict[str, str] = {}
    for record in dagster.fetch_run_status_changes(DagsterEventType.RUN_FAILURE, FAILED_RUNS_LIMIT).records:
        event = record.event_log_entry.get_dagster_event()
        step = event.job_failure_data.first_step_failure_event if event.event_specific_data else None
        user = step.step_failure_data.user_failure_data if step else None
        # The newest first: of several failures of a run the last one counts.
        found.setdefault(record.run_id, (user.description if user else None) or event.message or "")
    return found


def _failed_run(record: Any, subject: str, reasons: Mapping[str, str]) -> FailedRun:
    run: DagsterRun = record.dagster_run
    reason = " ".join(reasons.get(run.run_id, "").split()) or "the reason is in the run's log"
    ended = _instant(record.end_time) if record.end_time else record.update_timestamp
    return FailedRun(run.run_id, subject, _days(run), ended, reason)


def _subjects(run: DagsterRun, log: "Log") -> list[str]:
    """What the run is about. One of all rollups that succeeds makes failed runs of each good."""
    if _days(run) is None:
        return [OF_SUMMARY] if AssetKey(SUMMARY) in (run.asset_selection or ()) else [f"job {run.job_name}"]
    if run.asset_check_selection and not run.asset_selection:
        return ["the run of checks"]
    kept = log.names
    chosen = [name for name in kept if not run.asset_selection or AssetKey(name) in run.asset_selection]
    together = ["the rebuild"] if chosen in ([], kept) else []
    if not run.is_success:
        return together or [f"the rebuild of {name}" for name in chosen]
    summary = [OF_SUMMARY] if not run.asset_selection or AssetKey(SUMMARY) in run.asset_selection else []
    return [*together, *(f"the rebuild of {name}" for name in chosen), *summary]


def _days(run: DagsterRun) -> Span | None:
    ends = [run.tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end")]
    first, last = ends if all(ends) else [run.tags.get("dagster/partition")] * 2
    try:
        return (date.fromisoformat(first), date.fromisoformat(last)) if first and last else None
    except ValueError:
        return None


def name_check(name: str, rollup: str) -> str:
    """The check's name for people: with its rollup, unless the name says which.

    The checks of the first rollup have the names that they had when it was the only one.
    """
    return name if rollup == STATS.name or rollup in name else f"{name} of {rollup}"


def last_checks(dagster: DagsterInstance, log: "Log") -> list[LastCheck]:
    """The last results of each check of the log's rollups that was ever evaluated; two queries.

    In each partition the last evaluation counts, whatever was evaluated in other partitions since.
    """
    names = {
        AssetCheckKey(AssetKey(rollup.name), name): name_check(name, rollup.name)
        for rollup in log.rollups
        for name in rollup.check_names
    }
    advice = {AssetCheckKey(AssetKey(each.name), each.usual_check) for each in log.rollups if each.usual_check}
    with _translate_db_errors():
        results = event_log.results_of_checks(dagster, list(names))
    return [
        replace(_last_check(names[key], _recent(result)), is_advice=True)
        if key in advice
        else _last_check(names[key], result)
        for key, result in results.items()
    ]


def _recent(result: event_log.CheckResults) -> event_log.CheckResults:
    """Without days that are long over: nothing evaluates them again, and nothing has to be done about them."""
    since = str((datetime.now(timezone.utc) - timedelta(days=RECENT_DAYS)).date())
    failed = [each for each in result.failed if (each[1].partition or "") >= since]
    return replace(result, failed=failed, failed_partitions=len(failed))


def tick_retention_days(dagster: DagsterInstance) -> dict[str, int]:
    """For how many days ticks of the sensor are kept, by how they ended; -1 is without limit."""
    with _translate_db_errors():
        kept = dagster.get_tick_retention_settings(InstigatorType.SENSOR)
    return {status.value.lower(): days for status, days in kept.items()}


def _with_ticks(dagster: DagsterInstance, state: "InstigatorState") -> Instigator:
    """One query by index; Dagster's query for several at once sorts all of their ticks."""
    ticks = dagster.get_ticks(state.instigator_origin_id, state.selector_id, limit=5)
    ended = [tick for tick in ticks if tick.status.value != "STARTED"]
    last = None
    if ended:
        error = _last_cause(ended[0].error) if ended[0].error else None
        count = ended[0].consecutive_failure_count if ended[0].status.value == "FAILURE" else 0
        last = Tick(_instant(ended[0].timestamp), ended[0].status.value.lower(), max(count, bool(error)), error)
    return Instigator(state.instigator_name, state.is_running, last, _instant(ticks[0].timestamp) if ticks else None)


def _last_cause(error: Any) -> str:
    """The innermost cause in one line, as the project's own errors are written; gRPC's own have no such line."""
    while error.cause and not error.cause.message.startswith("grpc."):
        error = error.cause
    return str(error.message).strip().splitlines()[0].removeprefix(f"{error.cls_name}: ")


def _last_check(name: str, result: event_log.CheckResults) -> LastCheck:
    if not result.failed:
        return LastCheck(name, passed=True, warning=False, at=result.at, description="")
    errors = [each for each in result.failed if each[1].severity == AssetCheckSeverity.ERROR]
    at, newest = (errors or result.failed)[0]
    description, more = newest.description or "no description", result.failed_partitions - 1
    if newest.partition and newest.partition not in description:
        description = f"{newest.partition}: {description}"
    if more:
        description += f"; {more:,} more {'day' if more == 1 else 'days'}"
    failed = tuple(
        FailedDay(each.partition or "", each.severity != AssetCheckSeverity.ERROR, each.description or "no description")
        for _, each in result.failed
    )
    return LastCheck(name, passed=False, warning=not errors, at=at, description=description, failed=failed)


def _instant(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, timezone.utc)


@contextmanager
def _translate_db_errors() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        raise DagsterUnavailable(f"Dagster's storage: {error}") from error
    except DBAPIError as error:
        lines = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
        raise DagsterUnavailable(f"Dagster's storage: {lines[0]}") from error
    except (DagsterPostgresException, DagsterError) as error:
        raise DagsterUnavailable(f"Dagster's storage or configuration: {str(error).splitlines()[0]}") from error
