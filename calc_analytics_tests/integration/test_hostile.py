"""Hostile rows in the log table: never a crash loop, never silently wrong, and no other day is stopped by them."""

from dataclasses import replace
from datetime import date, datetime, timezone

import pytest
from dagster import AssetCheckKey, AssetKey
from sqlalchemy import func
from sqlalchemy.engine import Engine

from calc_analytics.days import parse_day
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.figures import log_figures
from calc_analytics.rollup.install import rebase
from calc_analytics.rollup.ledger import built_days, days_by_status, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG, STATS
from calc_analytics_tests.logs import assert_exact, execute, live, row, stored, utc, write

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)
INSERT = (
    "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, response_time_ms, created_at) "
    "values ({publisher}, 1, '2030-01-01', {source}, {milliseconds}, '{at}')"
)
ALMOST = "update calculation_stats_daily set total_calculations = 2147483646 where date = '2026-03-01'"


def hostile(db: Database, at: str = "2026-03-01 12:00Z", source: int = 1, milliseconds: int = 5, publisher: int = 1):
    execute(db, INSERT.format(publisher=publisher, source=source, milliseconds=milliseconds, at=at))


def check(location, instance, name: str, day: date):
    """The check's evaluation of a day, when it is executed."""
    key = AssetCheckKey(AssetKey("calculation_stats_daily"), name)
    job = location.resolve_implicit_global_asset_job_def()
    job = job.get_subset(asset_selection=set(), asset_check_selection={key})
    assert job.execute_in_process(instance=instance, partition_key=str(day)).success
    (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    return record.event.dagster_event.asset_check_evaluation_data


@pytest.mark.parametrize("at", ["0001-01-03 00:00Z", "0001-01-05 12:00Z", "9999-12-28 12:00Z", "9999-12-29 23:59Z"])
def test_the_first_and_the_last_days_there_are_can_be_counted(db: Database, at: str):
    hostile(db, at)
    hostile(db)
    assert refresh(db).rows == 2
    assert verify(db, built_days(db)).difference == 0
    rebuild(db, built_days(db))
    assert verify(db, built_days(db)).difference == 0
    assert sum(measures[0] for measures in stored(db).values()) == 2
    assert_exact(db)


@pytest.mark.parametrize("at", ["0001-01-03 00:00Z", "9999-12-29 23:59Z"])
@pytest.mark.parametrize("zone", ["Etc/GMT+12", "UTC", "Pacific/Kiritimati"])
def test_the_days_at_the_ends_can_be_rebuilt_in_any_zone(owner: Engine, db: Database, at: str, zone: str):
    hostile(db, at)
    refresh(db)
    rebase(Database(owner, LOG, zone))
    moved = replace(db, timezone=zone)
    waiting = [parse_day(str(day)) for day in waiting_days(moved)]
    rebuild(moved, waiting)
    assert waiting_days(moved) == []
    assert verify(moved, built_days(moved)).difference == 0
    assert sum(measures[0] for measures in stored(moved).values()) == 1
    assert_exact(moved)


def test_rows_without_a_day_are_reported_and_block_nothing(location, instance, db: Database, connect):
    for at in ("infinity", "-infinity", "0001-01-01 BC", "4000-01-01 BC", "10000-01-01", "294276-12-31"):
        hostile(db, at)
    write(connect(), [row(NOON)] * 3)
    assert refresh(db).rows == 3
    assert sum(measures[0] for measures in live(db).values()) == 3
    assert log_figures(db).rows_without_a_day == 6
    evaluation = check(location, instance, "stats_match_logs", DAY)
    assert evaluation.passed
    assert "6 rows without a day" in evaluation.description
    assert evaluation.metadata["rows_without_a_day"].value == 6


def test_negative_response_times_are_counted_as_they_are_and_reported(location, instance, db: Database):
    hostile(db, milliseconds=-32768)
    hostile(db, milliseconds=-1)
    hostile(db, milliseconds=7)
    refresh(db)
    assert_exact(db)
    evaluation = check(location, instance, "stats_match_logs", DAY)
    assert evaluation.passed
    assert "2 negative response times" in evaluation.description
    assert evaluation.metadata["negative_response_times"].value == 2


def test_unknown_sources_are_named(location, instance, db: Database):
    for source in (-32768, 0, 4, 32767):
        hostile(db, source=source)
    refresh(db)
    assert_exact(db)
    evaluation = check(location, instance, "source_breakdown_complete", DAY)
    assert not evaluation.passed
    assert evaluation.severity.value == "WARN"
    for source in ("1 row of source -32768", "1 row of source 0", "1 row of source 4", "1 row of source 32767"):
        assert source in evaluation.description


def test_a_counter_at_its_end_sets_its_day_aside_and_the_others_go_on(location, instance, db: Database, connect):
    rebuild(db, [DAY, NEXT])
    hostile(db)
    refresh(db)
    execute(db, ALMOST)
    write(connect(), [row(NOON)] * 5 + [row(utc(2026, 3, 2, 12))] * 4)
    report = refresh(db)
    assert [(day.day, day.rows) for day in report.counted if day.rollup == STATS.name] == [(NEXT, 4)]
    assert [(day.day, day.rows) for day in report.unbuilt] == [(DAY, 5)]
    assert report.rows_by_day == {DAY: 5, NEXT: 4}, "the other rollups have room"
    assert days_by_status(db, ["overflow"]) == {DAY: [STATS.name]}
    assert waiting_days(db) == [], "its rebuild is not requested again"
    write(connect(), [row(NOON), row(utc(2026, 3, 2, 12))])
    assert refresh(db).rows_by_day == {DAY: 1, NEXT: 1}
    assert verify(db, [NEXT]).difference == 0
    evaluation = check(location, instance, "stats_match_logs", DAY)
    assert not evaluation.passed
    assert "a value does not fit its column" in evaluation.description
    assert f"'calc-analytics rollup --day {DAY}'" in evaluation.description


def test_a_day_set_aside_is_counted_again_once_it_fits(db: Database, connect):
    rebuild(db, [DAY])
    hostile(db)
    refresh(db)
    execute(db, ALMOST)
    write(connect(), [row(NOON)] * 5)
    refresh(db)
    rebuild(db, [DAY])
    assert built_days(db) == [DAY]
    assert_exact(db)


def test_a_rebuild_that_would_overflow_refuses_that_day_alone(db: Database, connect):
    """Each row stands for a billion."""
    greedy = replace(STATS, aggregates={**STATS.aggregates, "source_web": func.count() * 1_000_000_000})
    db = replace(db, log=replace(LOG, rollups=(greedy, *LOG.rollups[1:])))
    write(connect(), [row(NOON)] * 3 + [row(utc(2026, 3, 2, 12))])
    report = rebuild(db, [DAY, NEXT])
    assert [day.day for day in report.rebuilt if day.rollup == STATS.name] == [NEXT]
    assert [day.rollup for day in report.rebuilt if day.day == DAY] == LOG.names[1:]
    (refused,) = report.failed
    assert (refused.rollup, refused.day, refused.reason) == (STATS.name, DAY, "overflow")
    assert "source_web would be 3,000,000,000 for publisher_id 1" in str(refused)
    assert list(days_by_status(db, ["overflow"])) == [DAY]


def test_future_and_forgotten_days_are_counted_where_they_belong(db: Database, connect):
    write(connect(), [row(utc(2999, 1, 1)), row(utc(1970, 1, 1)), row(NOON)])
    assert refresh(db).rows == 3
    assert_exact(db)


def test_scattered_days_that_were_never_built_are_judged_each_by_itself(db: Database, connect):
    """The first day there is and today in one refresh, with others between them that have rows from before."""
    today = datetime.now(timezone.utc)
    old = [utc(1970, 1, 1, 12), utc(2026, 3, 2, 23, 59)]
    write(connect(), [row(at) for at in old])
    execute(db, "update calculation_logs set xact_id = null")
    hostile(db, "0001-01-05 12:00Z")
    write(connect(), [row(at) for at in (*old, NOON, today)])
    report = refresh(db)
    assert list(report.rows_by_day) == [date(1, 1, 5), DAY, today.date()]
    assert report.waiting_by_day == {date(1970, 1, 1): 1, NEXT: 1}
    assert waiting_days(db) == [date(1970, 1, 1), NEXT]
    rebuild(db, waiting_days(db))
    assert_exact(db)
