"""A running `calc-analytics up` for the benchmarks that need Dagster: a fresh copy of the project and its processes."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
from sqlalchemy.engine import Engine

from calc_analytics.config import project_root, with_driver
from calc_analytics.database.engine import engine_for
from calc_analytics.processes.supervisor import free_port

# Prefixes of the caller's variables that must not reach the copy's processes, which without bytecode would compile it
# again, each of them.
REMOVED = (
    "DATABASE_URL", "TEST_DATABASE_URL", "DAGSTER_", "ROLLUP", "LOGS_KEPT", "ENABLE_", "LOG_", "ALERT_",
    "PYTHONDONTWRITEBYTECODE",
)  # fmt: skip
STOP_SECONDS = 30
R = TypeVar("R", bound="Running")


class ProjectCopy:
    """The project's files in a folder of their own, so that `up` makes its database there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml"):
            shutil.copy(project_root() / name, folder)
        no_bytecode = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project_root() / "calc_analytics", folder / "calc_analytics", ignore=no_bytecode)

    def environment(self, **settings: str) -> dict[str, str]:
        """The caller's environment without this project's settings, plus those given."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(REMOVED)}
        return {**kept, "PYTHONPATH": str(self.folder), **settings}

    def start(self, *command: str, **settings: str) -> "subprocess.Popen[str]":
        """Starts `python -m command…` in the folder, its output in a pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder, env=self.environment(**settings),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    @property
    def pid_file(self) -> Path:
        """Of its embedded server."""
        return self.folder / ".calc_analytics" / "pgdata" / "postmaster.pid"

    def postmasters(self) -> list[psutil.Process]:
        """The embedded server's first process, which detaches itself, as a list of one; none before it starts."""
        if not self.pid_file.exists():
            return []
        return [psutil.Process(int(self.pid_file.read_text().split()[0]))]


class Running:
    """A running `up`: its output, its database, its processes, its UI's API."""

    def __init__(self, project: ProjectCopy, process: "subprocess.Popen[str]", port: int, service_port: int) -> None:
        self.project, self.process, self.port, self.service_port = project, process, port, service_port
        self.output = ""
        assert process.stdout
        while "Dagster  " not in self.output:
            line = process.stdout.readline()
            assert line, f"up ended: {self.output}"
            self.output += line
        self.database_url: str = re.findall(r"^database +(\S+)$", self.output, re.M)[0]

    def engine(self) -> Engine:
        """A new engine on its database."""
        return engine_for(with_driver(self.database_url, "psycopg"))

    def descendants(self) -> list[psutil.Process]:
        """All its processes, the embedded server's first one included."""
        return [*psutil.Process(self.process.pid).children(recursive=True), *self.project.postmasters()]

    def graphql(self, query: str, **variables: Any) -> Any:
        """The `data` of a query to the UI's API."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]


@contextmanager
def run_up(project: ProjectCopy, kind: type[R], **settings: str) -> Iterator[R]:
    """`calc-analytics up` on free ports, from its first lines until SIGTERM has ended it."""
    port, service_port = free_port(), free_port()
    ports = ("--ui-port", str(port), "--service-port", str(service_port))
    process = project.start("calc_analytics.cli", "up", *ports, **settings)
    try:
        yield kind(project, process, port, service_port)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        if process.stdout:
            process.stdout.close()


@contextmanager
def fresh_copy() -> Iterator[ProjectCopy]:
    """A copy in a new folder under a short path (a Unix socket's may have about 100 characters), then removed."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    try:
        yield ProjectCopy(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def eventually(is_so: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The first true value; raises `TimeoutError` with `what` when there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := is_so()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)
    return value
