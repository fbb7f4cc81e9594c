"""The two alerting sensors, on a stored Dagster instance, a real database and a real webhook."""

from collections.abc import Iterator
from datetime import date

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    DagsterInstance,
    DefaultSensorStatus,
    Definitions,
    SensorResult,
    build_sensor_context,
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
from calc_analytics.orchestration.checks import streamed_evaluations
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.webhook import AlertNotDelivered
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.verify import keep_proven
from calc_analytics_tests.integration.test_dagster_runs import run
from calc_analytics_tests.logs import execute, row, utc, write
from calc_analytics_tests.receiver import SECRET, Receiver, receiving

STATS = AssetKey("calculation_stats_daily")
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


def stream(instance: DagsterInstance, *days: date, by_day: bool = True) -> None:
    """Reports the evaluations of these days as the daemon does for `new_log_batches`."""
    for evaluation in streamed_evaluations(RollupDatabase(), STATS, days, by_day=by_day):
        instance.report_runless_asset_event(evaluation)


@pytest.fixture
def built(engine: Engine, owner: Engine, connect) -> Engine:
    """Two built days, proven just now: streamed evaluations do not prove them again within a minute."""
    write(connect(), [row(utc(2026, 3, day, 12)) for day in (1, 2) for _ in range(3)])
    rebuild(engine, ROLLUP, "UTC", [DAY, NEXT])
    keep_proven(engine, ROLLUP, "UTC", [DAY, NEXT])
    return owner


WRONG = "update calculation_stats_daily set cache_hits = 99 where date = '2026-03-01'"
RIGHT = "update calculation_stats_daily set cache_hits = 0 where date = '2026-03-01'"


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


@pytest.mark.parametrize("by_day", [True, False])
def test_a_failed_check_of_a_streamed_batch_is_told_once_for_its_day_and_so_is_its_recovery(
    checks, built, receiver, by_day
):
    stream(checks.instance, DAY, NEXT, by_day=by_day)
    checks.tick()
    assert receiver.taken == []
    execute(built, WRONG)
    for _ in range(3):
        stream(checks.instance, DAY, NEXT, by_day=by_day)
        checks.tick()
    (told,) = receiver.taken
    assert "failed: check cache_hits_within_total of 2026-03-01" in told
    assert "error: 2026-03-01: more cache hits than calculations for publisher 1" in told
    execute(built, RIGHT)
    stream(checks.instance, NEXT, by_day=by_day)
    checks.tick()
    assert len(receiver.taken) == 1, "the other day passing says nothing of this one"
    stream(checks.instance, DAY, by_day=by_day)
    checks.tick()
    assert receiver.taken[1:] == [text for text in receiver.taken[1:] if "well again: check cache_hits" in text]
    assert len(receiver.taken) == 2


def test_a_failed_check_of_a_run_is_told_and_a_streamed_pass_ends_it(checks, built, receiver):
    execute(built, "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at)"
                   " values (1, 1, '2030-01-01', 9, '2026-03-02 12:00Z')")  # fmt: skip
    run(checks.location, checks.instance, DAY, NEXT)
    checks.tick()
    (told,) = receiver.taken
    assert "check source_breakdown_complete of 2026-03-02" in told
    assert "warn: 2026-03-02: 1 calculations of unknown source; codes seen: 9 (1 rows)" in told
    execute(built, "delete from calculation_logs where source = 9")
    execute(built, "update calculation_stats_daily set total_calculations = source_web where date = '2026-03-02'")
    stream(checks.instance, NEXT)
    checks.tick()
    assert "well again: check source_breakdown_complete of 2026-03-02" in receiver.taken[-1]


def test_checks_of_another_asset_are_not_ours(checks, receiver):
    other = AssetCheckEvaluation(
        asset_key=AssetKey("other"), check_name="x", passed=False, metadata={"failed_for": "2026-03-01"}
    )
    checks.instance.report_runless_asset_event(other)
    checks.tick()
    assert receiver.taken == []


@pytest.mark.parametrize("states", [[FreshnessState.FAIL, FreshnessState.PASS]])
def test_staleness_is_told_and_its_end(checks, receiver, states):
    for now in states:
        change = FreshnessStateChange(
            key=STATS, new_state=now, previous_state=FreshnessState.UNKNOWN, state_change_timestamp=0.0
        )
        checks.instance._report_runless_asset_event(change)
        checks.tick()
    assert ["failed: freshness of calculation_stats_daily" in text for text in receiver.taken] == [True, False]
    assert "well again: freshness" in receiver.taken[1]


def test_a_failed_run_is_told_once_until_one_succeeds(runs, built, receiver):
    execute(built, "alter table calculation_logs rename column source to origin")
    for _ in range(2):
        assert not run(runs.location, runs.instance, DAY).success
        runs.tick()
    (told,) = receiver.taken
    assert "failed: the rebuild of 2026-03-01" in told
    assert "calc-analytics migrate" in told
    execute(built, "alter table calculation_logs rename column origin to source")
    assert run(runs.location, runs.instance, NEXT).success
    runs.tick()
    assert len(receiver.taken) == 1
    assert run(runs.location, runs.instance, DAY, NEXT).success
    runs.tick()
    assert "well again: the rebuild of 2026-03-01" in receiver.taken[1]


@pytest.mark.parametrize(("retries", "told"), [(0, True), (3, False)])
def test_a_run_whose_process_died_is_told_unless_it_is_started_again(runs, built, receiver, retries: int, told: bool):
    tags = {"dagster/partition": str(DAY), "dagster/max_retries": str(retries)}
    dead = runs.instance.create_run_for_job(runs.location.resolve_job_def("rollup_job"), tags=tags)
    runs.instance.report_run_failed(dead, "the run's process ended unexpectedly")
    runs.tick()
    assert ["the run's process ended unexpectedly" in text for text in receiver.taken] == [True] * told


def test_there_is_a_thread_for_each_sensor_so_none_waits_for_a_webhook(database, stored_instance):
    assert stored_instance.get_settings("sensors")["use_threads"]
    assert stored_instance.get_settings("sensors")["num_workers"] >= len(list(defs().sensors))


def test_what_happened_before_the_first_tick_is_told_if_it_is_less_than_an_hour_old(checks, built, receiver):
    execute(built, WRONG)
    stream(checks.instance, DAY)
    checks.tick()
    assert len(receiver.taken) == 1


def test_a_webhook_that_fails_makes_the_tick_red_and_loses_nothing(checks, built, receiver, monkeypatch):
    checks.tick()
    receiver.answers = [500] * 3
    execute(built, WRONG)
    stream(checks.instance, DAY)
    with pytest.raises(AlertNotDelivered, match="status 500") as raised:
        checks.tick()
    assert SECRET not in str(raised.value)
    assert "alerts that wait: 1" in checks.said(), "the next attempt is not made at once"
    assert receiver.taken == []
    monkeypatch.setattr(alerts.time, "monotonic", lambda start=alerts.time.monotonic: start() + 1_000)
    assert "…: 1" in checks.said()
    assert len(receiver.taken) == 1
    assert "nothing to tell; open incidents that were told: 1" in checks.said()


def test_two_bad_answers_are_got_over_within_the_tick(checks, built, receiver):
    receiver.answers = [500, "hang"]
    execute(built, WRONG)
    stream(checks.instance, DAY)
    assert "…: 1" in checks.said()


def test_while_the_webhook_fails_later_failures_join_and_a_recovery_is_told_with_them(
    checks, built, receiver, monkeypatch
):
    monkeypatch.setattr(alerts, "FIRST_PAUSE_SECONDS", 0)
    receiver.answers = [404, 404]
    execute(built, WRONG)
    stream(checks.instance, DAY)
    with pytest.raises(AlertNotDelivered):
        checks.tick()
    execute(built, RIGHT)
    execute(built, WRONG.replace("03-01", "03-02"))
    stream(checks.instance, DAY, NEXT)
    with pytest.raises(AlertNotDelivered):
        checks.tick()
    checks.tick()
    (told,) = receiver.taken
    assert "well again: check cache_hits_within_total of 2026-03-01 (failed" in told
    assert "failed: check cache_hits_within_total of 2026-03-02" in told


def test_more_than_a_page_of_events_is_told_over_several_ticks_in_order(checks, built, receiver, monkeypatch):
    monkeypatch.setattr(alerts, "RECORDS_PER_TICK", 3)
    monkeypatch.setattr(alerts, "OVERLAP_IDS", 1)
    checks.tick()
    execute(built, WRONG)
    stream(checks.instance, DAY)
    execute(built, RIGHT)
    stream(checks.instance, DAY)
    for _ in range(6):
        checks.tick()
    assert ["failed: check cache_hits_within_total of 2026-03-01" in text for text in receiver.taken] == [True, False]
    assert "well again: check cache_hits_within_total of 2026-03-01" in receiver.taken[1]


def test_an_event_that_appears_late_is_read_all_the_same(checks, built, receiver, monkeypatch):
    execute(built, WRONG)
    stream(checks.instance, NEXT)
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
    cause = SerializableErrorInfo("calc_analytics.database.engine.DatabaseTrouble: cannot connect to x\n", [], None)
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
    assert "well again: the sensor new_log_batches" in receiver.taken[1]


def test_a_sensor_of_another_code_location_is_not_ours(runs, receiver, monkeypatch):
    monkeypatch.setattr(alerts, "_own_location", lambda context: "another")
    tick_of(runs.instance, instigator(runs.instance, "x"), TickStatus.FAILURE, 1.0, 9)
    runs.tick()
    assert receiver.taken == []
