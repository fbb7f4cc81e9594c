"""One PostgreSQL per session, a migrated template database, and a clone of it for each test.

The server has the binaries of the embedded one, or those in TEST_POSTGRES_BIN, and a folder of its own under a short
path (a Unix socket's path may have about 100 characters); unless TEST_DATABASE_URL names a server where databases and
roles may be created.
"""

import functools
import itertools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from calc_analytics.config import process_settings, project_root, with_driver
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollups import LOG
from calc_analytics_tests.clusters import BINARIES, Cluster
from calc_analytics_tests.logs import OWNER

TEMPLATE = f"calc_analytics_template_{os.getpid()}"
# The documented role (deploy/least_privilege.sql) under a name of this session's own.
ROLE = f"rollup_writer_{os.getpid()}"
# A folder in memory, and what must be free there: three workers and their clusters take less than half of it.
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 3_000_000_000
# The acceptance tests in three parts that take about as long; those that are not named are the third.
ACCEPTANCE_PARTS = (
    ("test_stop", "test_kills", "test_secrets", "test_pgbouncer", "test_read_only_folder"),
    ("test_two_of_us", "test_dagster_commands", "test_alerts", "test_ui"),
)
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Temporary folders lie in memory where it is large enough, unless TMPDIR names another place: cloning the template
    database for a test takes a tenth of the time there. Child processes and xdist's workers inherit TMPDIR."""
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES:
        os.environ["TMPDIR"], tempfile.tempdir = str(MEMORY), None


def _forgetting_settings(change: Callable[..., Any]) -> Callable[..., Any]:
    """The same change, after which the settings are read again: a test that changes its environment plays another
    process."""

    @functools.wraps(change)
    def changed(*given: Any, **options: Any) -> Any:
        try:
            return change(*given, **options)
        finally:
            process_settings.cache_clear()

    return changed


for _name in ("setenv", "delenv", "setattr", "undo"):
    setattr(pytest.MonkeyPatch, _name, _forgetting_settings(getattr(pytest.MonkeyPatch, _name)))


def stay_clear_of_midnight(seconds: float) -> None:
    """Waits until midnight UTC is past if it is less than `seconds` away: tests that speak of today may not straddle
    it. Midnight itself is tested with instants that are given."""
    now = datetime.now(timezone.utc)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    if midnight - now < timedelta(seconds=seconds):
        while datetime.now(timezone.utc) < midnight:
            time.sleep(0.5)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers (`pytest -n 4`) a file's tests stay together. The acceptance tests begin first, on three
    workers: they wait most of the time, and more `up` at once would starve each other."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            if "/acceptance/" not in file:
                return file
            parts = (number for number, files in enumerate(ACCEPTANCE_PARTS) if Path(file).stem in files)
            return f"acceptance {next(parts, len(ACCEPTANCE_PARTS))}"

    return ByFile(config, log)


@pytest.fixture(scope="session")
def server_url() -> Iterator[URL]:
    """The server's maintenance database."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        url = with_driver(given, "psycopg")
        OWNER.update(username=url.username, password=url.password)
        yield url
        return
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    cluster = Cluster(folder, BINARIES).create().start()
    try:
        OWNER.update(username=cluster.url().username, password=None)
        yield cluster.url()
    finally:
        cluster.stop("immediate")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def maintenance(server_url: URL) -> Iterator[Callable[[str], None]]:
    """Runs one statement outside any transaction, for example CREATE DATABASE."""
    engine = engine_for(server_url)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

    def run(statement: str) -> None:
        with autocommit.connect() as connection:
            connection.execute(text(statement))

    yield run
    engine.dispose()


@pytest.fixture(scope="session")
def template(server_url: URL, maintenance: Callable[[str], None]) -> Iterator[str]:
    """A migrated database that is cloned for each test."""
    maintenance(f'create database "{TEMPLATE}"')
    engine = engine_for(server_url.set(database=TEMPLATE))
    install(Database(engine, LOG, "UTC"))
    with engine.begin() as connection:
        connection.execute(text(least_privilege(ROLE)))
    engine.dispose()
    yield TEMPLATE
    maintenance(f'drop database "{TEMPLATE}" with (force)')
    maintenance(f"drop role {ROLE}")


def least_privilege(role: str) -> str:
    """The documented grants, for a role of that name."""
    script = (project_root() / "deploy" / "least_privilege.sql").read_text()
    return re.sub("^ *--.*$", "", script, flags=re.M).replace("rollup_writer", role)


@contextmanager
def own_database(server_url: URL, maintenance: Callable[[str], None], template: str = "template1") -> Iterator[URL]:
    """A new database for one test, a clone of the template; gone afterwards."""
    name = f"calc_analytics_{os.getpid()}_{next(_numbers)}"
    # With fsync off, copying files is several times as fast as writing them to the log.
    maintenance(f'create database "{name}" template "{template}" strategy file_copy')
    yield server_url.set(database=name)
    maintenance(f'drop database if exists "{name}" with (force)')


@pytest.fixture
def empty_url(server_url: URL, maintenance: Callable[[str], None]) -> Iterator[URL]:
    """A new, empty database."""
    with own_database(server_url, maintenance) as url:
        yield url


@pytest.fixture
def url(server_url: URL, template: str, maintenance: Callable[[str], None]) -> Iterator[URL]:
    """A migrated database of the test's own, reporting time zone UTC."""
    with own_database(server_url, maintenance, template) as url:
        yield url


@pytest.fixture
def owner(url: URL) -> Iterator[Engine]:
    """An engine of the role that owns the tables of that database."""
    engine = engine_for(url)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(url: URL) -> Iterator[Engine]:
    """The project's engine on that database, as the role that may read logs and write statistics only."""
    engine = engine_for(url.set(username=ROLE))
    yield engine
    engine.dispose()


@pytest.fixture
def db(engine: Engine) -> Database:
    """What operations take: that engine, every rollup, days in UTC."""
    return Database(engine, LOG, "UTC")


@pytest.fixture
def connect(url: URL) -> Iterator[Callable[[], psycopg.Connection]]:
    """Opens raw psycopg connections that play the API's writers; closed (rolled back) after the test."""
    opened: list[psycopg.Connection] = []

    def open_one() -> psycopg.Connection:
        opened.append(psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser. In CI its absence is a failure."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None and "CI" not in os.environ:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
