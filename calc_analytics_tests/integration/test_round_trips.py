"""What goes over the network, and what stays in a session: a refresh is one round trip of prepared statements, and the
settings of a transaction end with it."""

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import CLIENT_CHECK, LOCAL_SETTINGS, engine_for
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.ledger import TimezoneChanged
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import look_for_rows, refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.logs import assert_exact, row, utc, write

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)


class Wire:
    """A way to the server that notes what the client sends."""

    def __init__(self, server: str, folder: Path) -> None:
        self.server, self.folder = f"{server}/.s.PGSQL.5432", folder
        self.sent = b""
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{folder}/.s.PGSQL.5432")
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        """Begins to note afresh."""
        self.sent = b""

    @property
    def turns(self) -> int:
        """How often the client waited for the server: the messages Sync and Query, each of which asks for an answer.

        Counted by message rather than by who spoke last: psycopg sends a Flush after its Sync, which may arrive before
        or after the server's answer.
        """
        return sum(kind in b"SQ" for kind, _ in self._messages())

    def parsed(self) -> list[bytes]:
        """The statements that the client asked the server to parse, from the messages of type 'P' (Parse)."""
        return [body for kind, body in self._messages() if kind in b"PQ"]

    def _messages(self) -> list[tuple[bytes, bytes]]:
        """Type and body of each message sent."""
        found, at = [], 0
        while at < len(self.sent):
            length = int.from_bytes(self.sent[at + 1 : at + 5], "big")
            found.append((self.sent[at : at + 1], self.sent[at + 5 : at + 1 + length]))
            at += 1 + length
        return found

    def _accept(self) -> None:
        with suppress(OSError):  # closed at the end of the test
            while True:
                client, server = self.listener.accept()[0], socket.socket(socket.AF_UNIX)
                server.connect(self.server)
                threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answers, args=(server, client), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):
            while data := client.recv(65536):
                self.sent += data
                server.sendall(data)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with client, server, suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)


@pytest.fixture
def wire(db: Database) -> Iterator[Wire]:
    """Notes what `over` sends."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    wire = Wire(str(db.engine.url.query["host"]), folder)
    yield wire
    wire.listener.close()
    shutil.rmtree(folder)


@pytest.fixture
def over(db: Database, wire: Wire) -> Iterator[Database]:
    """The test's database, reached over the wire, by connections that have counted before."""
    engine = engine_for(db.engine.url.update_query_dict({"host": str(wire.folder)}))
    over = replace(db, engine=engine)
    rebuild(over, [DAY])
    refresh(over)
    wire.forget()
    yield over
    engine.dispose()


def test_a_refresh_that_finds_rows_is_one_round_trip(over: Database, wire: Wire, connect):
    writer = connect()
    write(writer, [row(NOON, publisher=n) for n in range(50)])
    write(writer, [row(utc(2026, 3, 2, 12)), row(utc(2020, 1, 1))])
    assert refresh(over).rows == 52
    assert wire.turns == 1
    assert_exact(over)


def test_each_step_of_a_backlog_is_one_round_trip(over: Database, wire: Wire, connect):
    refresh(over, step_rows=100)
    wire.forget()
    writer, steps = connect(), []
    for _ in range(10):
        write(writer, [row(NOON)] * 50)
    assert refresh(over, step_rows=100, progress=steps.append).rows == 500
    assert len(steps) > 3
    assert wire.turns == len(steps)


def test_a_look_for_new_rows_is_two_round_trips_at_most(over: Database, wire: Wire, connect):
    with over.engine.connect() as connection:
        probe = connection.execution_options(isolation_level="AUTOCOMMIT")
        counted = refresh(over).snapshot
        for is_new in (False, True):
            assert look_for_rows(over, probe, counted)[0] is is_new
            wire.forget()
            assert look_for_rows(over, probe, counted)[0] is is_new
            assert wire.turns <= 2
            write(connect(), [row(NOON)])


def test_a_look_is_one_round_trip_while_there_are_no_writes(over: Database, wire: Wire):
    with over.engine.connect() as connection:
        probe = connection.execution_options(isolation_level="AUTOCOMMIT")
        is_new, quiet = look_for_rows(over, probe, refresh(over).snapshot)
        assert not is_new
        wire.forget()
        assert look_for_rows(over, probe, quiet) == (False, quiet)
        assert wire.turns == 1


def test_its_statements_are_prepared_and_not_parsed_anew(over: Database, wire: Wire, connect):
    for _ in range(2):
        write(connect(), [row(NOON)])
        wire.forget()
        refresh(over)
    assert not [each for each in wire.parsed() if b"rollup" in each or b"set_config" in each]
    over.engine.dispose()
    wire.forget()
    write(connect(), [row(NOON)])
    refresh(over)
    wire.sent = wire.sent[wire.sent.index(b"begin isolation") - 6 :]  # from the first message after the start-up
    assert len([each for each in wire.parsed() if b"insert into calculation_stats_daily" in each]) == 1


def test_statements_are_not_prepared_where_a_pooler_answers(over: Database, wire: Wire, connect):
    """A pooler invents the process id that its clients see; another session may serve the next transaction."""
    with over.engine.connect() as connection:
        connection.info["is_direct"] = False
    for n in range(2):
        write(connect(), [row(NOON)])
        wire.forget()
        assert refresh(over).rows == 1, n
        assert wire.turns == 1
    assert [each for each in wire.parsed() if b"insert into calculation_stats_daily" in each]


def test_a_prepared_statement_that_is_gone_is_no_error(over: Database, connect):
    """As after a pooler's DISCARD ALL, or an administrator's."""
    write(connect(), [row(NOON)])
    assert refresh(over).rows == 1
    for _ in range(2):
        with over.engine.connect() as connection:
            # In a way that psycopg does not notice.
            connection.exec_driver_sql("do $$ begin execute 'deallocate all'; end $$")
            connection.commit()
        write(connect(), [row(NOON)])
        assert refresh(over).rows == 1
    assert_exact(over)


def test_a_table_that_was_altered_meanwhile_is_no_error(over: Database, owner: Engine, connect):
    write(connect(), [row(NOON)])
    assert refresh(over).rows == 1
    with owner.begin() as connection:
        connection.execute(text("alter table calculation_stats_daily add column note text"))
        connection.execute(text("alter table calculation_logs add column note text"))
    write(connect(), [row(NOON)])
    assert refresh(over).rows == 1
    assert_exact(over)


SETTINGS = sorted({*LOCAL_SETTINGS, CLIENT_CHECK[0], "enable_sort", "plan_cache_mode", "transaction_isolation"})
"""All that a transaction of the project may change."""


def settings_of(connection: psycopg.Connection) -> dict[str, str]:
    """The session's own, outside any transaction of the project."""
    names = "unnest(%s::text[]) as name"
    found = connection.execute(f"select name, current_setting(name) from {names}", [SETTINGS])
    return dict(found.fetchall())


def fail_to_refresh(db: Database) -> None:
    """In the middle of the transaction, when its settings are made."""
    with pytest.raises(TimezoneChanged):
        rebuild(replace(db, timezone="Asia/Jerusalem"), [DAY])


OPERATIONS = {
    "refresh": refresh,
    "rebuild": lambda db: rebuild(db, [DAY]),
    "verify": lambda db: verify(db, [DAY]),
    "audit": audit,
    "prune": lambda db: prune(db, NEXT),
    "a failed refresh": fail_to_refresh,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_after_an_operation_a_pooled_connection_has_the_sessions_own_settings(owner: Engine, db, connect, operation):
    """A pooler hands the session to another client next."""
    db = replace(db, engine=owner)
    rebuild(db, [DAY])
    write(connect(), [row(NOON)] * 20)
    expected = settings_of(connect())
    assert expected["enable_seqscan"] == "on"
    OPERATIONS[operation](db)
    assert owner.pool.checkedin() > 0
    held = [owner.connect() for _ in range(owner.pool.checkedin())]
    for connection in held:
        assert settings_of(connection.connection.driver_connection) == expected
        connection.close()
