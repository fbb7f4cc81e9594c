"""Dagster's own commands work from the project root: on the embedded default, and with both URLs set."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from sqlalchemy.engine import URL

from benchmarks.running import eventually
from calc_analytics import days
from calc_analytics.ports import is_listening
from calc_analytics.processes.supervisor import free_port
from calc_analytics_tests.acceptance.conftest import Project
from calc_analytics_tests.logs import FORMS


@pytest.fixture
def both_urls(url: URL, empty_url: URL) -> dict[str, str]:
    """DATABASE_URL and DAGSTER_POSTGRES_URL, as an engineer would write them."""
    plain = {"DATABASE_URL": url, "DAGSTER_POSTGRES_URL": empty_url}
    return {
        name: value.set(drivername="postgresql").render_as_string(hide_password=False) for name, value in plain.items()
    }


@pytest.fixture(params=["embedded", "both urls"])
def settings(request: pytest.FixtureRequest, project: Project) -> dict[str, str]:
    """The environment of each way to run, with DAGSTER_HOME as the README says."""
    given = request.getfixturevalue("both_urls") if request.param == "both urls" else {}
    return {**given, "DAGSTER_HOME": str(project.folder)}


def test_definitions_validate_without_any_setting(project: Project):
    done = project.run("dagster", "definitions", "validate")
    assert done.returncode == 0, done.stderr
    assert "All code locations passed validation" in done.stderr + done.stdout


def test_asset_materialize_builds_a_partition(project: Project, settings: dict[str, str]):
    project.cli("simulate", "--rows", "300", "--rate", "3000", "--late-share", "0", **settings)
    target = ("-m", "calc_analytics.definitions", "--select", "calculation_stats_daily")
    done = project.run("dagster", "asset", "materialize", *target, "--partition", str(days.today("UTC")), **settings)
    assert done.returncode == 0, done.stderr
    assert "RUN_SUCCESS" in done.stderr
    assert "300" in project.cli("verify", **settings).stdout


@contextmanager
def running(project: Project, settings: dict[str, str], *commands: tuple[str, ...]) -> Iterator[None]:
    """These processes of the project; afterwards they and their children are gone."""
    with open(project.folder / "dagster.log", "a") as log:
        options = {"cwd": project.folder, "env": project.environment(**settings), "stdout": log, "stderr": log}
        processes = [psutil.Popen([sys.executable, "-m", *command], **options) for command in commands]
        try:
            yield
        finally:
            everything = [p for each in processes if each.is_running() for p in (each, *each.children(recursive=True))]
            for process in processes:
                process.terminate()
            for process in psutil.wait_procs(everything, timeout=20)[1]:
                process.kill()


def calculations_today(project: Project, settings: dict[str, str]) -> int:
    """Today's total, equal in every rollup."""
    today = str(days.today("UTC"))
    done = project.cli("verify", "--day", today, "--json", **settings)
    counted = {name: each["counted_rows"] for name, each in json.loads(done.stdout)["days"].get(today, {}).items()}
    assert not counted or set(counted) == set(FORMS)
    assert len(set(counted.values())) <= 1, counted
    return max(counted.values(), default=0)


def assert_new_batches_are_counted(project: Project, settings: dict[str, str], ui_port: int) -> None:
    """The UI answers, and rows written now appear in the statistics."""
    eventually(lambda: is_listening(ui_port), "an answer from the UI")
    before = calculations_today(project, settings)
    written = project.cli("simulate", "--rows", "200", "--rate", "1000", "--late-share", "0", **settings)
    assert written.returncode == 0, written.stderr
    eventually(lambda: calculations_today(project, settings) >= before + 200, "the new rows in the statistics")


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
def test_dagster_dev_counts_new_batches(project: Project, settings: dict[str, str]):
    port = free_port()
    with running(project, settings, ("dagster", "dev", "--port", str(port))):
        assert_new_batches_are_counted(project, settings, port)


@pytest.mark.parametrize("settings", ["both urls"], indirect=True)
def test_webserver_and_daemon_count_new_batches(project: Project, settings: dict[str, str]):
    port = free_port()
    with running(project, settings, ("dagster_webserver", "--port", str(port)), ("dagster._daemon", "run")):
        assert_new_batches_are_counted(project, settings, port)
