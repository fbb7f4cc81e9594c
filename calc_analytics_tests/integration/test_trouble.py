"""Trouble with the database: what passes is tried again with growing pauses, what does not is told at once, and
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
from contextlib import suppress
from datetime import date
from pathlib import Path

import psycopg
import pytest
from dagster import AssetMaterialization
from sqlalchemy import event, text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import ATTEMPTS, DatabaseTrouble, engine_for, ensure_database
from calc_analytics.orchestration import sensors
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.follow import Follower
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.clusters import Cluster
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.crowd import Crowd
from calc_analytics_tests.integration.test_sensor import now, of, tick, today
from calc_analytics_tests.logs import copy_rows, execute, live, oracle, random_rows, row, stored, utc, write

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
PASSING = {
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
LASTING = {
    "22012": "division by zero",
    "23514": "check violation",
    "25006": "read-only",
    "42501": "insufficient privilege",
    "XX001": "corrupted data",
}
OPERATIONS = {
    "refresh": lambda engine: refresh(engine, ROLLUP, "UTC"),
    "rebuild": lambda engine: rebuild(engine, ROLLUP, "UTC", [DAY]),
}


@pytest.fixture
def counted(engine: Engine, connect) -> Engine:
    """A built day, and rows that wait to be counted."""
    rebuild(engine, ROLLUP, "UTC", [DAY])
    write(connect(), [row(NOON)] * 5)
    return engine


def attempts(engine: Engine) -> int:
    with engine.begin() as connection:
        return connection.execute(text("select last_value from attempts")).scalar_one()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("code", PASSING, ids=PASSING.values())
def test_what_passes_is_tried_again_until_it_has_passed(counted: Engine, code: str, operation: str):
    execute(counted, INJECTOR.format(failures=2, code=code))
    OPERATIONS[operation](counted)
    assert attempts(counted) >= 3
    assert stored(counted) == live(counted) == oracle(counted)
    assert refresh(counted, ROLLUP, "UTC").rows == 0


@pytest.mark.parametrize("code", PASSING, ids=PASSING.values())
def test_what_does_not_pass_in_time_is_an_error_that_may_be_retried(counted: Engine, code: str):
    execute(counted, INJECTOR.format(failures=1000, code=code))
    with pytest.raises(DatabaseTrouble, match=f"injected \\({code}\\)") as trouble:
        refresh(counted, ROLLUP, "UTC")
    assert trouble.value.transient
    assert "\n" not in str(trouble.value)
    assert attempts(counted) == ATTEMPTS
    execute(counted, "drop trigger fail on calculation_stats_daily")
    assert refresh(counted, ROLLUP, "UTC").rows == 5


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("code", LASTING, ids=LASTING.values())
def test_what_lasts_is_told_at_the_first_attempt(counted: Engine, code: str, operation: str):
    execute(counted, INJECTOR.format(failures=1000, code=code))
    with pytest.raises(DatabaseTrouble, match="injected") as trouble:
        OPERATIONS[operation](counted)
    assert not trouble.value.transient
    assert attempts(counted) == 1
    assert verify(counted, ROLLUP, "UTC", [DAY]).difference == 0


def test_pauses_grow_and_are_never_the_same(counted: Engine):
    """Ten failing refreshes at once do not come back in step."""
    execute(counted, INJECTOR.format(failures=1000, code="53100"))
    begun: list[list[float]] = []

    def one() -> None:
        engine, times = engine_for(counted.url), []
        event.listen(engine, "begin", lambda connection: times.append(time.monotonic()))
        with pytest.raises(DatabaseTrouble):
            refresh(engine, ROLLUP, "UTC")
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


def test_a_killed_connection_is_replaced_and_the_work_done_once(counted: Engine, connect):
    killer, killed = connect(), []

    @event.listens_for(counted, "before_cursor_execute")
    def kill(connection, cursor, statement, parameters, context, executemany):
        if "with diff as" in statement and not killed:
            killed.append(connection.connection.dbapi_connection.info.backend_pid)
            killer.execute("select pg_terminate_backend(%s, 5000)", killed)
            killer.commit()

    assert refresh(counted, ROLLUP, "UTC").rows == 5
    assert killed
    assert stored(counted) == oracle(counted)


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
    ("operation", "nth"), [("refresh", 1), *(("rebuild", n) for n in (1, 2, 3)), *(("prune", n) for n in (1, 2, 3))]
)
def test_a_commit_whose_answer_got_lost_is_repeated_without_counting_twice(
    counted: Engine, owner: Engine, operation: str, nth: int
):
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    way = LosesAnswers(str(owner.url.query["host"]), folder, nth)
    engine = engine_for(owner.url.update_query_dict({"host": str(folder)}))
    try:
        if operation == "prune":
            refresh(counted, ROLLUP, "UTC")
            prune(engine, ROLLUP, "UTC", NEXT)
        else:
            OPERATIONS[operation](engine)
    finally:
        engine.dispose()
        way.listener.close()
        shutil.rmtree(folder)
    assert way.left < 0, "an answer was lost"
    assert {key: sums[0] for key, sums in stored(counted).items()} == {(1, DAY): 5}
    assert verify(counted, ROLLUP, "UTC", [DAY]).difference == 0


def test_a_deadlock_with_somebody_else_ends_well(counted: Engine, connect):
    """They lock a day's record, and then want the state that a refresh holds while it wants that record."""
    other = connect()
    other.execute("update rollup_days set refreshed_at = now()")
    thread = threading.Thread(target=refresh, args=(counted, ROLLUP, "UTC"))
    thread.start()
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with counted.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
        while not watcher.execute(text(waiting)).scalar():
            assert thread.is_alive()
    try:
        other.execute("select from rollup_state for update")
        other.commit()
    except psycopg.errors.DeadlockDetected:
        other.rollback()
    thread.join()
    assert verify(counted, ROLLUP, "UTC", [DAY]).difference == 0
    assert stored(counted) == oracle(counted)


@pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"])
def test_a_timeout_set_for_the_role_fails_with_its_name_and_passes_with_its_cause(connect, counted, setting: str):
    execute(counted, f"alter role {ROLE} in database \"{counted.url.database}\" set {setting} = '150ms'")
    counted.dispose()
    holder = connect()
    holder.execute("select from rollup_state for update")
    if setting != "idle_in_transaction_session_timeout":
        with pytest.raises(DatabaseTrouble, match="timeout") as trouble:
            refresh(counted, ROLLUP, "UTC")
        assert trouble.value.transient
    holder.rollback()
    assert refresh(counted, ROLLUP, "UTC").rows == 5


def test_a_pool_without_a_free_connection_says_so(counted: Engine):
    counted.pool._timeout = 0.05
    held = [counted.connect() for _ in range(5)]
    with pytest.raises(DatabaseTrouble, match=r"connections to .+ are in use") as trouble:
        refresh(counted, ROLLUP, "UTC")
    assert trouble.value.transient
    for connection in held:
        connection.close()
    assert refresh(counted, ROLLUP, "UTC").rows == 5


def test_a_server_without_a_free_connection_says_so(counted: Engine):
    execute(counted, f"alter role {ROLE} connection limit 0")
    counted.dispose()
    try:
        with pytest.raises(DatabaseTrouble, match="too many connections") as trouble:
            refresh(counted, ROLLUP, "UTC")
    finally:
        execute(counted, f"alter role {ROLE} connection limit -1")
    assert trouble.value.transient
    assert refresh(counted, ROLLUP, "UTC").rows == 5


def test_a_role_that_may_not_log_in_is_told_at_once(counted: Engine):
    execute(counted, f"alter role {ROLE} nologin")
    counted.dispose()
    try:
        with pytest.raises(DatabaseTrouble, match="not permitted to log in") as trouble:
            refresh(counted, ROLLUP, "UTC")
    finally:
        execute(counted, f"alter role {ROLE} login")
    assert not trouble.value.transient


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_default_isolation_set_for_the_role_changes_nothing(engine: Engine, connect, level: str):
    execute(engine, f"alter role {ROLE} in database \"{engine.url.database}\" "
                    f"set default_transaction_isolation = '{level}'")  # fmt: skip
    engine.dispose()
    rebuild(engine, ROLLUP, "UTC", [DAY])
    older, newer = connect(), connect()
    copy_rows(older, [row(NOON)] * 3)
    works = [lambda: refresh(engine, ROLLUP, "UTC")] * 2 + [lambda: rebuild(engine, ROLLUP, "UTC", [DAY])]
    with Crowd(*works):
        for n in range(60):
            write(newer, [row(NOON, publisher=n % 4)] * 3)
        older.commit()
    refresh(engine, ROLLUP, "UTC")
    assert verify(engine, ROLLUP, "UTC", [DAY]).difference == 0
    assert stored(engine) == live(engine) == oracle(engine)


def test_a_writer_that_idles_in_its_transaction_delays_nobody(engine: Engine, connect):
    """IDLE_SECONDS=600 is the ten minutes of the long form."""
    rebuild(engine, ROLLUP, "UTC", [DAY])
    idle, busy = connect(), connect()
    copy_rows(idle, [row(NOON, publisher=9)] * 11)
    deadline = time.monotonic() + float(os.environ.get("IDLE_SECONDS", "3"))
    rounds = 0
    while time.monotonic() < deadline:
        write(busy, [row(NOON, publisher=rounds % 5)] * 4)
        assert refresh(engine, ROLLUP, "UTC").rows == 4
        assert live(engine) == stored(engine)
        rounds += 1
        time.sleep(0.02)
    assert rounds > 3
    idle.commit()
    assert refresh(engine, ROLLUP, "UTC").rows == 11
    assert stored(engine) == live(engine) == oracle(engine)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of the test's own, to be restarted."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    cluster = Cluster(folder).create().start()
    yield cluster
    cluster.stop("immediate")
    shutil.rmtree(folder)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_is_over_before_anybody_gives_up(cluster: Cluster, mode: str):
    """Readers, refreshes and rebuilds go on through it, and a writer that had committed has lost nothing."""
    engine = engine_for(cluster.url("calc"))
    ensure_database(engine.url)
    install(engine, "UTC")
    rebuild(engine, ROLLUP, "UTC", [DAY, NEXT])
    dsn = engine.url.set(drivername="postgresql").render_as_string()
    with psycopg.connect(dsn) as writer:
        write(writer, [row(NOON)] * 100)
    with Crowd(
        lambda: refresh(engine, ROLLUP, "UTC"),
        lambda: rebuild(engine, ROLLUP, "UTC", [DAY, NEXT]),
        lambda: verify(engine, ROLLUP, "UTC", [DAY, NEXT]),
    ) as crowd:
        _await_rounds(crowd.rounds, 2)
        cluster.stop(mode)
        cluster.start()
        before = list(crowd.rounds)
        with psycopg.connect(dsn) as writer:
            write(writer, [row(NOON)] * 50)
        _await_rounds(crowd.rounds, 2, before)
    refresh(engine, ROLLUP, "UTC")
    assert verify(engine, ROLLUP, "UTC", [DAY, NEXT]).difference == 0
    assert stored(engine) == oracle(engine)
    assert sum(measures[0] for measures in stored(engine).values()) == 150
    engine.dispose()


def _await_rounds(rounds: list[int], more: int, since: list[int] | None = None) -> None:
    deadline = time.monotonic() + 60
    while any(now < then + more for now, then in zip(rounds, since or [0] * len(rounds), strict=True)):
        assert time.monotonic() < deadline, rounds
        time.sleep(0.01)


def test_a_follower_goes_on_after_a_restart(cluster: Cluster):
    engine = engine_for(cluster.url("calc"))
    ensure_database(engine.url)
    install(engine, "UTC")
    rebuild(engine, ROLLUP, "UTC", [DAY])
    stopping = threading.Event()
    follower = Follower(engine, ROLLUP, "UTC", 0.05, stopping)
    follower.follow(0.5, 30)
    cluster.stop("immediate")
    cluster.start()
    with psycopg.connect(engine.url.set(drivername="postgresql").render_as_string()) as writer:
        write(writer, random_rows(random.Random(1), 50, utc(2026, 3, 1), utc(2026, 3, 2)))
    deadline = time.monotonic() + 30
    while stored(engine) != oracle(engine):
        assert time.monotonic() < deadline
        follower.follow(0.2, 30)
    stopping.set()
    engine.dispose()


def test_a_tick_tells_of_what_was_counted_although_its_connection_was_killed(
    location, instance, engine, connect, monkeypatch
):
    monkeypatch.setattr(sensors, "follow_seconds", lambda interval: 2.0)
    rebuild(engine, ROLLUP, "UTC", [today()])
    killer = connect()
    ours = f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{ROLE}' and datname = %s"
    timer = threading.Timer(0.5, lambda: (killer.execute(ours, [engine.url.database]), killer.commit()))
    timer.start()
    write(connect(), [row(now())] * 3)
    result = tick(location, instance)
    timer.join()
    assert [event.partition for event in of(result, AssetMaterialization)] == [str(today())]
    assert stored(engine) == oracle(engine)
