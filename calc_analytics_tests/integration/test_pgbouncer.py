"""PgBouncer in transaction mode: everything works through it, and no session is left changed for its next client."""

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dagster import DagsterInstance
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from calc_analytics.cli.main import main
from calc_analytics.config import project_root
from calc_analytics.database import migrate
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.database import Database
from calc_analytics.rollups import LOG
from calc_analytics_tests.conftest import ROLE, own_database
from calc_analytics_tests.installs import install_at_once
from calc_analytics_tests.integration.test_migrations import API_TABLES, scalar
from calc_analytics_tests.logs import assert_exact, row, utc, write
from calc_analytics_tests.pgbouncer import Pool, pgbouncer, target

DAY, NOON = date(2026, 3, 1), utc(2026, 3, 1, 12)


@pytest.fixture(scope="module")
def pool(server_url: URL) -> Iterator[Pool]:
    """PgBouncer with three server connections for each role and database."""
    with pgbouncer(server_url, [str(server_url.username), ROLE]) as running:
        yield running


@pytest.fixture
def calc(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `calc-analytics` with these words through the pool."""

    def run(url: URL, *words: str) -> Result:
        monkeypatch.setenv("DATABASE_URL", pool.url(url).render_as_string(hide_password=False))
        return CliRunner().invoke(main, words)

    return run


def pooled(engine: Engine) -> bool:
    with engine.connect() as connection:
        return not connection.info["is_direct"]


def test_migrate_leaves_no_lock_and_no_setting_and_may_be_repeated(calc, pool: Pool, empty_url: URL):
    direct = engine_for(empty_url)
    with direct.begin() as connection:
        connection.execute(text(API_TABLES))
    for _ in range(2):
        done = calc(empty_url, "migrate")
        assert done.exit_code == 0, done.output
    assert not pool.left_behind(empty_url)
    assert not scalar(direct, "select count(*) from pg_locks where locktype = 'advisory'")
    assert calc(empty_url, "rebase", "--yes").exit_code == 0
    assert calc(empty_url, "rollup").exit_code == 0
    assert not pool.left_behind(empty_url)
    direct.dispose()


def test_every_command_works_and_no_session_is_changed(calc, pool: Pool, url: URL, owner: Engine, connect):
    db = Database(engine_for(pool.url(url.set(username=ROLE))), LOG, "UTC")
    assert pooled(db.engine)
    writer = url.set(username=ROLE)
    with owner.begin() as connection:
        connection.execute(text(f"grant delete on calculation_logs to {ROLE}"))
    write(connect(), [row(NOON, publisher=n % 7) for n in range(6_000)])
    assert calc(writer, "rollup", "--day", str(DAY)).exit_code == 0
    write(connect(), [row(NOON)] * 10)
    assert "10 rows counted" in calc(writer, "refresh").output
    assert_exact(db)
    for words in (("verify",), ("history",), ("prune", "--older-than", "1", "--yes"), ("verify",), ("refresh",)):
        done = calc(writer, *words)
        assert done.exit_code == 0, done.output
    assert scalar(owner, "select count(*) from calculation_logs") == 0
    simulated = calc(url, "simulate", "--rows", "400", "--rate", "4000", "--json")
    assert json.loads(simulated.stdout)["rows"] == 400
    assert calc(writer, "rollup").exit_code == 0
    assert not pool.left_behind(writer) | pool.left_behind(url)
    db.engine.dispose()


def test_one_server_connection_for_all_is_enough_to_count(server_url: URL, url: URL, connect):
    with pgbouncer(server_url, [ROLE], size=1) as pool:
        with pytest.MonkeyPatch.context() as patch:
            address = pool.url(url.set(username=ROLE)).render_as_string(hide_password=False)
            patch.setenv("DATABASE_URL", address)
            write(connect(), [row(NOON)] * 10)
            for words in (("rollup", "--day", str(DAY)), ("refresh",), ("verify",)):
                done = CliRunner().invoke(main, words)
                assert done.exit_code == 0, done.output


def test_two_migrations_at_once_both_succeed(pool: Pool, empty_url: URL):
    with engine_for(empty_url).begin() as connection:
        connection.execute(text(API_TABLES))
    assert install_at_once(pool.url(empty_url), 2) == []
    assert not pool.left_behind(empty_url)


def test_a_migration_that_waits_for_another_ends_with_one_line(
    calc, pool: Pool, url: URL, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(migrate, "TURN_SECONDS", 0.5)
    other = engine_for(pool.url(url))
    with migrate.turn(other):
        done = calc(url, "migrate")
    other.dispose()
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "another 'calc-analytics migrate' of this database was not done within" in done.stderr
    assert calc(url, "migrate").exit_code == 0


def test_start_up_options_are_refused_in_one_line_with_what_to_use_instead(
    calc, url: URL, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PGOPTIONS", "-csearch_path=analytics")
    for words in (("refresh",), ("migrate",)):
        done = calc(url, *words)
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1
        assert "alter role" in done.stderr


def test_a_search_path_of_the_role_counts_through_the_pool(calc, pool: Pool, server_url: URL, maintenance):
    role = f"pooled_{pool.port}"
    maintenance(f"create role {role} login")
    with own_database(server_url, maintenance) as url, pgbouncer(server_url, [role]) as own:
        with engine_for(url).begin() as connection:
            connection.execute(text(f"create schema analytics authorization {role}"))
            connection.execute(text(f"alter role {role} set search_path = analytics"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", own.url(url.set(username=role)).render_as_string(hide_password=False))
            done = CliRunner().invoke(main, ["migrate"])
        assert "created    analytics.calculation_logs" in done.output
        assert not own.left_behind(url.set(username=role))
    maintenance(f"drop role {role}")


@pytest.mark.long
def test_start_up_options_that_a_pooler_ignores_are_not_taken_for_granted(
    server_url: URL, empty_url: URL, monkeypatch: pytest.MonkeyPatch
):
    direct = engine_for(empty_url)
    with direct.begin() as connection:
        connection.execute(text("create schema analytics"))
    user = str(empty_url.username)
    with pgbouncer(server_url, [user], more="ignore_startup_parameters = options") as pool:
        monkeypatch.setenv("DATABASE_URL", pool.url(empty_url).render_as_string(hide_password=False))
        monkeypatch.setenv("PGOPTIONS", "-c search_path=analytics,public")
        done = CliRunner().invoke(main, ["migrate"])
        found = CliRunner().invoke(main, ["doctor"]).output
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert f'alter role "{user}" set search_path = analytics,public' in done.stderr
    assert f'alter role "{user}" set search_path = analytics,public' in found
    assert scalar(direct, "select count(*) from pg_class where relname = 'calculation_logs'") == 0
    direct.dispose()


def use(instance: DagsterInstance) -> None:
    """One call to each of its three storages."""
    assert instance.get_runs_count() == 0
    assert list(instance.all_instigator_state()) == []
    assert list(instance.get_asset_keys()) == []


def test_dagsters_own_storage_works_through_it(
    pool: Pool, server_url: URL, empty_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", pool.url(empty_url).render_as_string(hide_password=False))
    shutil.copy(project_root() / "dagster.yaml", tmp_path)
    for _ in range(2):
        with DagsterInstance.from_config(str(tmp_path)) as instance:
            instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=20)
            use(instance)
    assert not pool.left_behind(empty_url)


def test_a_database_that_the_pooler_does_not_serve_is_one_line_that_names_the_direct_url(
    server_url: URL, url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    served = f"{url.database} = {target(server_url)}"
    with pgbouncer(server_url, [str(url.username)], databases=served) as pool:
        monkeypatch.setenv("DATABASE_URL", pool.url(url).render_as_string(hide_password=False))
        monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
        assert CliRunner().invoke(main, ["verify"]).exit_code == 0
        done = CliRunner().invoke(main, ["doctor"])
    assert "dagster" in done.output
    assert "DAGSTER_POSTGRES_URL" in done.output


def test_days_are_archived_proven_and_pruned_through_the_pool(
    calc, pool: Pool, url: URL, owner: Engine, connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("ARCHIVE_URL", str(tmp_path / "archive"))
    writer = url.set(username=ROLE)
    with owner.begin() as connection:
        connection.execute(text(f"grant delete on calculation_logs to {ROLE}"))
    write(connect(), [row(NOON, publisher=n % 7) for n in range(6_000)])
    assert calc(writer, "rollup", "--day", str(DAY)).exit_code == 0
    for words in (("archive",), ("archive", "--check"), ("prune", "--older-than", "1", "--yes"), ("verify",)):
        done = calc(writer, *words)
        assert done.exit_code == 0, done.output
        assert not pool.left_behind(url)
    assert scalar(owner, "select count(*) from calculation_logs") == 0
    assert scalar(owner, "select rows from rollup_archive") == 6_000
