"""The housekeeping job on Dagster's real storage: old rows go, what the UI shows stays; and on the journal."""

import asyncio
from collections.abc import Iterator
from datetime import date
from typing import Any

import dagster
import pytest
from dagster import (
    AssetCheckKey,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    AssetRecordsFilter,
    DagsterInstance,
    DefaultScheduleStatus,
    Definitions,
)
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster._core.storage.partition_status_cache import get_partition_subsets
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from calc_analytics.config import Settings
from calc_analytics.database.engine import engine_for
from calc_analytics.definitions import defs
from calc_analytics.orchestration import event_log
from calc_analytics.orchestration.housekeeping import PruneCounts, daily_housekeeping, prune
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup import journal
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import LOG, STATS
from calc_analytics_tests.integration.test_alerts import evaluate, said
from calc_analytics_tests.logs import execute, row, utc, write

ROLLUPS, LOGS = [AssetKey(name) for name in LOG.names], AssetKey("calculation_logs")
DAYS = [date(2026, 3, day) for day in (1, 2, 3)]
CHECKS = [AssetCheckKey(AssetKey(rollup.name), name) for rollup in LOG.rollups for name in rollup.check_names]


@pytest.fixture
def dagster_database(stored_instance: DagsterInstance, dagster_url: URL) -> Iterator[Engine]:
    """Dagster's own database, as a test that turns back its clock needs it."""
    engine = engine_for(dagster_url)
    yield engine
    engine.dispose()


@pytest.fixture
def logs(owner: Engine, connect) -> Engine:
    """Log rows of three days; the engine is their owner's."""
    write(connect(), [row(utc(2026, 3, day.day, 12)) for day in DAYS for _ in range(3)])
    return owner


def age(database: Engine, days: int) -> None:
    """Makes all that Dagster has recorded that much older."""
    with database.begin() as connection:
        for table, column in (
            ("event_logs", "timestamp"),
            ("asset_check_executions", "evaluation_event_timestamp"),
            ("runs", "update_timestamp"),
        ):
            connection.execute(text(f"update {table} set {column} = {column} - interval '{days} days'"))


def count(database: Engine, table: str, where: str = "true") -> int:
    with database.begin() as connection:
        return int(connection.execute(text(f"select count(*) from {table} where {where}")).scalar_one())


def tick(instance: DagsterInstance, *days: date) -> None:
    """What one tick of the streaming sensor leaves."""
    for day in days:
        for rollup in ROLLUPS:
            instance.report_runless_asset_event(AssetMaterialization(rollup, partition=str(day), metadata={"rows": 3}))
    instance.report_runless_asset_event(AssetObservation(LOGS))


def run(location: Definitions, instance: DagsterInstance, first: date, last: date | None = None) -> Any:
    """Runs `rollup_job` for one day, or for a range as a backfill does."""
    ends = {"start": str(first), "end": str(last or first)}
    return location.resolve_job_def("rollup_job").execute_in_process(
        instance=instance,
        raise_on_error=False,
        partition_key=None if last else str(first),
        tags={f"dagster/asset_partition_range_{end}": day for end, day in ends.items()} if last else None,
    )


def shown(location: Definitions, instance: DagsterInstance) -> dict[str, Any]:
    """What the UI is made of: partitions and their status, latest events, latest results of checks."""
    storage = instance.event_log_storage
    summaries = storage.get_asset_check_summary_records(CHECKS)
    return {
        "partitions": {key.to_user_string(): partitions(location, instance, key) for key in ROLLUPS},
        "latest materializations": [
            instance.fetch_materializations(AssetRecordsFilter(key, asset_partitions=[str(day)]), limit=1).records
            for key in ROLLUPS
            for day in DAYS
        ],
        "latest observation": instance.fetch_observations(LOGS, limit=1).records,
        "last materialization": [instance.get_latest_materialization_event(key) for key in ROLLUPS],
        "latest executions": storage.get_latest_asset_check_execution_by_key(CHECKS),
        "executions by partition": storage.get_asset_check_partition_info(CHECKS),
        "last completed": {key: record.last_completed_check_execution_record for key, record in summaries.items()},
        "freshness": storage.get_freshness_state_records(ROLLUPS),
    }


def partitions(location: Definitions, instance: DagsterInstance, key: AssetKey) -> list[list[str]]:
    """The asset's partitions that are materialized, failed, and in progress."""
    instance.wipe_asset_cached_status([key])
    defined = location.resolve_job_def("rollup_job").partitions_def
    subsets = asyncio.run(get_partition_subsets(instance, LoadingContextForTest(instance), key, instance, defined))
    return [sorted(subset.get_partition_keys()) for subset in subsets]


def test_what_streamed_batches_left_goes_after_a_week_and_the_latest_stays(
    location, stored_instance, dagster_database, logs
):
    for _ in range(5):
        tick(stored_instance, *DAYS)
    before = shown(location, stored_instance)
    assert prune(stored_instance, 7, 30) == PruneCounts(0, 0), "nothing is old"
    age(dagster_database, 8)
    # Of five ticks of three days' materializations per rollup and an observation, the last is kept.
    assert prune(stored_instance, 7, 30) == PruneCounts(4 * (3 * 4 + 1), 0)
    assert shown(location, stored_instance) == before
    assert count(dagster_database, "event_logs") == 3 * 4 + 1
    assert prune(stored_instance, 7, 30) == PruneCounts(0, 0), "safe to repeat"


def test_what_older_versions_left_of_checks_outside_of_runs_goes_too(stored_instance, dagster_database):
    stored_instance.report_runless_asset_event(said(True))
    stored_instance.report_runless_asset_event(said(True, None))
    age(dagster_database, 8)
    assert prune(stored_instance, 7, 30).rows == 0, "they are the latest"
    evaluate(stored_instance, said(True), said(True, None))
    age(dagster_database, 8)
    assert prune(stored_instance, 7, 30).rows == 2 * 2, "an evaluation is a row of the event log and an execution"
    assert count(dagster_database, "event_logs", "run_id = ''") == 0
    assert count(dagster_database, "asset_check_executions") == 2


def test_a_run_stays_as_long_as_it_holds_a_days_latest_results(location, stored_instance, dagster_database, logs):
    first = run(location, stored_instance, DAYS[0]).run_id
    backfill = run(location, stored_instance, DAYS[1], DAYS[2]).run_id
    second = run(location, stored_instance, DAYS[0]).run_id
    before = shown(location, stored_instance)
    age(dagster_database, 31)
    assert prune(stored_instance, 7, 30).runs == 1
    assert {r.run_id for r in stored_instance.get_runs()} == {second, backfill}
    assert count(dagster_database, "event_logs", f"run_id = '{first}'") == 0
    assert shown(location, stored_instance) == before
    for rollup in LOG.names:
        assert before["partitions"][rollup][0] == [str(day) for day in DAYS]


def test_a_failed_partition_stays_failed_until_it_is_materialized(location, stored_instance, dagster_database, logs):
    run(location, stored_instance, DAYS[0], DAYS[2])
    execute(logs, "alter table calculation_logs rename column source to origin")
    for _ in range(2):
        assert not run(location, stored_instance, DAYS[0]).success
    before = shown(location, stored_instance)
    assert before["partitions"][STATS.name][1] == [str(DAYS[0])]
    age(dagster_database, 90)
    assert prune(stored_instance, 7, 30).runs == 1, "the first of the two failures"
    assert shown(location, stored_instance) == before
    tick(stored_instance, *DAYS)
    age(dagster_database, 90)
    tick(stored_instance, *DAYS)
    prune(stored_instance, 7, 30)
    assert shown(location, stored_instance)["partitions"][STATS.name][1] == []


def test_the_latest_failure_and_the_latest_pass_of_a_check_stay(stored_instance, dagster_database):
    for passed in (False, False, True, True, True):
        evaluate(stored_instance, said(passed))
    age(dagster_database, 8)
    prune(stored_instance, 7, 30)
    key = AssetCheckKey(AssetKey(STATS.name), "stats_match_logs")
    kept = stored_instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    assert [record.status.value for record in kept] == ["SUCCEEDED", "FAILED"]


def test_runs_in_progress_and_young_ones_stay(location, stored_instance, dagster_database, logs):
    stored_instance.create_run_for_job(location.resolve_job_def("rollup_job"))
    run(location, stored_instance, DAYS[0])
    age(dagster_database, 29)
    run(location, stored_instance, DAYS[0])
    assert prune(stored_instance, 7, 30).runs == 0
    assert len(stored_instance.get_runs()) == 3


def test_what_belongs_to_others_is_left_alone(location, stored_instance, dagster_database, logs):
    other = AssetKey("another_project")
    for _ in range(3):
        stored_instance.report_runless_asset_event(AssetMaterialization(other))
        stored_instance.report_runless_asset_event(AssetMaterialization(ROLLUPS[0]))

    @dagster.job
    def their_job() -> None: ...

    their_job.execute_in_process(instance=stored_instance)
    age(dagster_database, 90)
    assert prune(stored_instance, 7, 30) == PruneCounts(2, 0)
    assert len(stored_instance.fetch_materializations(other, limit=10).records) == 3
    assert [r.job_name for r in stored_instance.get_runs()] == ["their_job"]


def test_it_works_in_batches(location, stored_instance, dagster_database, logs, monkeypatch):
    monkeypatch.setattr(event_log, "BATCH", 2)
    monkeypatch.setattr("calc_analytics.orchestration.housekeeping.RUNS_PER_PAGE", 2)
    for _ in range(5):
        tick(stored_instance, *DAYS)
        run(location, stored_instance, DAYS[0])
    before = shown(location, stored_instance)
    age(dagster_database, 31)
    assert prune(stored_instance, 7, 30).runs == 4
    assert shown(location, stored_instance) == before
    assert count(dagster_database, "asset_check_executions") == len(CHECKS)


def rows_of(result: Any, step: str, name: str) -> Any:
    """The metadata of the step's output."""
    (output,) = [e for e in result.all_events if e.is_successful_output and e.step_key == step]
    return output.step_output_data.metadata[name].value


def test_the_job_says_what_it_deleted_and_takes_its_retention_from_the_launchpad(
    stored_instance, dagster_database, logs
):
    for _ in range(3):
        tick(stored_instance, DAYS[0])
    age(dagster_database, 3)
    job = defs().resolve_job_def("housekeeping")
    assert rows_of(job.execute_in_process(instance=stored_instance), "prune_event_log", "rows_deleted") == 0
    assert count(dagster_database, "event_logs", "run_id = ''") == 15
    config = {"ops": {"prune_event_log": {"config": {"keep_events_days": 2}}}}
    result = job.execute_in_process(instance=stored_instance, run_config=config)
    assert rows_of(result, "prune_event_log", "rows_deleted") == 10
    assert count(dagster_database, "event_logs", "run_id = ''") == 5


def totals(db: Database) -> list[dict[str, Any]]:
    """What the journal adds up to; seconds are sums of floating-point numbers."""
    return [{**each, "seconds": pytest.approx(each["seconds"])} for each in journal.totals(db)]


def test_the_job_sums_up_old_minutes_of_the_journal(location, stored_instance, logs, db: Database, connect):
    run(location, stored_instance, DAYS[0], DAYS[2])
    write(connect(), [row(utc(2026, 3, 1, 13))])
    refresh(db)
    write(connect(), [row(utc(2026, 3, 2, 13))])
    execute(logs, "update rollup_journal set at = at - interval '1 minute' where operation = 'refresh'")
    refresh(db)
    execute(logs, "update rollup_journal set at = at - interval '40 days'")
    # What is summed up per hour, and was noted in a day's first hour, is that day's sum already.
    minutes = count(logs, "rollup_journal", "summed and (ages is not null or at <> date_trunc('day', at))")
    before = totals(db)
    result = location.resolve_job_def("housekeeping").execute_in_process(instance=stored_instance)
    assert rows_of(result, "compact_journal", "rows_summed_up") == minutes > 2
    assert count(logs, "rollup_journal", "summed and operation = 'refresh'") == 2, "one per day and application"
    assert totals(db) == before


def failures(result: Any) -> dict[str, str]:
    """The error of each failed step of a run."""
    failed = [event for event in result.all_events if event.is_step_failure]
    return {event.step_key: event.step_failure_data.user_failure_data.description for event in failed}


def test_while_the_projects_database_is_away_dagsters_tables_are_pruned_all_the_same(
    stored_instance, dagster_database, dagster_url, monkeypatch
):
    for _ in range(2):
        tick(stored_instance, DAYS[0])
    age(dagster_database, 8)
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/app")
    job = defs().resolve_job_def("housekeeping")
    result = job.execute_in_process(instance=stored_instance, raise_on_error=False)
    assert not result.success
    assert rows_of(result, "prune_event_log", "rows_deleted") == 5
    (line,) = failures(result).values()
    assert "cannot connect to postgresql://me:***@127.0.0.1" in line
    assert "\n" not in line


def test_on_an_unknown_storage_the_journal_is_summed_up_all_the_same(instance, location, database):
    result = location.resolve_job_def("housekeeping").execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    assert rows_of(result, "compact_journal", "rows_summed_up") == 0
    assert list(failures(result)) == ["prune_event_log"]
    assert "nothing was deleted" in failures(result)["prune_event_log"]


def test_a_run_that_died_before_its_checks_is_not_kept_for_them(location, stored_instance, dagster_database, logs):
    dead = run(location, stored_instance, DAYS[0]).run_id
    with dagster_database.begin() as connection:
        connection.execute(text("update asset_check_executions set execution_status = 'PLANNED'"))
    last = run(location, stored_instance, DAYS[0]).run_id
    before = shown(location, stored_instance)
    age(dagster_database, 31)
    prune(stored_instance, 7, 30)
    assert [r.run_id for r in stored_instance.get_runs()] == [last] != [dead]
    assert shown(location, stored_instance) == before


def test_the_logs_of_a_deleted_run_are_deleted_with_it(location, stored_instance, dagster_database, logs, tmp_path):
    old, new = (run(location, stored_instance, DAYS[0]).run_id for _ in range(2))
    for run_id in (old, new):
        with stored_instance.compute_log_manager.open_log_stream([run_id, "compute_logs", "x"], ComputeIOType.STDERR):
            assert (tmp_path / "storage" / run_id).exists()
    age(dagster_database, 31)
    prune(stored_instance, 7, 30)
    assert [(tmp_path / "storage" / run_id).exists() for run_id in (old, new)] == [False, True]


def test_on_any_other_storage_or_version_nothing_is_deleted(location, instance, stored_instance, monkeypatch):
    with pytest.raises(event_log.UnknownEventLog, match="nothing was deleted"):
        prune(instance, 7, 30)
    monkeypatch.setattr(dagster, "__version__", "1.14.0")
    with pytest.raises(event_log.UnknownEventLog, match=r"Dagster 1\.14\.0, but pruning was tested with"):
        prune(stored_instance, 7, 30)
    result = location.resolve_job_def("housekeeping").execute_in_process(instance=stored_instance, raise_on_error=False)
    assert not result.success


def test_it_runs_daily_and_is_on():
    schedule = daily_housekeeping(Settings(timezone="Asia/Jerusalem"))
    assert schedule.default_status == DefaultScheduleStatus.RUNNING
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("40 4 * * *", "Asia/Jerusalem")
    assert schedule.job_name == "housekeeping"
