"""What the UI shows of the checks, partition by partition: after streamed batches, runs over several days, and runs
without a partition.
"""

from datetime import date

import pytest
from dagster import AssetCheckKey, AssetKey, AssetMaterialization, DagsterInstance, Definitions
from sqlalchemy import text

from calc_analytics.days import today, today_and_yesterday
from calc_analytics.orchestration.checks import streamed_evaluations
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics_tests.integration.test_dagster_runs import failures, run
from calc_analytics_tests.logs import row, utc, write

STATS = AssetKey("calculation_stats_daily")
DAYS = [date(2026, 3, day) for day in (1, 2, 3)]
CHECK = "cache_hits_within_total"
CHECKS = ("stats_match_logs", "source_breakdown_complete", CHECK)


@pytest.fixture
def built(engine, owner, connect):
    """Three built days; the engine is their owner's."""
    write(connect(), [row(utc(2026, 3, day.day, 12), cache_hit=True) for day in DAYS])
    rebuild(engine, ROLLUP, "UTC", DAYS)
    return owner


def spoil(owner, day: date, hits: int) -> None:
    statement = text("update calculation_stats_daily set cache_hits = :hits where date = :day")
    with owner.begin() as connection:
        connection.execute(statement, {"hits": hits, "day": day})


def stream(instance: DagsterInstance, *days: date) -> None:
    """What the daemon stores for a tick of `new_log_batches` that added to these days."""
    for day in days:
        instance.report_runless_asset_event(AssetMaterialization(STATS, partition=str(day)))
    for evaluation in streamed_evaluations(RollupDatabase(), STATS, days, by_day=True):
        instance.report_runless_asset_event(evaluation)


def states(location: Definitions, instance: DagsterInstance, name: str = CHECK) -> dict[str, list[str]]:
    """The partitions in each state, as the page of the asset's checks shows them; others are 'missing'."""
    partitions = location.resolve_job_def("rollup_job").partitions_def
    key = AssetCheckKey(STATS, name)
    found = instance.event_log_storage.get_asset_check_state([(key, partitions)])[key]
    return {
        status.value.lower(): sorted(subset.subset_value.get_partition_keys())
        for status, subset in found.subsets.items()
        if not subset.is_empty
    }


def named(*days: date) -> list[str]:
    return [str(day) for day in days]


def test_streamed_results_count_for_their_day_each_time_anew(location, stored_instance, built):
    green = {"succeeded": named(*DAYS)}
    for hits, expected in [
        (1, green),
        (9, {"failed": named(DAYS[1]), "succeeded": named(DAYS[0], DAYS[2])}),
        (1, green),
    ]:
        spoil(built, DAYS[1], hits)
        stream(stored_instance, *DAYS)
        assert states(location, stored_instance) == expected


def test_a_streamed_failure_turns_the_green_day_of_a_run_red_and_the_next_run_green_again(
    location, stored_instance, built
):
    assert run(location, stored_instance, DAYS[0]).success
    assert states(location, stored_instance) == {"succeeded": named(DAYS[0])}
    spoil(built, DAYS[0], 9)
    stream(stored_instance, DAYS[0])
    assert states(location, stored_instance) == {"failed": named(DAYS[0])}
    assert run(location, stored_instance, DAYS[0]).success
    assert states(location, stored_instance) == {"succeeded": named(DAYS[0])}


def test_the_overview_shows_the_failed_day_of_several(location, stored_instance, built):
    spoil(built, DAYS[0], 9)
    stream(stored_instance, *DAYS)
    key = AssetCheckKey(STATS, CHECK)
    latest = stored_instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert (latest.partition, latest.evaluation.passed) == (str(DAYS[0]), False)


def test_each_day_of_a_run_over_several_has_a_result_that_counts(location, stored_instance, built):
    assert run(location, stored_instance, DAYS[0], DAYS[2]).success
    for name in CHECKS:
        assert states(location, stored_instance, name) == {"succeeded": named(*DAYS)}
    stream(stored_instance, DAYS[2])
    assert states(location, stored_instance) == {"succeeded": named(*DAYS)}


def test_execute_all_without_a_partition_checks_today_and_yesterday(location, stored_instance, engine, owner, connect):
    days = today_and_yesterday("UTC")
    write(connect(), [row(utc(day.year, day.month, day.day, 0)) for day in days])
    rebuild(engine, ROLLUP, "UTC", days)
    stream(stored_instance, *days)
    spoil(owner, days[0], 9)
    checks = {AssetCheckKey(STATS, name) for name in CHECKS}
    job = location.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection=set(), asset_check_selection=checks
    )
    result = job.execute_in_process(instance=stored_instance, raise_on_error=False)
    assert result.success, failures(result)
    assert states(location, stored_instance) == {"failed": named(days[0]), "succeeded": named(today("UTC"))}
