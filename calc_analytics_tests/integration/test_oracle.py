"""Random logs against pandas: refresh after refresh equals rebuild equals the oracle, in several time zones."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg
import pytest
from sqlalchemy.engine import URL

from calc_analytics.database.engine import engine_for
from calc_analytics.days import today
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.ledger import COUNTED, days_by_status
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.logs import (
    FORMS,
    assert_exact,
    assert_live,
    copy_rows,
    random_rows,
    round_down,
    row,
    stored,
    utc,
    write,
)


def test_refresh_after_refresh_equals_rebuild_equals_pandas(db, connect):
    rng, writer = random.Random(7), connect()
    days = [date(2026, 3, 1) + timedelta(days=n) for n in range(5)]
    rebuild(db, days)
    for _ in range(20):
        write(writer, random_rows(rng, 50, utc(2026, 3, 1), utc(2026, 3, 6)))
        assert_live(db)
        refresh(db)
        assert_exact(db)
    rebuild(db, days)
    assert_exact(db)
    assert verify(db, days).different == []


def test_late_rows_slow_writers_and_rebuilds_of_one_rollup_leave_every_rollup_equal_to_pandas(db, connect):
    rng, quick, slow = random.Random(8), connect(), connect()
    days = [date(2026, 3, 1) + timedelta(days=n) for n in range(4)]
    for n in range(12):
        copy_rows(slow, random_rows(rng, 10, utc(2026, 3, 1), utc(2026, 3, 5)))
        write(quick, random_rows(rng, 40, utc(2026, 3, 1), utc(2026, 3, 5)))
        write(quick, random_rows(rng, 5, utc(2025, 1, 1), utc(2025, 12, 31)))
        assert_live(db)
        refresh(db)
        assert_exact(db)
        if n % 3 == 0:
            slow.commit()
            rebuild(db, rng.sample(days, 2), [rng.choice(list(FORMS))])
            assert_exact(db)
    slow.rollback()
    assert verify(db, list(days_by_status(db, COUNTED))).different == []
    assert audit(db).different == []


def test_response_times_are_rounded_down_as_python_does(db, connect):
    """Every value there can be; none becomes lower by more than 1.6 %."""
    times = [None, -32768, -1, *range(32768)]
    write(connect(), [row(utc(2026, 3, 1, 12), response_time_ms=each) for each in times])
    refresh(db)
    expected = Counter(round_down(each) for each in times)
    assert expected[-1] == 3
    assert 0.015 < max((each - round_down(each)) / each for each in range(1, 32768)) < 0.016
    assert {key[2]: sums[0] for key, sums in stored(db, "calculation_latency_daily").items()} == expected
    assert_exact(db)


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
def in_zone(empty_url: URL) -> Iterator[Callable[[str], Database]]:
    """Installs a database whose reporting time zone is given."""
    engine = engine_for(empty_url)

    def installed(zone: str) -> Database:
        db = Database(engine, LOG, zone)
        install(db)
        return db

    yield installed
    engine.dispose()


@pytest.mark.parametrize(("zone", "day"), CHANGES, ids=lambda value: str(value))
def test_days_on_which_the_clocks_change_equal_pandas(in_zone, empty_url, zone: str, day: date):
    db, rng = in_zone(zone), random.Random(3)
    days = [day + timedelta(days=n) for n in range(-2, 3)]
    rebuild(db, days)
    begin = datetime(day.year, day.month, day.day, 12, tzinfo=ZoneInfo("UTC")) - timedelta(days=2)
    with psycopg.connect(empty_url.set(drivername="postgresql").render_as_string(hide_password=False)) as writer:
        write(writer, random_rows(rng, 400, begin, begin + timedelta(days=4)))
        write(writer, around_midnights(zone, days))
        refresh(db)
        assert_exact(db)
        rebuild(db, days)
        assert_exact(db)
        assert verify(db, days).different == []
        write(writer, around_midnights(zone, days))
        assert_live(db)


@pytest.mark.parametrize("zone", ["UTC", "Etc/GMT+12", "Pacific/Kiritimati", "Asia/Kathmandu", "America/Havana"])
def test_yesterday_today_and_tomorrow_equal_pandas(in_zone, empty_url, zone: str):
    db = in_zone(zone)
    days = [today(zone) + timedelta(days=n) for n in (-1, 0, 1, 2)]
    with psycopg.connect(empty_url.set(drivername="postgresql").render_as_string(hide_password=False)) as writer:
        for _ in range(2):
            write(writer, around_midnights(zone, days))
            assert_live(db)
            refresh(db)
            assert_exact(db)
    assert verify(db, list(days_by_status(db, COUNTED))).different == []


def around_midnights(zone: str, days: list[date]) -> list:
    """Rows at each day's first instant and just around it, and through the hours in which clocks change."""
    rows = []
    for day in days:
        midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(ZoneInfo("UTC"))
        offsets = [timedelta(microseconds=n) for n in (-1, 0, 1)]
        offsets += [timedelta(minutes=n) for n in range(-200, 201, 7)]
        rows += [row(midnight + offset) for offset in offsets]
    return rows
