"""Dagster's own commands work from the project root: on the embedded default, and with both URLs set."""

import subprocess
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from calc_analytics import days
from calc_analytics.database.engine import engine_for
from calc_analytics.supervisor import free_port
from calc_analytics_tests.acceptance.conftest import Project, eventually

COUNT = "select coalesce(sum(total_calculations), 0) from calculation_stats_daily"


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
    partition = ("--select", "calculation_stats_daily", "--partition", str(days.today("UTC")))
    done = project.run("dagster", "asset", "materialize", *partition, **settings)
    assert done.returncode == 0, done.stderr
    assert "RUN_SUCCESS" in done.stderr
    assert "300" in project.cli("verify", **settings).stdout


@pytest.fixture
def dagster_dev(project: Project, settings: dict[str, str]) -> Iterator[str]:
    """`dagster dev`, and the URL of its UI."""
    port = free_port()
    yield from _running(project, settings, port, [("dagster", "dev", "--port", str(port))])


@pytest.fixture
def webserver_and_daemon(project: Project, settings: dict[str, str]) -> Iterator[str]:
    """`dagster-webserver` and `dagster-daemon run`, and the URL of the UI."""
    port = free_port()
    commands = [("dagster_webserver", "--port", str(port)), ("dagster._daemon", "run")]
    yield from _running(project, settings, port, commands)


def _running(project: Project, settings: dict[str, str], port: int, commands: list[tuple[str, ...]]) -> Iterator[str]:
    log = open(project.folder / "dagster.log", "w+")  # noqa: SIM115
    processes = [
        psutil.Popen(
            [project.python, "-m", *command],
            cwd=project.folder,
            env=project.environment(**settings),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for command in commands
    ]
    yield f"http://127.0.0.1:{port}"
    everything = [*processes, *(child for p in processes if p.is_running() for child in p.children(recursive=True))]
    for process in processes:
        process.terminate()
    _, alive = psutil.wait_procs(everything, timeout=20)
    for process in alive:
        process.kill()
    log.close()


def _counts_new_batches(project: Project, settings: dict[str, str], ui: str, url: URL | None) -> None:
    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{ui}/server_info", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    eventually(answers, "an answer from the UI")
    written = project.cli("simulate", "--rows", "200", "--rate", "1000", "--late-share", "0", **settings)
    assert written.returncode == 0, written.stderr

    def counted() -> bool:
        proof = project.cli("verify", "--day", str(days.today("UTC")), **settings)
        return proof.returncode == 0 and " 0 " not in proof.stdout.split("logs")[1].split("stats")[0]

    eventually(counted, "the sensor to count the new batch")
    if url is not None:
        engine = engine_for(url)
        with engine.begin() as connection:
            assert connection.execute(text(COUNT)).scalar_one() == 200
        engine.dispose()


def test_dagster_dev_streams(project, settings, dagster_dev, request):
    _counts_new_batches(project, settings, dagster_dev, None)


def test_webserver_and_daemon_stream(project, settings, webserver_and_daemon):
    _counts_new_batches(project, settings, webserver_and_daemon, None)
