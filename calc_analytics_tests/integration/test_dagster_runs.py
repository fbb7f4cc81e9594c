"""Runs of `rollup_job` on an ephemeral instance: metadata, checks, ranges, failures, retries."""

import logging
import threading
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckKey,
    AssetKey,
    AssetRecordsFilter,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
)
from sqlalchemy import func, text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import LOCAL_SETTINGS
from calc_analytics.database.retries import ATTEMPTS
from calc_analytics.definitions import defs
from calc_analytics.orchestration import resources, retries
from calc_analytics.orchestration.checks import check_keys
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import LOG
from calc_analytics.rollups import STATS as STATS_ROLLUP
from calc_analytics_tests.logs import execute, oracle, row, stored, utc, write

STATS = AssetKey("calculation_stats_daily")
CHECKS = check_keys(LOG, LOG.names)
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


def metadata(instance: DagsterInstance, day: date, asset: AssetKey = STATS) -> dict[str, Any]:
    """The latest materialization's metadata of a day."""
    records = instance.fetch_materializations(AssetRecordsFilter(asset, asset_partitions=[str(day)]), limit=1).records
    return {key: value.value for key, value in records[0].asset_materialization.metadata.items()}


def check(instance: DagsterInstance, name: str, day: date | None, asset: AssetKey = STATS) -> Any:
    """The latest evaluation of a check for a day; without a day, the run's summary."""
    records = instance.event_log_storage.get_asset_check_execution_history(AssetCheckKey(asset, name), limit=100)
    found = [record for record in records if record.partition == (str(day) if day else None)]
    return found[0].event.dagster_event.asset_check_evaluation_data


def warnings(instance: DagsterInstance, result: ExecuteInProcessResult) -> list[str]:
    """The warnings in the log of the run."""
    return [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == logging.WARNING]


def failures(result: ExecuteInProcessResult) -> list[str]:
    """The errors of a red run, one text for each failed step."""
    events = [event for event in result.all_events if event.event_type == DagsterEventType.STEP_FAILURE]
    return [event.step_failure_data.user_failure_data.description for event in events]


@pytest.fixture
def logs(engine: Engine, connect) -> Engine:
    """Three days of ten rows, two publishers."""
    for day in range(3):
        at = NOON + timedelta(days=day)
        write(connect(), [row(at, publisher=n % 2, cache_hit=n < 4, source=1 + n % 3) for n in range(10)])
    return engine


def test_a_partition_is_rebuilt_in_every_rollup_with_its_figures_and_green_checks(location, instance, logs):
    assert run(location, instance, DAY).success
    found = metadata(instance, DAY)
    preview = found.pop("top_publishers")
    assert found.pop("duration_seconds") > 0
    assert Path(found.pop("runbook")).is_file()
    assert "svg" in found.pop("last_30_days")
    assert found == {
        "source": "log rows",
        "publishers": 2,
        "total_calculations": 10,
        "cache_hits": 4,
        "total_response_time_ms": 100,
        "source_web": 4,
        "source_api": 3,
        "source_external": 3,
        "cache_hit_ratio": 0.4,
        "average_response_time_ms": 10.0,
        "p95_response_time_ms": 10.0,
        "localities": 1,
    }
    assert "publisher_id" in preview
    assert "cache_hit_ratio" in preview
    assert {key.name for key in CHECKS if key.asset_key == STATS} == {
        "stats_match_logs",
        "source_breakdown_complete",
        "cache_hits_within_total",
        "usual_total",
    }
    for key in CHECKS:
        assert check(instance, key.name, DAY, key.asset_key).passed
    for rollup in LOG.rollups:
        kept = {key: value for key, value in stored(logs, rollup.name).items() if key[-1] == DAY}
        assert kept == oracle(logs, days=[DAY], relation=rollup.name)
        assert metadata(instance, DAY, AssetKey(rollup.name))[rollup.count] == 10
    observed = instance.fetch_observations(AssetKey("calculation_logs"), limit=1).records[0]
    assert {"estimated_rows", "uncounted_rows", "lag_seconds"} <= set(observed.asset_observation.metadata)


def test_where_docs_are_not_installed_nothing_names_a_runbook(instance, database, logs, tmp_path, monkeypatch):
    monkeypatch.setattr("calc_analytics.orchestration.metadata.project_root", lambda: tmp_path)
    location = defs()
    assert run(location, instance, DAY).success
    assert "runbook" not in metadata(instance, DAY)
    spec = location.resolve_asset_graph().get(STATS)
    (function,) = spec.metadata["dagster/code_references"].code_references
    assert function.file_path.endswith("orchestration/assets.py")


def test_a_range_is_one_run_with_figures_and_checks_for_each_day(location, instance, logs):
    last = DAY + timedelta(days=2)
    assert run(location, instance, DAY, last).success
    for n in range(3):
        day = DAY + timedelta(days=n)
        assert metadata(instance, day)["total_calculations"] == 10
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
    assert summary.description == (
        "2026-03-02: 1 row of source 9; in 1 row of calculation_stats_daily (publisher_id 1)"
    )


def _asset(event: DagsterEvent) -> AssetKey:
    return event.asset_key or event.asset_check_evaluation_data.asset_key


def test_only_the_selected_rollups_are_rebuilt_and_only_their_checks_evaluated(location, instance, logs):
    hours = AssetKey("calculation_stats_hourly")
    job = location.resolve_job_def("rollup_job").get_subset(asset_selection={hours})
    result = job.execute_in_process(instance=instance, partition_key=str(DAY))
    assert result.success
    kinds = (DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_CHECK_EVALUATION)
    assert {_asset(event) for event in result.all_events if event.event_type in kinds} == {hours}


TAMPERING = {
    "stats_match_logs": (
        "update calculation_stats_daily set cache_hits = cache_hits + 1",
        "2026-03-01 of calculation_stats_daily: statistics or log rows were changed",
    ),
    "cache_hits_within_total": ("update calculation_stats_daily set cache_hits = 99", "publisher_id 0, 1"),
    "source_breakdown_complete": (
        "update calculation_stats_daily set source_web = 0",
        "2026-03-01: 4 calculations too many or too few, and the log holds no row that explains it",
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_each_check_fails_for_what_it_is_there_for(location, instance, logs, name: str):
    statement, message = TAMPERING[name]
    run(location, instance, DAY)
    execute(logs, statement)
    assert message in check_alone(location, instance, name).description
    assert not check(instance, name, DAY).passed


def check_alone(location: Definitions, instance: DagsterInstance, name: str) -> Any:
    """The evaluation of one check of the day, in a run of its own."""
    job = location.resolve_implicit_global_asset_job_def()
    subset = job.get_subset(asset_selection=set(), asset_check_selection={AssetCheckKey(STATS, name)})
    assert subset.execute_in_process(instance=instance, partition_key=str(DAY)).success
    return check(instance, name, DAY)


def test_unknown_sources_and_changed_statistics_of_one_day_are_distinguished(location, instance, logs, connect):
    write(connect(), [row(NOON, publisher=0, source=9)] * 2)
    run(location, instance, DAY)
    name = "source_breakdown_complete"
    assert check(instance, name, DAY).description.startswith("2026-03-01: 2 rows of source 9; in 1 row of ")
    execute(
        logs, "update calculation_stats_daily set total_calculations = total_calculations + 7 where publisher_id = 0"
    )
    message = check_alone(location, instance, name).description
    assert message.startswith("2026-03-01: 2 rows of source 9; and 7 calculations too many or too few")


def test_a_day_without_any_row_passes(location, instance, logs):
    empty = DAY - timedelta(days=1)
    name, job = "stats_match_logs", location.resolve_implicit_global_asset_job_def()
    subset = job.get_subset(asset_selection=set(), asset_check_selection=set(CHECKS))
    assert subset.execute_in_process(instance=instance, partition_key=str(empty)).success
    assert check(instance, name, empty).passed
    assert check(instance, name, empty).description == "no log rows and no statistics"


def test_a_day_that_was_never_built_fails_with_the_command_that_builds_it(location, instance, logs, db, connect):
    execute(logs, "update calculation_logs set xact_id = null")
    write(connect(), [row(NOON)])
    refresh(db)
    evaluation = check_alone(location, instance, "stats_match_logs")
    assert (evaluation.passed, evaluation.severity.value) == (False, "ERROR")
    assert evaluation.description.startswith(
        "2026-03-01 of calculation_stats_daily: 11 log rows, never counted whole. Build "
    )


def test_a_day_that_lost_logs_is_left_alone_in_one_line_and_its_check_fails(location, instance, logs):
    last = DAY + timedelta(days=2)
    run(location, instance, DAY, last)
    before = stored(logs)
    execute(logs, "delete from calculation_logs where created_at < '2026-03-01 12:00:01Z'")
    result = run(location, instance, DAY, last)
    assert result.success
    message = warnings(instance, result)
    decide = (
        "was not rebuilt: 0 log rows but 10 counted. Keep the statistics with 'calc-analytics rollup --day 2026-03-01 "
        "--keep', or recount from what is left with 'calc-analytics rollup --day 2026-03-01 --allow-shrink'."
    )
    assert message == [f"2026-03-01 of 4 rollups {decide}"]
    left = metadata(instance, DAY)
    assert (left["total_calculations"], left["rows_without_logs"]) == (10, 10)
    assert left["not_rebuilt"] == f"2026-03-01 of calculation_stats_daily {decide}"
    assert "not_rebuilt" not in metadata(instance, last)
    assert [check(instance, "stats_match_logs", DAY + timedelta(days=n)).passed for n in range(3)] == [
        False,
        True,
        True,
    ]
    assert "log rows are missing" in check(instance, "stats_match_logs", DAY).description
    assert stored(logs) == before


def config(**options: bool) -> dict[str, Any]:
    return {"ops": {"rebuild": {"config": options}}}


def test_a_person_decides_about_a_day_that_lost_logs(location, instance, logs):
    run(location, instance, DAY, DAY + timedelta(days=2))
    before = stored(logs)
    execute(logs, "delete from calculation_logs where created_at < '2026-03-02 12:00:01Z'")
    assert run(location, instance, DAY, run_config=config(keep=True)).success
    assert check(instance, "stats_match_logs", DAY).passed
    assert stored(logs) == before
    assert "keeps its statistics by the option keep: 10 of 10" in metadata(instance, DAY)["not_rebuilt"]
    assert run(location, instance, DAY + timedelta(days=1), run_config=config(allow_shrink=True)).success
    assert {key: value for key, value in stored(logs).items() if key[1] != DAY} == oracle(logs)


def test_both_decisions_at_once_are_refused_in_one_line(location, instance, logs):
    result = run(location, instance, DAY, run_config=config(keep=True, allow_shrink=True))
    assert failures(result) == ["keep and allow_shrink exclude each other: set one of them"]
    assert stored(logs) == {}


def test_a_value_that_fits_no_column_is_a_failed_check_and_no_failed_run(location, instance, logs, monkeypatch):
    """Each row stands for a billion."""
    greedy = replace(STATS_ROLLUP, aggregates={**STATS_ROLLUP.aggregates, "source_web": func.count() * 1_000_000_000})
    log = replace(LOG, rollups=(greedy, *LOG.rollups[1:]))
    monkeypatch.setattr(resources, "database", lambda engine, settings: Database(engine, log, settings.timezone))
    result = run(location, instance, DAY)
    assert result.success
    (message,) = warnings(instance, result)
    assert "source_web would be 5,000,000,000 for publisher_id 0, and does not fit its column" in message
    failed = check(instance, "stats_match_logs", DAY)
    assert not failed.passed
    assert "does not fit its column" in failed.description
    assert check(instance, "calculation_stats_hourly_match_logs", DAY, AssetKey("calculation_stats_hourly")).passed


def test_a_permanent_error_is_one_line_and_is_not_retried(location, instance, logs):
    execute(logs, "alter table calculation_logs rename column source to origin")
    result = run(location, instance, DAY)
    assert not result.success
    assert "calc-analytics migrate" in failures(result)[0]
    assert "\n" not in failures(result)[0]
    assert not [e for e in result.all_events if e.event_type == DagsterEventType.STEP_UP_FOR_RETRY]
    assert stored(logs) == {}


def test_a_transient_error_is_retried_with_growing_pauses(location, instance, logs, connect, monkeypatch):
    """First inside the domain, then by Dagster's policy."""
    assert retries.TRANSIENT_ERRORS.backoff is not None
    assert retries.TRANSIENT_ERRORS.jitter is not None
    monkeypatch.setitem(LOCAL_SETTINGS, "lock_timeout", "200ms")
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
