"""Ticks of `new_log_batches` on an ephemeral instance and a real database."""

import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone

import pytest
from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    DagsterInstance,
    DefaultSensorStatus,
    Definitions,
    RunRequest,
    SensorResult,
    build_sensor_context,
)

from calc_analytics.archive.erasing import erase_archived
from calc_analytics.archive.writing import archive
from calc_analytics.config import Settings
from calc_analytics.days import days_between, parse_day, today_and_yesterday
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.orchestration import events, run_requests, sensors
from calc_analytics.orchestration.checks import check_keys
from calc_analytics.orchestration.cursor import CheckRequest, Cursor, UnreportedRows
from calc_analytics.orchestration.names import ARCHIVE
from calc_analytics.orchestration.partitions import daily_partitions
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup import journal, ledger
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.erasure import erase
from calc_analytics.rollup.follow import FollowReport
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.archives import archive_in
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import execute, oracle, row, stored, utc, write

IDLE = Cursor().text()
OLD = date(2026, 3, 1)


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "FOLLOW_SECONDS", 0.6)


def tick(location: Definitions, instance: DagsterInstance, cursor: str | None = IDLE) -> SensorResult:
    """One evaluation of the sensor's function."""
    sensor = location.resolve_sensor_def("new_log_batches")
    context = build_sensor_context(instance=instance, cursor=cursor, sensor_name=sensor.name, definitions=location)
    with context:
        return sensor(context, database=RollupDatabase())


SUMMARY = AssetKey("publisher_usage_summary")


def days_of(request: RunRequest) -> list[date]:
    """The days that the requested run is for."""
    tags = request.tags
    first = request.partition_key or tags["dagster/asset_partition_range_start"]
    return days_between(parse_day(first), parse_day(tags.get("dagster/asset_partition_range_end", first)))


def names(request: RunRequest) -> list[str]:
    """The rollups that the requested run rebuilds."""
    return [key.to_user_string() for key in request.asset_selection if key != SUMMARY]


def later(cursor: str, seconds: float) -> str:
    """The cursor as if that time had passed since it was written."""
    old = Cursor.parse(cursor)
    return replace(
        old,
        rebuild_requested_at={day: at - seconds for day, at in old.rebuild_requested_at.items()},
        checks_requested={day: replace(each, at=each.at - seconds) for day, each in old.checks_requested.items()},
        reported_at={day: at - seconds for day, at in old.reported_at.items()},
    ).text()


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


OF_VERSION_0_1 = '{"asked": {}, "told_at": 0.0, "untold": {}, "untold_seconds": 0.0, "built_by_others_until": null}'


@pytest.mark.parametrize("cursor", [None, "", "yesterday", "[]", '{"unreported": 3}', OF_VERSION_0_1])
def test_a_first_start_requests_one_run_of_all_rollups_for_today_and_yesterday(location, instance, cursor):
    result = tick(location, instance, cursor)
    (request,) = result.run_requests
    assert days_of(request) == today_and_yesterday("UTC")
    assert names(request) == LOG.names
    assert request.run_config == {"ops": {"rebuild": {"config": {"automatic": True}}}}
    assert Cursor.parse(result.cursor) is not None


def test_a_cursor_is_read_as_it_was_written():
    day, name = str(OLD), "calculation_stats_hourly"
    cursor = Cursor(
        rebuild_requested_at={day: 1e9},
        rebuild_requests={day: 2},
        checks_requested={day: CheckRequest(1e9, 5, [name], [])},
        different={day: [name]},
        unreported={day: UnreportedRows(3, 0.5)},
        built_elsewhere={day: {name: None}},
        reported_at={day: 1e9},
        unobserved_rows=7,
        built_elsewhere_until="2026-03-01T05:00:00+00:00",
        archived_elsewhere_until="2026-03-01T05:00:00+00:00",
        looked_for_wiped_at=1e9,
    )
    assert Cursor.parse(cursor.text()) == cursor


def test_a_cursor_is_for_people_too():
    """Instants are ISO 8601, empty fields are left out, and each entry has a line of its own."""
    assert Cursor().text() == "{}"
    text = Cursor(reported_at={str(OLD): utc(2026, 3, 1, 5).timestamp()}, unobserved_rows=7).text()
    assert text.splitlines() == [
        "{",
        ' "reported_at": {',
        '  "2026-03-01": "2026-03-01T05:00:00.000+00:00"',
        " },",
        ' "unobserved_rows": 7',
        "}",
    ]


def test_a_batch_is_counted_in_place_and_reported_once_per_day(location, instance, db, connect, monkeypatch):
    monkeypatch.setattr(sensors, "FOLLOW_SECONDS", 6.0)
    rebuild(db, [OLD, today()])
    writer = connect()
    write(writer, [row(now(), publisher=n, cache_hit=True) for n in range(6)])
    more = threading.Timer(0.4, write, (writer, [row(now()), row(utc(2026, 3, 1, 5))]))
    more.start()
    result = tick(location, instance)
    more.join()
    assert result.run_requests == []
    assert stored(db) == oracle(db)
    reported_events = {
        (event.asset_key.to_user_string(), event.partition): event for event in of(result, AssetMaterialization)
    }
    assert set(reported_events) == {(name, str(day)) for name in LOG.names for day in (OLD, today())}
    for name in LOG.names:
        assert reported_events[name, str(today())].metadata["rows_counted"].value == 7
    reported_events = {
        day: event for (name, day), event in reported_events.items() if name == "calculation_stats_daily"
    }
    figures = {key: value.value for key, value in reported_events[str(today())].metadata.items()}
    assert (figures["total_calculations"], figures["rows_counted"], figures["publishers"], figures["cache_hits"]) == (
        7,
        7,
        6,
        6,
    )
    assert figures["duration_seconds"] > 0
    assert "publisher_id" in figures["top_publishers"]
    (observation,) = of(result, AssetObservation)
    assert observation.metadata["rows_counted"].value == 8
    assert len(result.asset_events) == 2 * len(LOG.names) + 1, "checks are evaluated in runs"


def test_days_that_are_not_on_record_are_found_and_their_rebuild_is_requested(location, instance, db, connect):
    rebuild(db, [OLD])
    write(connect(), [row(utc(2026, 3, 5, 12))] * 3)
    execute(db, "update calculation_logs set xact_id = null")
    first = tick(location, instance)
    sensors._patrol(RollupDatabase().db).wait(30)
    second = tick(location, instance, first.cursor)
    requests = [*first.run_requests, *second.run_requests]
    assert [days_of(request) for request in requests] == [[date(2026, 3, 5)]]
    assert sorted(names(requests[0])) == sorted(LOG.names)


def test_under_steady_load_events_report_today_every_two_minutes(location, instance, db, connect):
    rebuild(db, [today()])
    write(connect(), [row(now())] * 3)
    first = tick(location, instance)
    write(connect(), [row(now())] * 4)
    second = tick(location, instance, first.cursor)
    assert stored(db) == oracle(db)
    assert second.asset_events == []
    assert Cursor.parse(second.cursor).unreported[str(today())].rows == 4
    third = tick(location, instance, later(second.cursor, events.TODAY_SECONDS))
    assert {event.metadata["rows_counted"].value for event in of(third, AssetMaterialization)} == {4}
    (observation,) = of(third, AssetObservation)
    assert observation.metadata["rows_counted"].value == 4


def test_an_hour_of_steady_load_stores_fewer_than_400_rows_of_the_event_log(
    location, stored_instance, db, connect, monkeypatch
):
    """Today, and late rows for the two days before, all the time; ticks every ten seconds; two hourly runs."""
    days = [today() - timedelta(days=n) for n in range(3)]
    write(connect(), [row(utc(day.year, day.month, day.day)) for day in days])
    rebuild(db, days)
    cursor, at, reported = Cursor(built_elsewhere_until=now().isoformat()), time.time(), []
    partitions = daily_partitions(Settings.from_environment())
    with monkeypatch.context() as patch:
        for seconds in range(0, 3600, 10):
            patch.setattr(events.time, "time", lambda seconds=seconds: at + seconds)
            followed = FollowReport(dict.fromkeys(days, 5), refreshes=1, seconds=0.01)
            new, cursor = events.report_days(db, followed, {}, cursor, partitions)
            reported += new
    assert rows_counted(reported) + sum(each.rows for each in cursor.unreported.values()) == 360 * 5 * 3
    job = location.resolve_job_def("rollup_job")
    runs = [job.execute_in_process(instance=stored_instance, partition_key=str(day)) for day in days[:2]]
    of_runs = sum(len(stored_instance.all_logs(run.run_id)) for run in runs)
    # The daemon, which is not here, adds the events of queueing and launching.
    assert len(reported) + of_runs + len(runs) * 8 < 400, (len(reported), of_runs)


def rows_counted(reported: list) -> int:
    """The rows that these events report of the table of publishers."""
    reported_events = [event for event in reported if event.asset_key == AssetKey("calculation_stats_daily")]
    return sum(event.metadata["rows_counted"].value for event in reported_events)


def test_an_idle_tick_says_what_it_compared(location, instance, db):
    result = tick(location, instance)
    assert (result.asset_events, result.run_requests) == ([], [])
    assert "compared the logs with the stored snapshot" in result.skip_reason.skip_message


def test_a_day_that_was_never_built_is_requested_once_in_five_minutes(location, instance, db, connect):
    writer = connect()
    write(writer, [row(utc(2026, 3, 1, 5))])
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    write(writer, [row(utc(2026, 3, 1, 6)), row(utc(1999, 1, 1))])
    first = tick(location, instance)
    assert [(days_of(request), names(request)) for request in first.run_requests] == [([OLD], LOG.names)]
    second = tick(location, instance, first.cursor)
    assert second.run_requests == []
    overdue = later(second.cursor, run_requests.REQUEST_AGAIN_SECONDS)
    assert [days_of(request) for request in tick(location, instance, overdue).run_requests] == [[OLD]]
    rebuild(db, [OLD])
    assert tick(location, instance, overdue).run_requests == []


def test_each_further_request_of_a_rebuild_waits_twice_as_long_up_to_an_hour(location, instance, db, connect):
    writer = connect()
    write(writer, [row(utc(2026, 3, 1, 5))])
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    cursor = tick(location, instance).cursor
    for minutes in (5, 10, 20, 40, 60, 60):
        early = tick(location, instance, later(cursor, 60 * minutes - 30))
        assert early.run_requests == []
        due = tick(location, instance, later(early.cursor, 30))
        assert [days_of(request) for request in due.run_requests] == [[OLD]]
        cursor = due.cursor


def test_consecutive_days_that_wait_are_one_run_of_the_rollups_that_wait(location, instance, db, connect):
    days = days_between(OLD, OLD + timedelta(days=4))
    write(connect(), [row(utc(2026, 3, day.day, 5)) for day in days])
    rebuild(db, days)
    statement = "update rollup_days set status = 'stale' where rollup = '{}' and date <> '2026-03-03'"
    execute(db, statement.format("calculation_stats_hourly"))
    requests = tick(location, instance).run_requests
    assert [(days_of(each), names(each)) for each in requests] == [
        (days[:2], ["calculation_stats_hourly"]),
        (days[3:], ["calculation_stats_hourly"]),
    ]
    assert [SUMMARY in each.asset_selection for each in requests] == [False, True], "the run of the newest days"
    for request in requests:
        job = location.resolve_job_def("rollup_job").get_subset(asset_selection=set(request.asset_selection))
        done = job.execute_in_process(instance=instance, tags=dict(request.tags), run_config=request.run_config)
        assert done.success
    assert ledger.waiting_days(db) == []


def test_rows_outside_the_partitions_are_counted_without_an_event(location, instance, db, connect):
    write(connect(), [row(utc(1999, 1, 1)), row(now() + timedelta(days=400))])
    result = tick(location, instance)
    assert stored(db) == oracle(db)
    assert of(result, AssetMaterialization) == []
    assert result.run_requests == []


def test_days_built_on_the_command_line_are_reported_once(location, instance, db, connect):
    write(connect(), [row(utc(2026, 3, 1, 5))] * 5)
    rebuild(db, [OLD])
    result = tick(location, instance)
    reported = {event.asset_key.to_user_string(): event for event in of(result, AssetMaterialization)}
    assert {(name, event.partition) for name, event in reported.items()} == {(name, str(OLD)) for name in LOG.names}
    (entry,) = [each for each in journal.history(db) if each.operation == "rebuild"]
    for event in reported.values():
        assert event.metadata["duration_seconds"].value == round(entry.seconds, 4) > 0
        assert "rows_counted" not in event.metadata
    assert tick(location, instance, later(result.cursor, 3600)).asset_events == []


def test_days_archived_on_the_command_line_are_reported_once_and_again_after_an_erasure(
    location, instance, db, connect, tmp_path, monkeypatch
):
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    write(connect(), [row(utc(2026, 3, 1, 5), publisher=publisher) for publisher in (1, 1, 2)])
    rebuild(db, [OLD])
    place = archive_in(db, tmp_path)
    archive(place)
    cursor: str | None = IDLE

    def reported() -> list[tuple[str | None, int]]:
        nonlocal cursor
        result = tick(location, instance, cursor)
        cursor = result.cursor
        of_archive = [each for each in of(result, AssetMaterialization) if each.asset_key == AssetKey(ARCHIVE)]
        return [(each.partition, each.metadata["rows"].value) for each in of_archive]

    assert reported() == [], "without ARCHIVE_URL there is no such asset"
    monkeypatch.setenv("ARCHIVE_URL", str(tmp_path))
    assert reported() == [(str(OLD), 3)]
    assert reported() == []
    erase(db, {"publisher_id": 1})
    erase_archived(place, {"publisher_id": 1})
    assert reported() == [(str(OLD), 1)]
    execute(db, "update rollup_archive set archived_by = 'calc_analytics dagster', archived_at = clock_timestamp()")
    assert reported() == [], "a run has reported it"


def spoil(db, day: date) -> None:
    changed = "total_calculations = total_calculations + 1000"
    execute(db, f"update calculation_stats_daily set {changed} where date = '{day}'")


def test_a_day_that_differs_gets_one_run_of_its_checks_and_another_when_it_is_right_again(
    location, instance, db, connect
):
    write(connect(), [row(utc(2026, 3, 1, 5), publisher=7)] * 5)
    rebuild(db, [OLD])
    spoil(db, OLD)
    audit(db)
    first = tick(location, instance)
    (request,) = first.run_requests
    assert (request.partition_key, list(request.asset_selection)) == (str(OLD), [])
    assert set(request.asset_check_keys) == set(check_keys(LOG, ["calculation_stats_daily"]))
    assert tick(location, instance, first.cursor).run_requests == [], "the run is given time"
    overdue = later(first.cursor, run_requests.REQUEST_AGAIN_SECONDS)
    assert len(tick(location, instance, overdue).run_requests) == 1, "it never came"
    run_checks(location, instance, request)
    second = tick(location, instance, overdue)
    assert second.run_requests == []
    assert Cursor.parse(second.cursor).different == {str(OLD): ["calculation_stats_daily"]}
    rebuild(db, [OLD])
    third = tick(location, instance, second.cursor)
    (request,) = third.run_requests
    run_checks(location, instance, request)
    fourth = tick(location, instance, later(third.cursor, 3600))
    assert fourth.run_requests == []
    assert Cursor.parse(fourth.cursor).different == {}


def test_a_day_that_is_right_again_before_the_next_tick_gets_another_run_of_its_checks(location, instance, db, connect):
    write(connect(), [row(utc(2026, 3, 1, 5), publisher=7)] * 5)
    rebuild(db, [OLD])
    spoil(db, OLD)
    audit(db)
    first = tick(location, instance)
    run_checks(location, instance, first.run_requests[0])
    rebuild(db, [OLD])
    second = tick(location, instance, first.cursor)
    (request,) = second.run_requests
    assert set(request.asset_check_keys) == set(check_keys(LOG, ["calculation_stats_daily"]))
    run_checks(location, instance, request)
    third = tick(location, instance, second.cursor)
    assert third.run_requests == []
    assert (Cursor.parse(third.cursor).different, Cursor.parse(third.cursor).checks_requested) == ({}, {})


def run_checks(location: Definitions, instance: DagsterInstance, request: RunRequest) -> None:
    """The requested run of checks."""
    job = location.resolve_job_def("rollup_job").get_subset(
        asset_selection=set(), asset_check_selection=set(request.asset_check_keys)
    )
    target = {"partition_key": request.partition_key} if request.partition_key else {"tags": dict(request.tags)}
    assert job.execute_in_process(instance=instance, **target).success


def test_consecutive_days_that_differ_are_one_run_of_checks(location, instance, db, connect):
    days = days_between(OLD, OLD + timedelta(days=4))
    write(connect(), [row(utc(2026, 3, day.day, 5)) for day in days])
    rebuild(db, days)
    execute(db, "update calculation_stats_daily set total_calculations = 0")
    audit(db)
    first = tick(location, instance)
    (request,) = first.run_requests
    assert days_of(request) == days
    run_checks(location, instance, request)
    assert tick(location, instance, later(first.cursor, 3600)).run_requests == []


def test_a_difference_that_a_run_has_reported_needs_no_run_of_checks(location, instance, db, connect):
    write(connect(), [row(utc(2026, 3, 1, 5))] * 5)
    rebuild(db, [OLD])
    execute(db, "delete from calculation_logs")
    job = location.resolve_job_def("rollup_job")
    config = {"ops": {"rebuild": {"config": {"automatic": True}}}}
    assert job.execute_in_process(instance=instance, partition_key=str(OLD), run_config=config).success
    result = tick(location, instance)
    assert result.run_requests == []
    assert Cursor.parse(result.cursor).different == {str(OLD): sorted(LOG.names)}


def test_a_day_that_differs_is_not_materialized_until_it_is_right_again(location, instance, db, connect):
    """A newer materialization would hide that its check failed."""
    rebuild(db, [today()])
    execute(db, "insert into calculation_stats_daily values (9, current_date, 5, 9, 0, 0, 0, 0)")
    write(connect(), [row(now())] * 2)
    audit(db)
    first = tick(location, instance)
    assert of(first, AssetMaterialization) == []
    execute(db, "delete from calculation_stats_daily where publisher_id = 9")
    verify(db, [today()])
    second = tick(location, instance, first.cursor)
    assert {event.metadata["rows_counted"].value for event in of(second, AssetMaterialization)} == {2}


def test_the_patrol_finds_changed_statistics_while_the_tick_follows(location, instance, db, connect):
    write(connect(), [row(now())] * 2)
    rebuild(db, [today()])
    spoil(db, today())
    first = tick(location, instance)
    sensors._patrol(RollupDatabase().db).wait(30)
    (request,) = [*first.run_requests, *tick(location, instance, first.cursor).run_requests]
    assert request.partition_key == str(today())


def test_an_error_of_the_patrol_is_in_the_journal_and_keeps_no_row_from_being_counted(
    location, instance, db, connect, monkeypatch
):
    def fail(*arguments: object) -> None:
        raise CalcAnalyticsError("the audit found no table")

    tick(location, instance)
    write(connect(), [row(now())])
    with monkeypatch.context() as patch:
        patch.setattr("calc_analytics.rollup.patrol.audit", fail)
        sensors._patrol(RollupDatabase().db)._audit_at = 0.0
        tick(location, instance)
        sensors._patrol(RollupDatabase().db).wait(30)
    failed = [entry for entry in journal.history(db) if entry.failed]
    assert [(entry.operation, entry.detail) for entry in failed] == [("audit", "the audit found no table")]
    assert [sums[0] for sums in stored(db).values()] == [1]


def test_bursts_are_coalesced_by_the_debounce(database, location, instance, db, connect, monkeypatch):
    monkeypatch.setenv("ROLLUP_DEBOUNCE_SECONDS", "0.5")
    rebuild(db, [today()])
    writer, over = connect(), threading.Event()

    def burst() -> None:
        while not over.wait(0.01):
            write(writer, [row(now())])

    thread = threading.Thread(target=burst)
    thread.start()
    result = tick(location, instance)
    over.set()
    thread.join()
    refreshes = int(result.skip_reason.skip_message.split(" refresh")[0].split()[-1])
    assert 1 <= refreshes <= 5


def test_the_follower_bridges_the_time_to_the_next_tick(location, instance, db, connect):
    rebuild(db, [today()])
    first = tick(location, instance)
    write(connect(), [row(now())] * 3)
    deadline = time.monotonic() + 60
    while stored(db) != oracle(db):
        assert time.monotonic() < deadline
    reported_events = of(tick(location, instance, later(first.cursor, events.TODAY_SECONDS)), AssetMaterialization)
    assert [event.metadata["rows_counted"].value for event in reported_events] == [3] * len(LOG.names)


def test_a_tick_ends_immediately_when_the_server_stops(location, instance, monkeypatch):
    monkeypatch.setattr(sensors, "FOLLOW_SECONDS", 60.0)
    stop = threading.Timer(0.3, sensors.stopping.set)
    stop.start()
    started = time.monotonic()
    tick(location, instance)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("at", [utc(1, 1, 3), utc(9999, 12, 29, 23)])
def test_a_row_at_an_end_of_the_calendar_stops_no_tick(location, instance, db, connect, at):
    rebuild(db, [today()])
    write(connect(), [row(at), row(now())])
    result = tick(location, instance)
    assert {event.partition for event in of(result, AssetMaterialization)} == {str(today())}


def test_a_failed_tick_is_an_error_of_one_line_and_never_a_skip(location, instance, db, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/db")
    with pytest.raises(CalcAnalyticsError, match="cannot connect") as raised:
        tick(location, instance)
    assert "hunter2" not in str(raised.value)


def test_after_an_error_the_next_tick_goes_on(location, instance, db, connect):
    rebuild(db, [today()])
    execute(db, "alter table calculation_logs rename column source to origin")
    write_raw = (
        "insert into calculation_logs (publisher_id, locality_id, date_calculated, origin) values (1, 1, now(), 1)"
    )
    execute(db, write_raw)
    with pytest.raises(CalcAnalyticsError, match="migrate"):
        tick(location, instance)
    execute(db, "alter table calculation_logs rename column origin to source")
    sensors._patrol(RollupDatabase().db).wait(30)
    with suppress(CalcAnalyticsError):  # what the patrol met in the meantime, once
        tick(location, instance)
    tick(location, instance)
    assert stored(db) == oracle(db)
