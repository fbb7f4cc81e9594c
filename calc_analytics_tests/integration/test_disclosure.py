"""Over HTTP nothing internal is shown, whatever fails: a code and general words, each cause once."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL

from calc_analytics.config import Settings
from calc_analytics.database.errors import DatabaseError
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations.disclosure import cause_of
from calc_analytics.operations.probes import Prober
from calc_analytics.orchestration import history
from calc_analytics.processes.supervisor import free_port
from calc_analytics_tests.clusters import Cluster
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.integration.test_service import Served, serving
from calc_analytics_tests.logs import execute

SECRET, USER, DATABASE = "hunter2", "ledger_keeper", "books_of_account"
PATHS = ("/", "/health/rollup", "/health/live", "/metrics", "/openapi.json", "/nothing", "/internal/rollup/trigger")
COUNTING = ("state", "freshness", "proofs", "audit")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    history.instance.cache_clear()
    yield
    history.instance.cache_clear()


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Cluster, int]]:
    """A server of this module's own, which wants a password, and its port."""
    folder, port = Path(tempfile.mkdtemp(prefix="ca-")), free_port()
    cluster = Cluster(folder).create()
    cluster.configure(f"listen_addresses = '127.0.0.1'\nport = {port}\n")
    with open(cluster.data / "pg_hba.conf", "w") as file:
        file.write("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    cluster.start()
    for statement in (f"create role {USER} login password '{SECRET}'", f"create database {DATABASE} owner {USER}"):
        cluster.run("psql", "-h", str(folder), "-p", str(port), "-U", "postgres", "-c", statement)
    try:
        yield cluster, port
    finally:
        cluster.stop("immediate")
        shutil.rmtree(folder)


def address(port: int, password: str = SECRET, database: str = DATABASE) -> Settings:
    url = f"postgresql://{USER}:{password}@127.0.0.1:{port}/{database}"
    return replace(Settings.from_environment({"DATABASE_URL": url}), enable_test_endpoints=True)


def inside(url: URL) -> set[str]:
    """What must not be shown: where the database is, who asks, and what is asked."""
    parts = {str(url.database), str(url.username), str(url.host), str(url.port), str(url.query.get("host")), SECRET}
    words = {"postgresql:", "psycopg", "sqlstate", "select ", "relation ", "connection failed", "Traceback", ".sock"}
    return {*parts, *words, str(Path.home()), tempfile.gettempdir() + "/"} - {"None", ""}


def assert_nothing_is_disclosed(served: Served, url: URL) -> None:
    for path in PATHS:
        for method in ("GET", "POST"):
            _, answer = served.ask(path, method)
            said = json.dumps(answer) if isinstance(answer, dict) else answer
            assert [word for word in inside(url) if word in said] == [], (path, method, said)


def database_probes(served: Served) -> dict[str, dict[str, Any]]:
    """The probes that ask the project's database."""
    return {name: probe for name, probe in served.probes().items() if name in ("database", "tables", *COUNTING)}


def assert_reported_once(probes: dict[str, dict[str, Any]], first: str, code: str, words: str) -> None:
    """The first of these probes says what is wrong, the others name it; all have the code."""
    assert {probe["code"] for probe in probes.values()} == {code}
    assert words in probes[first]["compared"]
    others = {probe["compared"] for name, probe in probes.items() if name != first}
    assert others == {f"not known: see the probe {first}"}


def test_a_database_that_does_not_answer(cluster: tuple[Cluster, int]):
    nowhere = address(free_port())
    with serving(nowhere) as served:
        assert_reported_once(database_probes(served), "database", "database_unreachable", "the database is unreachable")
        assert served.probes()["database"]["next_command"] == "calc-analytics doctor"
        assert served.trigger()[1]["error"]["message"].startswith("the database is unreachable")
        assert_nothing_is_disclosed(served, nowhere.database_url)


def test_a_wrong_password_and_a_missing_database(cluster: tuple[Cluster, int]):
    _, port = cluster
    for settings, code in (
        (address(port, password="wrong"), "access_refused"),
        (address(port, database="nowhere_at_all"), "no_database"),
    ):
        with serving(settings, Prober(deadline_seconds=5)) as served:
            assert {probe["code"] for probe in database_probes(served).values()} == {code}
            assert served.trigger()[0] == 503
            assert_nothing_is_disclosed(served, settings.database_url)


def test_tables_that_are_missing(cluster: tuple[Cluster, int]):
    settings = address(cluster[1])
    with serving(settings) as served:
        probes = database_probes(served)
        assert probes.pop("database")["compared"] == "the database answered"
        assert_reported_once(probes, "tables", "not_installed", "the newest migration has not run")
        assert probes["state"]["next_command"] == "calc-analytics migrate"
        assert_nothing_is_disclosed(served, settings.database_url)


def test_a_database_that_is_killed_while_the_service_runs(cluster: tuple[Cluster, int]):
    server, port = cluster
    settings = address(port)
    with serving(settings) as served:
        assert served.probes()["database"]["ok"]
        server.stop("immediate")
        assert_reported_once(database_probes(served), "database", "database_unreachable", "the database is unreachable")
        assert_nothing_is_disclosed(served, settings.database_url)
        server.start()
        assert served.probes()["database"]["ok"]


def test_a_right_that_is_missing(database: URL, owner):
    execute(owner, f"revoke select on rollup_state from {ROLE}")
    settings = replace(Settings.from_environment(), enable_test_endpoints=True)
    with serving(settings) as served:
        probes = {name: probe for name, probe in served.probes().items() if probe["code"] == "permission_denied"}
        assert set(probes) >= {"tables", "state", "freshness"}
        assert_reported_once(probes, "tables", "permission_denied", "permission denied")
        assert served.trigger()[1]["error"]["message"].startswith("permission denied")
        assert_nothing_is_disclosed(served, settings.database_url)


def test_a_database_from_another_cluster(database: URL, owner):
    execute(owner, "update rollup_state set system_identifier = 7, relation = 7")
    settings = Settings.from_environment()
    with serving(settings) as served:
        probes = {name: probe for name, probe in served.probes().items() if probe["code"] == "restored_elsewhere"}
        assert set(probes) >= {"state", "freshness"}
        assert_reported_once(probes, "state", "restored_elsewhere", "restored into another cluster")
        assert probes["state"]["next_command"] == "calc-analytics rebase"
        assert_nothing_is_disclosed(served, settings.database_url)


def test_dagsters_storage_that_does_not_answer(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nowhere = f"postgresql://{USER}:{SECRET}@127.0.0.1:{free_port()}/runs_of_ours"
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", nowhere)
    shutil.copy("dagster.yaml", tmp_path)
    with serving(Settings.from_environment()) as served:
        probes = {
            name: served.probes()[name]
            for name in ("daemon", "sensor", "schedule", "housekeeping", "checks", "scheduled_run", "runs")
        }
        assert_reported_once(probes, "daemon", "dagster_database_unreachable", "Dagster's storage is unreachable")
        assert_nothing_is_disclosed(served, Settings.from_environment({"DATABASE_URL": nowhere}).database_url)


def test_the_log_has_the_details_once(capsys: pytest.CaptureFixture[str]):
    settings = address(free_port())
    with serving(settings) as served:
        for _ in range(3):
            served.ask("/health/rollup")
    said = [line for line in capsys.readouterr().err.splitlines() if " probe name=database " in line]
    assert len(said) == 1
    assert f"127.0.0.1:{settings.database_url.port}" in said[0]
    assert SECRET not in said[0]


def test_the_command_line_says_where(monkeypatch: pytest.MonkeyPatch):
    from click.testing import CliRunner

    from calc_analytics.cli.main import main

    port = free_port()
    monkeypatch.setenv("DATABASE_URL", f"postgresql://{USER}:{SECRET}@127.0.0.1:{port}/{DATABASE}")
    for command in ("status", "doctor"):
        said = CliRunner().invoke(main, [command]).output
        assert f"{USER}:***@127.0.0.1:{port}/{DATABASE}" in said
        assert SECRET not in said


def test_every_error_of_the_project_has_a_code_and_words():
    def all_of(base: type[Exception]) -> Iterator[type[Exception]]:
        for each in base.__subclasses__():
            yield each
            yield from all_of(each)

    for each in {*all_of(CalcAnalyticsError)} - {DatabaseError}:
        cause = cause_of(each.__new__(each))
        assert cause.code.replace("_", "").isalpha()
        assert cause.words
        assert "\n" not in cause.words
