"""The code location on the test's own database, and an ephemeral Dagster instance."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import DagsterInstance, Definitions
from sqlalchemy.engine import URL

from calc_analytics.config import project_root
from calc_analytics.definitions import defs
from calc_analytics.orchestration import resources, sensors
from calc_analytics_tests.conftest import ROLE, own_database, stay_clear_of_midnight

# Files of which every test is long: changes by others in every form, other people's databases, copies and upgrades of
# clusters, Dagster's old events, erasure.
LONG = (
    "test_archive_model.py",
    "test_archive_processes.py",
    "test_books.py",
    "test_cloned_cluster.py",
    "test_corrected_rows.py",
    "test_erase.py",
    "test_housekeeping.py",
    "test_log_identity.py",
    "test_odd_tables.py",
    "test_partitions.py",
    "test_restore.py",
    "test_row_security.py",
    "test_upgrade.py",
    "test_wide_keys.py",
    "test_wrong_days.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of these files as long."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name in LONG:
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def _clear_of_midnight() -> None:
    stay_clear_of_midnight(20)


@pytest.fixture
def database(url: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """DATABASE_URL is the test's own database, as the role that may read logs and write statistics only; followers and
    engines of this test end with it."""
    for name in ("TIMEZONE", "START_DATE", "CRON", "INTERVAL_HOURS"):
        monkeypatch.delenv(f"ROLLUP_{name}", raising=False)
    for name in ("ROLLUPS", "LOGS_KEPT_DAYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", url.set(username=ROLE).render_as_string(hide_password=False))
    monkeypatch.setenv("ROLLUP_DEBOUNCE_SECONDS", "0.1")
    yield url
    sensors.stopping.set()
    for thread in sensors.threading.enumerate():
        if thread.name in ("follower", "patrol"):
            thread.join()
    sensors.stopping.clear()
    sensors._follower.cache_clear()
    sensors._patrol.cache_clear()
    resources._database.cache_clear()


@pytest.fixture
def location(database: URL) -> Definitions:
    """Every Dagster object, as Dagster loads it."""
    return defs()


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    """A Dagster instance in memory."""
    with DagsterInstance.ephemeral() as instance:
        yield instance


@contextmanager
def instance_on(url: URL, folder: Path) -> Iterator[DagsterInstance]:
    """A Dagster instance on the project's own storage in that database; makes its tables if they are missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_POSTGRES_URL", url.render_as_string(hide_password=False))
        shutil.copy(project_root() / "dagster.yaml", folder)
        with DagsterInstance.from_config(str(folder)) as instance:
            yield instance


@pytest.fixture(scope="session")
def dagster_template(
    server_url: URL, maintenance: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A database with Dagster's tables, which take a second to make, to be cloned for each test."""
    with own_database(server_url, maintenance) as url:
        with instance_on(url, tmp_path_factory.mktemp("dagster")):
            pass
        # Its pools' connections: a database in use cannot be cloned.
        maintenance(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{url.database}'")
        yield str(url.database)


@pytest.fixture
def dagster_url(server_url: URL, dagster_template: str, maintenance: Callable[[str], None]) -> Iterator[URL]:
    """A database of the test's own, with Dagster's tables."""
    with own_database(server_url, maintenance, dagster_template) as url:
        yield url


@pytest.fixture
def stored_instance(database: URL, dagster_url: URL, tmp_path: Path) -> Iterator[DagsterInstance]:
    """A Dagster instance on the project's own storage, in a PostgreSQL database of the test's own."""
    with instance_on(dagster_url, tmp_path) as instance:
        yield instance
