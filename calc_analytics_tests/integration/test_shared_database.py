"""Dagster's tables in a database that has others of the same names: refused in one line, before anything is created."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import inspect
from sqlalchemy.engine import URL

from calc_analytics.cli import running
from calc_analytics.cli.main import main
from calc_analytics.database.dagster_tables import SharedDatabase
from calc_analytics.database.engine import engine_for
from calc_analytics.orchestration import storage
from calc_analytics_tests.integration.conftest import instance_on
from calc_analytics_tests.logs import execute


def tables(url: URL) -> set[str]:
    engine = engine_for(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def run(url: URL, *statements: str) -> None:
    engine = engine_for(url)
    for statement in statements:
        execute(engine, statement)
    engine.dispose()


@pytest.mark.parametrize(
    ("name", "statements"),
    [
        ("runs", ["create table runs (id bigserial primary key, status text)"]),
        ("jobs", ["create table jobs (id bigserial primary key, name text)"]),
        ("event_logs", ["create table event_logs (id bigserial primary key, run_id text)"]),
        ("runs", ["create view runs as select 1 as id"]),
        (
            "alembic_version",
            [
                "create table alembic_version (version_num varchar(32) primary key)",
                "insert into alembic_version values ('1a2b3c4d5e6f')",
            ],
        ),
    ],
)
def test_a_table_of_the_api_with_the_name_of_one_of_dagsters_is_refused(
    empty_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, statements: list[str]
):
    run(empty_url, *statements)
    before = tables(empty_url)
    with pytest.raises(SharedDatabase) as refused, instance_on(empty_url, tmp_path):
        pass
    message = str(refused.value)
    assert f" has {name}, not of Dagster: set DAGSTER_POSTGRES_URL to a database of its own" in message
    assert "\n" not in message
    assert tables(empty_url) == before
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", empty_url.render_as_string(hide_password=False))
    monkeypatch.setenv("DATABASE_URL", empty_url.render_as_string(hide_password=False))
    monkeypatch.setattr(running, "claim", lambda *ports: None)
    done = CliRunner().invoke(main, ["up", "--ui-port", "39411", "--service-port", "39412"])
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == f"error: {message}"


def test_the_apis_database_without_such_tables_and_dagsters_own_are_accepted(
    dagster_url: URL, url: URL, tmp_path: Path
):
    with instance_on(url, tmp_path):
        assert {"runs", "calculation_logs"} <= tables(url)
    storage.require_room.cache_clear()
    with instance_on(url, tmp_path):
        pass
    run(dagster_url, "create table publishers (id bigint primary key)")
    with instance_on(dagster_url, tmp_path):
        pass
