"""The real thing: a copy of the project, started by `calc-analytics up`, with its own embedded PostgreSQL."""

import json
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Page

from benchmarks.running import ProjectCopy, Running, run_up
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup.database import Database
from calc_analytics.rollups import LOG
from calc_analytics_tests.conftest import stay_clear_of_midnight

PATIENCE_SECONDS = 120
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


class Project(ProjectCopy):
    """A copy of the project in a folder with a short path, as an engineer has it after a clone."""

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

    def up(self, **settings: str) -> AbstractContextManager["Up"]:
        """`calc-analytics up` on free ports, from its first line until SIGTERM has ended it."""
        return run_up(self, Up, **settings)


class Up(Running):
    """A running `up`: its output, its UI, its HTTP service, its database."""

    project: Project

    def db(self) -> Database:
        """What operations take, on its database: every rollup, days in UTC."""
        return Database(self.engine(), LOG, "UTC")

    def living(self, *words: str) -> list[psutil.Process]:
        """The processes that have all of these words on their command line, and are no zombies."""
        return [process for process in self.descendants() if set(words) <= _command_line(process)]

    def daemons(self) -> list[psutil.Process]:
        """The living processes of Dagster's daemon."""
        return self.living("dagster._daemon")

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of an answer of the HTTP service."""
        return ask(self.service_port, path, method, **headers)


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


@pytest.fixture(scope="module")
def page(up: Up, browser: Browser) -> Page:
    """The real UI in it."""
    page = browser.new_page(viewport={"width": 1400, "height": 900}, base_url=f"http://127.0.0.1:{up.port}")
    page.set_default_timeout(60_000)
    return page
