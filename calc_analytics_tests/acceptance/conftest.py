"""The real thing: a copy of the project, started by `calc-analytics up`, with its own embedded PostgreSQL."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy.engine import Engine

from calc_analytics.config import project_root, with_driver
from calc_analytics.database.engine import engine_for
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup.database import Database
from calc_analytics.rollups import LOG
from calc_analytics_tests.conftest import stay_clear_of_midnight

PATIENCE_SECONDS = 120
SETTINGS = ("DATABASE_URL", "DAGSTER_", "ROLLUP", "LOGS_KEPT", "TEST_DATABASE_URL", "ENABLE_", "LOG_")
# Without bytecode each of a copy's processes would compile it again.
REMOVED = (*SETTINGS, "PYTHONDONTWRITEBYTECODE")


# The files of this ring that a plain `pytest` runs; the others are marked long.
CORE = ("test_up.py",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as long what is not of the core: a new file belongs to the long run until it is named above."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in CORE:
            item.add_marker(pytest.mark.long)


def _command_line(process: psutil.Process) -> set[str]:
    """The words of a process; none of one that has ended, which any process may do while others are looked at."""
    try:
        return set(process.cmdline()) if process.status() != psutil.STATUS_ZOMBIE else set()
    except psutil.NoSuchProcess:
        return set()


def eventually(fact: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """The fact's value as soon as it is true; fails when it is not within `seconds`, saying what was awaited."""
    deadline = time.monotonic() + seconds
    while not (value := fact()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
    return value


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
    """Status and JSON (or text) of what listens on that port; (0, the reason) if nothing answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            status, body = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)
    return status, json.loads(body) if body.startswith("{") else body


@pytest.fixture(scope="module", autouse=True)
def _clear_of_midnight() -> None:
    stay_clear_of_midnight(300)


def free_ports() -> tuple[str, ...]:
    """The options of `up` that make it use ports of its own."""
    return ("--ui-port", str(free_port()), "--service-port", str(free_port()))


class Project:
    """A copy of the project in a folder with a short path, as an engineer has it after a clone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml"):
            shutil.copy(project_root() / name, folder)
        shutil.copytree(
            project_root() / "calc_analytics", folder / "calc_analytics", ignore=shutil.ignore_patterns("__pycache__")
        )

    def environment(self, **settings: str) -> dict[str, str]:
        """The shell's environment without this project's settings, plus those given."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(REMOVED)}
        return {**kept, "PYTHONPATH": str(self.folder), **settings}

    def start(self, *command: str, **settings: str) -> "subprocess.Popen[str]":
        """A process of the project, its output in a pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment(**settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Runs `python -m command…` in the project to its end."""
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment(**settings),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def cli(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Runs `calc-analytics` with these arguments."""
        return self.run("calc_analytics.cli", *arguments, **settings)

    @contextmanager
    def up(self, **settings: str) -> Iterator["Up"]:
        """`calc-analytics up` on free ports, from its first line until SIGTERM has ended it."""
        port, service_port = free_port(), free_port()
        ports = ("--ui-port", str(port), "--service-port", str(service_port))
        process = self.start("calc_analytics.cli", "up", *ports, **settings)
        try:
            yield Up(self, process, port, service_port)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(30)
            if process.stdout:
                process.stdout.close()


class Up:
    """A running `up`: its output, its UI, its HTTP service, its database."""

    def __init__(self, project: Project, process: "subprocess.Popen[str]", port: int, service_port: int) -> None:
        self.project, self.process, self.port, self.service_port = project, process, port, service_port
        self.output = ""
        assert process.stdout
        while "Dagster  " not in self.output:
            line = process.stdout.readline()
            assert line, f"up ended: {self.output}"
            self.output += line
        self.database_url = re.findall(r"^database +(\S+)$", self.output, re.M)[0]

    def engine(self) -> Engine:
        """An engine on its database."""
        return engine_for(with_driver(self.database_url, "psycopg"))

    def db(self) -> Database:
        """What operations take, on its database: every rollup, days in UTC."""
        return Database(self.engine(), LOG, "UTC")

    def descendants(self) -> list[psutil.Process]:
        """All its processes, the embedded server's (which detaches itself) included."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        pid_file = self.project.folder / ".calc_analytics" / "pgdata" / "postmaster.pid"
        if pid_file.exists():
            processes.append(psutil.Process(int(pid_file.read_text().splitlines()[0])))
        return processes

    def living(self, *words: str) -> list[psutil.Process]:
        """The processes that have all of these words on their command line, and are no zombies."""
        return [process for process in self.descendants() if set(words) <= _command_line(process)]

    def postmasters(self) -> list[psutil.Process]:
        """The embedded server's first process, as a list of one; the server detaches itself."""
        pid_file = self.project.folder / ".calc_analytics" / "pgdata" / "postmaster.pid"
        pid = int(pid_file.read_text().splitlines()[0])
        return [process for process in self.descendants() if process.pid == pid]

    def daemons(self) -> list[psutil.Process]:
        """The living processes of Dagster's daemon."""
        return self.living("dagster._daemon")

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of an answer of the HTTP service."""
        return ask(self.service_port, path, method, **headers)

    def graphql(self, query: str, **variables: Any) -> Any:
        """The `data` of a query to the UI's own API."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    """A fresh copy."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    yield Project(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def up(project: Project) -> Iterator[Up]:
    """The copy, running."""
    with project.up() as running:
        yield running
