"""What makes the stored snapshot meaningless is refused, with nothing written, and `rebase` is the way on."""

import random
import threading
from dataclasses import replace
from datetime import date

import pytest
from sqlalchemy import text

from calc_analytics.database.errors import DatabaseError
from calc_analytics.days import days_between
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import ClusterChanged, NotInstalled, RollupsChanged, TimezoneChanged, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.logs import (
    FORMS,
    all_stored,
    assert_exact,
    assert_live,
    execute,
    random_rows,
    row,
    stored,
    utc,
    write,
)

DAY = date(2026, 3, 1)
LATE = utc(2026, 3, 1, 23)
OPERATIONS = {
    "refresh": lambda db: refresh(db),
    "rebuild": lambda db: rebuild(db, [DAY]),
    "verify": lambda db: verify(db, [DAY]),
    "audit": lambda db: audit(db),
    "prune": lambda db: prune(db, date(2026, 3, 2)),
}
PROBLEMS = {
    "another cluster": (ClusterChanged, "update rollup_state set system_identifier = 7", "UTC", "rebase"),
    "another time zone": (TimezoneChanged, "select 1", "Asia/Jerusalem", "ROLLUP_TIMEZONE"),
    "other rollups": (RollupsChanged, "update rollup_state set rollups = rollups[1:2]", "UTC", "ROLLUPS"),
    "no state": (NotInstalled, "delete from rollup_state", "UTC", "migrate"),
}


@pytest.fixture
def counted(owner, connect) -> Database:
    """A built day of ten rows, and five rows that are not counted yet."""
    db, writer = Database(owner, LOG, "UTC"), connect()
    rebuild(db, [DAY])
    write(writer, [row(LATE)] * 10)
    refresh(db)
    write(writer, [row(LATE)] * 5)
    return db


def moved_to(zone: str, db: Database) -> Database:
    """The database after a rebase to another reporting time zone."""
    moved = replace(db, timezone=zone)
    rebase(moved)
    return moved


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_it_is_refused_in_one_line_and_nothing_is_written(counted, operation: str, problem: str):
    error, cause, zone, way_on = PROBLEMS[problem]
    with counted.engine.begin() as connection:
        connection.execute(text(cause))
    before = all_stored(counted)
    with pytest.raises(error) as raised:
        OPERATIONS[operation](replace(counted, timezone=zone))
    assert isinstance(raised.value, CalcAnalyticsError)
    assert "\n" not in str(raised.value)
    assert way_on in str(raised.value)
    assert all_stored(counted) == before


def test_after_a_restore_into_another_cluster_rebase_counts_afresh(counted, connect):
    with counted.engine.begin() as connection:
        connection.execute(text("update rollup_state set system_identifier = 7, snapshot = '900000:900000:'"))
    rebase(counted)
    assert waiting_days(counted) == [DAY]
    assert sum(measures[0] for measures in stored(counted).values()) == 10
    rebuild(counted, [DAY])
    write(connect(), [row(LATE)] * 2)
    refresh(counted)
    assert_exact(counted)


def test_rebase_leaves_foreign_views_unchanged_and_reports_them(counted):
    execute(counted, "create view theirs as select * from calculation_logs")
    with pytest.raises(DatabaseError, match="other objects depend on it"):
        rebase(counted)
    assert_live(counted)


def test_rows_written_between_rebase_and_rebuild_are_counted_once(counted, connect):
    rebase(counted)
    write(connect(), [row(LATE)] * 2)
    refresh(counted)
    rebuild(counted, [DAY])
    refresh(counted)
    assert_exact(counted)


def test_a_new_time_zone_moves_rows_to_their_new_days(counted):
    moved = moved_to("Asia/Jerusalem", counted)
    rebuild(moved, [DAY, date(2026, 3, 2)], decision=Decision.ALLOW_SHRINK)
    assert {day for _, day in stored(moved)} == {date(2026, 3, 2)}
    assert_exact(moved)


@pytest.mark.parametrize("zone", ["America/Havana", "Australia/Lord_Howe", "Pacific/Apia"])
def test_a_new_time_zone_needs_no_leave_to_shrink_and_loses_no_row(owner, connect, zone: str):
    days = days_between(date(2026, 2, 20), date(2026, 3, 20))
    rows = random_rows(random.Random(7), 3_000, utc(2026, 2, 20), utc(2026, 3, 21))
    write(connect(), rows)
    db = Database(owner, LOG, "UTC")
    rebuild(db, days)
    moved = moved_to(zone, db)
    report = rebuild(moved, waiting_days(moved))
    assert report.refused == []
    assert report.rows == len(rows)
    assert_exact(moved)


def test_a_new_time_zone_does_not_replace_a_day_whose_logs_were_deleted(counted):
    with counted.engine.begin() as connection:
        connection.execute(text("delete from calculation_logs where id % 2 = 0"))
    before = all_stored(counted)
    refused = rebuild(moved_to("Asia/Jerusalem", counted), [DAY]).refused
    assert {each.rollup for each in refused} == set(FORMS)
    assert {(each.reason, each.counted_rows) for each in refused} == {("differs", 10)}
    assert all_stored(counted) == before


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
        lambda: refresh(counted),
        lambda: rebuild(counted, [DAY]),
    ]
    threads = [threading.Thread(target=work, args=(operation,)) for operation in operations]
    for thread in threads:
        thread.start()
    for _ in range(5):
        rebase(counted)
    over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    rebuild(counted, [DAY])
    assert_exact(counted)


def test_install_keeps_the_state_that_is_there(counted):
    before = all_stored(counted)
    install(counted)
    assert all_stored(counted) == before
    assert refresh(counted).rows == 5
    assert_exact(counted)
