"""Random logs against pandas: refresh after refresh equals rebuild equals the oracle, in several time zones."""

import random
from collections.abc import Callable
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg
import pytest
from sqlalchemy.engine import URL, Engine

from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.logs import live, oracle, random_rows, row, stored, utc, write


def test_refresh_after_refresh_equals_rebuild_equals_pandas(engine, connect):
    rng, writer = random.Random(7), connect()
    days = [date(2026, 3, 1) + timedelta(days=n) for n in range(5)]
    rebuild(engine, ROLLUP, "UTC", days)
    for _ in range(20):
        write(writer, random_rows(rng, 50, utc(2026, 3, 1), utc(2026, 3, 6)))
        assert live(engine) == oracle(engine)
        refresh(engine, ROLLUP, "UTC")
        assert stored(engine) == live(engine) == oracle(engine)
    refreshed = stored(engine)
    rebuild(engine, ROLLUP, "UTC", days)
    assert stored(engine) == refreshed
    assert verify(engine, ROLLUP, "UTC", days).difference == 0


# The middle day of each is one on which the clocks change.
CHANGES = [
    ("Asia/Jerusalem", date(2026, 3, 27)),
    ("Asia/Jerusalem", date(2026, 10, 25)),
    ("America/New_York", date(2026, 11, 1)),
    ("Asia/Kathmandu", date(2026, 11, 1)),
    ("America/Havana", date(2026, 11, 1)),  # 1:00 becomes 0:00: midnight happens twice
    ("America/Havana", date(2026, 3, 8)),  # 0:00 becomes 1:00: midnight does not happen
    ("America/St_Johns", date(2006, 10, 29)),  # 0:01 becomes 23:01 of the day before: the day begins twice
    ("Pacific/Apia", date(2011, 12, 30)),  # the day does not happen
]


@pytest.fixture
def in_zone(empty_url: URL) -> Callable[[str], Engine]:
    """Installs a database whose reporting time zone is given."""

    def installed(zone: str) -> Engine:
        engine = engine_for(empty_url)
        install(engine, zone)
        return engine

    return installed


@pytest.mark.parametrize(("zone", "day"), CHANGES, ids=lambda value: str(value))
def test_days_on_which_the_clocks_change_equal_pandas(in_zone, empty_url, zone: str, day: date):
    engine, rng = in_zone(zone), random.Random(3)
    days = [day + timedelta(days=n) for n in range(-2, 3)]
    rebuild(engine, ROLLUP, zone, days)
    begin = datetime(day.year, day.month, day.day, 12, tzinfo=ZoneInfo("UTC")) - timedelta(days=2)
    with psycopg.connect(empty_url.set(drivername="postgresql").render_as_string(hide_password=False)) as writer:
        write(writer, random_rows(rng, 400, begin, begin + timedelta(days=4)))
        write(writer, around_midnights(zone, days))
        refresh(engine, ROLLUP, zone)
        expected = oracle(engine, zone)
        assert stored(engine) == live(engine) == expected
        rebuild(engine, ROLLUP, zone, days)
        assert stored(engine) == expected
        assert verify(engine, ROLLUP, zone, days).difference == 0
        write(writer, around_midnights(zone, days))
        assert live(engine) == oracle(engine, zone)
    engine.dispose()


def around_midnights(zone: str, days: list[date]) -> list:
    """Rows at each day's first instant and just around it, and through the hours in which clocks change."""
    rows = []
    for day in days:
        midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(ZoneInfo("UTC"))
        offsets = [timedelta(microseconds=n) for n in (-1, 0, 1)]
        offsets += [timedelta(minutes=n) for n in range(-200, 201, 7)]
        rows += [row(midnight + offset) for offset in offsets]
    return rows
