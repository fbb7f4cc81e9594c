"""Hostile rows in the log table: never a crash loop, never silently wrong, and no other day is stopped by them."""

from dataclasses import replace
from datetime import date

import pytest
from dagster import AssetCheckKey, AssetKey
from sqlalchemy.engine import Engine

from calc_analytics.days import parse_day
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.declaration import Measure
from calc_analytics.rollup.figures import log_figures
from calc_analytics.rollup.install import rebase
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import built_days, overflowed_days, verify, waiting_days
from calc_analytics_tests.logs import execute, live, oracle, row, stored, utc, write

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)
INSERT = (
    "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, response_time_ms, created_at) "
    "values ({publisher}, 1, '2030-01-01', {source}, {milliseconds}, '{at}')"
)
ALMOST = "update calculation_stats_daily set total_calculations = 2147483646 where date = '2026-03-01'"


def hostile(engine: Engine, at: str = "2026-03-01 12:00Z", source: int = 1, milliseconds: int = 5, publisher: int = 1):
    execute(engine, INSERT.format(publisher=publisher, source=source, milliseconds=milliseconds, at=at))


def check(location, instance, name: str, day: date):
    """What the check says of a day when it is executed."""
    key = AssetCheckKey(AssetKey("calculation_stats_daily"), name)
    job = location.resolve_implicit_global_asset_job_def()
    job = job.get_subset(asset_selection=set(), asset_check_selection={key})
    assert job.execute_in_process(instance=instance, partition_key=str(day)).success
    (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    return record.event.dagster_event.asset_check_evaluation_data


@pytest.mark.parametrize("at", ["0001-01-03 00:00Z", "0001-01-05 12:00Z", "9999-12-28 12:00Z", "9999-12-29 23:59Z"])
def test_the_first_and_the_last_days_there_are_can_be_counted(engine: Engine, at: str):
    hostile(engine, at)
    hostile(engine)
    assert refresh(engine, ROLLUP, "UTC").rows == 2
    assert verify(engine, ROLLUP, "UTC", built_days(engine, ROLLUP)).difference == 0
    rebuild(engine, ROLLUP, "UTC", built_days(engine, ROLLUP))
    assert verify(engine, ROLLUP, "UTC", built_days(engine, ROLLUP)).difference == 0
    assert sum(measures[0] for measures in stored(engine).values()) == 2
    assert live(engine) == stored(engine)


@pytest.mark.parametrize("at", ["0001-01-03 00:00Z", "9999-12-29 23:59Z"])
@pytest.mark.parametrize("timezone", ["Etc/GMT+12", "UTC", "Pacific/Kiritimati"])
def test_the_days_at_the_ends_can_be_rebuilt_in_any_zone(owner: Engine, engine: Engine, at: str, timezone: str):
    hostile(engine, at)
    refresh(engine, ROLLUP, "UTC")
    rebase(owner, timezone)
    waiting = [parse_day(str(day)) for day in waiting_days(engine, ROLLUP)]
    rebuild(engine, ROLLUP, timezone, waiting)
    assert waiting_days(engine, ROLLUP) == []
    assert verify(engine, ROLLUP, timezone, built_days(engine, ROLLUP)).difference == 0
    assert sum(measures[0] for measures in stored(engine).values()) == 1


def test_rows_without_a_day_are_seen_and_stop_nobody(location, instance, engine: Engine, connect):
    for at in ("infinity", "-infinity", "0001-01-01 BC", "4000-01-01 BC", "10000-01-01", "294276-12-31"):
        hostile(engine, at)
    write(connect(), [row(NOON)] * 3)
    assert refresh(engine, ROLLUP, "UTC").rows == 3
    assert sum(measures[0] for measures in live(engine).values()) == 3
    assert log_figures(engine, ROLLUP, "UTC").rows_without_a_day == 6
    said = check(location, instance, "stats_match_logs", DAY)
    assert said.passed
    assert "6 rows have no day" in said.description
    assert said.metadata["rows_without_a_day"].value == 6


def test_negative_response_times_are_counted_as_they_are_and_said(location, instance, engine: Engine):
    hostile(engine, milliseconds=-32768)
    hostile(engine, milliseconds=-1)
    hostile(engine, milliseconds=7)
    refresh(engine, ROLLUP, "UTC")
    assert stored(engine) == live(engine) == oracle(engine)
    said = check(location, instance, "stats_match_logs", DAY)
    assert said.passed
    assert "2 negative response times" in said.description
    assert said.metadata["negative_response_times"].value == 2


def test_sources_that_nobody_knows_are_named(location, instance, engine: Engine):
    for source in (-32768, 0, 4, 32767):
        hostile(engine, source=source)
    refresh(engine, ROLLUP, "UTC")
    assert stored(engine) == oracle(engine)
    said = check(location, instance, "source_breakdown_complete", DAY)
    assert not said.passed
    assert said.severity.value == "WARN"
    for source in ("-32768 (1 rows)", "0 (1 rows)", "4 (1 rows)", "32767 (1 rows)"):
        assert source in said.description


def test_a_counter_at_its_end_sets_its_day_aside_and_the_others_go_on(location, instance, engine: Engine, connect):
    rebuild(engine, ROLLUP, "UTC", [DAY, NEXT])
    hostile(engine)
    refresh(engine, ROLLUP, "UTC")
    execute(engine, ALMOST)
    write(connect(), [row(NOON)] * 5 + [row(utc(2026, 3, 2, 12))] * 4)
    report = refresh(engine, ROLLUP, "UTC")
    assert [(day.day, day.rows) for day in report.counted] == [(NEXT, 4)]
    assert overflowed_days(engine, ROLLUP) == [DAY]
    assert waiting_days(engine, ROLLUP) == [], "nobody asks for it again and again"
    write(connect(), [row(NOON), row(utc(2026, 3, 2, 12))])
    assert refresh(engine, ROLLUP, "UTC").rows == 1
    assert verify(engine, ROLLUP, "UTC", [NEXT]).difference == 0
    said = check(location, instance, "stats_match_logs", DAY)
    assert not said.passed
    assert said.description.endswith("is not counted: a counter exceeds its column; materialize it to see which")


def test_a_day_set_aside_is_counted_again_once_it_fits(engine: Engine, connect):
    rebuild(engine, ROLLUP, "UTC", [DAY])
    hostile(engine)
    refresh(engine, ROLLUP, "UTC")
    execute(engine, ALMOST)
    write(connect(), [row(NOON)] * 5)
    refresh(engine, ROLLUP, "UTC")
    rebuild(engine, ROLLUP, "UTC", [DAY], allow_shrink=True)
    assert built_days(engine, ROLLUP) == [DAY]
    assert stored(engine) == live(engine) == oracle(engine)


def test_a_rebuild_that_would_overflow_refuses_that_day_alone(engine: Engine, connect):
    """Each row stands for a billion."""
    greedy = Measure("source_web", "count(*) * 1000000000")
    rollup = replace(ROLLUP, measures=tuple(greedy if m.name == greedy.name else m for m in ROLLUP.measures))
    write(connect(), [row(NOON)] * 3 + [row(utc(2026, 3, 2, 12))])
    report = rebuild(engine, rollup, "UTC", [DAY, NEXT])
    assert [day.day for day in report.rebuilt] == [NEXT]
    assert "source_web would be 3,000,000,000" in str(report.overflowed[0])
    assert overflowed_days(engine, rollup) == [DAY]


def test_future_and_forgotten_days_are_counted_where_they_belong(engine: Engine, connect):
    write(connect(), [row(utc(2999, 1, 1)), row(utc(1970, 1, 1)), row(NOON)])
    assert refresh(engine, ROLLUP, "UTC").rows == 3
    assert stored(engine) == live(engine) == oracle(engine)
