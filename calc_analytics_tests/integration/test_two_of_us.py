"""Two daemons on one storage are reported; days that were wiped in Dagster are reported to it again."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from dagster import AssetKey, AssetMaterialization, DagsterInstance, Definitions, build_sensor_context
from dagster._daemon.types import DaemonHeartbeat
from sqlalchemy.engine import URL

from calc_analytics.cli.main import main
from calc_analytics.config import Settings
from calc_analytics.database.engine import engine_for
from calc_analytics.operations.daemons import HeartbeatIds
from calc_analytics.orchestration import history, sensors, wiped
from calc_analytics.orchestration.cursor import Cursor
from calc_analytics.orchestration.history import Heartbeat
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollups import LOG
from calc_analytics_tests.integration.test_service import Served, serving
from calc_analytics_tests.logs import execute, row, write

SENSOR = "SENSOR"
TODAY = datetime.now(timezone.utc).date()
DAYS = [TODAY - timedelta(days=n) for n in range(3)]


@pytest.fixture
def dagster(stored_instance: DagsterInstance, dagster_url: URL, tmp_path: Path, monkeypatch) -> Iterator[URL]:
    """Dagster's storage, as the service and the commands find it."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", dagster_url.render_as_string(hide_password=False))
    history.instance.cache_clear()
    yield dagster_url
    history.instance.cache_clear()


@pytest.fixture
def served(dagster: URL) -> Iterator[Served]:
    with serving(Settings.from_environment()) as running:
        yield running


def beat(instance: DagsterInstance, daemon_id: str) -> None:
    """What a daemon with that id writes every 30 seconds."""
    for kind in history.NEEDED_DAEMONS:
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), kind, daemon_id, []))


def test_heartbeats_that_take_turns_are_red_and_a_restart_is_not(served: Served, stored_instance: DagsterInstance):
    for daemon_id in ("a", "a", "b", "b", "c"):
        beat(stored_instance, daemon_id)
        assert served.probes()["daemon"]["ok"], "one that was started again has a new id"
    beat(stored_instance, "b")
    probe = served.probes()["daemon"]
    assert (probe["ok"], probe["code"]) == (False, "two_daemons")
    assert probe["compared"] == "two of Dagster's daemons run at once, so ticks and runs are duplicated"
    assert "'dagster dev'" in probe["next_command"]
    assert served.ask("/health/rollup")[0] == 503


def test_it_is_over_some_time_after_one_of_them_ended(monkeypatch: pytest.MonkeyPatch):
    ids, at = HeartbeatIds(), datetime.now(timezone.utc)
    assert [ids.take_turns([Heartbeat(SENSOR, at, True, each)]) for each in "abab"] == [False, False, True, True]
    ids._returned_at = at - timedelta(seconds=200)
    assert not ids.take_turns([Heartbeat(SENSOR, at, True, "b")])
    assert not HeartbeatIds().take_turns([Heartbeat(SENSOR, None, True)])


def test_two_daemons_that_are_connected_are_named_where_only_operators_read(
    served: Served, dagster: URL, stored_instance: DagsterInstance
):
    beat(stored_instance, "a")
    plain = dagster.set(drivername="postgresql").render_as_string(hide_password=False)
    names = ["dagster daemon 4711 on first-machine", "dagster daemon 4712 on second-machine"]
    with psycopg.connect(plain, application_name=names[0]):
        assert served.probes()["daemon"]["ok"]
        with psycopg.connect(plain, application_name=names[1]), psycopg.connect(plain, application_name=names[1]):
            probe = served.probes()["daemon"]
            assert (probe["ok"], probe["code"]) == (False, "two_daemons")
            assert "first-machine" not in str(served.ask("/health/rollup"))
            for command in ("status", "doctor"):
                message = " ".join(CliRunner().invoke(main, [command]).output.split())
                assert ", ".join(names) in message
    assert served.probes()["daemon"]["ok"]


@pytest.fixture
def built(database: URL, db: Database, connect: Callable[[], psycopg.Connection]) -> list[date]:
    """Three days with log rows, built in every rollup."""
    noons = [datetime(day.year, day.month, day.day, tzinfo=timezone.utc) for day in DAYS]
    write(connect(), [row(noon) for noon in noons])
    rebuild(db, DAYS)
    return DAYS


class Sensor:
    """The sensor with its cursor; what a tick reports is stored as the daemon stores it."""

    def __init__(self, location: Definitions, instance: DagsterInstance) -> None:
        self.location, self.instance, self.cursor = location, instance, Cursor().text()

    def tick(self) -> list[tuple[str, str]]:
        """The partitions that one tick reports as materialized, with the names of the rollups."""
        sensor = self.location.resolve_sensor_def("new_log_batches")
        context = build_sensor_context(
            instance=self.instance, cursor=self.cursor, sensor_name=sensor.name, definitions=self.location
        )
        with context:
            result: Any = sensor(context, database=RollupDatabase())
        self.cursor = result.cursor
        found = [event for event in result.asset_events if isinstance(event, AssetMaterialization)]
        for event in found:
            self.instance.report_runless_asset_event(event)
        return sorted((str(event.partition), event.asset_key.to_user_string()) for event in found)

    def tick_a_minute_later(self) -> list[tuple[str, str]]:
        """The same, when days that were wiped are looked for again."""
        before = Cursor.parse(self.cursor)
        assert before
        self.cursor = replace(before, looked_for_wiped_at=before.looked_for_wiped_at - wiped.LOOK_SECONDS).text()
        return self.tick()


@pytest.fixture
def ticking(
    built: list[date], location: Definitions, stored_instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Sensor:
    monkeypatch.setattr(sensors, "FOLLOW_SECONDS", 0.2)
    ticking = Sensor(location, stored_instance)
    assert ticking.tick() == everything(built)
    assert ticking.tick_a_minute_later() == []
    return ticking


def everything(days: list[date]) -> list[tuple[str, str]]:
    return sorted((str(day), name) for day in days for name in LOG.names)


def test_assets_that_were_wiped_are_reported_again(ticking: Sensor, built: list[date], db: Database):
    ticking.instance.wipe_assets([AssetKey(name) for name in LOG.names])
    assert ticking.instance.get_materialized_partitions(AssetKey(LOG.names[0])) == set()
    assert ticking.tick() == [], "looked for once a minute"
    assert ticking.tick_a_minute_later() == everything(built)
    assert ticking.tick_a_minute_later() == []
    for name in LOG.names:
        assert ticking.instance.get_materialized_partitions(AssetKey(name)) == {str(day) for day in built}


def test_so_are_one_asset_and_some_of_its_partitions(ticking: Sensor, built: list[date], dagster_url: URL):
    first, second, *_ = LOG.names
    ticking.instance.wipe_assets([AssetKey(first)])
    engine = engine_for(dagster_url)
    execute(engine, f"delete from event_logs where partition = '{built[1]}' and asset_key = '[\"{second}\"]'")
    engine.dispose()
    expected = sorted([*((str(day), first) for day in built), (str(built[1]), second)])
    assert ticking.tick_a_minute_later() == expected
    assert ticking.tick_a_minute_later() == []


def test_a_day_that_differs_is_not_reported_as_if_it_were_right(ticking: Sensor, built: list[date], db: Database):
    ticking.instance.wipe_assets([AssetKey(name) for name in LOG.names])
    execute(db, f"update rollup_days set difference = 5, finding = 'logs_missing' where date = '{built[2]}'")
    assert ticking.tick_a_minute_later() == everything(built[:2])


def test_many_days_come_back_in_several_ticks(ticking: Sensor, built: list[date], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wiped, "PER_LOOK", 5)
    ticking.instance.wipe_assets([AssetKey(name) for name in LOG.names])
    found = ticking.tick_a_minute_later()
    assert len(found) == 5
    found += [*ticking.tick(), *ticking.tick()]
    assert sorted(found) == everything(built)
