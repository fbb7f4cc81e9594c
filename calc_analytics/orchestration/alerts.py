"""The two alerting sensors: failed runs and ticks, failed checks and staleness, posted to ALERT_WEBHOOK_URL.

Dagster's own run-failure sensors move on when their function fails, and the alert is lost. These read the event log by
a cursor of their own: it holds what is open and what was told (`incidents.py`), and a tick that could not deliver is
red and leaves the cursor where it was. Delivery is at least once. Ticks take 15 seconds at the most, in a thread.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dagster import (
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DefaultSensorStatus,
    EventLogRecord,
    EventRecordsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from dagster._core.definitions.freshness import FreshnessState
from dagster._core.storage.tags import WILL_RETRY_TAG
from dagster._utils.error import SerializableErrorInfo

from calc_analytics.config import Settings
from calc_analytics.orchestration.incidents import Incidents, Outcome, Span, message, name_check
from calc_analytics.orchestration.sensors import stopping
from calc_analytics.orchestration.webhook import AlertNotDelivered, place, post
from calc_analytics.rollups import LOG, chosen_log

if TYPE_CHECKING:
    # Loading it takes a tenth of what loading Dagster takes.
    from dagster._core.scheduler.instigation import InstigatorState

SOURCE = "calc_analytics"
ASSETS = frozenset(AssetKey(name) for name in LOG.names)
INTERVAL_SECONDS = 30
# Without a cursor, what happened in the last hour is told.
LOOK_BACK_SECONDS = 3600
# Ids are given before rows are committed, so an older id may appear after a newer one: the last ones are read again.
# A tick must be able to read more than these.
OVERLAP_IDS, RECORDS_PER_TICK = 100, 500
# While the webhook fails, attempts become rarer; the pauses are kept in the process, so a restart tries at once.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 60, 900
# A sensor's single red tick is retried within seconds; several in a row are trouble.
RED_TICKS = 3

Read = Callable[[SensorEvaluationContext, "Memory"], Iterable[Outcome]]


@dataclass
class Memory:
    """What a tick leaves for the next one: open incidents, and per event type the ids last read, in order."""

    incidents: Incidents = field(default_factory=lambda: Incidents([]))
    read: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> "Memory":
        """From the cursor; empty on a first start, or if it is not one of ours."""
        try:
            values = json.loads(text or "")
            ids = {kind: [int(id_) for id_ in ids] for kind, ids in values["read"].items()}
            return cls(Incidents.parse(values["incidents"]), ids)
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def text(self) -> str:
        """The form Dagster stores."""
        return json.dumps({"incidents": self.incidents.values(), "read": self.read})


@dataclass
class Pause:
    """When the webhook may be tried again."""

    failures: int = 0
    until: float = 0.0

    def failed(self) -> None:
        """Waits twice as long as after the last failure."""
        seconds = min(FIRST_PAUSE_SECONDS * 2**self.failures, LONGEST_PAUSE_SECONDS)
        self.failures, self.until = self.failures + 1, time.monotonic() + seconds


def run_failure_alerts(settings: Settings) -> SensorDefinition:
    """Tells of failed runs (once per job and days until one succeeds; not of those that Dagster starts again by itself)
    and of ticks that keep failing."""
    return _alerting("run_failure_alerts", settings, _runs_and_ticks)


def check_failure_alerts(settings: Settings) -> SensorDefinition:
    """Tells of failed checks (once per check and day until it passes), and of staleness."""
    return _alerting("check_failure_alerts", settings, _checks_and_freshness)


def _alerting(name: str, settings: Settings, read: Read) -> SensorDefinition:
    pause = Pause()

    @sensor(
        name=name,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=DefaultSensorStatus.RUNNING if settings.alert_webhook_url else DefaultSensorStatus.STOPPED,
        description=f"{_DESCRIPTIONS[name]} On where ALERT_WEBHOOK_URL is set.",
    )
    def alerting(context: SensorEvaluationContext) -> SensorResult:
        url = Settings.from_environment().alert_webhook_url
        if not url:
            return SensorResult(skip_reason=SkipReason("ALERT_WEBHOOK_URL is not set: alerts are disabled"))
        memory = Memory.parse(context.cursor)
        for outcome in read(context, memory):
            memory.incidents.note(outcome)
        said = _deliver(memory.incidents, url, pause)
        return SensorResult(skip_reason=SkipReason(said), cursor=memory.text())

    return alerting


_DESCRIPTIONS = {
    "run_failure_alerts": "Posts failed runs, and sensors and schedules whose ticks keep failing, and when they are "
    "resolved.",
    "check_failure_alerts": "Posts failed checks and stale statistics, and when they are resolved.",
}


def _deliver(incidents: Incidents, url: str, pause: Pause) -> str:
    """Posts what is due, and says so; raises `AlertNotDelivered`, which makes the tick red."""
    due = incidents.due()
    if not due:
        return f"nothing to tell; open incidents that were told: {len(incidents.open)}"
    if time.monotonic() < pause.until:
        wait = pause.until - time.monotonic()
        return f"alerts that wait: {len(due)}; {place(url)} failed {pause.failures} times, next attempt in {wait:.0f} s"
    try:
        post(url, message(due, SOURCE), stopping)
    except AlertNotDelivered:
        pause.failed()
        raise
    pause.failures = 0
    incidents.told()
    return f"alerts posted to {place(url)}: {len(due)}"


def _new_records(instance: DagsterInstance, memory: Memory, *kinds: DagsterEventType) -> list[EventLogRecord]:
    """The event-log records of these types that were not read before, in order, at most RECORDS_PER_TICK of each."""
    found: list[EventLogRecord] = []
    ends: list[int] = []
    for kind in kinds:
        records = instance.event_log_storage.get_event_records(
            _since(kind, memory.read.get(kind.value)), limit=RECORDS_PER_TICK, ascending=True
        )
        found += records
        if len(records) == RECORDS_PER_TICK:
            ends.append(records[-1].storage_id)
    # Where one type has more to read, the others wait for it: what happened later must not be taken for older.
    found = [record for record in found if not ends or record.storage_id <= min(ends)]
    return [record for record in sorted(found, key=lambda record: record.storage_id) if _is_new(record, memory)]


def _since(kind: DagsterEventType, seen: list[int] | None) -> EventRecordsFilter:
    if seen:
        return EventRecordsFilter(kind, after_cursor=max(seen[-1] - OVERLAP_IDS, 0))
    return EventRecordsFilter(kind, after_timestamp=time.time() - LOOK_BACK_SECONDS)


def _is_new(record: EventLogRecord, memory: Memory) -> bool:
    """Whether it was not read before; now it is."""
    kind = record.event_log_entry.get_dagster_event().event_type_value
    seen = memory.read.setdefault(kind, [])
    if record.storage_id in seen:
        return False
    seen.append(record.storage_id)
    memory.read[kind] = sorted(id_ for id_ in seen if id_ > max(seen) - OVERLAP_IDS)
    return True


def _runs_and_ticks(context: SensorEvaluationContext, memory: Memory) -> Iterator[Outcome]:
    kinds = (DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_SUCCESS)
    for record in _new_records(context.instance, memory, *kinds):
        run = context.instance.get_run_by_id(record.run_id)
        if run is not None and _is_ours(context, run) and run.tags.get(WILL_RETRY_TAG) != "true":
            yield from _run_outcomes(record, run)
    for state in context.instance.all_instigator_state():
        if state.is_running and _location(state) == _own_location(context):
            yield from _tick_outcomes(context.instance, state)


def _is_ours(context: SensorEvaluationContext, run: DagsterRun) -> bool:
    """Whether the run is of this code location; one started on the command line belongs to none."""
    own, origin = _own_location(context), run.remote_job_origin
    return own is None or origin is None or origin.location_name == own


def _own_location(context: SensorEvaluationContext) -> str | None:
    return context.code_location_origin.location_name if context.code_location_origin else None


def _location(state: "InstigatorState") -> str:
    return state.origin.repository_origin.code_location_origin.location_name


def _run_outcomes(record: EventLogRecord, run: DagsterRun) -> Iterator[Outcome]:
    event = record.event_log_entry.get_dagster_event()
    failed, detail = event.event_type == DagsterEventType.RUN_FAILURE, ""
    if failed:
        step = event.job_failure_data.first_step_failure_event if event.event_specific_data else None
        user = step.step_failure_data.user_failure_data if step else None
        detail = f"{(user.description if user else None) or event.message or 'no reason given'} (run {run.run_id[:8]})"
    for subject in _subjects(run, failed):
        yield Outcome(subject, failed, record.timestamp, detail, _days(run))


def _subjects(run: DagsterRun, failed: bool) -> list[str]:
    """What the run is about. A rebuild of some rollups says nothing of the others; one of all speaks of each."""
    if _days(run) is None:
        return [f"job {run.job_name}"]
    if run.asset_check_selection and not run.asset_selection:
        return ["the run of checks"]
    kept = chosen_log(Settings.from_environment().rollups).names
    chosen = [name for name in kept if not run.asset_selection or AssetKey(name) in run.asset_selection]
    together = ["the rebuild"] if chosen in ([], kept) else []
    return together if failed and together else [*together, *(f"the rebuild of {name}" for name in chosen)]


def _days(run: DagsterRun) -> Span | None:
    if "dagster/partition" in run.tags:
        return run.tags["dagster/partition"], run.tags["dagster/partition"]
    ends = [run.tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end")]
    return (ends[0], ends[1]) if ends[0] and ends[1] else None


def _tick_outcomes(instance: DagsterInstance, state: "InstigatorState") -> Iterator[Outcome]:
    """Whether the sensor or schedule does its work: its last finished tick, red several times in a row or not."""
    from dagster._core.scheduler.instigation import InstigatorType, TickStatus

    finished = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1, statuses=finished)
    for tick in ticks:
        sensor_ = state.instigator_type == InstigatorType.SENSOR
        failed = tick.status == TickStatus.FAILURE
        if failed and tick.consecutive_failure_count < (RED_TICKS if sensor_ else 1):
            continue
        subject = f"the {'sensor' if sensor_ else 'schedule'} {state.instigator_name}"
        yield Outcome(subject, failed, tick.timestamp, _said(tick.error) if tick.error else "")


def _said(error: SerializableErrorInfo) -> str:
    """The project's own line if there is one in the chain, else the last cause's."""
    lines = [error.message]
    while error.cause:
        error = error.cause
        lines.append(error.message)
    own = [found.group(1) for line in lines if (found := re.match(r"calc_analytics[\w.]+: (.+)", line))]
    return (own or lines)[-1].strip()


def _checks_and_freshness(context: SensorEvaluationContext, memory: Memory) -> Iterator[Outcome]:
    kinds = (DagsterEventType.ASSET_CHECK_EVALUATION, DagsterEventType.FRESHNESS_STATE_CHANGE)
    for record in _new_records(context.instance, memory, *kinds):
        if record.event_log_entry.get_dagster_event().event_type == DagsterEventType.FRESHNESS_STATE_CHANGE:
            yield from _freshness_outcomes(record)
        else:
            yield from _check_outcomes(record)


def _check_outcomes(record: EventLogRecord) -> Iterator[Outcome]:
    """The outcome for the evaluation's partition.

    The summary of a run over several days has none; each of its days has an evaluation of its own.
    """
    evaluation = record.event_log_entry.get_dagster_event().asset_check_evaluation_data
    day = evaluation.partition
    if evaluation.asset_key in ASSETS and day is not None:
        subject = f"check {name_check(evaluation.check_name, evaluation.asset_key.to_user_string())}"
        detail = f"{evaluation.severity.value.lower()}: {evaluation.description or 'no description'}"
        yield Outcome(subject, not evaluation.passed, record.timestamp, detail, (day, day))


def _freshness_outcomes(record: EventLogRecord) -> Iterator[Outcome]:
    change = record.event_log_entry.get_dagster_event().asset_freshness_state_change_data
    if change.key in ASSETS and change.new_state in (FreshnessState.PASS, FreshnessState.FAIL):
        failed = change.new_state == FreshnessState.FAIL
        detail = "no rollup, neither a run nor a streamed batch, in twice the schedule's interval"
        yield Outcome(f"freshness of {change.key.to_user_string()}", failed, record.timestamp, detail)
