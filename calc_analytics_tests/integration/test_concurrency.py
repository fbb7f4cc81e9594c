"""Exactness with real concurrent transactions: every case of the guarantee, each with its own connections."""

import random
import threading
import time
from collections.abc import Callable
from datetime import date

import psycopg
import pytest
from sqlalchemy import text

from calc_analytics.database.errors import DatabaseError
from calc_analytics.rollup import rebuild as rebuild_module
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import built_days, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh, refresh_locked
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.crowd import Crowd
from calc_analytics_tests.logs import (
    FORMS,
    assert_exact,
    assert_live,
    copy_rows,
    disagreements,
    live,
    random_rows,
    row,
    stored,
    utc,
    write,
)

DAY = date(2026, 3, 1)
NOON = utc(2026, 3, 1, 12)
Connect = Callable[[], psycopg.Connection]


def count(db: Database) -> int:
    """All calculations in the statistics."""
    return sum(measures[0] for measures in stored(db).values())


def refreshed(db: Database) -> int:
    """Refreshes, proves the built days and returns the rows counted."""
    rows = refresh(db).rows
    assert verify(db, built_days(db)).difference == 0
    return rows


@pytest.fixture
def built(db: Database) -> Database:
    """A database in which DAY has been built."""
    rebuild(db, [DAY])
    return db


def test_an_older_transaction_that_commits_after_a_newer_one_is_counted_once(built: Database, connect: Connect):
    older, newer = connect(), connect()
    copy_rows(older, [row(NOON)] * 3)
    copy_rows(newer, [row(NOON)] * 5)
    newer.commit()
    assert refreshed(built) == 5
    older.commit()
    assert_live(built)
    assert refreshed(built) == 3
    assert refreshed(built) == 0
    assert_exact(built)


def test_rolled_back_rows_are_never_counted(built: Database, connect: Connect):
    writer = connect()
    copy_rows(writer, [row(NOON)] * 3)
    assert refreshed(built) == 0
    writer.rollback()
    assert refreshed(built) == 0
    write(writer, [row(NOON)] * 2)
    assert refreshed(built) == 2


def test_savepoints_count_what_was_kept_and_nothing_else(built: Database, connect: Connect):
    writer = connect()
    copy_rows(writer, [row(NOON)])
    with writer.transaction():
        copy_rows(writer, [row(NOON, publisher=2)] * 10)
    with writer.transaction() as undone:
        copy_rows(writer, [row(NOON, publisher=3)] * 100)
        raise psycopg.Rollback(undone)
    assert refreshed(built) == 0
    writer.commit()
    assert refreshed(built) == 11
    assert_exact(built)


def test_a_writer_open_across_many_refreshes_delays_no_other_row_and_is_counted_once(built: Database, connect: Connect):
    slow, quick = connect(), connect()
    copy_rows(slow, [row(NOON)] * 7)
    for n in range(1, 21):
        write(quick, [row(NOON, publisher=n)])
        assert refreshed(built) == 1
    rebuild(built, [DAY])
    assert count(built) == 20
    copy_rows(slow, [row(NOON)] * 7)
    slow.commit()
    assert refreshed(built) == 14
    assert_exact(built)


def test_rows_that_commit_while_the_statement_runs_wait_for_the_next_refresh(built: Database, connect: Connect):
    """The statement has its snapshot and waits for another session's lock on the target when they commit."""
    early, late, holder = connect(), connect(), connect()
    write(early, [row(NOON)] * 2)
    copy_rows(late, [row(NOON)] * 4)
    holder.execute("insert into calculation_stats_daily values (1, '2026-03-01', 0, 0, 0, 0, 0, 0)")
    first: list[int] = []
    thread = threading.Thread(target=lambda: first.append(refresh(built).rows))
    thread.start()
    await_lock(built, thread)
    late.commit()
    holder.rollback()
    thread.join()
    assert first == [2]
    assert verify(built, [DAY]).difference == 0
    assert refreshed(built) == 4
    assert_exact(built)


def waiting_for_a_lock(db: Database) -> int:
    """Sessions that wait for another's transaction."""
    with db.engine.begin() as connection:
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        return connection.execute(text(waiting)).scalar_one()


def await_lock(db: Database, thread: threading.Thread) -> None:
    """Until a session waits for a lock, which the thread's must."""
    while not waiting_for_a_lock(db):
        assert thread.is_alive()
        time.sleep(0.01)


def test_a_second_refresh_waits_for_the_first_and_counts_only_what_is_left(built: Database, connect: Connect):
    writer = connect()
    write(writer, [row(NOON)] * 3)
    second: list[int] = []
    thread = threading.Thread(target=lambda: second.append(refresh(built).rows))
    with built.engine.begin() as first:
        assert refresh_locked(first, built).rows == 3
        write(writer, [row(NOON)] * 2)
        thread.start()
        await_lock(built, thread)
    thread.join()
    assert second == [2]
    assert_exact(built)


@pytest.mark.parametrize("opened_before", [True, False], ids=["open before", "opened during"])
def test_rows_committed_and_refreshed_while_a_rebuild_aggregates_are_counted_once(
    built: Database, connect: Connect, monkeypatch: pytest.MonkeyPatch, opened_before: bool
):
    writer, other = connect(), connect()
    write(writer, [row(NOON)] * 5)
    if opened_before:
        copy_rows(writer, [row(NOON, publisher=2)] * 3)
    aggregate = rebuild_module._Chunk._count_unlocked

    def then_others_work(*arguments):
        counted_at = aggregate(*arguments)
        if not opened_before:
            copy_rows(writer, [row(NOON, publisher=2)] * 3)
        writer.commit()
        assert refresh(built).rows == 3
        write(other, [row(NOON, publisher=3)] * 2)
        return counted_at

    monkeypatch.setattr(rebuild_module._Chunk, "_count_unlocked", then_others_work)
    report = rebuild(built, [DAY])
    assert report.rows == 10
    assert refreshed(built) == 0
    assert_exact(built)


def test_late_rows_are_added_to_the_old_days_they_belong_to(built: Database, connect: Connect):
    rebuild(built, [date(2025, 6, 1), date(2025, 12, 31)])
    writer = connect()
    write(writer, [row(utc(2025, 6, 1, 1)), row(utc(2025, 12, 31, 23, 59, 59)), row(NOON)])
    report = refresh(built)
    assert list(report.rows_by_day) == [date(2025, 6, 1), date(2025, 12, 31), DAY]
    assert_exact(built)


def test_a_new_day_begins_in_a_refresh(db: Database, connect: Connect):
    write(connect(), [row(NOON)] * 3)
    assert_live(db)
    assert refreshed(db) == 3
    assert built_days(db) == [DAY]
    assert_exact(db)


def test_a_day_whose_older_rows_were_never_counted_waits_for_its_rebuild(db: Database, connect: Connect):
    writer = connect()
    write(writer, [row(NOON)] * 3)
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    write(writer, [row(NOON)] * 2)
    assert live(db) == {}
    report = refresh(db)
    assert (report.rows, report.waiting_by_day) == (0, {DAY: 2})
    assert {day.rollup for day in report.unbuilt} == set(FORMS)
    assert waiting_days(db) == [DAY]
    assert stored(db) == live(db) == {}
    rebuild(db, [DAY])
    assert_exact(db)
    write(writer, [row(NOON)] * 4)
    assert refreshed(db) == 4
    assert_exact(db)


def test_a_day_with_a_predecessors_statistics_waits_for_its_rebuild(db: Database, connect: Connect):
    writer = connect()
    writer.execute("insert into calculation_stats_daily values (1, '2026-03-01', 99, 9, 9, 99, 0, 0)")
    write(writer, [row(NOON)] * 2)
    assert [day.rollup for day in refresh(db).unbuilt] == ["calculation_stats_daily"]
    assert count(db) == 99
    rebuild(db, [DAY], decision=Decision.ALLOW_SHRINK)
    assert_exact(db)


def test_rows_older_than_the_column_are_counted_by_rebuild_and_never_by_refresh(built: Database, connect: Connect):
    writer = connect()
    write(writer, [row(NOON)] * 3)
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    assert refresh(built).rows == 0
    rebuild(built, [DAY])
    assert_exact(built)
    assert refreshed(built) == 0
    rebuild(built, [DAY])
    assert_exact(built)


def test_a_refresh_whose_connection_is_killed_leaves_statistics_and_state_as_they_were(
    built: Database, connect: Connect
):
    """Each of its attempts is killed while its statement runs, with a part of its work done."""
    writer, holder, killer = connect(), connect(), connect()
    write(writer, [row(NOON)] * 3)
    before = _state(built)
    holder.execute("lock table calculation_latency_daily in share mode")
    raised: list[DatabaseError] = []

    def refreshing() -> None:
        try:
            refresh(built)
        except DatabaseError as error:
            raised.append(error)

    thread = threading.Thread(target=refreshing)
    thread.start()
    kill = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock' and datname = %s"
    killer.autocommit = True
    while thread.is_alive():
        killer.execute(kill, [built.engine.url.database])
        time.sleep(0.01)
    thread.join()
    holder.rollback()
    assert raised[0].transient
    assert (_state(built), count(built)) == (before, 0)
    assert refreshed(built) == 3
    assert_exact(built)


def _state(db: Database) -> tuple:
    with db.engine.begin() as connection:
        return tuple(connection.execute(text("select cast(snapshot as text), refreshed_at from rollup_state")).one())


@pytest.mark.long
def test_writers_refreshes_rebuilds_and_proofs_at_once_never_differ(db: Database, connect: Connect):
    days = [date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)]
    rebuild(db, days[:2])
    rng = random.Random(11)

    def writing() -> Callable[[], None]:
        writer, own = connect(), random.Random(rng.random())

        def batch() -> None:
            copy_rows(writer, random_rows(own, own.randint(1, 30), utc(2026, 3, 1), utc(2026, 3, 4)))
            time.sleep(own.choice([0, 0, 0.01, 0.1]))
            writer.rollback() if own.random() < 0.2 else writer.commit()

        return batch

    def proving() -> None:
        assert verify(db, built_days(db)).different == []

    def refreshing() -> None:
        refresh(db)

    def rebuilding() -> None:
        rebuild(db, days)

    def reading() -> None:
        assert disagreements(db) == []

    with Crowd(*(writing() for _ in range(4)), refreshing, refreshing, rebuilding, proving, reading) as crowd:
        deadline = time.monotonic() + 300
        while min(crowd.rounds[-5:]) < 30 and time.monotonic() < deadline and not crowd.over.is_set():
            time.sleep(0.05)
    assert min(crowd.rounds) >= 10
    assert_live(db)
    refresh(db)
    assert_exact(db)
