"""A project folder that cannot be written to, and no HOME: with a database elsewhere everything works, without one the
embedded server is refused in one line."""

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from benchmarks.running import eventually
from calc_analytics_tests.acceptance.conftest import Project, ask, free_ports

WITHOUT_HOME = {"HOME": "", "XDG_CONFIG_HOME": ""}
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def _without_privileges() -> None:
    """In the child: root may no longer write where it has no right to."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture
def read_only(project: Project) -> Iterator[Project]:
    subprocess.run(["chmod", "-R", "a-w", str(project.folder)], check=True)
    yield project
    subprocess.run(["chmod", "-R", "u+w", str(project.folder)], check=True)


def start(project: Project, *command: str, **settings: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in project.environment(**settings).items() if value}
    return subprocess.Popen(
        [sys.executable, "-m", "calc_analytics.cli", *command],
        cwd=project.folder,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_without_privileges,
    )


def run(project: Project, *command: str, **settings: str) -> tuple[int, str]:
    process = start(project, *command, **settings)
    message = process.communicate(timeout=60)[0]
    return process.returncode, message


@pytest.mark.parametrize("command", [("migrate",), ("refresh",), ("up", *free_ports()), ("demo", *free_ports())])
def test_the_embedded_server_is_refused_in_one_line(read_only: Project, command: tuple[str, ...]):
    code, message = run(read_only, *command, **WITHOUT_HOME)
    assert (code, message.count("\n")) == (1, 1), message
    assert message.startswith(
        f"error: the embedded PostgreSQL cannot run in {read_only.folder}/.calc_analytics: Permission"
    )
    assert "or set DATABASE_URL" in message


def test_status_and_doctor_report_it_without_a_stack_trace(read_only: Project):
    for command in ("status", "doctor"):
        code, message = run(read_only, command, **WITHOUT_HOME)
        assert code == 1
        assert message.count("the embedded PostgreSQL cannot run in") == 1
        assert "Traceback" not in message


def test_with_a_database_elsewhere_up_counts_and_stops(read_only: Project, url: URL, empty_url: URL):
    if "host" in url.query:
        Path(str(url.query["host"])).chmod(0o711)
    given = {"DATABASE_URL": url, "DAGSTER_POSTGRES_URL": empty_url}
    settings = {name: each.set(drivername="postgresql").render_as_string(False) for name, each in given.items()}
    settings |= WITHOUT_HOME
    ports = free_ports()
    process = start(read_only, "up", *ports, **settings)
    try:
        eventually(lambda: ask(int(ports[3]), "/health/live")[0] == 200 or process.poll() is not None, "the service")
        assert process.poll() is None
        code, message = run(read_only, "simulate", "--rows", "100", "--rate", "2000", "--late-share", "0", **settings)
        assert code == 0, message
        healthy = lambda: ask(int(ports[3]), "/health/rollup")[0] == 200  # noqa: E731
        eventually(healthy, "health, and a run whose output was written")
    finally:
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        message = process.communicate(timeout=30)[0]
    assert time.monotonic() - began < 10
    assert "since the project folder cannot be written to" in message
    assert process.returncode == 0, message
    assert run(read_only, "verify", **settings)[0] == 0
    assert "cannot be written to" in run(read_only, "doctor", **settings)[1]
