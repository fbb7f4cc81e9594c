"""Runs of `rollup_job` on an ephemeral instance: metadata, checks, ranges, failures, retries."""

import threading
from datetime import date, timedelta
from typing import Any

import pytest
from dagster import (
    AssetCheckKey,
    AssetKey,
    AssetRecordsFilter,
    DagsterEventType,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
)
from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import ATTEMPTS
from calc_analytics.orchestration import retries
from calc_analytics_tests.logs import execute, oracle, row, stored, utc, write

STATS = AssetKey("calculation_stats_daily")
DAY = date(2026, 3, 1)
NOON = utc(2026, 3, 1, 12)


def run(location: Definitions, instance: DagsterInstance, first: date, last: date | None = None, **options: Any):
    """Runs `rollup_job` for one day, or for a range as a backfill does."""
    job = location.resolve_job_def("rollup_job")
    if last is None:
        target: dict[str, Any] = {"partition_key": str(first)}
    else:
        ends = {"start": str(first), "end": str(last)}
        target = {"tags": {f"dagster/asset_partition_range_{end}": day for end, day in ends.items()}}
    return job.execute_in_process(instance=instance, raise_on_error=False, **target, **options)


def metadata(instance: DagsterInstance, day: date) -> dict[str, Any]:
    """The latest materialization's metadata of a day."""
    records = instance.fetch_materializations(AssetRecordsFilter(STATS, asset_partitions=[str(day)]), limit=1).records
    return {key: value.value for key, value in records[0].asset_materialization.metadata.items()}


def check(instance: DagsterInstance, name: str, day: date | None) -> Any:
    """The latest evaluation of a check for a day; without a day, the run's summary."""
    records = instance.event_log_storage.get_asset_check_execution_history(AssetCheckKey(STATS, name), limit=100)
    found = [record for record in records if record.partition == (str(day) if day else None)]
    return found[0].event.dagster_event.asset_check_evaluation_data


def failures(result: ExecuteInProcessResult) -> list[str]:
    """What a red run says, one text for each failed step."""
    events = [event for event in result.all_events if event.event_type == DagsterEventType.STEP_FAILURE]
    return [event.step_failure_data.user_failure_data.description for event in events]


@pytest.fixture
def logs(engine: Engine, connect) -> Engine:
    """Three days of ten rows, two publishers."""
    for day in range(3):
        at = NOON + timedelta(days=day)
        write(connect(), [row(at, publisher=n % 2, cache_hit=n < 4, source=1 + n % 3) for n in range(10)])
    return engine


def test_a_partition_is_rebuilt_with_its_figures_and_three_green_checks(location, instance, logs):
    assert run(location, instance, DAY).success
    said = metadata(instance, DAY)
    preview = said.pop("top_publishers")
    assert said.pop("duration_seconds") > 0
    assert said == {
        "rows": 10,
        "publishers": 2,
        "total_calculations": 10,
        "cache_hits": 4,
        "total_response_time_ms": 100,
        "source_web": 4,
        "source_api": 3,
        "source_external": 3,
    }
    assert "publisher_id" in preview
    assert "cache_hit_rate" in preview
    for name in ("stats_match_logs", "source_breakdown_complete", "cache_hits_within_total"):
        assert check(instance, name, DAY).passed
    assert {key: value for key, value in stored(logs).items() if key[1] == DAY} == oracle(logs, days=[DAY])
    observed = instance.fetch_observations(AssetKey("calculation_logs"), limit=1).records[0]
    assert {"estimated_rows", "uncounted_rows", "lag_seconds"} <= set(observed.asset_observation.metadata)


def test_a_range_is_one_run_with_figures_and_checks_for_each_day(location, instance, logs):
    last = DAY + timedelta(days=2)
    assert run(location, instance, DAY, last).success
    for n in range(3):
        day = DAY + timedelta(days=n)
        assert metadata(instance, day)["rows"] == 10
        assert check(instance, "stats_match_logs", day).passed
    assert check(instance, "stats_match_logs", None).description == "all 3 days pass"
    assert stored(logs) == oracle(logs)


def test_a_range_of_checks_names_the_day_that_is_wrong(location, instance, logs):
    run(location, instance, DAY, DAY + timedelta(days=2))
    execute(logs, "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at)"
                  " values (1, 1, '2030-01-01', 9, '2026-03-02 12:00Z')")  # fmt: skip
    run(location, instance, DAY, DAY + timedelta(days=2))
    name = "source_breakdown_complete"
    assert [check(instance, name, DAY + timedelta(days=n)).passed for n in range(3)] == [True, False, True]
    summary = check(instance, name, None)
    assert (summary.passed, summary.severity.value) == (False, "WARN")
    assert "2026-03-02: 1 calculations of unknown source; codes seen: 9 (1 rows)" in summary.description


TAMPERING = {
    "stats_match_logs": ("update calculation_stats_daily set cache_hits = cache_hits + 1", "2026-03-01 differs"),
    "cache_hits_within_total": ("update calculation_stats_daily set cache_hits = 99", "publisher 0, 1"),
    "source_breakdown_complete": ("update calculation_stats_daily set source_web = 0", "none left in the logs"),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_each_check_fails_for_what_it_is_there_for(location, instance, logs, name: str):
    statement, said = TAMPERING[name]
    run(location, instance, DAY)
    execute(logs, statement)
    job = location.resolve_implicit_global_asset_job_def()
    subset = job.get_subset(asset_selection=set(), asset_check_selection={AssetCheckKey(STATS, name)})
    assert subset.execute_in_process(instance=instance, partition_key=str(DAY)).success
    evaluation = check(instance, name, DAY)
    assert not evaluation.passed
    assert said in evaluation.description


def test_a_day_that_lost_logs_fails_with_both_counts_and_the_others_are_on_record(location, instance, logs):
    last = DAY + timedelta(days=2)
    run(location, instance, DAY, last)
    execute(logs, "delete from calculation_logs where created_at < '2026-03-01 12:00:01Z'")
    result = run(location, instance, DAY, last)
    assert not result.success
    (said,) = failures(result)
    assert said.startswith("2026-03-01 not rebuilt: 0 raw rows, but 10 already counted")
    assert not [e for e in result.all_events if e.event_type == DagsterEventType.STEP_UP_FOR_RETRY]
    records = instance.get_records_for_run(result.run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION).records
    assert [record.partition_key for record in records] == ["2026-03-02", "2026-03-03"]
    allowed = {"ops": {"calculation_stats_daily": {"config": {"allow_shrink": True}}}}
    assert run(location, instance, DAY, run_config=allowed).success
    assert stored(logs) == oracle(logs)


def test_a_permanent_error_is_one_line_and_is_not_retried(location, instance, logs):
    execute(logs, "alter table calculation_logs rename column source to origin")
    result = run(location, instance, DAY)
    assert not result.success
    assert "calc-analytics migrate" in failures(result)[0]
    assert "\n" not in failures(result)[0]
    assert not [e for e in result.all_events if e.event_type == DagsterEventType.STEP_UP_FOR_RETRY]
    assert stored(logs) == {}


def test_a_transient_error_is_retried_with_growing_pauses(location, instance, logs, connect):
    """First inside the domain, then by Dagster's policy."""
    assert retries.TRANSIENT_ERRORS.backoff is not None
    assert retries.TRANSIENT_ERRORS.jitter is not None
    execute(logs, f"alter database \"{logs.url.database}\" set lock_timeout = '200ms'")
    holder = connect()
    holder.execute("select 1 from rollup_state for update")
    results: list[ExecuteInProcessResult] = []
    thread = threading.Thread(target=lambda: results.append(run(location, instance, DAY)))
    thread.start()
    attempts: set[str] = set()
    while len(attempts) <= ATTEMPTS:
        attempts.update(waiting_transactions(logs))
        assert thread.is_alive()
    holder.rollback()
    thread.join()
    assert results[0].success
    assert [e for e in results[0].all_events if e.event_type == DagsterEventType.STEP_UP_FOR_RETRY]
    assert {key: value for key, value in stored(logs).items() if key[1] == DAY} == oracle(logs, days=[DAY])


def waiting_transactions(engine: Engine) -> set[str]:
    """When the transactions that wait for a lock now began."""
    statement = "select cast(xact_start as text) from pg_stat_activity where wait_event_type = 'Lock'"
    with engine.begin() as connection:
        return set(connection.execute(text(statement + " and datname = current_database()")).scalars())


def test_two_runs_of_the_same_day_at_once_leave_it_exact(location, logs):
    results: list[ExecuteInProcessResult] = []

    def one() -> None:
        with DagsterInstance.ephemeral() as own:
            results.append(run(location, own, DAY))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.success for result in results] == [True, True]
    assert {key: value for key, value in stored(logs).items() if key[1] == DAY} == oracle(logs, days=[DAY])
