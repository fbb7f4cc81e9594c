"""Exactness with real concurrent transactions: every case of the guarantee, each with its own connections."""

import random
import threading
import time
from collections.abc import Callable
from datetime import date

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import DatabaseTrouble
from calc_analytics.rollup import rebuild as rebuild_module
from calc_analytics.rollup import refresh as refresh_module
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.snapshot import Snapshot
from calc_analytics.rollup.verify import built_days, verify, waiting_days
from calc_analytics_tests.crowd import Crowd
from calc_analytics_tests.logs import copy_rows, live, oracle, random_rows, row, stored, utc, write

DAY = date(2026, 3, 1)
NOON = utc(2026, 3, 1, 12)
Connect = Callable[[], psycopg.Connection]


def count(engine: Engine) -> int:
    """All calculations in the statistics."""
    return sum(measures[0] for measures in stored(engine).values())


def refreshed(engine: Engine) -> int:
    """Refreshes, proves the built days and returns the rows counted."""
    rows = refresh(engine, ROLLUP, "UTC").rows
    assert verify(engine, ROLLUP, "UTC", built_days(engine, ROLLUP)).difference == 0
    return rows


@pytest.fixture
def built(engine: Engine) -> Engine:
    """A database in which DAY has been built."""
    rebuild(engine, ROLLUP, "UTC", [DAY])
    return engine


def test_an_older_transaction_that_commits_after_a_newer_one_is_counted_once(built: Engine, connect: Connect):
    older, newer = connect(), connect()
    copy_rows(older, [row(NOON)] * 3)
    copy_rows(newer, [row(NOON)] * 5)
    newer.commit()
    assert refreshed(built) == 5
    older.commit()
    assert live(built) == oracle(built)
    assert refreshed(built) == 3
    assert refreshed(built) == 0
    assert stored(built) == oracle(built)


def test_rolled_back_rows_are_never_counted(built: Engine, connect: Connect):
    writer = connect()
    copy_rows(writer, [row(NOON)] * 3)
    assert refreshed(built) == 0
    writer.rollback()
    assert refreshed(built) == 0
    write(writer, [row(NOON)] * 2)
    assert refreshed(built) == 2


def test_savepoints_count_what_was_kept_and_nothing_else(built: Engine, connect: Connect):
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
    assert stored(built) == live(built) == oracle(built)


def test_a_writer_open_across_many_refreshes_delays_nobody_and_is_counted_once(built: Engine, connect: Connect):
    slow, quick = connect(), connect()
    copy_rows(slow, [row(NOON)] * 7)
    for n in range(1, 21):
        write(quick, [row(NOON, publisher=n)])
        assert refreshed(built) == 1
    rebuild(built, ROLLUP, "UTC", [DAY])
    assert count(built) == 20
    copy_rows(slow, [row(NOON)] * 7)
    slow.commit()
    assert refreshed(built) == 14
    assert stored(built) == live(built) == oracle(built)


def test_a_commit_between_the_snapshot_and_the_aggregation_waits_for_the_next_refresh(
    built: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch
):
    early, late = connect(), connect()
    write(early, [row(NOON)] * 2)
    copy_rows(late, [row(NOON)] * 4)
    take_snapshot = Snapshot.now

    def then_commit(connection):
        snapshot = take_snapshot(connection)
        late.commit()
        return snapshot

    monkeypatch.setattr(refresh_module.Snapshot, "now", then_commit)
    assert refresh(built, ROLLUP, "UTC").rows == 2
    monkeypatch.undo()
    assert verify(built, ROLLUP, "UTC", [DAY]).difference == 0
    assert refreshed(built) == 4
    assert stored(built) == oracle(built)


def waiting_for_a_lock(engine: Engine) -> int:
    """Sessions that wait for another's transaction."""
    with engine.begin() as connection:
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        return connection.execute(text(waiting)).scalar_one()


def test_a_second_refresh_waits_for_the_first_and_counts_only_what_is_left(built: Engine, connect: Connect):
    writer = connect()
    write(writer, [row(NOON)] * 3)
    second: list[int] = []
    thread = threading.Thread(target=lambda: second.append(refresh(built, ROLLUP, "UTC").rows))
    with built.begin() as first:
        _, days = refresh_module.refresh_locked(first, ROLLUP, "UTC")
        assert [day.rows for day in days] == [3]
        write(writer, [row(NOON)] * 2)
        thread.start()
        while not waiting_for_a_lock(built):
            assert thread.is_alive()
            time.sleep(0.01)
    thread.join()
    assert second == [2]
    assert stored(built) == oracle(built)


@pytest.mark.parametrize("opened_before", [True, False], ids=["open before", "opened during"])
def test_rows_committed_and_refreshed_while_a_rebuild_aggregates_are_counted_once(
    built: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch, opened_before: bool
):
    writer, other = connect(), connect()
    write(writer, [row(NOON)] * 5)
    if opened_before:
        copy_rows(writer, [row(NOON, publisher=2)] * 3)
    aggregate = rebuild_module._count_unlocked

    def then_others_work(*arguments):
        counted_at = aggregate(*arguments)
        if not opened_before:
            copy_rows(writer, [row(NOON, publisher=2)] * 3)
        writer.commit()
        assert refresh(built, ROLLUP, "UTC").rows == 3
        write(other, [row(NOON, publisher=3)] * 2)
        return counted_at

    monkeypatch.setattr(rebuild_module, "_count_unlocked", then_others_work)
    report = rebuild(built, ROLLUP, "UTC", [DAY])
    assert report.rows == 10
    assert refreshed(built) == 0
    assert stored(built) == live(built) == oracle(built)


def test_late_rows_are_added_to_the_old_days_they_belong_to(built: Engine, connect: Connect):
    rebuild(built, ROLLUP, "UTC", [date(2025, 6, 1), date(2025, 12, 31)])
    writer = connect()
    write(writer, [row(utc(2025, 6, 1, 1)), row(utc(2025, 12, 31, 23, 59, 59)), row(NOON)])
    report = refresh(built, ROLLUP, "UTC")
    assert [day.day for day in report.counted] == [date(2025, 6, 1), date(2025, 12, 31), DAY]
    assert stored(built) == oracle(built)


def test_a_new_day_begins_in_a_refresh(engine: Engine, connect: Connect):
    write(connect(), [row(NOON)] * 3)
    assert live(engine) == oracle(engine)
    assert refreshed(engine) == 3
    assert built_days(engine, ROLLUP) == [DAY]
    assert stored(engine) == oracle(engine)


def test_a_day_whose_older_rows_were_never_counted_waits_for_its_rebuild(engine: Engine, connect: Connect):
    writer = connect()
    write(writer, [row(NOON)] * 3)
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    write(writer, [row(NOON)] * 2)
    assert live(engine) == {}
    report = refresh(engine, ROLLUP, "UTC")
    assert (report.rows, [day.day for day in report.unbuilt]) == (0, [DAY])
    assert waiting_days(engine, ROLLUP) == [DAY]
    assert stored(engine) == live(engine) == {}
    rebuild(engine, ROLLUP, "UTC", [DAY])
    assert stored(engine) == live(engine) == oracle(engine)
    write(writer, [row(NOON)] * 4)
    assert refreshed(engine) == 4
    assert stored(engine) == oracle(engine)


def test_a_day_with_a_predecessors_statistics_waits_for_its_rebuild(engine: Engine, connect: Connect):
    writer = connect()
    writer.execute("insert into calculation_stats_daily values (1, '2026-03-01', 99, 9, 9, 99, 0, 0)")
    write(writer, [row(NOON)] * 2)
    assert refresh(engine, ROLLUP, "UTC").rows == 0
    assert count(engine) == 99
    rebuild(engine, ROLLUP, "UTC", [DAY], allow_shrink=True)
    assert stored(engine) == oracle(engine)


def test_rows_older_than_the_column_are_counted_by_rebuild_and_never_by_refresh(built: Engine, connect: Connect):
    writer = connect()
    write(writer, [row(NOON)] * 3)
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    assert refresh(built, ROLLUP, "UTC").rows == 0
    rebuild(built, ROLLUP, "UTC", [DAY])
    assert stored(built) == oracle(built)
    assert refreshed(built) == 0
    rebuild(built, ROLLUP, "UTC", [DAY])
    assert stored(built) == live(built) == oracle(built)


def test_a_refresh_whose_connection_is_killed_leaves_statistics_and_state_as_they_were(
    built: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch
):
    writer = connect()
    write(writer, [row(NOON)] * 3)
    before = _state(built)
    store = refresh_module.state.store_snapshot

    def then_die(connection, rollup, snapshot):
        store(connection, rollup, snapshot)
        writer.execute(
            "select pg_terminate_backend(%s)", [connection.execute(text("select pg_backend_pid()")).scalar()]
        )
        writer.commit()

    monkeypatch.setattr(refresh_module.state, "store_snapshot", then_die)
    with pytest.raises(DatabaseTrouble) as trouble:
        refresh(built, ROLLUP, "UTC")
    assert trouble.value.transient
    monkeypatch.undo()
    assert (_state(built), count(built)) == (before, 0)
    assert refreshed(built) == 3
    assert stored(built) == oracle(built)


def _state(engine: Engine) -> tuple:
    with engine.begin() as connection:
        return tuple(connection.execute(text("select cast(snapshot as text), refreshed_at from rollup_state")).one())


def test_writers_refreshes_rebuilds_and_proofs_at_once_never_differ(engine: Engine, connect: Connect):
    days = [date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)]
    rebuild(engine, ROLLUP, "UTC", days[:2])
    rng = random.Random(11)

    def writing() -> Callable[[], None]:
        writer, own = connect(), random.Random(rng.random())

        def batch() -> None:
            copy_rows(writer, random_rows(own, own.randint(1, 30), utc(2026, 3, 1), utc(2026, 3, 4)))
            time.sleep(own.choice([0, 0, 0.01, 0.1]))
            writer.rollback() if own.random() < 0.2 else writer.commit()

        return batch

    def proving() -> None:
        assert verify(engine, ROLLUP, "UTC", built_days(engine, ROLLUP)).difference == 0

    def refreshing() -> None:
        refresh(engine, ROLLUP, "UTC")

    def rebuilding() -> None:
        rebuild(engine, ROLLUP, "UTC", days)

    with Crowd(*(writing() for _ in range(4)), refreshing, refreshing, rebuilding, proving) as crowd:
        deadline = time.monotonic() + 60
        while min(crowd.rounds[-4:]) < 30 and time.monotonic() < deadline and not crowd.over.is_set():
            time.sleep(0.05)
    assert min(crowd.rounds) >= 10
    assert live(engine) == oracle(engine)
    refresh(engine, ROLLUP, "UTC")
    assert stored(engine) == live(engine) == oracle(engine)
