"""What the UI shows of the checks, partition by partition: after runs over several days, runs without a partition, and
batches that the sensor reported since.
"""

from datetime import date

import pytest
from dagster import AssetCheckKey, AssetKey, AssetMaterialization, DagsterInstance, Definitions
from sqlalchemy import text

from calc_analytics.days import today, today_and_yesterday
from calc_analytics.orchestration.checks import check_keys
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollups import LOG
from calc_analytics_tests.integration.test_dagster_runs import failures, run
from calc_analytics_tests.logs import row, utc, write

STATS = AssetKey("calculation_stats_daily")
DAYS = [date(2026, 3, day) for day in (1, 2, 3)]
HITS = AssetCheckKey(STATS, "cache_hits_within_total")
ALL = check_keys(LOG, LOG.names)


@pytest.fixture
def built(db, owner, connect):
    """Three built days; the engine is their owner's."""
    write(connect(), [row(utc(2026, 3, day.day, 12), cache_hit=True) for day in DAYS])
    rebuild(db, DAYS)
    return owner


def spoil(owner, day: date, hits: int) -> None:
    statement = text("update calculation_stats_daily set cache_hits = :hits where date = :day")
    with owner.begin() as connection:
        connection.execute(statement, {"hits": hits, "day": day})


def check_only(location: Definitions, instance: DagsterInstance, keys: set[AssetCheckKey], *days: date):
    """A run of these checks alone: of a day, of a range, or, without a partition, as "Execute all" starts it."""
    job = location.resolve_implicit_global_asset_job_def()
    subset = job.get_subset(asset_selection=set(), asset_check_selection=keys)
    ends = {f"dagster/asset_partition_range_{end}": str(day) for end, day in zip(("start", "end"), days)}  # noqa: B905
    target = {"partition_key": str(days[0])} if len(days) == 1 else {"tags": ends}
    result = subset.execute_in_process(instance=instance, raise_on_error=False, **target)
    assert result.success, failures(result)
    return result


def states(location: Definitions, instance: DagsterInstance, key: AssetCheckKey = HITS) -> dict[str, list[str]]:
    """The partitions in each state, as the page of the asset's checks shows them; others are 'missing'."""
    partitions = location.resolve_job_def("rollup_job").partitions_def
    found = instance.event_log_storage.get_asset_check_state([(key, partitions)])[key]
    return {
        status.value.lower(): sorted(subset.subset_value.get_partition_keys())
        for status, subset in found.subsets.items()
        if not subset.is_empty
    }


def named(*days: date) -> list[str]:
    return [str(day) for day in days]


def test_each_day_of_a_run_over_several_has_a_result_that_counts(location, stored_instance, built):
    assert run(location, stored_instance, DAYS[0], DAYS[2]).success
    for key in ALL:
        assert states(location, stored_instance, key) == {"succeeded": named(*DAYS)}


def test_a_run_of_checks_alone_turns_the_green_day_of_a_run_red_and_green_again(location, stored_instance, built):
    assert run(location, stored_instance, DAYS[0], DAYS[2]).success
    spoil(built, DAYS[1], 9)
    check_only(location, stored_instance, {HITS}, DAYS[1])
    assert states(location, stored_instance) == {"failed": named(DAYS[1]), "succeeded": named(DAYS[0], DAYS[2])}
    spoil(built, DAYS[1], 1)
    check_only(location, stored_instance, {HITS}, DAYS[1])
    assert states(location, stored_instance) == {"succeeded": named(*DAYS)}


def test_a_run_of_checks_alone_over_several_days_names_the_one_that_fails(location, stored_instance, built):
    assert run(location, stored_instance, DAYS[0], DAYS[2]).success
    spoil(built, DAYS[2], 9)
    check_only(location, stored_instance, {HITS}, DAYS[0], DAYS[2])
    assert states(location, stored_instance) == {"failed": named(DAYS[2]), "succeeded": named(*DAYS[:2])}


def test_a_materialization_since_makes_a_result_one_of_the_past(location, stored_instance, built):
    """Why the sensor reports no batches of a day that differs."""
    assert run(location, stored_instance, DAYS[0]).success
    stored_instance.report_runless_asset_event(AssetMaterialization(STATS, partition=str(DAYS[0])))
    assert states(location, stored_instance) == {}
    check_only(location, stored_instance, {HITS}, DAYS[0])
    assert states(location, stored_instance) == {"succeeded": named(DAYS[0])}


def test_the_overview_shows_the_failed_day_of_a_run(location, stored_instance, built):
    assert run(location, stored_instance, DAYS[0]).success
    spoil(built, DAYS[0], 9)
    check_only(location, stored_instance, {HITS}, DAYS[0])
    latest = stored_instance.event_log_storage.get_latest_asset_check_execution_by_key([HITS])[HITS]
    assert (latest.partition, latest.evaluation.passed) == (str(DAYS[0]), False)


def test_execute_all_without_a_partition_checks_today_and_yesterday(location, stored_instance, db, owner, connect):
    days = today_and_yesterday("UTC")
    write(connect(), [row(utc(day.year, day.month, day.day, 0)) for day in days])
    rebuild(db, days)
    for key in {key.asset_key for key in ALL}:
        for day in days:
            stored_instance.report_runless_asset_event(AssetMaterialization(key, partition=str(day)))
    spoil(owner, days[0], 9)
    check_only(location, stored_instance, set(ALL))
    assert states(location, stored_instance) == {"failed": named(days[0]), "succeeded": named(today("UTC"))}
    for key in [key for key in ALL if key.asset_key != STATS]:
        assert states(location, stored_instance, key) == {"succeeded": named(*days)}
