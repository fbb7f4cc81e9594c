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
from typing import Any

import psutil
from sqlalchemy.engine import Engine

from calc_analytics.config import project_root, with_driver
from calc_analytics.database.engine import engine_for
from calc_analytics.processes.supervisor import free_port

SETTINGS = ("DATABASE_URL", "DAGSTER_", "ROLLUP", "LOGS_KEPT", "ENABLE_", "LOG_", "ALERT_")
"""Prefixes of the variables of the caller's environment that must not reach a measured process."""
STOP_SECONDS = 30


class Copy:
    """The project's files in a folder of their own, so that `up` makes its database there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml"):
            shutil.copy(project_root() / name, folder)
        shutil.copytree(project_root() / "calc_analytics", folder / "calc_analytics")

    def start(self, *command: str, **settings: str) -> "subprocess.Popen[str]":
        """Starts `python -m command…` in the folder, its output in a pipe."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
        environment = {**kept, "PYTHONPATH": str(self.folder), **settings}
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    @property
    def postmaster(self) -> Path:
        """The pid file of its embedded server."""
        return self.folder / ".calc_analytics" / "pgdata" / "postmaster.pid"

    @contextmanager
    def up(self) -> Iterator["Running"]:
        """`calc-analytics up` on free ports, from its last line until it has ended."""
        port = free_port()
        process = self.start("calc_analytics.cli", "up", "--ui-port", str(port), "--service-port", str(free_port()))
        try:
            yield Running(self, process, port)
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


class Running:
    """A running `up`: its database, its processes, its UI's API."""

    def __init__(self, copy: Copy, process: "subprocess.Popen[str]", port: int) -> None:
        self.copy, self.process, self.port = copy, process, port
        output = ""
        assert process.stdout
        while "Dagster  " not in output:
            line = process.stdout.readline()
            assert line, f"up ended: {output}"
            output += line
        self.database_url: str = re.findall(r"^database +(\S+)$", output, re.M)[0]

    def engine(self) -> Engine:
        """A new engine on its database."""
        return engine_for(with_driver(self.database_url, "psycopg"))

    def descendants(self) -> list[psutil.Process]:
        """All its processes, and the postmaster, which detaches itself."""
        postmaster = int(self.copy.postmaster.read_text().split()[0])
        return [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(postmaster)]

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
def fresh_copy() -> Iterator[Copy]:
    """A copy in a new folder under a short path (a Unix socket's may have about 100 characters), then removed."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    try:
        yield Copy(folder)
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
