"""What Dagster has on record, read from a real instance in which runs, ticks and checks happened."""

import shutil
import time
from collections import Counter
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest
from dagster import AssetCheckKey, AssetCheckSeverity, AssetKey, DagsterEventType, DagsterInstance, Definitions
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo
from sqlalchemy import event, make_url

from calc_analytics.config import Settings, project_root
from calc_analytics.database import engine
from calc_analytics.operations import health, status
from calc_analytics.operations.doctor import Ports, examine
from calc_analytics.operations.metrics import Exposition
from calc_analytics.operations.probes import Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.orchestration import history
from calc_analytics.orchestration.history import DagsterUnavailable, LastCheck, name_check
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollups import HOURS, LOG, STATS
from calc_analytics_tests.integration.test_alerts import DAY, NEXT, evaluate, said
from calc_analytics_tests.logs import row, utc, write

KEY = AssetCheckKey(AssetKey(STATS.name), "stats_match_logs")
EVERY_CHECK = {name_check(name, rollup.name) for rollup in LOG.rollups for name in rollup.check_names}
WARN = {"severity": AssetCheckSeverity.WARN}


@pytest.fixture
def dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A persistent instance in a folder of its own."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("run_monitoring: {enabled: true}\n")
    history.instance.cache_clear()
    with history.instance() as instance:
        yield instance
    history.instance.cache_clear()


def heartbeat(dagster: DagsterInstance, daemon: str, seconds_ago: float = 0.0) -> None:
    dagster.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds_ago, daemon, "me", errors=[]))


def instigator(
    dagster: DagsterInstance,
    name: str,
    kind: InstigatorType,
    status: InstigatorStatus,
    location: str = "calc_analytics",
) -> InstigatorState:
    """As the daemon stores it when it first sees a sensor or schedule."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), "__repository__")
    origin = RemoteInstigatorOrigin(repository, name)
    sensor = kind == InstigatorType.SENSOR
    data = SensorInstigatorData(min_interval=5) if sensor else ScheduleInstigatorData("0 * * * *")
    return dagster.add_instigator_state(InstigatorState(origin, kind, status, data))


def tick(
    dagster: DagsterInstance, state: InstigatorState, status: TickStatus, seconds_ago: float = 0.0, in_a_row: int = 0
) -> None:
    at = time.time() - seconds_ago
    error = None
    if status == TickStatus.FAILURE:
        cause = SerializableErrorInfo("calc_analytics.X: the disk is full\nmore\n", [], "calc_analytics.X", None)
        error = SerializableErrorInfo("dagster.SensorExecutionError: trouble\n", [], "SensorExecutionError", cause)
    made = dagster.create_tick(
        TickData(
            state.instigator_origin_id, state.instigator_name, state.instigator_type, TickStatus.STARTED, at,
            selector_id=state.selector_id,
        )
    )  # fmt: skip
    if status != TickStatus.STARTED:
        changes = {"error": error, "failure_count": in_a_row} if error else {}
        ended = made.with_status(status, **changes)
        data = ended.tick_data._replace(consecutive_failure_count=in_a_row)
        dagster.update_tick(ended._replace(tick_data=data))


def last_check(dagster: DagsterInstance, name: str = "stats_match_logs") -> LastCheck:
    """The last results of that check."""
    (found,) = [check for check in history.last_checks(dagster, LOG) if check.name == name]
    return found


def probes(database, *names: str) -> dict[str, health.Finding]:
    """Those findings of the health report."""
    report = health.health(Sources(Settings.from_environment()), Prober(60))
    return {finding.name: finding for finding in report.findings if finding.name in names}


def test_of_an_instance_that_saw_nothing_nothing_is_known(dagster):
    assert {beat.at for beat in history.heartbeats(dagster)} == {None}
    assert history.instigators(history.Record(dagster)).get(history.SENSOR) is None
    assert history.instigators(history.Record(dagster)).get(history.SCHEDULE) is None
    assert history.last_finished_run(dagster) is None
    assert history.last_checks(dagster, LOG) == []
    assert history.instigators(history.Record(dagster)).get(history.HOUSEKEEPING) is None


def test_heartbeats_say_which_daemons_the_counting_needs(dagster):
    heartbeat(dagster, "SENSOR", 10)
    beats = {beat.daemon: beat for beat in history.heartbeats(dagster)}
    assert 9 < (datetime.now(timezone.utc) - beats["SENSOR"].at).total_seconds() < 60
    assert {name for name, beat in beats.items() if beat.needed} == {"SENSOR", "SCHEDULER", "QUEUED_RUN_COORDINATOR"}
    assert "BACKFILL" in beats


@pytest.mark.parametrize(("missing", "alive"), [(0, True), (55, True), (65, False)])
def test_a_daemon_is_dead_when_two_heartbeats_are_missing(dagster, database, missing: float, alive: bool):
    for daemon in ("SCHEDULER", "QUEUED_RUN_COORDINATOR"):
        heartbeat(dagster, daemon)
    heartbeat(dagster, "SENSOR", missing)
    assert probes(database, "daemon")["daemon"].ok is alive


def test_the_scheduler_may_sleep_for_a_minute(dagster, database):
    for daemon in ("SENSOR", "QUEUED_RUN_COORDINATOR"):
        heartbeat(dagster, daemon)
    heartbeat(dagster, "SCHEDULER", 100)
    assert probes(database, "daemon")["daemon"].ok
    heartbeat(dagster, "SCHEDULER", 125)
    assert not probes(database, "daemon")["daemon"].ok


def test_a_sensor_that_ticks_passes_and_one_that_was_turned_off_fails(dagster, database):
    state = instigator(dagster, "new_log_batches", InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE)
    tick(dagster, state, TickStatus.SKIPPED, 12)
    tick(dagster, state, TickStatus.STARTED, 2)
    found = history.instigators(history.Record(dagster)).get(history.SENSOR)
    assert (found.on, found.last_tick.status, found.last_tick.error) == (True, "skipped", None)
    assert found.started_at > found.last_tick.at
    assert probes(database, "sensor")["sensor"].ok
    dagster.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))
    finding = probes(database, "sensor")["sensor"]
    assert (finding.ok, finding.command) == (False, "dagster sensor start new_log_batches")


def test_a_sensor_that_ticked_long_ago_fails(dagster, database):
    state = instigator(dagster, "new_log_batches", InstigatorType.SENSOR, InstigatorStatus.RUNNING)
    tick(dagster, state, TickStatus.SKIPPED, 90)
    assert "its last tick began 90 s ago" in probes(database, "sensor")["sensor"].fact


@pytest.mark.parametrize(("in_a_row", "content"), [(1, True), (2, False)])
def test_one_red_tick_is_retried_and_two_are_an_error(dagster, database, in_a_row: int, content: bool):
    state = instigator(dagster, "new_log_batches", InstigatorType.SENSOR, InstigatorStatus.RUNNING)
    tick(dagster, state, TickStatus.FAILURE, 5, in_a_row)
    assert history.instigators(history.Record(dagster)).get(history.SENSOR).last_tick.error == "the disk is full"
    finding = probes(database, "sensor")["sensor"]
    assert finding.ok is content
    assert content or "the last 2 ticks of the sensor new_log_batches failed: the disk is full" in finding.fact


def test_of_two_code_locations_the_one_that_ticked_last_counts(dagster):
    old = instigator(dagster, "new_log_batches", InstigatorType.SENSOR, InstigatorStatus.STOPPED, "elsewhere")
    new = instigator(dagster, "new_log_batches", InstigatorType.SENSOR, InstigatorStatus.RUNNING)
    tick(dagster, old, TickStatus.SKIPPED, 1000)
    tick(dagster, new, TickStatus.SUCCESS, 10)
    assert history.instigators(history.Record(dagster)).get(history.SENSOR).on


def test_a_schedule_may_wait_for_its_first_tick(dagster, database):
    instigator(dagster, "hourly_rollup", InstigatorType.SCHEDULE, InstigatorStatus.DECLARED_IN_CODE)
    assert "has not ticked yet" in probes(database, "schedule")["schedule"].fact
    assert probes(database, "schedule")["schedule"].ok


def test_a_failed_check_is_unhealthy_and_a_warning_is_not(dagster, database):
    evaluate(dagster, said(True), said(False, name="source_breakdown_complete", **WARN))
    finding = probes(database, "checks")["checks"]
    assert finding.ok
    assert "source_breakdown_complete warns: 2026-03-01: differs by 5" in finding.fact
    evaluate(dagster, said(False))
    finding = probes(database, "checks")["checks"]
    assert not finding.ok
    assert "2026-03-01: differs by 5" in finding.fact


def test_an_unusual_total_is_shown_for_a_week_and_is_no_alert(dagster, database):
    old, recent = (datetime.now(timezone.utc).date() - timedelta(days=n) for n in (9, 3))
    evaluate(dagster, said(False, old, name="usual_total", **WARN))
    assert probes(database, "checks")["checks"].level == "ok"
    evaluate(dagster, said(False, recent, name="usual_total", **WARN))
    finding = probes(database, "checks")["checks"]
    assert (finding.level, finding.command) == ("note", "")
    assert [(each.subject, each.is_posted) for each in finding.problems] == [(f"check usual_total of {recent}", False)]


def test_a_failed_day_is_not_hidden_by_another_that_passed_later_and_is_over_when_it_passes_itself(dagster, database):
    evaluate(dagster, said(False))
    failed_at = last_check(dagster).at
    evaluate(dagster, said(True, NEXT))
    found = last_check(dagster)
    assert (found.passed, found.warning, found.at) == (False, False, failed_at)
    assert found.description == "2026-03-01: differs by 5"
    evaluate(dagster, said(True))
    assert last_check(dagster).passed
    assert last_check(dagster).at > failed_at


def test_several_failed_days_are_counted_and_an_error_comes_before_warnings(dagster, database):
    evaluate(dagster, said(False), said(False, NEXT, **WARN))
    found = last_check(dagster)
    assert (found.warning, found.description) == (False, "2026-03-01: differs by 5; 1 more day")
    evaluate(dagster, said(True), said(False, date(2026, 3, 3), **WARN), said(False, date(2026, 3, 4), **WARN))
    found = last_check(dagster)
    assert (found.warning, found.description) == (True, "2026-03-04: differs by 5; 2 more days")


def test_the_summary_of_a_run_over_several_days_is_no_finding(dagster, database):
    evaluate(dagster, said(True), said(True, NEXT), said(False, None))
    assert last_check(dagster).passed


def test_a_run_that_has_announced_its_checks_does_not_hide_a_failure_even_if_it_died(dagster, location, database):
    evaluate(dagster, said(False))
    tags = {"dagster/partition": str(DAY)}
    run = dagster.create_run_for_job(location.resolve_job_def("rollup_job"), tags=tags)
    latest = dagster.event_log_storage.get_latest_asset_check_execution_by_key([KEY])[KEY]
    assert (latest.status.value, latest.run_id) == ("PLANNED", run.run_id)
    assert not last_check(dagster).passed


def test_checks_of_every_rollup_are_reported_each_by_a_name_of_its_own(dagster, database):
    everything = [
        said(rollup is not HOURS, name=name, rollup=rollup.name)
        for rollup in LOG.rollups
        for name in rollup.check_names
    ]
    evaluate(dagster, *everything, said(False, rollup="another_project"))
    found = {check.name: check.passed for check in history.last_checks(dagster, LOG)}
    assert set(found) == EVERY_CHECK
    assert {name for name, passed in found.items() if not passed} == {name for name in EVERY_CHECK if "hourly" in name}
    found = {check.name: check.passed for check in history.last_checks(dagster, LOG.only([STATS.name]))}
    assert (set(found), set(found.values())) == (set(STATS.check_names), {True}), "the others are not kept"


def test_reading_them_takes_two_queries_however_many_checks_and_days_there_are(stored_instance, database):
    evaluate(stored_instance, *(said(day % 2 == 0, date(2026, 3, day)) for day in range(1, 30)))
    storage, asked = stored_instance.event_log_storage, []
    with storage.index_connection() as connection:
        event.listen(connection.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert last_check(stored_instance).description == "2026-03-29: differs by 5; 14 more days"
    assert len(asked) == 2


def test_failed_runs_are_read_with_the_same_number_of_queries_however_many_there_are(stored_instance, location):
    asked: list[str] = []
    for storage in (stored_instance.event_log_storage.index_connection, stored_instance.run_storage.connect):
        with storage() as connection:
            event.listen(connection.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    counts = []
    for number in (1, 15):
        for day in range(number, 2 * number):
            fail(stored_instance, location, date(2026, 3, day), f"the disk of day {day} is full")
        asked.clear()
        failed = history.failed_runs(history.Record(stored_instance), LOG)
        counts.append(len(asked))
        assert {run.days[0].day: run.error for run in failed}[number] == f"the disk of day {number} is full"
    assert len(failed) == 16
    assert counts[0] == counts[1] <= 5, counts


def test_of_a_run_whose_failure_is_not_among_the_newest_the_log_is_named(stored_instance, location, monkeypatch):
    for day in (1, 2):
        fail(stored_instance, location, date(2026, 3, day), "the disk is full")
    newest = stored_instance.fetch_run_status_changes(DagsterEventType.RUN_FAILURE, 1)
    monkeypatch.setattr(stored_instance, "fetch_run_status_changes", lambda kind, limit: newest)
    failed = history.failed_runs(history.Record(stored_instance), LOG)
    assert [run.error for run in failed] == ["the reason is in the run's log", "the disk is full"]


def fail(dagster: DagsterInstance, location: Definitions, day: date, reason: str) -> None:
    """A run of all rollups for the day that ends in this error and is not repeated."""
    tags = {"dagster/partition": str(day), "dagster/max_retries": "0"}
    run = dagster.create_run_for_job(location.resolve_job_def("rollup_job"), tags=tags)
    dagster.report_run_failed(run, reason)


def test_a_report_reads_each_source_once(stored_instance, location, database, db, monkeypatch):
    """A transaction each for the catalogs, the tables, the log and Dagster's sessions; Dagster's instigators once."""
    fail(stored_instance, location, date(2026, 3, 1), "the disk is full")
    monkeypatch.setattr(history, "instance", lambda: stored_instance)
    settings, begun, read = Settings.from_environment(), [], []
    begin, states = engine._begin, DagsterInstance.all_instigator_state
    monkeypatch.setattr(engine, "_begin", lambda on: begun.append(on.url.database) or begin(on))
    monkeypatch.setattr(DagsterInstance, "all_instigator_state", lambda self: read.append(1) or states(self))
    sources, prober = Sources(settings), Prober(deadline_seconds=20)
    exposition, storage = Exposition(sources, prober, lambda: 0), make_url(stored_instance.run_storage.postgres_url)
    for ask in (
        lambda: health.health(sources, prober),
        lambda: exposition.text(""),
        lambda: status.report(sources, prober, 7),
        lambda: examine(sources, prober, Ports(free_port(), free_port())),
    ):
        begun.clear(), read.clear()
        ask()
        assert Counter(begun) == {database.database: 3, storage.database: 1}
        assert read == [1]


def test_a_failed_run_of_the_summary_is_over_with_the_next_run_that_computes_it(dagster, location, database, connect):
    write(connect(), [row(utc(2026, 3, 1, 12))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calc_analytics.readers.summary.refresh_summary", lambda db: 1 / 0)
        alone = location.resolve_implicit_global_asset_job_def()
        summary = [AssetKey("publisher_usage_summary")]
        assert not alone.execute_in_process(instance=dagster, asset_selection=summary, raise_on_error=False).success
    (failed,) = history.failed_runs(history.Record(dagster), LOG)
    assert (failed.subject, failed.days) == ("the computation of publisher_usage_summary", None)
    assert "division by zero" in failed.error
    job = location.resolve_job_def("rollup_job")
    rollups = [AssetKey(name) for name in LOG.names]
    assert job.execute_in_process(instance=dagster, asset_selection=rollups, partition_key="2026-03-01").success
    assert history.failed_runs(history.Record(dagster), LOG) == [failed], "it did not compute the summary"
    assert job.execute_in_process(instance=dagster, partition_key="2026-03-01").success
    assert history.failed_runs(history.Record(dagster), LOG) == []


def test_the_last_run_is_that_of_the_schedule(dagster, location, database, connect):
    job, day = location.resolve_job_def("rollup_job"), date(2026, 3, 1)
    write(connect(), [row(utc(2026, 3, 1, 12))])
    tags = {"dagster/schedule_name": "hourly_rollup"}
    job.execute_in_process(instance=dagster, partition_key=str(day), tags=tags)
    found = history.last_finished_run(dagster)
    assert (found.succeeded, found.partition) == (True, "2026-03-01")
    assert probes(database, "scheduled_run")["scheduled_run"].ok
    assert {check.name for check in history.last_checks(dagster, LOG)} == EVERY_CHECK

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calc_analytics.rollup.rebuild.rebuild", lambda *given, **options: 1 / 0)
        assert not job.execute_in_process(instance=dagster, partition_key=str(day), raise_on_error=False).success
    assert history.last_finished_run(dagster).succeeded, "an operator's own run is not the schedule's"


def test_a_failed_run_of_the_schedule_names_the_run(dagster, location, database, connect):
    job = location.resolve_job_def("rollup_job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calc_analytics.rollup.rebuild.rebuild", lambda *given, **options: 1 / 0)
        tags = {"dagster/schedule_name": "hourly_rollup"}
        result = job.execute_in_process(instance=dagster, partition_key="2026-03-01", tags=tags, raise_on_error=False)
    finding = probes(database, "scheduled_run")["scheduled_run"]
    assert not finding.ok
    assert finding.command == f"open run {result.run_id} in the Dagster UI"


def test_how_long_ticks_are_kept_is_read_from_the_configuration(dagster, tmp_path):
    assert history.tick_retention_days(dagster)["success"] == -1
    shutil.copy(project_root() / "dagster.yaml", tmp_path)
    text = (tmp_path / "dagster.yaml").read_text()
    (tmp_path / "dagster.yaml").write_text(text[text.index("retention:") : text.index("telemetry:")])
    with DagsterInstance.from_config(str(tmp_path)) as configured:
        kept = history.tick_retention_days(configured)
    assert (kept["skipped"], kept["success"], kept["failure"]) == (2, 7, 30)


def test_a_storage_that_is_down_is_an_error_of_one_line(tmp_path, monkeypatch):
    shutil.copy(project_root() / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/dagster")
    history.instance.cache_clear()
    with pytest.raises(DagsterUnavailable, match="cannot connect to postgresql://me:") as raised:
        history.instance()
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)
