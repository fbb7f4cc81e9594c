"""The housekeeping job on Dagster's real storage: old rows go, what the UI shows stays."""

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
from calc_analytics.orchestration.housekeeping import Pruned, daily_housekeeping, housekeeping_job, prune
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics_tests.integration.test_alerts import stream
from calc_analytics_tests.integration.test_dagster_runs import run
from calc_analytics_tests.logs import row, utc, write

STATS, LOGS = AssetKey("calculation_stats_daily"), AssetKey("calculation_logs")
DAYS = [date(2026, 3, day) for day in (1, 2, 3)]
CHECKS = ("stats_match_logs", "source_breakdown_complete", "cache_hits_within_total")


@pytest.fixture
def dagster_database(stored_instance: DagsterInstance, dagster_url: URL) -> Iterator[Engine]:
    """Dagster's own database, as a test that turns back its clock needs it."""
    engine = engine_for(dagster_url)
    yield engine
    engine.dispose()


@pytest.fixture
def built(engine: Engine, owner: Engine, connect) -> Engine:
    """Three built days; the engine is their owner's."""
    write(connect(), [row(utc(2026, 3, day.day, 12)) for day in DAYS for _ in range(3)])
    rebuild(engine, ROLLUP, "UTC", DAYS)
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
        instance.report_runless_asset_event(AssetMaterialization(STATS, partition=str(day), metadata={"rows": 3}))
    stream(instance, *days)
    instance.report_runless_asset_event(AssetObservation(LOGS))


def shown(location: Definitions, instance: DagsterInstance) -> dict[str, Any]:
    """What the UI is made of: partitions and their status, latest events, latest results of checks."""
    instance.wipe_asset_cached_status([STATS])
    partitions = location.resolve_job_def("rollup_job").partitions_def
    loading = LoadingContextForTest(instance)
    subsets = asyncio.run(get_partition_subsets(instance, loading, STATS, instance, partitions))
    storage, keys = instance.event_log_storage, [AssetCheckKey(STATS, name) for name in CHECKS]
    summaries = storage.get_asset_check_summary_records(keys)
    return {
        "partitions": [sorted(subset.get_partition_keys()) for subset in subsets],
        "latest materializations": [
            instance.fetch_materializations(AssetRecordsFilter(STATS, asset_partitions=[str(day)]), limit=1).records
            for day in DAYS
        ],
        "latest observation": instance.fetch_observations(LOGS, limit=1).records,
        "last materialization": instance.get_latest_materialization_event(STATS),
        "latest executions": storage.get_latest_asset_check_execution_by_key(keys),
        "executions by partition": storage.get_asset_check_partition_info(keys),
        "last completed": {key: record.last_completed_check_execution_record for key, record in summaries.items()},
        "freshness": storage.get_freshness_state_records([STATS]),
    }


def test_what_streamed_batches_left_goes_after_a_week_and_the_latest_stays(
    location, stored_instance, dagster_database, built
):
    for _ in range(5):
        tick(stored_instance, *DAYS)
    before = shown(location, stored_instance)
    assert prune(stored_instance, 7, 30) == Pruned(0, 0), "nothing is old"
    age(dagster_database, 8)
    pruned = prune(stored_instance, 7, 30)
    # Of five ticks of three materializations, nine evaluations and an observation, one is kept, and of the
    # evaluations that a later one replaced the last of each check, with the materialization it speaks of.
    # An evaluation is a row of the event log and one of the executions.
    assert pruned == Pruned(4 * (3 + 2 * 9 + 1) - 2 * 3 - 1, 0)
    assert shown(location, stored_instance) == before
    assert count(dagster_database, "event_logs") == 13 + 3 + 1
    assert count(dagster_database, "asset_check_executions") == 9 + 3
    assert prune(stored_instance, 7, 30) == Pruned(0, 0), "safe to repeat"


def test_a_run_stays_as_long_as_it_holds_a_days_latest_results(location, stored_instance, dagster_database, built):
    first = run(location, stored_instance, DAYS[0]).run_id
    backfill = run(location, stored_instance, DAYS[1], DAYS[2]).run_id
    second = run(location, stored_instance, DAYS[0]).run_id
    before = shown(location, stored_instance)
    age(dagster_database, 31)
    assert prune(stored_instance, 7, 30).runs == 1
    assert {r.run_id for r in stored_instance.get_runs()} == {second, backfill}
    assert count(dagster_database, "event_logs", f"run_id = '{first}'") == 0
    assert shown(location, stored_instance) == before
    assert before["partitions"][0] == [str(day) for day in DAYS]


def test_a_failed_partition_stays_failed_until_it_is_materialized(location, stored_instance, dagster_database, built):
    run(location, stored_instance, DAYS[0], DAYS[2])
    with built.begin() as connection:
        connection.execute(text("delete from calculation_logs where created_at < '2026-03-01 13:00Z'"))
    for _ in range(2):
        assert not run(location, stored_instance, DAYS[0]).success
    before = shown(location, stored_instance)
    assert before["partitions"][1] == [str(DAYS[0])]
    age(dagster_database, 90)
    assert prune(stored_instance, 7, 30).runs == 1, "the first of the two failures"
    assert shown(location, stored_instance) == before
    tick(stored_instance, *DAYS)
    age(dagster_database, 90)
    tick(stored_instance, *DAYS)
    prune(stored_instance, 7, 30)
    assert shown(location, stored_instance)["partitions"][1] == []


def test_the_latest_failure_of_a_check_stays_beside_its_latest_pass(location, stored_instance, dagster_database, built):
    with built.begin() as connection:
        connection.execute(text("update calculation_stats_daily set cache_hits = 99"))
    stream(stored_instance, DAYS[0])
    with built.begin() as connection:
        connection.execute(text("update calculation_stats_daily set cache_hits = 0"))
    for _ in range(3):
        stream(stored_instance, DAYS[0])
    age(dagster_database, 8)
    prune(stored_instance, 7, 30)
    kept = stored_instance.event_log_storage.get_asset_check_execution_history(
        AssetCheckKey(STATS, "cache_hits_within_total"), limit=10
    )
    # The day's latest; and of those that a later one replaced, the latest of each kind.
    assert [record.status.value for record in kept] == ["SUCCEEDED", "SUCCEEDED", "FAILED"]


def test_runs_in_progress_and_young_ones_stay(location, stored_instance, dagster_database, built):
    stored_instance.create_run_for_job(location.resolve_job_def("rollup_job"))
    run(location, stored_instance, DAYS[0])
    age(dagster_database, 29)
    run(location, stored_instance, DAYS[0])
    assert prune(stored_instance, 7, 30).runs == 0
    assert len(stored_instance.get_runs()) == 3


def test_what_belongs_to_others_is_left_alone(location, stored_instance, dagster_database, built):
    other = AssetKey("another_project")
    for _ in range(3):
        stored_instance.report_runless_asset_event(AssetMaterialization(other))
        stored_instance.report_runless_asset_event(AssetMaterialization(STATS))

    @dagster.job
    def their_job() -> None: ...

    their_job.execute_in_process(instance=stored_instance)
    age(dagster_database, 90)
    assert prune(stored_instance, 7, 30) == Pruned(2, 0)
    assert len(stored_instance.fetch_materializations(other, limit=10).records) == 3
    assert [r.job_name for r in stored_instance.get_runs()] == ["their_job"]


def test_it_works_in_batches(location, stored_instance, dagster_database, built, monkeypatch):
    monkeypatch.setattr(event_log, "BATCH", 2)
    monkeypatch.setattr("calc_analytics.orchestration.housekeeping.RUNS_PER_PAGE", 2)
    for _ in range(5):
        tick(stored_instance, *DAYS)
        run(location, stored_instance, DAYS[0])
    before = shown(location, stored_instance)
    age(dagster_database, 31)
    assert prune(stored_instance, 7, 30).runs == 4
    assert shown(location, stored_instance) == before
    # The latest of each check and day, and of each check among those that a later one replaced.
    assert count(dagster_database, "asset_check_executions") == 9 + 3


def test_the_job_says_what_it_deleted_and_takes_its_retention_from_the_launchpad(
    stored_instance, dagster_database, built
):
    for _ in range(3):
        tick(stored_instance, DAYS[0])
    age(dagster_database, 3)
    job = defs().resolve_job_def("housekeeping")
    assert job.execute_in_process(instance=stored_instance).success
    assert count(dagster_database, "event_logs", "run_id = ''") == 15
    config = {"ops": {"prune_event_log": {"config": {"keep_events_days": 2}}}}
    result = job.execute_in_process(instance=stored_instance, run_config=config)
    (output,) = [e for e in result.all_events if e.is_successful_output]
    assert output.step_output_data.metadata["rows_deleted"].value == 6 + 3
    assert count(dagster_database, "event_logs", "run_id = ''") == 5 + 4


def test_a_run_that_died_before_its_checks_is_not_kept_for_them(location, stored_instance, dagster_database, built):
    dead = run(location, stored_instance, DAYS[0]).run_id
    with dagster_database.begin() as connection:
        connection.execute(text("update asset_check_executions set execution_status = 'PLANNED'"))
    last = run(location, stored_instance, DAYS[0]).run_id
    before = shown(location, stored_instance)
    age(dagster_database, 31)
    prune(stored_instance, 7, 30)
    assert [r.run_id for r in stored_instance.get_runs()] == [last] != [dead]
    assert shown(location, stored_instance) == before


def test_the_logs_of_a_deleted_run_are_deleted_with_it(location, stored_instance, dagster_database, built, tmp_path):
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
    result = housekeeping_job.execute_in_process(instance=stored_instance, raise_on_error=False)
    assert not result.success


def test_it_runs_daily_and_is_on():
    schedule = daily_housekeeping(Settings(timezone="Asia/Jerusalem"))
    assert schedule.default_status == DefaultScheduleStatus.RUNNING
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("40 4 * * *", "Asia/Jerusalem")
    assert schedule.job_name == "housekeeping"
