"""What makes the stored snapshot meaningless is refused, with nothing written, and `rebase` is the way on."""

import random
import threading
from datetime import date

import pytest
from sqlalchemy import text

from calc_analytics.database.engine import DatabaseTrouble
from calc_analytics.days import days_between
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.state import ClusterChanged, NotInstalled, TimezoneChanged
from calc_analytics.rollup.verify import verify, waiting_days
from calc_analytics_tests.logs import execute, live, oracle, random_rows, row, stored, utc, write

DAY = date(2026, 3, 1)
LATE = utc(2026, 3, 1, 23)
OPERATIONS = {
    "refresh": lambda engine, zone: refresh(engine, ROLLUP, zone),
    "rebuild": lambda engine, zone: rebuild(engine, ROLLUP, zone, [DAY]),
    "verify": lambda engine, zone: verify(engine, ROLLUP, zone, [DAY]),
}
TROUBLES = {
    "another cluster": (ClusterChanged, "update rollup_state set system_identifier = 7", "UTC", "rebase"),
    "another time zone": (TimezoneChanged, "select 1", "Asia/Jerusalem", "ROLLUP_TIMEZONE"),
    "no state": (NotInstalled, "delete from rollup_state", "UTC", "migrate"),
}


@pytest.fixture
def counted(owner, connect):
    """A built day of ten rows, and five rows that are not counted yet."""
    writer = connect()
    rebuild(owner, ROLLUP, "UTC", [DAY])
    write(writer, [row(LATE)] * 10)
    refresh(owner, ROLLUP, "UTC")
    write(writer, [row(LATE)] * 5)
    return owner


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_it_is_refused_in_one_line_and_nothing_is_written(counted, operation: str, trouble: str):
    error, cause, zone, way_on = TROUBLES[trouble]
    with counted.begin() as connection:
        connection.execute(text(cause))
    before = stored(counted)
    with pytest.raises(error) as raised:
        OPERATIONS[operation](counted, zone)
    assert isinstance(raised.value, CalcAnalyticsError)
    assert "\n" not in str(raised.value)
    assert way_on in str(raised.value)
    assert stored(counted) == before


def test_after_a_restore_into_another_cluster_rebase_counts_afresh(counted, connect):
    with counted.begin() as connection:
        connection.execute(text("update rollup_state set system_identifier = 7, snapshot = '900000:900000:'"))
    rebase(counted, "UTC")
    assert waiting_days(counted, ROLLUP) == [DAY]
    assert sum(measures[0] for measures in stored(counted).values()) == 10
    rebuild(counted, ROLLUP, "UTC", [DAY])
    write(connect(), [row(LATE)] * 2)
    refresh(counted, ROLLUP, "UTC")
    assert stored(counted) == live(counted) == oracle(counted)


def test_rebase_leaves_other_peoples_views_alone_and_says_so(counted):
    execute(counted, "create view theirs as select * from calculation_logs")
    with pytest.raises(DatabaseTrouble, match="other objects depend on it"):
        rebase(counted, "UTC")
    assert live(counted) == oracle(counted)


def test_rows_written_between_rebase_and_rebuild_are_counted_once(counted, connect):
    rebase(counted, "UTC")
    write(connect(), [row(LATE)] * 2)
    refresh(counted, ROLLUP, "UTC")
    rebuild(counted, ROLLUP, "UTC", [DAY])
    refresh(counted, ROLLUP, "UTC")
    assert stored(counted) == live(counted) == oracle(counted)


def test_a_new_time_zone_moves_rows_to_their_new_days(counted):
    rebase(counted, "Asia/Jerusalem")
    rebuild(counted, ROLLUP, "Asia/Jerusalem", [DAY, date(2026, 3, 2)], allow_shrink=True)
    assert {day for _, day in stored(counted)} == {date(2026, 3, 2)}
    assert stored(counted) == oracle(counted, "Asia/Jerusalem")


@pytest.mark.parametrize("zone", ["America/Havana", "Australia/Lord_Howe", "Pacific/Apia"])
def test_a_new_time_zone_needs_no_leave_to_shrink_and_loses_no_row(owner, connect, zone: str):
    days = days_between(date(2026, 2, 20), date(2026, 3, 20))
    rows = random_rows(random.Random(7), 3_000, utc(2026, 2, 20), utc(2026, 3, 21))
    write(connect(), rows)
    rebuild(owner, ROLLUP, "UTC", days)
    rebase(owner, zone)
    report = rebuild(owner, ROLLUP, zone, waiting_days(owner, ROLLUP))
    assert report.shrunk == []
    assert report.rows == len(rows)
    assert stored(owner) == live(owner) == oracle(owner, zone)


def test_a_new_time_zone_does_not_replace_a_day_whose_logs_were_deleted(counted):
    with counted.begin() as connection:
        connection.execute(text("delete from calculation_logs where id % 2 = 0"))
    before = stored(counted)
    rebase(counted, "Asia/Jerusalem")
    (shrunk,) = rebuild(counted, ROLLUP, "Asia/Jerusalem", [DAY]).shrunk
    assert shrunk.counted_rows == 10
    assert stored(counted) == before


def test_rebase_and_refreshes_at_once_wait_for_each_other(counted, connect):
    over, errors = threading.Event(), []

    def work(operation) -> None:
        writer = connect()
        while not over.is_set():
            write(writer, [row(LATE)])
            try:
                operation()
            except Exception as error:
                errors.append(error)

    operations = [
        lambda: refresh(counted, ROLLUP, "UTC"),
        lambda: rebuild(counted, ROLLUP, "UTC", [DAY]),
    ]
    threads = [threading.Thread(target=work, args=(operation,)) for operation in operations]
    for thread in threads:
        thread.start()
    for _ in range(5):
        rebase(counted, "UTC")
    over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    rebuild(counted, ROLLUP, "UTC", [DAY])
    assert stored(counted) == live(counted) == oracle(counted)


def test_install_keeps_the_state_that_is_there(counted):
    before = stored(counted)
    install(counted, "UTC")
    assert stored(counted) == before
    assert refresh(counted, ROLLUP, "UTC").rows == 5
    assert stored(counted) == oracle(counted)
