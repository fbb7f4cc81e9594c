"""The monitor on a stored Dagster instance, a real database and a real webhook: what happens is posted."""

import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    AssetKey,
    DagsterInstance,
    OpExecutionContext,
    job,
    op,
)
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorStatus, TickStatus
from sqlalchemy import event
from sqlalchemy.engine import Engine

from calc_analytics.config import Settings
from calc_analytics.definitions import defs
from calc_analytics.operations import health, monitor, webhook
from calc_analytics.operations.findings import Finding
from calc_analytics.operations.monitor import Monitor
from calc_analytics.operations.probes import Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.orchestration import history
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.rebuild import rebuild as rebuild_days
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import HOURS, LATENCY, LOG, STATS
from calc_analytics_tests.logs import execute, row, utc, write
from calc_analytics_tests.receiver import SECRET, Receiver, receiving

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A webhook that takes everything, and ALERT_WEBHOOK_URL naming it."""
    monkeypatch.setattr(webhook, "ATTEMPT_SECONDS", 0.5)
    monkeypatch.setattr(webhook, "FIRST_PAUSE_SECONDS", 0.02)
    with receiving() as receiver:
        monkeypatch.setenv("ALERT_WEBHOOK_URL", receiver.url)
        yield receiver


class Watched:
    """The monitor of a service, look after look. Nothing runs here, so what only says that is left out."""

    def __init__(self, instance: DagsterInstance, receiver: Receiver) -> None:
        settings = Settings.from_environment()
        self.instance, self.receiver = instance, receiver
        self.monitor = Monitor(Sources(settings), Prober(60), settings.alert_webhook_url)
        self.look()  # no daemon has ever run: posted here
        receiver.taken.clear()

    def look(self) -> list[str]:
        """The lines that were posted, after two looks."""
        before = len(self.receiver.taken)
        for _ in range(2):
            self.monitor.look()
        lines = [line for text in self.receiver.taken[before:] for line in text.split("\n• ")]
        assert SECRET not in "".join(lines)
        return [line.removeprefix("calc_analytics: ") for line in lines if line != "calc_analytics:"]

    def finding(self, name: str) -> Finding:
        """One finding of the report."""
        found = health.health(self.monitor.sources, self.monitor.prober).findings
        return next(finding for finding in found if finding.name == name)


@pytest.fixture
def watched(
    receiver: Receiver, database, db: Database, stored_instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Watched:
    refresh(db)
    monkeypatch.setattr(history, "instance", lambda: stored_instance)
    return Watched(stored_instance, receiver)


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


def rebuild(watched: Watched, first: date, last: date | None = None, rollups: list[str] | None = None) -> bool:
    """A run of `rollup_job` for one day, or for a range as a backfill does, and whether it succeeded."""
    ends = {"start": str(first), "end": str(last)}
    target: dict[str, Any] = {"partition_key": str(first)}
    if last is not None:
        target = {"tags": {f"dagster/asset_partition_range_{end}": day for end, day in ends.items()}}
    if rollups is not None:
        target["asset_selection"] = [AssetKey(name) for name in rollups]
    rollup_job = defs().resolve_job_def("rollup_job")
    return rollup_job.execute_in_process(instance=watched.instance, raise_on_error=False, **target).success


@pytest.fixture
def logs(owner: Engine, connect) -> Engine:
    """Log rows of two days; the engine is their owner's."""
    write(connect(), [row(utc(2026, 3, day, 12)) for day in (1, 2) for _ in range(3)])
    return owner


def break_the_log(owner: Engine) -> None:
    execute(owner, "alter table calculation_logs rename column source to origin")


def repair_the_log(owner: Engine) -> None:
    execute(owner, "alter table calculation_logs rename column origin to source")


def beginnings(lines: list[str], word: str) -> list[str]:
    """What these lines are about: 'check x of 2026-03-01' of 'failed: check x of 2026-03-01 (since …'."""
    return [line.removeprefix(f"{word}: ").partition(" (")[0] for line in lines if line.startswith(f"{word}: ")]


def test_a_failed_check_is_posted_once_for_its_day_and_so_is_its_end(watched):
    evaluate(watched.instance, said(True), said(True, NEXT))
    assert watched.look() == []
    evaluate(watched.instance, said(False), said(True, NEXT))
    (line,) = watched.look()
    assert line.startswith("failed: check stats_match_logs of 2026-03-01 (since")
    assert line.endswith("differs by 5. Next: calc-analytics verify")
    evaluate(watched.instance, said(False), said(True, NEXT))
    assert watched.look() == []
    evaluate(watched.instance, said(True))
    assert beginnings(watched.look(), "resolved") == ["check stats_match_logs of 2026-03-01"]
    assert watched.look() == []


def test_every_day_is_posted_by_itself_and_not_their_summary(watched):
    evaluate(watched.instance, said(False))
    assert len(watched.look()) == 1
    evaluate(watched.instance, said(False, NEXT), said(True, date(2026, 3, 3)), said(False, None))
    assert beginnings(watched.look(), "failed") == ["check stats_match_logs of 2026-03-02"]


def test_a_warning_is_posted_as_one_and_does_not_fail_health(watched):
    evaluate(watched.instance, said(False, name="source_breakdown_complete", severity=AssetCheckSeverity.WARN))
    (line,) = watched.look()
    assert line.startswith("warning: check source_breakdown_complete of 2026-03-01 (since")
    assert watched.finding("checks").ok
    assert watched.finding("checks").level == "note"


def test_a_check_that_several_rollups_have_is_named_with_its_rollup(watched):
    hits = [said(False, name="cache_hits_within_total", rollup=rollup.name) for rollup in (STATS, HOURS)]
    evaluate(watched.instance, *hits, said(False, name=LATENCY.match_check_name, rollup=LATENCY.name))
    (line,) = watched.look()
    for name in ("cache_hits_within_total", "cache_hits_within_total of calculation_stats_hourly"):
        assert f"check {name} of 2026-03-01" in line
    assert f"check {LATENCY.match_check_name} of 2026-03-01" in line
    evaluate(watched.instance, said(True, name="cache_hits_within_total"))
    assert beginnings(watched.look(), "resolved") == ["check cache_hits_within_total of 2026-03-01"]


def test_a_failed_check_of_the_projects_own_runs_is_posted_for_each_rollup(watched, logs):
    assert rebuild(watched, DAY, NEXT)
    assert watched.look() == []
    execute(logs, "delete from calculation_logs where created_at < '2026-03-02'")
    rebuild(watched, DAY, NEXT)
    text = "\n".join(watched.look())
    for rollup in LOG.rollups:
        assert f"check {rollup.match_check_name} of 2026-03-01" in text
    assert "day 2026-03-01 (since" in text
    assert "2026-03-02 (since" not in text


def test_checks_of_another_asset_are_not_ours(watched):
    evaluate(watched.instance, said(False, rollup="other"))
    assert watched.look() == []


def test_a_failed_run_is_posted_once_until_one_of_its_days_succeeds(watched, logs):
    assert rebuild(watched, DAY)
    break_the_log(logs)
    assert not rebuild(watched, DAY)
    lines = watched.look()
    assert "the rebuild of 2026-03-01" in beginnings(lines, "failed")
    assert "calc-analytics migrate" in next(line for line in lines if "the rebuild" in line)
    assert "Next: calc-analytics rollup --from 2026-03-01 --to 2026-03-01" in "\n".join(lines)
    assert not rebuild(watched, DAY)
    assert beginnings(watched.look(), "failed") == []
    repair_the_log(logs)
    assert rebuild(watched, NEXT)
    assert "the rebuild of 2026-03-01" not in beginnings(watched.look(), "resolved")
    assert rebuild(watched, DAY, NEXT)
    assert "the rebuild of 2026-03-01" in beginnings(watched.look(), "resolved")


def test_a_failed_run_is_made_good_by_the_command_line_too(watched, logs, db):
    rebuild_days(db, [DAY])
    break_the_log(logs)
    assert not rebuild(watched, DAY)
    assert not watched.finding("runs").ok
    repair_the_log(logs)
    rebuild_days(db, [NEXT])
    assert not watched.finding("runs").ok
    rebuild_days(db, [DAY])
    assert watched.finding("runs").ok


def test_a_rebuild_of_some_rollups_makes_theirs_good_and_one_of_all_each(watched, logs):
    assert rebuild(watched, DAY)
    break_the_log(logs)
    assert not rebuild(watched, DAY)
    assert not rebuild(watched, DAY, rollups=[HOURS.name, LATENCY.name])
    of = "the rebuild of {} on 2026-03-01"
    text = "\n".join(watched.look())
    assert all(subject in text for subject in ("the rebuild of 2026-03-01", of.format(HOURS.name)))
    repair_the_log(logs)
    assert rebuild(watched, DAY, rollups=[HOURS.name])
    problems = {problem.subject for problem in watched.finding("runs").problems}
    assert problems == {"the rebuild of 2026-03-01", of.format(LATENCY.name)}
    assert rebuild(watched, DAY)
    assert watched.finding("runs").ok


@pytest.mark.parametrize(("retries", "posted"), [(0, True), (3, False)])
def test_a_run_whose_process_died_is_posted_unless_it_is_started_again(watched, logs, retries: int, posted: bool):
    tags = {"dagster/partition": str(DAY), "dagster/max_retries": str(retries)}
    dead = watched.instance.create_run_for_job(defs().resolve_job_def("rollup_job"), tags=tags)
    watched.instance.report_run_failed(dead, "the run's process ended unexpectedly")
    assert ["the run's process ended unexpectedly" in line for line in watched.look()] == [True] * posted
    assert watched.finding("scheduled_run").ok


def test_a_failed_run_of_another_project_is_not_ours(watched):
    @op
    def breaking() -> None:
        raise RuntimeError("not ours")

    @job
    def another() -> None:
        breaking()

    another.execute_in_process(instance=watched.instance, raise_on_error=False)
    assert watched.look() == []
    assert watched.finding("runs").ok


def test_the_schedules_failed_run_is_one_alert(watched, logs):
    break_the_log(logs)
    tags = {"dagster/schedule_name": "hourly_rollup"}
    rollup_job = defs().resolve_job_def("rollup_job")
    rollup_job.execute_in_process(instance=watched.instance, partition_key=str(DAY), tags=tags, raise_on_error=False)
    lines = [line for line in watched.look() if "run" in line or "rebuild" in line]
    assert beginnings(lines, "failed") == ["scheduled_run"]


def instigator(instance: DagsterInstance, name: str, kind: InstigatorType, in_a_row: int) -> None:
    from calc_analytics_tests.integration import test_history

    state = test_history.instigator(instance, name, kind, InstigatorStatus.RUNNING)
    test_history.tick(instance, state, TickStatus.FAILURE, 1.0, in_a_row)


def test_failing_ticks_of_every_sensor_and_schedule_are_in_health(watched):
    instigator(watched.instance, "new_log_batches", InstigatorType.SENSOR, 1)
    assert watched.finding("sensor").ok, "a single failed tick is retried"
    instigator(watched.instance, "hourly_rollup", InstigatorType.SCHEDULE, 1)
    instigator(watched.instance, "daily_housekeeping", InstigatorType.SCHEDULE, 1)
    assert "the last tick of the schedule hourly_rollup failed: the disk is full" in watched.finding("schedule").fact
    assert "the last tick of the schedule daily_housekeeping failed" in watched.finding("housekeeping").public
    assert "disk" not in watched.finding("housekeeping").public


def test_the_code_location_has_no_sensor_or_schedule_that_health_does_not_know():
    location = defs().get_repository_def()
    assert {*(s.name for s in location.sensor_defs), *(s.name for s in location.schedule_defs)} == {
        *history.INSTIGATORS
    }


def test_what_earlier_versions_left_in_dagsters_storage_does_not_fail_health(watched):
    before = {finding.name: finding.ok for finding in health.health(watched.monitor.sources, Prober(60)).findings}
    for name in ("run_failure_alerts", "check_failure_alerts"):
        instigator(watched.instance, name, InstigatorType.SENSOR, 9)
    after = {finding.name: finding.ok for finding in health.health(watched.monitor.sources, Prober(60)).findings}
    assert after == before
    assert watched.look() == []


def test_nothing_that_ended_before_the_start_is_posted_and_what_is_open_is(watched, receiver):
    evaluate(watched.instance, said(False), said(False, NEXT))
    evaluate(watched.instance, said(True))
    restarted = Monitor(watched.monitor.sources, Prober(60), receiver.url)
    for _ in range(2):
        restarted.look()
    text = "\n".join(receiver.taken)
    assert "check stats_match_logs of 2026-03-02" in text
    assert "2026-03-01" not in text


def test_a_webhook_that_fails_loses_nothing_and_is_tried_less_often(watched, receiver, monkeypatch):
    receiver.answers = [500] * 3
    evaluate(watched.instance, said(False))
    assert watched.look() == []
    assert watched.monitor.waiting() == 1
    tried = len(receiver.requests)
    evaluate(watched.instance, said(False, NEXT))
    watched.look()
    assert len(receiver.requests) == tried, "the next attempt is not made at once"
    assert watched.monitor.waiting() == 2
    monkeypatch.setattr(monitor.time, "monotonic", lambda now=time.monotonic: now() + 1_000)
    assert len(watched.look()) == 2 - 1, "two days that failed for the same reason"
    assert watched.monitor.waiting() == 0


def test_a_webhook_that_hangs_does_not_keep_the_monitor_from_stopping(watched, receiver, monkeypatch):
    monkeypatch.setattr(webhook, "ATTEMPT_SECONDS", 60.0)
    monkeypatch.setattr(monitor, "START_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "LOOK_SECONDS", 0.1)
    receiver.answers = ["hang"]
    evaluate(watched.instance, said(False))
    tried = len(receiver.requests)
    watched.monitor.start()
    while len(receiver.requests) == tried:
        time.sleep(0.05)
    started = time.monotonic()
    watched.monitor.stop()
    assert time.monotonic() - started < 10
    assert not watched.monitor._thread.is_alive()


def test_without_a_webhook_nothing_is_posted(watched, receiver):
    silent = Monitor(watched.monitor.sources, Prober(60), None)
    for _ in range(3):
        silent.look()
    assert receiver.taken == []


def test_a_look_reads_each_fact_once(watched):
    """Of the log's database, by kind of statement, whatever the number of probes; three transactions."""
    watched.finding("database")
    asked: list[str] = []
    for engine in watched.monitor.sources._engines.values():
        event.listen(engine, "before_cursor_execute", lambda *given: asked.append(" ".join(given[2].split())))
    watched.finding("database")
    assert len([each for each in asked if "set_config('timezone'" in each]) == 3, "transactions"
    for part in ("s.audited_at", "as differs", "count(*) as days, count(*) filter", "xact_id >= cast"):
        assert len([each for each in asked if part in each]) == 1, part
