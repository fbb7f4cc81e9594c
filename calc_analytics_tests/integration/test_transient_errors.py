"""Errors of the database: transient ones are retried with growing pauses, permanent ones are raised immediately, and
neither loses nor doubles a row."""

import itertools
import os
import random
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date
from pathlib import Path

import psycopg
import pytest
from dagster import AssetMaterialization
from sqlalchemy import event, text
from sqlalchemy.engine import Engine

from calc_analytics.database.create import ensure_database
from calc_analytics.database.engine import engine_for, transaction
from calc_analytics.database.errors import DatabaseError
from calc_analytics.database.retries import ATTEMPTS
from calc_analytics.days import days_between
from calc_analytics.orchestration import sensors
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.follow import Follower
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh, refresh_locked
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.clusters import Cluster
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.crowd import Crowd
from calc_analytics_tests.integration.test_sensor import now, of, tick, today
from calc_analytics_tests.logs import (
    assert_exact,
    copy_rows,
    execute,
    live,
    oracle,
    random_rows,
    row,
    stored,
    utc,
    write,
)

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)
# Fails the first `failures` statements that write statistics. A sequence remembers across the rollbacks.
INJECTOR = """
create sequence attempts;
grant usage, select on attempts to public;
create function fail() returns trigger language plpgsql as $$ begin
    if nextval('attempts') <= {failures} then raise exception 'injected' using errcode = '{code}'; end if;
    return null;
end $$;
create trigger fail before insert on calculation_stats_daily for each statement execute function fail();
"""
TRANSIENT = {
    "08006": "connection failure",
    "40001": "serialization failure",
    "40P01": "deadlock",
    "53100": "disk full",
    "53200": "out of memory",
    "53300": "too many connections",
    "55P03": "lock timeout",
    "57014": "statement timeout",
    "57P01": "restart",
    "58030": "I/O error",
}
PERMANENT = {
    "22012": "division by zero",
    "23514": "check violation",
    "25006": "read-only",
    "42501": "insufficient privilege",
    "XX001": "corrupted data",
}
# Makes each statement that writes statistics take a tenth of a second more.
SLOW = """
create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.1); return null; end $$;
create trigger slow before insert on calculation_stats_daily for each statement execute function slow();
"""
OPERATIONS = {
    "refresh": lambda db: refresh(db),
    "rebuild": lambda db: rebuild(db, [DAY]),
}


@pytest.fixture
def counted(db: Database, connect) -> Database:
    """A built day, and rows that wait to be counted."""
    rebuild(db, [DAY])
    write(connect(), [row(NOON)] * 5)
    return db


def attempts(db: Database) -> int:
    with db.engine.begin() as connection:
        return connection.execute(text("select last_value from attempts")).scalar_one()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("code", TRANSIENT, ids=TRANSIENT.values())
def test_transient_errors_are_retried_until_they_have_passed(counted: Database, code: str, operation: str):
    execute(counted, INJECTOR.format(failures=2, code=code))
    OPERATIONS[operation](counted)
    assert attempts(counted) >= 3
    assert_exact(counted)
    assert refresh(counted).rows == 0


@pytest.mark.parametrize("code", TRANSIENT, ids=TRANSIENT.values())
def test_what_does_not_pass_in_time_is_an_error_that_may_be_retried(counted: Database, code: str):
    execute(counted, INJECTOR.format(failures=1000, code=code))
    with pytest.raises(DatabaseError, match=f"injected \\({code}\\)") as raised:
        refresh(counted)
    assert raised.value.transient
    assert "\n" not in str(raised.value)
    assert attempts(counted) == ATTEMPTS
    execute(counted, "drop trigger fail on calculation_stats_daily")
    assert refresh(counted).rows == 5


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("code", PERMANENT, ids=PERMANENT.values())
def test_permanent_errors_are_raised_at_the_first_attempt(counted: Database, code: str, operation: str):
    execute(counted, INJECTOR.format(failures=1000, code=code))
    with pytest.raises(DatabaseError, match="injected") as raised:
        OPERATIONS[operation](counted)
    assert not raised.value.transient
    assert attempts(counted) == 1
    assert verify(counted, [DAY]).difference == 0


def test_pauses_grow_and_are_never_the_same(counted: Database):
    """Ten failing refreshes at once do not come back in step."""
    execute(counted, INJECTOR.format(failures=1000, code="53100"))
    begun: list[list[float]] = []

    def one() -> None:
        engine, times = engine_for(counted.engine.url), []
        event.listen(engine, "checkout", lambda *_: times.append(time.monotonic()))
        with pytest.raises(DatabaseError):
            refresh(replace(counted, engine=engine))
        engine.dispose()
        begun.append(times)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pauses = [[later - earlier for earlier, later in itertools.pairwise(times)] for times in begun]
    for own in pauses:
        assert len(own) == ATTEMPTS - 1
        assert own[-1] > 4 * 0.1
        assert sum(own) > 0.1 + 0.2 + 0.4 + 0.8
    assert pauses[0] != pauses[1]


def test_a_connection_that_is_killed_while_it_counts_is_replaced_and_the_work_done_once(counted: Database, connect):
    holder, killer = connect(), connect()
    holder.execute("lock table calculation_latency_daily in share mode")
    rows: list[int] = []
    thread = threading.Thread(target=lambda: rows.append(refresh(counted).rows))
    thread.start()
    killer.autocommit = True
    (killed,) = _await_row(killer, "select pid from pg_stat_activity where datname = %s and wait_event_type = 'Lock'")
    killer.execute("select pg_terminate_backend(%s, 5000)", [killed])
    holder.rollback()
    thread.join()
    assert rows == [5]
    assert_exact(counted)


def _await_row(connection: psycopg.Connection, statement: str) -> tuple:
    """The first row of a statement about this database, as soon as there is one."""
    deadline = time.monotonic() + 60
    while (found := connection.execute(statement, [connection.info.dbname]).fetchone()) is None:
        assert time.monotonic() < deadline, statement
        time.sleep(0.01)
    return found


def test_pooled_connections_that_died_are_replaced_without_an_error(counted: Database, connect):
    """Those of a pipeline and those of a transaction, as after a restart of a pooler or of the server."""
    held = [counted.engine.connect() for _ in range(3)]
    for connection in held:
        connection.close()
    killer = connect()
    killer.autocommit = True
    ours = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where usename = %s and datname = %s"
    name = counted.engine.url.database
    assert killer.execute(ours, [ROLE, name]).fetchone()[0] >= 2
    with transaction(counted.engine) as connection:
        assert connection.execute(text("select 1")).scalar() == 1
    with transaction(counted.engine) as connection, transaction(counted.engine) as other:
        assert connection.execute(text("select 1")).scalar() == other.execute(text("select 1")).scalar() == 1
    assert killer.execute(ours, [ROLE, name]).fetchone()[0] >= 1
    assert refresh(counted).rows == 5
    assert_exact(counted)


class LosesAnswers:
    """A way to the server on which the connection breaks when the nth COMMIT has succeeded, before its answer."""

    def __init__(self, server: str, folder: Path, nth: int) -> None:
        self.server, self.left = f"{server}/.s.PGSQL.5432", nth
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{folder}/.s.PGSQL.5432")
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed at the end of the test
            while True:
                client, server = self.listener.accept()[0], socket.socket(socket.AF_UNIX)
                server.connect(self.server)
                for pump, ends in ((self._questions, (client, server)), (self._answers, (server, client))):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    def _questions(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with client, server, suppress(OSError):
            while data := server.recv(65536):
                self.left -= b"COMMIT\0" in data
                if self.left == 0:
                    self.left = -1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)


@pytest.mark.parametrize(
    ("operation", "nth"),
    [("refresh", 1), *(("rebuild", n) for n in (1, 2)), *(("prune", n) for n in (1, 2, 3, 4, 7, 8, 9, 10))],
)
def test_a_commit_whose_answer_got_lost_is_repeated_without_counting_twice(
    counted: Database, owner: Engine, operation: str, nth: int
):
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    way = LosesAnswers(str(owner.url.query["host"]), folder, nth)
    engine = engine_for(owner.url.update_query_dict({"host": str(folder)}))
    there = Database(engine, LOG, "UTC")
    try:
        if operation == "prune":
            refresh(counted)
            prune(there, NEXT)
        else:
            OPERATIONS[operation](there)
    finally:
        engine.dispose()
        way.listener.close()
        shutil.rmtree(folder)
    assert way.left < 0, "an answer was lost"
    assert {key: sums[0] for key, sums in stored(counted).items()} == {(1, DAY): 5}
    assert verify(counted, [DAY]).difference == 0


def test_a_deadlock_with_another_program_is_retried(counted: Database, connect):
    """They lock a day's record, and then want the state that a refresh holds while it wants that record."""
    other = connect()
    other.execute("update rollup_days set refreshed_at = now()")
    thread = threading.Thread(target=refresh, args=(counted,))
    thread.start()
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with counted.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
        while not watcher.execute(text(waiting)).scalar():
            assert thread.is_alive()
    try:
        other.execute("select from rollup_state for update")
        other.commit()
    except psycopg.errors.DeadlockDetected:
        other.rollback()
    thread.join()
    assert verify(counted, [DAY]).difference == 0
    assert_exact(counted)


def alter_role(db: Database, setting: str, value: str) -> None:
    """A default of the project's role in the test's database, for connections from now on."""
    execute(db, f"alter role {ROLE} in database \"{db.engine.url.database}\" set {setting} = '{value}'")
    db.engine.dispose()


@pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"])
def test_a_timeout_set_for_the_role_does_not_end_what_waits_for_longer(
    connect, counted: Database, owner: Engine, setting: str
):
    alter_role(counted, setting, "50ms")
    holder, watcher = connect(), connect()
    watcher.autocommit = True
    holder.execute("select from rollup_state for update")
    rows: list[int] = []
    thread = threading.Thread(target=lambda: rows.append(refresh(counted).rows))
    thread.start()
    _await_row(watcher, "select 1 from pg_stat_activity where datname = %s and wait_event_type = 'Lock'")
    time.sleep(0.3)
    holder.rollback()
    thread.join()
    assert rows == [5]
    rebuild(counted, [DAY])
    assert verify(counted, [DAY]).difference == 0
    assert_exact(owner)


def test_a_role_with_short_timeouts_and_serializable_still_counts_a_backlog(db: Database, owner: Engine, connect):
    """Far more rows than the role's own limit of time allows, and days that were never built."""
    alter_role(db, "statement_timeout", "50ms")
    alter_role(db, "default_transaction_isolation", "serializable")
    write(connect(), random_rows(random.Random(4), 20_000, utc(2026, 1, 20), utc(2026, 3, 1)))
    execute(db, SLOW)
    report = refresh(db)
    assert report.seconds > 0.1, "a limit of 50 ms would have ended it"
    assert report.rows == 20_000
    assert_exact(owner)
    execute(db, "update calculation_logs set xact_id = null")
    rebuild(db, days_between(date(2026, 1, 20), date(2026, 2, 28)))
    assert_exact(owner)


def test_a_pool_without_a_free_connection_says_so(counted: Database):
    counted.engine.pool._timeout = 0.05
    held = [counted.engine.connect() for _ in range(5)]
    with pytest.raises(DatabaseError, match=r"connections to .+ are in use") as raised:
        refresh(counted)
    assert raised.value.transient
    for connection in held:
        connection.close()
    assert refresh(counted).rows == 5


@contextmanager
def role_with(db: Database, option: str, undo: str) -> Iterator[None]:
    """The role has that option for as long as the context lasts; the engine has to connect afresh."""
    execute(db, f"alter role {ROLE} {option}")
    db.engine.dispose()
    try:
        yield
    finally:
        execute(db, f"alter role {ROLE} {undo}")


def test_a_server_without_a_free_connection_says_so(counted: Database):
    with (
        role_with(counted, "connection limit 0", "connection limit -1"),
        pytest.raises(DatabaseError, match="too many connections") as raised,
    ):
        refresh(counted)
    assert raised.value.transient
    assert refresh(counted).rows == 5


def test_a_role_that_may_not_log_in_is_refused_immediately(counted: Database):
    with (
        role_with(counted, "nologin", "login"),
        pytest.raises(DatabaseError, match="not permitted to log in") as raised,
    ):
        refresh(counted)
    assert not raised.value.transient


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_default_isolation_set_for_the_role_changes_nothing(db: Database, connect, level: str):
    alter_role(db, "default_transaction_isolation", level)
    rebuild(db, [DAY])
    older, newer = connect(), connect()
    copy_rows(older, [row(NOON)] * 3)
    works = [lambda: refresh(db)] * 2 + [lambda: rebuild(db, [DAY])]
    with Crowd(*works):
        for n in range(60):
            write(newer, [row(NOON, publisher=n % 4)] * 3)
        older.commit()
    refresh(db)
    assert verify(db, [DAY]).difference == 0
    assert_exact(db)


def test_with_any_default_isolation_a_refresh_that_waited_for_another_sees_what_that_one_did(
    counted: Database, owner: Engine, connect
):
    """At its first attempt: it has no snapshot from before it waited."""
    alter_role(counted, "default_transaction_isolation", "serializable")
    attempts_made, rows = [], []
    event.listen(counted.engine, "checkout", lambda *_: attempts_made.append(1))
    watcher = connect()
    watcher.autocommit = True
    thread = threading.Thread(target=lambda: rows.append(refresh(counted).rows))
    with transaction(owner) as first:
        assert refresh_locked(first, counted).rows == 5
        thread.start()
        _await_row(watcher, "select 1 from pg_stat_activity where datname = %s and wait_event_type = 'Lock'")
    thread.join()
    assert (rows, len(attempts_made)) == ([0], 1)
    assert_exact(counted)


def test_a_writer_that_idles_in_its_transaction_delays_no_other_row(db: Database, connect):
    """IDLE_SECONDS=600 is the ten minutes of the long form."""
    rebuild(db, [DAY])
    idle, busy = connect(), connect()
    copy_rows(idle, [row(NOON, publisher=9)] * 11)
    deadline = time.monotonic() + float(os.environ.get("IDLE_SECONDS", "3"))
    rounds = 0
    while time.monotonic() < deadline:
        write(busy, [row(NOON, publisher=rounds % 5)] * 4)
        assert refresh(db).rows == 4
        assert live(db) == stored(db)
        rounds += 1
        time.sleep(0.02)
    assert rounds > 3
    idle.commit()
    assert refresh(db).rows == 11
    assert_exact(db)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of the test's own, to be restarted."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    cluster = Cluster(folder).create().start()
    yield cluster
    cluster.stop("immediate")
    shutil.rmtree(folder)


def installed(cluster: Cluster) -> Database:
    """A migrated database on it."""
    db = Database(engine_for(cluster.url("calc")), LOG, "UTC")
    ensure_database(db.engine.url)
    install(db)
    return db


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_is_over_before_anybody_gives_up(cluster: Cluster, mode: str):
    """Readers, refreshes and rebuilds go on through it, and a writer that had committed has lost nothing."""
    db = installed(cluster)
    rebuild(db, [DAY, NEXT])
    dsn = db.engine.url.set(drivername="postgresql").render_as_string()
    with psycopg.connect(dsn) as writer:
        write(writer, [row(NOON)] * 100)
    with Crowd(
        lambda: refresh(db),
        lambda: rebuild(db, [DAY, NEXT]),
        lambda: verify(db, [DAY, NEXT]),
    ) as crowd:
        _await_rounds(crowd.rounds, 2)
        cluster.stop(mode)
        cluster.start()
        before = list(crowd.rounds)
        with psycopg.connect(dsn) as writer:
            write(writer, [row(NOON)] * 50)
        _await_rounds(crowd.rounds, 2, before)
    refresh(db)
    assert verify(db, [DAY, NEXT]).difference == 0
    assert_exact(db)
    assert sum(measures[0] for measures in stored(db).values()) == 150
    db.engine.dispose()


def _await_rounds(rounds: list[int], more: int, since: list[int] | None = None) -> None:
    deadline = time.monotonic() + 60
    while any(now < then + more for now, then in zip(rounds, since or [0] * len(rounds), strict=True)):
        assert time.monotonic() < deadline, rounds
        time.sleep(0.01)


def test_a_follower_goes_on_after_a_restart(cluster: Cluster):
    db = installed(cluster)
    rebuild(db, [DAY])
    stopping = threading.Event()
    follower = Follower(db, 0.05, stopping)
    follower.follow(0.5, 30)
    cluster.stop("immediate")
    cluster.start()
    with psycopg.connect(db.engine.url.set(drivername="postgresql").render_as_string()) as writer:
        write(writer, random_rows(random.Random(1), 50, utc(2026, 3, 1), utc(2026, 3, 2)))
    deadline = time.monotonic() + 30
    while stored(db) != oracle(db):
        assert time.monotonic() < deadline
        follower.follow(0.2, 30)
    stopping.set()
    db.engine.dispose()


def test_a_tick_reports_what_was_counted_although_its_connection_was_killed(
    location, instance, db, connect, monkeypatch
):
    monkeypatch.setattr(sensors, "FOLLOW_SECONDS", 2.0)
    rebuild(db, [today()])
    killer = connect()
    ours = f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{ROLE}' and datname = %s"
    timer = threading.Timer(0.5, lambda: (killer.execute(ours, [db.engine.url.database]), killer.commit()))
    timer.start()
    write(connect(), [row(now())] * 3)
    result = tick(location, instance)
    timer.join()
    reported = sorted((event.asset_key.to_user_string(), event.partition) for event in of(result, AssetMaterialization))
    assert reported == sorted((name, str(today())) for name in LOG.names)
    db.engine.dispose()  # the killed connections of this test's own
    assert_exact(db)
