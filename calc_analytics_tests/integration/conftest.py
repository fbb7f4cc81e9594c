"""The code location on the test's own database, and an ephemeral Dagster instance."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, Definitions
from sqlalchemy.engine import URL

from calc_analytics.config import project_root
from calc_analytics.definitions import defs
from calc_analytics.orchestration import resources, sensors
from calc_analytics_tests.conftest import ROLE, stay_clear_of_midnight


@pytest.fixture(autouse=True)
def _clear_of_midnight() -> None:
    stay_clear_of_midnight(20)


@pytest.fixture
def database(url: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """DATABASE_URL is the test's own database, as the role that may read logs and write statistics only; followers and
    engines of this test end with it."""
    for name in ("ROLLUP_TIMEZONE", "ROLLUP_START_DATE", "ROLLUP_CRON", "ROLLUP_INTERVAL_HOURS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", url.set(username=ROLE).render_as_string(hide_password=False))
    monkeypatch.setenv("ROLLUP_DEBOUNCE_SECONDS", "0.1")
    yield url
    sensors.stopping.set()
    followers = [thread for thread in sensors.threading.enumerate() if thread.name == "follower"]
    for thread in followers:
        thread.join()
    sensors.stopping.clear()
    sensors._follower.cache_clear()
    resources._engine.cache_clear()


@pytest.fixture
def location(database: URL) -> Definitions:
    """Every Dagster object, as Dagster loads it."""
    return defs()


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    """A Dagster instance in memory."""
    with DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def stored_instance(
    database: URL, empty_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """A Dagster instance on the project's own storage, in a PostgreSQL database of the test's own."""
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", empty_url.render_as_string(hide_password=False))
    shutil.copy(project_root() / "dagster.yaml", tmp_path)
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance
