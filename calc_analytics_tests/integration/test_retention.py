"""Retention: what is counted may be deleted, nothing else is; statistics stay, stay proven, and late rows still add."""

import random
import time
from datetime import date, timedelta
from typing import Any

import pytest
from dagster import AssetCheckKey, AssetKey, AssetRecordsFilter, DagsterInstance, Definitions
from sqlalchemy.engine import Engine

from calc_analytics.orchestration.assets import automatic
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.install import rebase
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import built_days, verify, waiting_days
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.crowd import Crowd
from calc_analytics_tests.logs import copy_rows, execute, live, oracle, random_rows, row, stored, utc, write

DAY, NEXT, LAST = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)
NOON = utc(2026, 3, 1, 12)


@pytest.fixture
def counted(engine: Engine, connect) -> Engine:
    """Three built days of random rows, and the right to delete logs."""
    execute(engine, f"grant delete on calculation_logs to {ROLE}")
    write(connect(), random_rows(random.Random(3), 600, utc(2026, 3, 1), utc(2026, 3, 4)))
    rebuild(engine, ROLLUP, "UTC", [DAY, NEXT, LAST])
    return engine


def left(engine: Engine, day: date) -> int:
    """Log rows of a day that are still there."""
    return sum(measures[0] for (_, of), measures in oracle(engine).items() if of == day)


def count(engine: Engine, day: date) -> int:
    """Calculations of a day in the statistics."""
    return sum(measures[0] for (_, of), measures in stored(engine).items() if of == day)


def test_it_deletes_the_days_before_and_keeps_their_statistics(counted: Engine):
    before = stored(counted)
    report = prune(counted, ROLLUP, "UTC", LAST, batch_rows=50)
    assert set(report.rows_by_day) == {DAY, NEXT}
    assert report.rows == count(counted, DAY) + count(counted, NEXT)
    assert [left(counted, day) for day in (DAY, NEXT)] == [0, 0]
    assert left(counted, LAST) == count(counted, LAST)
    assert stored(counted) == live(counted) == before


def test_batches_are_bounded_and_told_of(counted: Engine):
    batches: list[int] = []
    report = prune(counted, ROLLUP, "UTC", NEXT, batch_rows=50, progress=batches.append)
    assert max(batches) <= 50
    assert sum(batches) == report.rows
    assert len(batches) > 2


def test_a_pruned_day_stays_proven_by_its_totals(counted: Engine):
    prune(counted, ROLLUP, "UTC", LAST)
    report = verify(counted, ROLLUP, "UTC", [DAY, NEXT, LAST])
    assert (report.difference, report.different) == (0, [])
    assert report.days[0].pruned_rows == count(counted, DAY)
    execute(counted, "update calculation_stats_daily set cache_hits = cache_hits + 1 where date = '2026-03-01'")
    assert [day.day for day in verify(counted, ROLLUP, "UTC", [DAY, NEXT, LAST]).different] == [DAY]


def test_rows_that_are_not_counted_yet_are_not_deleted(counted: Engine, connect):
    late, later = connect(), connect()
    copy_rows(late, [row(NOON, publisher=77)] * 3)
    write(later, [row(NOON, publisher=88)] * 2)
    prune(counted, ROLLUP, "UTC", LAST)
    assert left(counted, DAY) == 2
    late.commit()
    assert refresh(counted, ROLLUP, "UTC").rows == 5
    assert verify(counted, ROLLUP, "UTC", [DAY]).difference == 0
    assert (stored(counted)[(77, DAY)][0], stored(counted)[(88, DAY)][0]) == (3, 2)


def test_days_that_are_not_built_keep_their_logs(engine: Engine, connect):
    execute(engine, f"grant delete on calculation_logs to {ROLE}")
    writer = connect()
    write(writer, [row(NOON)] * 3)
    execute(engine, "update calculation_logs set xact_id = null")
    write(writer, [row(NOON)] * 2)
    refresh(engine, ROLLUP, "UTC")
    report = prune(engine, ROLLUP, "UTC", LAST)
    assert (report.rows, report.not_built) == (0, [DAY])
    assert left(engine, DAY) == 5


def test_late_rows_of_a_pruned_day_add_and_may_be_pruned_in_turn(counted: Engine, connect):
    before = count(counted, DAY)
    prune(counted, ROLLUP, "UTC", LAST)
    write(connect(), [row(NOON)] * 4)
    assert refresh(counted, ROLLUP, "UTC").rows == 4
    assert prune(counted, ROLLUP, "UTC", LAST).rows_by_day == {DAY: 4}
    assert (left(counted, DAY), count(counted, DAY)) == (0, before + 4)
    assert verify(counted, ROLLUP, "UTC", [DAY]).difference == 0
    assert prune(counted, ROLLUP, "UTC", LAST).rows == 0


def test_a_rebuild_of_a_pruned_day_refuses_and_names_both_counts(counted: Engine, connect):
    prune(counted, ROLLUP, "UTC", NEXT)
    write(connect(), [row(NOON)] * 4)
    total = count(counted, DAY) + 4
    (shrunk,) = rebuild(counted, ROLLUP, "UTC", [DAY, NEXT]).shrunk
    assert (shrunk.raw_rows, shrunk.counted_rows, shrunk.pruned_rows) == (4, total, total - 4)
    assert f"4 raw rows, but {total} already counted, {total - 4} were deleted after they were counted" in str(shrunk)
    assert verify(counted, ROLLUP, "UTC", [DAY]).difference == 0
    rebuild(counted, ROLLUP, "UTC", [DAY], allow_shrink=True)
    assert count(counted, DAY) == 4
    assert verify(counted, ROLLUP, "UTC", [DAY]).days[0].pruned_rows == 0


def test_logs_deleted_by_others_are_noted_by_the_next_rebuild(counted: Engine, connect):
    before = stored(counted)
    execute(counted, "delete from calculation_logs where created_at < '2026-03-02 08:00Z'")
    assert [day.day for day in verify(counted, ROLLUP, "UTC", [DAY, NEXT, LAST]).different] == [DAY, NEXT]
    assert [shrunk.day for shrunk in rebuild(counted, ROLLUP, "UTC", [DAY, NEXT, LAST]).shrunk] == [DAY, NEXT]
    assert verify(counted, ROLLUP, "UTC", [DAY, NEXT, LAST]).difference == 0
    assert stored(counted) == before
    write(connect(), [row(NOON)] * 2)
    refresh(counted, ROLLUP, "UTC")
    execute(counted, "delete from calculation_logs where created_at < '2026-03-02 16:00Z'")
    rebuild(counted, ROLLUP, "UTC", [DAY, NEXT])
    assert verify(counted, ROLLUP, "UTC", [DAY, NEXT, LAST]).difference == 0
    assert count(counted, DAY) == sum(m[0] for (_, day), m in before.items() if day == DAY) + 2


def test_statistics_that_claim_less_than_the_logs_are_not_explained_by_deletion(counted: Engine):
    execute(counted, "delete from calculation_logs where id in (select min(id) from calculation_logs)")
    execute(counted, "update calculation_stats_daily set cache_hits = 0")
    (day,) = {shrunk.day for shrunk in rebuild(counted, ROLLUP, "UTC", [DAY, NEXT, LAST]).shrunk}
    assert [different.day for different in verify(counted, ROLLUP, "UTC", [DAY, NEXT, LAST]).different] == [day]


def test_after_a_rebase_pruned_days_need_no_logs_to_be_exact(counted: Engine, owner: Engine, connect):
    prune(counted, ROLLUP, "UTC", LAST)
    before = stored(counted)
    rebase(owner, "UTC")
    assert waiting_days(counted, ROLLUP) == [DAY, NEXT, LAST]
    report = rebuild(counted, ROLLUP, "UTC", [DAY, NEXT, LAST])
    assert (report.shrunk, built_days(counted, ROLLUP)) == ([], [DAY, NEXT, LAST])
    write(connect(), [row(NOON)])
    refresh(counted, ROLLUP, "UTC")
    assert verify(counted, ROLLUP, "UTC", [DAY, NEXT, LAST]).difference == 0
    assert sum(m[0] for m in stored(counted).values()) == sum(m[0] for m in before.values()) + 1


def test_a_late_row_that_nobody_counted_before_a_rebase_is_not_swallowed(counted: Engine, owner: Engine, connect):
    prune(counted, ROLLUP, "UTC", NEXT)
    total = count(counted, DAY)
    write(connect(), [row(NOON)] * 3)
    rebase(owner, "UTC")
    (shrunk,) = rebuild(counted, ROLLUP, "UTC", [DAY]).shrunk
    assert (shrunk.raw_rows, shrunk.counted_rows, shrunk.pruned_rows) == (3, total, total)
    assert [day.status for day in verify(counted, ROLLUP, "UTC", [DAY]).never_built] == ["kept"]


def test_pruning_writing_refreshing_and_rebuilding_at_once_never_differ(counted: Engine, connect):
    days = [DAY, NEXT, LAST]
    total = sum(m[0] for m in stored(counted).values())

    writer, written = connect(), []

    def writing() -> None:
        write(writer, [row(NOON + timedelta(days=len(written) % 3), publisher=len(written) % 5)] * 7)
        time.sleep(0.02)
        written.append(7)

    def proving() -> None:
        different = verify(counted, ROLLUP, "UTC", days).different
        assert not different, different

    works = [writing, proving, lambda: refresh(counted, ROLLUP, "UTC"), lambda: rebuild(counted, ROLLUP, "UTC", days)]
    pruned = 0
    with Crowd(*works):
        for _ in range(25):
            pruned += prune(counted, ROLLUP, "UTC", LAST, batch_rows=100).rows
    refresh(counted, ROLLUP, "UTC")
    assert verify(counted, ROLLUP, "UTC", days).difference == 0
    assert sum(m[0] for m in stored(counted).values()) == total + sum(written)
    assert pruned > 25


def run(location: Definitions, instance: DagsterInstance, day: date):
    """A run as the schedule asks for it."""
    (request,) = automatic([str(day)])
    job = location.resolve_job_def("rollup_job")
    return job.execute_in_process(
        instance=instance, partition_key=request.partition_key, run_config=request.run_config, raise_on_error=False
    )


def latest(instance: DagsterInstance, day: date) -> dict[str, Any]:
    """The latest materialization's metadata of a day."""
    asked = AssetRecordsFilter(AssetKey("calculation_stats_daily"), asset_partitions=[str(day)])
    (record,) = instance.fetch_materializations(asked, limit=1).records
    return {key: value.value for key, value in record.asset_materialization.metadata.items()}


@pytest.mark.parametrize("until", ["2026-03-01 09:30Z", "2026-03-02 00:00Z", "2026-03-02 17:45Z"])
def test_the_schedule_stays_quiet_and_correct_when_logs_are_deleted_at_any_age(location, instance, counted, until: str):
    before = stored(counted)
    execute(counted, f"delete from calculation_logs where created_at < '{until}'")
    for day in (DAY, NEXT):
        for _ in range(2):
            assert run(location, instance, day).success
        key = AssetCheckKey(AssetKey("calculation_stats_daily"), "stats_match_logs")
        (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        assert record.event.dagster_event.asset_check_evaluation_data.passed
    assert stored(counted) == before
    assert latest(instance, DAY)["rows_without_logs"] == count(counted, DAY) - left(counted, DAY)
    assert "were deleted after they were counted" in latest(instance, DAY)["left_as_it_is"] or until < "2026-03-02"
