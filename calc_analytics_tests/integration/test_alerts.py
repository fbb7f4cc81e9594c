"""The two alerting sensors, on a stored Dagster instance, a real database and a real webhook."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from calc_analytics.orchestration.webhook import AlertNotDelivered
from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    AssetKey,
    DagsterInstance,
    DefaultSensorStatus,
    Definitions,
    OpExecutionContext,
    SensorResult,
    build_sensor_context,
    job,
    op,
)
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._utils.error import SerializableErrorInfo
from sqlalchemy.engine import Engine

from calc_analytics.definitions import defs
from calc_analytics.orchestration import alerts, webhook
from calc_analytics.rollups import HOURS, LATENCY, LOCALITIES, LOG, STATS
from calc_analytics_tests.logs import execute, row, utc, write
from calc_analytics_tests.receiver import SECRET, Receiver, receiving

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
RUNS, CHECKS = "run_failure_alerts", "check_failure_alerts"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A webhook that takes everything, and ALERT_WEBHOOK_URL naming it."""
    monkeypatch.setattr(webhook, "ATTEMPT_SECONDS", 0.5)
    monkeypatch.setattr(webhook, "PAUSES", (0.0, 0.02, 0.02))
    with receiving() as receiver:
        monkeypatch.setenv("ALERT_WEBHOOK_URL", receiver.url)
        yield receiver


class Ticking:
    """One of the sensors, tick after tick: a tick that raises leaves the cursor, as in Dagster."""

    def __init__(self, name: str, instance: DagsterInstance, location: Definitions) -> None:
        self.sensor, self.instance, self.location = location.resolve_sensor_def(name), instance, location
        self.cursor: str | None = None

    def tick(self) -> SensorResult:
        """One evaluation."""
        with build_sensor_context(
            instance=self.instance, cursor=self.cursor, sensor_name=self.sensor.name, definitions=self.location
        ) as context:
            result = self.sensor(context)
        self.cursor = result.cursor or self.cursor
        assert SECRET not in (self.cursor or "")
        return result

    def said(self) -> str:
        """Why a tick did nothing in Dagster, which is what the UI shows of it."""
        return str(self.tick().skip_reason.skip_message)


@pytest.fixture
def checks(receiver: Receiver, database, stored_instance: DagsterInstance) -> Ticking:
    return Ticking(CHECKS, stored_instance, defs())


@pytest.fixture
def runs(receiver: Receiver, database, stored_instance: DagsterInstance) -> Ticking:
    return Ticking(RUNS, stored_instance, defs())


def said(
    passed: bool, day: date | None = DAY, name: str = "stats_match_logs", rollup: str = STATS.name, **more: Any
) -> AssetCheckEvaluation:
    """What a check says of a day; of None, what the summary of a run over several days says."""
    return AssetCheckEvaluation(
        asset_key=AssetKey(rollup),
        check_name=name,
        passed=passed,
        partition=str(day) if day else None,
        description="all is well" if passed else "differs by 5",
        **more,
    )


def evaluate(instance: DagsterInstance, *evaluations: AssetCheckEvaluation) -> str:
    """A run in which checks are evaluated, as in the project's own; returns its id."""

    @op
    def checks(context: OpExecutionContext) -> None:
        for evaluation in evaluations:
            context.log_event(evaluation)

    @job
    def evaluating() -> None:
        checks()

    return evaluating.execute_in_process(instance=instance).run_id


def rebuild(ticking: Ticking, first: date, last: date | None = None, rollups: list[str] | None = None) -> bool:
    """A run of `rollup_job` for one day, or for a range as a backfill does, and whether it succeeded."""
    ends = {"start": str(first), "end": str(last)}
    target: dict[str, Any] = {"partition_key": str(first)}
    if last is not None:
        target = {"tags": {f"dagster/asset_partition_range_{end}": day for end, day in ends.items()}}
    if rollups is not None:
        target["asset_selection"] = [AssetKey(name) for name in rollups]
    job = ticking.location.resolve_job_def("rollup_job")
    return job.execute_in_process(instance=ticking.instance, raise_on_error=False, **target).success


@pytest.fixture
def logs(owner: Engine, connect) -> Engine:
    """Log rows of two days; the engine is their owner's."""
    write(connect(), [row(utc(2026, 3, day, 12)) for day in (1, 2) for _ in range(3)])
    return owner


def test_without_a_webhook_they_are_off_and_silent(stored_instance, database, monkeypatch):
    monkeypatch.delenv("ALERT_WEBHOOK_URL", raising=False)
    for name in (RUNS, CHECKS):
        ticking = Ticking(name, stored_instance, defs())
        assert ticking.sensor.default_status == DefaultSensorStatus.STOPPED
        assert "ALERT_WEBHOOK_URL is not set" in ticking.said()


def test_with_one_they_are_on(runs, checks):
    for ticking in (runs, checks):
        assert ticking.sensor.default_status == DefaultSensorStatus.RUNNING
        assert "nothing to tell" in ticking.said()


def test_a_failed_check_is_told_once_for_its_day_and_so_is_its_recovery(checks, receiver):
    evaluate(checks.instance, said(True), said(True, NEXT))
    checks.tick()
    assert receiver.taken == []
    for _ in range(3):
        evaluate(checks.instance, said(False), said(True, NEXT))
        checks.tick()
    (told,) = receiver.taken
    assert "failed: check stats_match_logs of 2026-03-01" in told
    assert told.endswith("error: differs by 5")
    evaluate(checks.instance, said(True, NEXT))
    checks.tick()
    assert len(receiver.taken) == 1, "the other day passing says nothing of this one"
    evaluate(checks.instance, said(True))
    checks.tick()
    assert "resolved: check stats_match_logs of 2026-03-01" in receiver.taken[1]
    assert len(receiver.taken) == 2


def test_every_day_of_a_run_over_several_is_told_and_not_their_summary(checks, receiver):
    evaluate(checks.instance, said(False), said(False, NEXT), said(True, date(2026, 3, 3)), said(False, None))
    checks.tick()
    (told,) = receiver.taken
    assert ["2026-03-01 (since" in told, "2026-03-02 (since" in told, told.count("failed: ")] == [True, True, 2]


def test_a_warning_is_told_as_one(checks, receiver):
    evaluate(checks.instance, said(False, name="source_breakdown_complete", severity=AssetCheckSeverity.WARN))
    checks.tick()
    assert receiver.taken[0].endswith("warn: differs by 5")


def test_a_check_that_several_rollups_have_is_told_with_its_rollup(checks, receiver):
    hits = [said(False, name="cache_hits_within_total", rollup=rollup.name) for rollup in (STATS, HOURS)]
    matches = said(False, name=LATENCY.match_check_name, rollup=LATENCY.name)
    evaluate(checks.instance, *hits, matches)
    checks.tick()
    assert [line.partition("failed: ")[2].partition(" (")[0] for line in receiver.taken[0].splitlines()[1:]] == [
        "check cache_hits_within_total of 2026-03-01",
        "check cache_hits_within_total of calculation_stats_hourly on 2026-03-01",
        "check calculation_latency_daily_match_logs of 2026-03-01",
    ]
    evaluate(checks.instance, said(True, name="cache_hits_within_total"))
    checks.tick()
    assert "resolved: check cache_hits_within_total of 2026-03-01" in receiver.taken[1]
    assert "hourly" not in receiver.taken[1], "another rollup's check of that name"


def test_a_failed_check_of_the_projects_own_runs_is_told(checks, logs, receiver):
    assert rebuild(checks, DAY, NEXT)
    checks.tick()
    assert receiver.taken == []
    execute(logs, "delete from calculation_logs where created_at < '2026-03-02'")
    rebuild(checks, DAY, NEXT)
    checks.tick()
    (told,) = receiver.taken
    for rollup in LOG.rollups:
        assert f"check {rollup.match_check_name} of 2026-03-01" in told
    assert "of 2026-03-02" not in told


def test_checks_of_another_asset_are_not_ours(checks, receiver):
    evaluate(checks.instance, said(False, rollup="other"))
    checks.tick()
    assert receiver.taken == []


def freshness(instance: DagsterInstance, rollup: str, state: FreshnessState) -> None:
    """What Dagster's daemon reports."""
    change = FreshnessStateChange(
        key=AssetKey(rollup), new_state=state, previous_state=FreshnessState.UNKNOWN, state_change_timestamp=0.0
    )
    instance._report_runless_asset_event(change)


def test_staleness_of_all_rollups_is_told_in_one_line_and_so_is_its_end(checks, receiver):
    for state, word in ((FreshnessState.FAIL, "failed"), (FreshnessState.PASS, "resolved")):
        for rollup in LOG.names:
            freshness(checks.instance, rollup, state)
        freshness(checks.instance, "another_project", state)
        checks.tick()
        assert f"{word}: freshness of {', '.join(LOG.names)} (" in receiver.taken[-1]
    assert len(receiver.taken) == 2


def test_staleness_of_one_rollup_is_told_by_itself(checks, receiver):
    freshness(checks.instance, LOCALITIES.name, FreshnessState.FAIL)
    freshness(checks.instance, HOURS.name, FreshnessState.WARN)
    checks.tick()
    (told,) = receiver.taken
    assert "failed: freshness of calculation_locality_stats_daily (since" in told


def test_a_failed_run_is_told_once_until_one_succeeds(runs, logs, receiver):
    execute(logs, "alter table calculation_logs rename column source to origin")
    for _ in range(2):
        assert not rebuild(runs, DAY)
        runs.tick()
    (told,) = receiver.taken
    assert "failed: the rebuild of 2026-03-01" in told
    assert "calc-analytics migrate" in told
    execute(logs, "alter table calculation_logs rename column origin to source")
    assert rebuild(runs, NEXT)
    runs.tick()
    assert len(receiver.taken) == 1
    assert rebuild(runs, DAY, NEXT)
    runs.tick()
    assert "resolved: the rebuild of 2026-03-01" in receiver.taken[1]


def test_a_rebuild_of_some_rollups_says_nothing_of_the_others_and_one_of_all_speaks_of_each(runs, logs, receiver):
    execute(logs, "alter table calculation_logs rename column source to origin")
    assert not rebuild(runs, DAY)
    assert not rebuild(runs, DAY, rollups=[HOURS.name, LATENCY.name])
    runs.tick()
    everything, some = receiver.taken[0].splitlines()[1:]
    assert "failed: the rebuild of 2026-03-01" in everything
    assert "failed: the rebuild of calculation_stats_hourly, calculation_latency_daily on 2026-03-01" in some
    execute(logs, "alter table calculation_logs rename column origin to source")
    assert rebuild(runs, DAY, rollups=[HOURS.name])
    runs.tick()
    assert "resolved: the rebuild of calculation_stats_hourly on 2026-03-01" in receiver.taken[1]
    assert rebuild(runs, DAY)
    runs.tick()
    assert "resolved: the rebuild of 2026-03-01" in receiver.taken[2]
    assert "resolved: the rebuild of calculation_latency_daily on 2026-03-01" in receiver.taken[2]


@pytest.mark.parametrize(("retries", "told"), [(0, True), (3, False)])
def test_a_run_whose_process_died_is_told_unless_it_is_started_again(runs, logs, receiver, retries: int, told: bool):
    tags = {"dagster/partition": str(DAY), "dagster/max_retries": str(retries)}
    dead = runs.instance.create_run_for_job(runs.location.resolve_job_def("rollup_job"), tags=tags)
    runs.instance.report_run_failed(dead, "the run's process ended unexpectedly")
    runs.tick()
    assert ["the run's process ended unexpectedly" in text for text in receiver.taken] == [True] * told


def test_there_is_a_thread_for_each_sensor_so_none_waits_for_a_webhook(database, stored_instance):
    assert stored_instance.get_settings("sensors")["use_threads"]
    assert stored_instance.get_settings("sensors")["num_workers"] >= len(list(defs().sensors))


def test_what_happened_before_the_first_tick_is_told_if_it_is_less_than_an_hour_old(checks, receiver):
    evaluate(checks.instance, said(False))
    checks.tick()
    assert len(receiver.taken) == 1


def test_a_webhook_that_fails_makes_the_tick_red_and_loses_nothing(checks, receiver, monkeypatch):
    checks.tick()
    receiver.answers = [500] * 3
    evaluate(checks.instance, said(False))
    with pytest.raises(AlertNotDelivered, match="status 500") as raised:
        checks.tick()
    assert SECRET not in str(raised.value)
    assert "alerts that wait: 1" in checks.said(), "the next attempt is not made at once"
    assert receiver.taken == []
    monkeypatch.setattr(alerts.time, "monotonic", lambda start=alerts.time.monotonic: start() + 1_000)
    assert "…: 1" in checks.said()
    assert len(receiver.taken) == 1
    assert "nothing to tell; open incidents that were told: 1" in checks.said()


def test_two_bad_answers_are_got_over_within_the_tick(checks, receiver):
    receiver.answers = [500, "hang"]
    evaluate(checks.instance, said(False))
    assert "…: 1" in checks.said()


def test_while_the_webhook_fails_later_failures_join_and_a_recovery_is_told_with_them(checks, receiver, monkeypatch):
    monkeypatch.setattr(alerts, "FIRST_PAUSE_SECONDS", 0)
    receiver.answers = [404, 404]
    evaluate(checks.instance, said(False))
    with pytest.raises(AlertNotDelivered):
        checks.tick()
    evaluate(checks.instance, said(True), said(False, NEXT))
    with pytest.raises(AlertNotDelivered):
        checks.tick()
    checks.tick()
    (told,) = receiver.taken
    assert "resolved: check stats_match_logs of 2026-03-01 (failed" in told
    assert "failed: check stats_match_logs of 2026-03-02" in told


def test_more_than_a_page_of_events_is_told_over_several_ticks_in_order(checks, receiver, monkeypatch):
    monkeypatch.setattr(alerts, "RECORDS_PER_TICK", 3)
    monkeypatch.setattr(alerts, "OVERLAP_IDS", 1)
    checks.tick()
    evaluate(checks.instance, said(True, NEXT), said(True, NEXT, "x"), said(False))
    evaluate(checks.instance, said(True))
    for _ in range(6):
        checks.tick()
    assert ["failed: check stats_match_logs of 2026-03-01" in text for text in receiver.taken] == [True, False]
    assert "resolved: check stats_match_logs of 2026-03-01" in receiver.taken[1]


def test_an_event_that_appears_late_is_read_all_the_same(checks, receiver, monkeypatch):
    evaluate(checks.instance, said(True), said(True, NEXT))
    checks.tick()
    kind = "ASSET_CHECK_EVALUATION"
    memory = alerts.Memory.parse(checks.cursor)
    late, newest = memory.read[kind][0], memory.read[kind][-1]
    memory.read[kind] = [newest]
    checks.cursor = memory.text()
    again = alerts._new_records(checks.instance, memory, alerts.DagsterEventType.ASSET_CHECK_EVALUATION)
    assert [record.storage_id for record in again] == list(range(late, newest))
    assert alerts._new_records(checks.instance, memory, alerts.DagsterEventType.ASSET_CHECK_EVALUATION) == []


@pytest.mark.parametrize("cursor", ["", "{}", '{"read": 3, "incidents": []}', '{"read": {}, "incidents": [{"a": 1}]}'])
def test_a_cursor_that_is_none_of_ours_is_a_first_start(checks, cursor: str):
    checks.cursor = cursor
    assert "nothing to tell" in checks.said()


def instigator(instance: DagsterInstance, name: str) -> InstigatorState:
    """A running sensor of this location, as the daemon records it."""
    target = LoadableTargetOrigin(module_name="calc_analytics.definitions")
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, location_name="calc_analytics")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
    state = InstigatorState(
        origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData(min_interval=5)
    )
    return instance.add_instigator_state(state)


def tick_of(instance: DagsterInstance, state: InstigatorState, status: TickStatus, at: float, in_a_row: int) -> None:
    cause = SerializableErrorInfo("calc_analytics.database.engine.DatabaseError: cannot connect to x\n", [], None)
    error = SerializableErrorInfo("dagster._core.errors.SensorExecutionError: Error occurred", [], None, cause)
    data = TickData(
        state.instigator_origin_id, state.instigator_name, InstigatorType.SENSOR, status, at,
        selector_id=state.selector_id, consecutive_failure_count=in_a_row,
        error=error if status == TickStatus.FAILURE else None,
    )  # fmt: skip
    instance.create_tick(data)


def test_a_sensor_whose_ticks_keep_failing_is_told(runs, receiver, monkeypatch):
    monkeypatch.setattr(alerts, "_own_location", lambda context: "calc_analytics")
    state = instigator(runs.instance, "new_log_batches")
    for in_a_row in (1, 2):
        tick_of(runs.instance, state, TickStatus.FAILURE, float(in_a_row), in_a_row)
        runs.tick()
    assert receiver.taken == [], "a single red tick is retried"
    for n in (3, 4):
        tick_of(runs.instance, state, TickStatus.FAILURE, float(n), n)
        runs.tick()
    (told,) = receiver.taken
    assert "failed: the sensor new_log_batches" in told
    assert told.endswith("UTC): cannot connect to x")
    tick_of(runs.instance, state, TickStatus.SKIPPED, 5.0, 0)
    runs.tick()
    assert "resolved: the sensor new_log_batches" in receiver.taken[1]


def test_a_sensor_of_another_code_location_is_not_ours(runs, receiver, monkeypatch):
    monkeypatch.setattr(alerts, "_own_location", lambda context: "another")
    tick_of(runs.instance, instigator(runs.instance, "x"), TickStatus.FAILURE, 1.0, 9)
    runs.tick()
    assert receiver.taken == []
