"""The hourly schedule: today and yesterday of the reporting time zone, at every hour that could be awkward."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DefaultScheduleStatus,
    Definitions,
    RunRequest,
    build_schedule_context,
    partition_loading_context,
)

from calc_analytics.definitions import defs
from calc_analytics.rollups import LOG


def requests(location: Definitions, instance: DagsterInstance, at: datetime) -> list[RunRequest]:
    """What a tick of `hourly_rollup` asks for."""
    schedule = location.resolve_schedule_def("hourly_rollup")
    repository = location.get_repository_def()
    context = build_schedule_context(instance=instance, scheduled_execution_time=at, repository_def=repository)
    return list(schedule.evaluate_tick(context).run_requests)


@pytest.mark.parametrize(
    ("zone", "local", "keys"),
    [
        ("UTC", "2026-03-05 12:00", ["2026-03-04", "2026-03-05"]),
        ("UTC", "2026-03-05 00:00", ["2026-03-04", "2026-03-05"]),
        ("UTC", "2026-03-04 23:00", ["2026-03-03", "2026-03-04"]),
        ("UTC", "2026-01-01 00:00", ["2025-12-31", "2026-01-01"]),
        ("Asia/Jerusalem", "2026-03-05 00:00", ["2026-03-04", "2026-03-05"]),
        ("Asia/Jerusalem", "2026-03-27 00:00", ["2026-03-26", "2026-03-27"]),
        ("Asia/Jerusalem", "2026-03-27 03:00", ["2026-03-26", "2026-03-27"]),
        ("Asia/Jerusalem", "2026-03-28 00:00", ["2026-03-27", "2026-03-28"]),
        ("Asia/Jerusalem", "2026-10-25 00:00", ["2026-10-24", "2026-10-25"]),
        ("Asia/Jerusalem", "2026-10-25 01:00", ["2026-10-24", "2026-10-25"]),
        ("Asia/Jerusalem", "2026-10-26 00:00", ["2026-10-25", "2026-10-26"]),
        ("America/Havana", "2026-11-01 00:00", ["2026-10-31", "2026-11-01"]),
    ],
)
def test_it_asks_for_today_and_yesterday(database, instance, monkeypatch, zone: str, local: str, keys: list[str]):
    monkeypatch.setenv("ROLLUP_TIMEZONE", zone)
    location, at = defs(), datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone))
    assert location.resolve_schedule_def("hourly_rollup").execution_timezone == zone
    assert [request.partition_key for request in requests(location, instance, at)] == keys
    partitions = location.resolve_job_def("rollup_job").partitions_def
    with partition_loading_context(effective_dt=at):
        assert partitions.get_last_partition_key() == keys[-1], "today is a partition"


def test_only_the_run_of_today_computes_the_summary(location, instance):
    """The other run is of the rollups; a run without a selection is of the whole job."""
    before, current = requests(location, instance, datetime(2026, 3, 5, 12, tzinfo=ZoneInfo("UTC")))
    assert [key.to_user_string() for key in before.asset_selection] == LOG.names
    assert current.asset_selection is None
    summary = AssetKey("publisher_usage_summary")
    assert summary in location.resolve_job_def("rollup_job").asset_layer.executable_asset_keys


def test_both_passes_through_the_hour_that_happens_twice_ask(database, instance, monkeypatch):
    monkeypatch.setenv("ROLLUP_TIMEZONE", "Asia/Jerusalem")
    location = defs()
    twice = [datetime(2026, 10, 25, 1, tzinfo=ZoneInfo("Asia/Jerusalem"), fold=fold) for fold in (0, 1)]
    keys = [{request.run_key for request in requests(location, instance, at)} for at in twice]
    assert keys[0].isdisjoint(keys[1])


def test_before_the_start_date_nothing_is_asked_for(database, instance, monkeypatch):
    monkeypatch.setenv("ROLLUP_START_DATE", "2026-03-05")
    at = datetime(2026, 3, 5, 0, tzinfo=ZoneInfo("UTC"))
    assert [request.partition_key for request in requests(defs(), instance, at)] == ["2026-03-05"]


def test_the_next_hour_requests_again_whether_or_not_the_last_succeeded(location, instance):
    first = requests(location, instance, datetime(2026, 3, 5, 12, tzinfo=ZoneInfo("UTC")))
    second = requests(location, instance, datetime(2026, 3, 5, 13, tzinfo=ZoneInfo("UTC")))
    assert {r.run_key for r in first}.isdisjoint(r.run_key for r in second)


@pytest.mark.parametrize(
    ("variable", "value", "cron"),
    [
        ("ROLLUP_CRON", "*/20 * * * *", "*/20 * * * *"),
        ("ROLLUP_INTERVAL_HOURS", "6", "0 */6 * * *"),
        ("X", "", "0 * * * *"),
    ],
)
def test_settings_say_how_often_and_it_is_on(database, monkeypatch, variable: str, value: str, cron: str):
    monkeypatch.setenv(variable, value)
    schedule = defs().resolve_schedule_def("hourly_rollup")
    assert schedule.cron_schedule == cron
    assert schedule.default_status == DefaultScheduleStatus.RUNNING
