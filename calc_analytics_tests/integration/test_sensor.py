"""Ticks of `new_log_batches` on an ephemeral instance and a real database."""

import threading
import time
from datetime import date, datetime, timedelta, timezone

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetMaterialization,
    AssetObservation,
    DagsterInstance,
    DefaultSensorStatus,
    Definitions,
    SensorResult,
    build_sensor_context,
)

from calc_analytics.config import Settings
from calc_analytics.days import today_and_yesterday
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.orchestration import sensors
from calc_analytics.orchestration.cursor import Cursor
from calc_analytics.orchestration.partitions import daily_partitions
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.sensors import new_log_batches_sensor
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.supervisor import free_port
from calc_analytics_tests.logs import execute, oracle, row, stored, utc, write

IDLE = Cursor().text()
OLD = date(2026, 3, 1)


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "follow_seconds", lambda interval: 2.0)


def tick(location: Definitions, instance: DagsterInstance, cursor: str | None = IDLE) -> SensorResult:
    """One evaluation of the sensor's function."""
    sensor = location.resolve_sensor_def("new_log_batches")
    context = build_sensor_context(instance=instance, cursor=cursor, sensor_name=sensor.name, definitions=location)
    with context:
        return sensor(context, database=RollupDatabase())


def now() -> datetime:
    return datetime.now(timezone.utc)


def today() -> date:
    return now().date()


def of(result: SensorResult, kind: type) -> list:
    return [event for event in result.asset_events if isinstance(event, kind)]


def test_it_is_on_and_ticks_every_five_seconds(location):
    sensor = location.resolve_sensor_def("new_log_batches")
    assert sensor.minimum_interval_seconds == 5
    assert sensor.default_status == DefaultSensorStatus.RUNNING


@pytest.mark.parametrize("cursor", [None, "", "yesterday", "[]", '{"asked": 3}'])
def test_a_first_start_asks_for_today_and_yesterday(location, instance, cursor):
    result = tick(location, instance, cursor)
    assert [request.partition_key for request in result.run_requests] == [
        str(day) for day in today_and_yesterday("UTC")
    ]
    assert Cursor.parse(result.cursor) is not None


def test_a_batch_is_counted_in_place_and_told_of_once_per_day(location, instance, engine, connect):
    rebuild(engine, ROLLUP, "UTC", [OLD, today()])
    writer = connect()
    write(writer, [row(now(), publisher=n, cache_hit=True) for n in range(6)])
    more = threading.Timer(0.4, write, (writer, [row(now()), row(utc(2026, 3, 1, 5))]))
    more.start()
    result = tick(location, instance)
    more.join()
    assert result.run_requests == []
    assert stored(engine) == oracle(engine)
    told = {event.partition: event for event in of(result, AssetMaterialization)}
    assert set(told) == {str(OLD), str(today())}
    figures = {key: value.value for key, value in told[str(today())].metadata.items()}
    assert (figures["rows"], figures["rows_added"], figures["publishers"], figures["cache_hits"]) == (7, 7, 6, 6)
    assert figures["duration_seconds"] > 0
    assert "publisher_id" in figures["top_publishers"]
    (observation,) = of(result, AssetObservation)
    assert observation.metadata["rows_counted"].value == 8
    checks = of(result, AssetCheckEvaluation)
    assert {c.check_name for c in checks} == {
        "stats_match_logs",
        "source_breakdown_complete",
        "cache_hits_within_total",
    }
    assert all(c.passed for c in checks)


def test_a_wrong_day_turns_the_streamed_check_red(location, instance, engine, connect):
    rebuild(engine, ROLLUP, "UTC", [today()])
    execute(engine, "insert into calculation_stats_daily values (9, current_date, 5, 9, 0, 0, 0, 0)")
    write(connect(), [row(now())])
    wrong = {check.check_name: check for check in of(tick(location, instance), AssetCheckEvaluation)}
    assert not any(check.passed for check in wrong.values())
    assert "differs" in wrong["stats_match_logs"].description


def test_under_steady_load_events_tell_of_a_day_every_thirty_seconds(location, instance, engine, connect):
    rebuild(engine, ROLLUP, "UTC", [today()])
    write(connect(), [row(now())] * 3)
    first = tick(location, instance)
    write(connect(), [row(now())] * 4)
    second = tick(location, instance, first.cursor)
    assert stored(engine) == oracle(engine)
    assert second.asset_events == []
    cursor = Cursor.parse(second.cursor)
    assert cursor.untold == {str(today()): 4}
    cursor.told_at -= sensors.TELL_SECONDS
    (told,) = of(tick(location, instance, cursor.text()), AssetMaterialization)
    assert told.metadata["rows_added"].value == 4


def test_an_idle_tick_says_what_it_compared(location, instance, engine):
    result = tick(location, instance)
    assert (result.asset_events, result.run_requests) == ([], [])
    assert "compared the logs with the stored snapshot" in result.skip_reason.skip_message


def test_a_day_that_was_never_built_is_asked_for_once_in_five_minutes(location, instance, engine, connect):
    writer = connect()
    write(writer, [row(utc(2026, 3, 1, 5))])
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    write(writer, [row(utc(2026, 3, 1, 6)), row(utc(1999, 1, 1))])
    first = tick(location, instance)
    assert [request.partition_key for request in first.run_requests] == [str(OLD)]
    second = tick(location, instance, first.cursor)
    assert second.run_requests == []
    cursor = Cursor.parse(second.cursor)
    cursor.asked[str(OLD)] -= sensors.ASK_AGAIN_SECONDS
    assert [r.partition_key for r in tick(location, instance, cursor.text()).run_requests] == [str(OLD)]
    rebuild(engine, ROLLUP, "UTC", [OLD])
    assert tick(location, instance, cursor.text()).run_requests == []


def test_rows_outside_the_partitions_are_counted_without_an_event(location, instance, engine, connect):
    write(connect(), [row(utc(1999, 1, 1)), row(now() + timedelta(days=400))])
    result = tick(location, instance)
    assert stored(engine) == oracle(engine)
    assert of(result, AssetMaterialization) == []
    assert result.run_requests == []


def test_days_built_on_the_command_line_are_put_on_record_once(location, instance, engine, connect):
    write(connect(), [row(utc(2026, 3, 1, 5))] * 5)
    rebuild(engine, ROLLUP, "UTC", [OLD])
    result = tick(location, instance)
    assert [event.partition for event in of(result, AssetMaterialization)] == [str(OLD)]
    cursor = Cursor.parse(result.cursor)
    cursor.told_at = 0
    assert tick(location, instance, cursor.text()).asset_events == []


def test_bursts_are_coalesced_by_the_debounce(database, location, instance, engine, connect, monkeypatch):
    monkeypatch.setenv("ROLLUP_DEBOUNCE_SECONDS", "0.5")
    rebuild(engine, ROLLUP, "UTC", [today()])
    writer, over = connect(), threading.Event()

    def burst() -> None:
        while not over.wait(0.01):
            write(writer, [row(now())])

    thread = threading.Thread(target=burst)
    thread.start()
    result = tick(location, instance)
    over.set()
    thread.join()
    refreshes = int(result.skip_reason.skip_message.split(" refreshes")[0].split()[-1])
    assert 1 <= refreshes <= 5


def test_the_follower_bridges_the_time_to_the_next_tick(location, instance, engine, connect):
    rebuild(engine, ROLLUP, "UTC", [today()])
    first = tick(location, instance)
    write(connect(), [row(now())] * 3)
    deadline = time.monotonic() + 5
    while stored(engine) != oracle(engine):
        assert time.monotonic() < deadline
    cursor = Cursor.parse(first.cursor)
    cursor.told_at = 0
    (told,) = of(tick(location, instance, cursor.text()), AssetMaterialization)
    assert told.metadata["rows_added"].value == 3


def test_a_tick_ends_at_once_when_the_server_is_told_to_stop(location, instance, monkeypatch):
    monkeypatch.setattr(sensors, "follow_seconds", lambda interval: 60.0)
    stop = threading.Timer(0.3, sensors.stopping.set)
    stop.start()
    started = time.monotonic()
    tick(location, instance)
    assert time.monotonic() - started < 2


def test_a_longer_interval_keeps_its_meaning(database, location, instance, engine, connect):
    rebuild(engine, ROLLUP, "UTC", [today()])
    write(connect(), [row(now())] * 3)
    job = location.resolve_job_def("rollup_job")
    sensor = new_log_batches_sensor(job, daily_partitions(Settings.from_environment()), interval_seconds=60)
    with build_sensor_context(instance=instance, cursor=IDLE, definitions=location) as context:
        result = sensor(context, database=RollupDatabase())
    assert sensor.minimum_interval_seconds == 60
    assert "in 1 refreshes" in result.skip_reason.skip_message
    assert not [thread for thread in threading.enumerate() if thread.name == "follower"]


@pytest.mark.parametrize("at", [utc(1, 1, 3), utc(9999, 12, 29, 23)])
def test_a_row_at_an_end_of_the_calendar_stops_no_tick(location, instance, engine, connect, at):
    rebuild(engine, ROLLUP, "UTC", [today()])
    write(connect(), [row(at), row(now())])
    result = tick(location, instance)
    assert [event.partition for event in of(result, AssetMaterialization)] == [str(today())]


def test_trouble_is_an_error_with_one_line_and_never_a_skip(location, instance, engine, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/db")
    with pytest.raises(CalcAnalyticsError, match="cannot connect") as raised:
        tick(location, instance)
    assert "hunter2" not in str(raised.value)


def test_after_an_error_the_next_tick_goes_on(location, instance, engine, connect):
    rebuild(engine, ROLLUP, "UTC", [today()])
    execute(engine, "alter table calculation_logs rename column source to origin")
    write_raw = (
        "insert into calculation_logs (publisher_id, locality_id, date_calculated, origin) values (1, 1, now(), 1)"
    )
    execute(engine, write_raw)
    with pytest.raises(CalcAnalyticsError, match="migrate"):
        tick(location, instance)
    execute(engine, "alter table calculation_logs rename column origin to source")
    tick(location, instance)
    assert stored(engine) == oracle(engine)
