"""Schemas: tables are found, adopted and created where the role's search_path says, never a second time elsewhere."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dagster import DagsterInstance
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from calc_analytics.cli.main import main
from calc_analytics.config import project_root
from calc_analytics.database.engine import engine_for
from calc_analytics.rollups import LOG
from calc_analytics_tests.conftest import least_privilege
from calc_analytics_tests.integration.test_migrations import API_TABLES, scalar

PATH = "-csearch_path=analytics"
STATE = ("rollup_state", "rollup_days", "rollup_journal")


@pytest.fixture
def role(empty_url: URL, maintenance: Callable[[str], None]) -> Iterator[str]:
    """A role of the test's own, which owns the database."""
    name = f"owner_{empty_url.database}"
    maintenance(f"create role {name} login createrole")
    maintenance(f'alter database "{empty_url.database}" owner to {name}')
    yield name
    maintenance(f'drop database if exists "{empty_url.database}" with (force)')
    maintenance(f"drop role {name}")


@pytest.fixture
def api(empty_url: URL, role: str) -> Iterator[Engine]:
    """The API's tables in the schema analytics; the engine finds nothing but by its schema."""
    engine = engine_for(empty_url.set(username=role))
    with engine.begin() as connection:
        connection.execute(text("create schema analytics"))
        connection.execute(text("set local search_path = analytics"))
        connection.execute(text(API_TABLES))
    yield engine
    engine.dispose()


@pytest.fixture
def calc(api: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `calc-analytics` with these words as that role."""
    monkeypatch.setenv("DATABASE_URL", api.url.render_as_string(hide_password=False))
    monkeypatch.delenv("PGOPTIONS", raising=False)
    return lambda *words: CliRunner().invoke(main, words)


def choose_path(way: str, api: Engine, monkeypatch: pytest.MonkeyPatch, path: str = "analytics") -> None:
    """Sets the search_path in one of the ways there are."""
    url = api.url
    if way == "PGOPTIONS":
        monkeypatch.setenv("PGOPTIONS", f"-csearch_path={path}")
    elif way == "url":
        with_options = url.update_query_dict({"options": f"-csearch_path={path}"})
        monkeypatch.setenv("DATABASE_URL", with_options.render_as_string(hide_password=False))
    else:
        name = url.username if way == "role" else f'"{url.database}"'
        with api.begin() as connection:
            connection.execute(text(f"alter {way} {name} set search_path = {path}"))


def tables(api: Engine, schema: str) -> set[str]:
    with api.begin() as connection:
        statement = text("select relname from pg_class where relnamespace = to_regnamespace(:schema)")
        return set(connection.execute(statement, {"schema": schema}).scalars())


@pytest.mark.parametrize("way", ["PGOPTIONS", "url", "role", "database"])
def test_every_way_to_set_the_search_path_counts_and_each_table_is_reported(
    calc, api: Engine, way: str, monkeypatch: pytest.MonkeyPatch
):
    choose_path(way, api, monkeypatch)
    message = calc("migrate").output
    assert [line.split() for line in message.splitlines() if "calculation" in line and "." in line.split()[-1]] == [
        ["adopted", "analytics.calculation_logs"],
        ["adopted", "analytics.calculation_stats_daily"],
        *(["created", f"analytics.{name}"] for name in LOG.names[1:]),
    ]
    assert all(f"created    analytics.{name}" in message for name in STATE)
    assert not tables(api, "public")
    assert {*STATE, "calc_analytics_version", *(f"{name}_live" for name in LOG.names)} <= tables(api, "analytics")
    assert calc("rollup", "--day", "2026-03-01").exit_code == 0
    assert "100 rows" in calc("rollup", "--day", "2026-03-01").output
    assert calc("verify").exit_code == 0
    assert "unchanged  analytics.calculation_logs" in calc("migrate").output
    assert "the search_path finds the tables in analytics" in calc("doctor").output


@pytest.mark.parametrize("path", [None, "reports"], ids=["unset", "elsewhere"])
def test_tables_that_the_search_path_does_not_find_are_not_created_again(
    calc, api: Engine, path: str | None, monkeypatch: pytest.MonkeyPatch
):
    if path:
        with api.begin() as connection:
            connection.execute(text(f"create schema {path}"))
        choose_path("role", api, monkeypatch, path)
    done = calc("migrate")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "calculation_logs is in the schema analytics" in done.stderr
    rest = path or "public"
    statement = f'alter role "{api.url.username}" set search_path = "analytics", {rest}'
    assert statement in done.stderr
    assert statement in calc("doctor").output
    assert not tables(api, rest)
    with api.begin() as connection:
        connection.execute(text(statement))
    assert calc("migrate").exit_code == 0
    assert calc("rollup").exit_code == 0
    assert calc("verify").exit_code == 0


def test_a_schema_that_the_role_may_not_use_is_named_with_its_grant(calc, api: Engine, maintenance):
    owner = f"somebody_{api.url.database}"
    maintenance(f"create role {owner}")
    with engine_for(api.url.set(username="postgres")).begin() as connection:
        connection.execute(text(f"alter schema analytics owner to {owner}"))
        connection.execute(text(f"alter role {api.url.username} set search_path = analytics, public"))
    try:
        done = calc("migrate")
        grant = f'grant usage on schema "analytics" to "{api.url.username}"'
        assert grant in done.stderr
        assert grant in calc("doctor").output
        assert not tables(api, "public")
    finally:
        with engine_for(api.url.set(username="postgres")).begin() as connection:
            connection.execute(text(f"alter schema analytics owner to {api.url.username}"))
        maintenance(f"drop role {owner}")


def test_a_search_path_without_any_schema_is_one_line(calc, api: Engine, monkeypatch: pytest.MonkeyPatch):
    with api.begin() as connection:
        connection.execute(text("drop schema analytics cascade"))
    choose_path("PGOPTIONS", api, monkeypatch, "analytcis")
    done = calc("migrate")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "(analytcis) names no schema" in done.stderr
    assert "(analytcis) names no schema" in calc("doctor").output


def test_a_second_installation_is_made_only_where_the_search_path_requires_it(
    calc, api: Engine, monkeypatch: pytest.MonkeyPatch
):
    choose_path("PGOPTIONS", api, monkeypatch)
    assert calc("migrate").exit_code == 0
    monkeypatch.delenv("PGOPTIONS")
    assert "does not find it" in calc("migrate").stderr
    with api.begin() as connection:
        connection.execute(text("create schema tenant"))
    choose_path("PGOPTIONS", api, monkeypatch, "tenant")
    assert "created    tenant.calculation_logs" in calc("migrate").output
    assert "calculation_logs is also in the schema analytics" in calc("doctor").output


def test_views_and_later_tables_stay_together_whichever_schema_comes_first(
    calc, api: Engine, monkeypatch: pytest.MonkeyPatch
):
    choose_path("PGOPTIONS", api, monkeypatch, "analytics")
    assert calc("migrate").exit_code == 0
    choose_path("PGOPTIONS", api, monkeypatch, "public,analytics")
    assert calc("migrate").exit_code == 0
    assert calc("rebase", "--yes").exit_code == 0
    assert calc("rollup").exit_code == 0
    assert not tables(api, "public")
    total = "select sum(total_calculations) from analytics.calculation_stats_daily_live where date = '2026-03-01'"
    assert scalar(api, total) == 100


def test_the_documented_role_finds_the_tables_where_their_owner_does(calc, api: Engine, maintenance, monkeypatch):
    choose_path("role", api, monkeypatch)
    assert calc("migrate").exit_code == 0
    writer = f"writer_{api.url.database}"
    owner = engine_for(api.url)
    try:
        with owner.begin() as connection:
            connection.execute(text(least_privilege(writer)))
        url = api.url.set(username=writer).render_as_string(hide_password=False)
        monkeypatch.setenv("DATABASE_URL", url)
        for command in (["refresh"], ["rollup", "--day", "2026-03-01"], ["verify"]):
            assert calc(*command).exit_code == 0, command
    finally:
        owner.dispose()
        maintenance(f'drop database "{api.url.database}" with (force)')
        maintenance(f"drop role {writer}")


@pytest.fixture
def no_dagster(maintenance: Callable[[str], None]) -> Iterator[None]:
    """There is no database `dagster`, before and afterwards."""
    maintenance("drop database if exists dagster with (force)")
    yield
    maintenance("drop database if exists dagster with (force)")


@pytest.mark.parametrize("way", ["PGOPTIONS", "url", "role", "database"])
def test_dagsters_storage_works_under_any_search_path_of_the_logs(
    calc, api: Engine, way: str, tmp_path: Path, no_dagster, maintenance, monkeypatch: pytest.MonkeyPatch
):
    maintenance(f"alter role {api.url.username} createdb")
    choose_path(way, api, monkeypatch)
    monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
    shutil.copy(project_root() / "dagster.yaml", tmp_path)
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_runs_count() == 0
    stored = engine_for(api.url.set(database="dagster"))
    found = scalar(stored, "select count(*) from pg_class where relname in ('runs', 'event_logs', 'job_ticks')")
    stored.dispose()
    assert found == 3
    assert "runs" not in tables(api, "analytics") | tables(api, "public")
