"""Addresses: a port that is not PostgreSQL's is one line within seconds, and libpq's variables and files count."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, make_url

from calc_analytics.config import Settings, redact_url
from calc_analytics.database import connecting
from calc_analytics.database.connecting import CONNECT_SECONDS
from calc_analytics.database.engine import dagster_url, database_url, engine_for, transaction
from calc_analytics.database.errors import DatabaseError, NoAnswer
from calc_analytics.database.retries import retry_transient
from calc_analytics.operations.probes import Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.operations.status import report
from calc_analytics_tests.conftest import ROLE

SECRET = "hunter2"
COMMANDS = (("migrate",), ("refresh",), ("verify",), ("up",), ("history",))


@contextmanager
def listening(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """A port on which every connection is accepted and handed to `answer`, in a thread of its own."""
    taken: list[socket.socket] = []

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                taken.append(listener.accept()[0])
                threading.Thread(target=answer, args=(taken[-1],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        for connection in taken:
            connection.close()


def say_nothing(connection: socket.socket) -> None:
    """Accepts and is silent."""


def speak_http(connection: socket.socket) -> None:
    """As a web server that takes any bytes for a request."""
    with suppress(OSError):
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.close()


def start(*words: str, **environment: str) -> "subprocess.Popen[str]":
    """`calc-analytics` with these words, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "calc_analytics.cli", *words],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_a_port_that_answers_nothing_is_one_line_after_five_seconds():
    with listening(say_nothing) as port:
        address, began = f"postgresql://me:{SECRET}@127.0.0.1:{port}/db", time.monotonic()
        started = {words: start(*words, DATABASE_URL=address) for words in COMMANDS}
        outputs = {words: process.communicate(timeout=120) for words, process in started.items()}
    # Five seconds, and the start of as many processes at once, which takes long on a loaded machine.
    assert time.monotonic() - began < CONNECT_SECONDS + 60
    for words, (_, error) in outputs.items():
        assert started[words].returncode == 1, words
        assert error.count("\n") == 1, error
        assert f"no answer from postgresql://me:***@127.0.0.1:{port}/db" in error


@pytest.mark.long
def test_reports_name_the_reason_for_every_part_before_their_deadline():
    with listening(say_nothing) as port:
        address = f"postgresql://me:{SECRET}@127.0.0.1:{port}/db"
        # Two seconds instead of five: on a loaded machine they must be over before the deadline of ten.
        settings = {"DATABASE_URL": address, "PGCONNECT_TIMEOUT": "2"}
        for command in ("status", "doctor"):
            # Importing Dagster alone may take that long there, so the command may be late twice.
            for _ in range(3):
                process = start(command, **settings)
                output, error = process.communicate(timeout=120)
                assert process.returncode == 1
                assert not error
                if "no answer within" not in output:
                    break
            assert f"no answer from postgresql://me:***@127.0.0.1:{port}/db" in output
            assert "no answer within" not in output


@pytest.mark.parametrize("sslmode", ["prefer", "disable"])
def test_a_port_that_answers_something_else_is_one_line_at_once(sslmode: str):
    with listening(speak_http) as port:
        process = start("verify", DATABASE_URL=f"postgresql://me:{SECRET}@127.0.0.1:{port}/db?sslmode={sslmode}")
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.count("\n") == 1
    assert f"cannot connect to postgresql://me:***@127.0.0.1:{port}/db" in error
    assert SECRET not in error


def test_the_health_report_comes_within_its_deadline_though_nothing_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "60")
    with listening(say_nothing) as port:
        sources = Sources(Settings.from_environment({"DATABASE_URL": f"postgresql://me@127.0.0.1:{port}/db"}))
        began = time.monotonic()
        found = report(sources, Prober(), 1)
    assert time.monotonic() - began < 30
    assert not found.health.healthy


def test_the_wait_for_an_answer_is_not_repeated_and_may_be_set(monkeypatch: pytest.MonkeyPatch):
    attempts: list[float] = []
    monkeypatch.setattr(connecting, "CONNECT_SECONDS", 60)
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    with listening(say_nothing) as port:
        engine = engine_for(make_url(f"postgresql+psycopg://me@127.0.0.1:{port}/db"))

        def connect() -> None:
            attempts.append(time.monotonic())
            with transaction(engine):
                pass

        with pytest.raises(NoAnswer) as raised:
            retry_transient(connect)
    assert raised.value.transient
    assert len(attempts) == 1
    assert time.monotonic() - attempts[0] < 30


def variables(url: URL) -> dict[str, str]:
    """The address of a database as libpq's variables name it."""
    host = url.host or str(url.query["host"])
    found = {"PGHOST": host, "PGUSER": ROLE, "PGDATABASE": str(url.database)}
    return {**found, **({"PGPORT": str(url.port)} if url.port else {})}


def connected_to(engine) -> tuple[str, str]:
    with transaction(engine) as connection:
        row = connection.exec_driver_sql("select current_database(), current_user").one()
    engine.dispose()
    return row[0], row[1]


@pytest.mark.parametrize("given", ["postgresql://", "postgresql:///{database}"])
def test_what_the_url_leaves_out_comes_from_libpqs_variables(url: URL, given: str, monkeypatch: pytest.MonkeyPatch):
    for name, value in variables(url).items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_environment({"DATABASE_URL": given.format(database=url.database)})
    assert connected_to(engine_for(database_url(settings))) == (url.database, ROLE)
    assert settings.database_url is not None
    assert ROLE in redact_url(settings.database_url)
    assert str(url.database) in redact_url(settings.database_url)


@pytest.mark.parametrize("place", ["variable", "option"])
def test_an_entry_of_the_service_file_is_enough(url: URL, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entry = {name[2:].lower().replace("database", "dbname"): value for name, value in variables(url).items()}
    (tmp_path / "services").write_text("[api]\n" + "".join(f"{name}={value}\n" for name, value in entry.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    if place == "variable":
        monkeypatch.setenv("PGSERVICE", "api")
    given = "postgresql://" if place == "variable" else "postgresql://?service=api"
    settings = Settings.from_environment({"DATABASE_URL": given})
    assert connected_to(engine_for(database_url(settings))) == (url.database, ROLE)
    assert dagster_url(settings).database == "dagster"


def test_a_role_that_only_libpq_names_is_named_in_messages(url: URL, monkeypatch: pytest.MonkeyPatch):
    for name, value in variables(url).items():
        monkeypatch.setenv(name, value)
    engine = engine_for(database_url(Settings.from_environment({"DATABASE_URL": "postgresql://"})))
    with pytest.raises(DatabaseError) as raised, transaction(engine) as connection:
        connection.exec_driver_sql("drop table calculation_logs")
    engine.dispose()
    assert "None" not in str(raised.value)
