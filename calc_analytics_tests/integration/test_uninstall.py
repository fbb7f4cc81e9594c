"""deploy/uninstall.sql: nothing of the project is left in the API's database, and what is the API's stays as it was."""

import re
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from calc_analytics.config import project_root
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollups import LOG
from calc_analytics_tests.conftest import least_privilege
from calc_analytics_tests.integration.test_migrations import API_TABLES, PARTITIONED
from calc_analytics_tests.logs import stored

DEPLOY, README = project_root() / "deploy", (project_root() / "README.md").read_text()
# With the new name of `city_id`: an installation renames it permanently.
ONE_TABLE = (
    API_TABLES.replace("city_id", "locality_id")
    + """;
    create table special_logs (note text) inherits (calculation_logs)"""
)
_STATS = re.findall(r"create table calculation_stats_daily .*?;", API_TABLES, re.S)
PARTITIONS = ";".join([*_STATS, *PARTITIONED]).replace("city_id", "locality_id").replace(";;", ";")
DAY = date(2026, 3, 1)
# Everything that a database holds besides the catalogs: one line for each, with its rights and comments. Rights that
# were granted and revoked again are written out by PostgreSQL, where they were the default before.
OBJECTS = """
    with tables as (select c.*, relowner as owner from pg_class c where relnamespace = to_regnamespace('public'))
    select concat_ws(' ', relkind, relname, reloptions,
                     coalesce(relacl, acldefault(cast(case relkind when 'S' then 's' else 'r' end as "char"), owner)),
                     obj_description(oid, 'pg_class')) from tables
    union all
    select concat_ws(' ', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstattarget,
                     pg_get_expr(d.adbin, d.adrelid), a.attacl, col_description(c.oid, a.attnum))
    from tables c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    union all select concat_ws(' ', 'function', proname) from pg_proc where pronamespace = to_regnamespace('public')
    union all select concat_ws(' ', 'type', typname) from pg_type where typnamespace = to_regnamespace('public')
    union all select concat_ws(' ', 'trigger', tgname) from pg_trigger where not tgisinternal
    union all select concat_ws(' ', 'extension', extname) from pg_extension
    union all
    select concat_ws(' ', 'schema', nspname, nspacl) from pg_namespace where nspname !~ '^pg_(toast_)?temp|^pg_toast'
    union all
    select concat_ws(' ', 'setting', cast(setrole as regrole), setconfig) from pg_db_role_setting
    where setdatabase = (select oid from pg_database where datname = current_database())
    union all
    select concat_ws(' ', 'database', coalesce(datacl, acldefault('d', datdba))) from pg_database
    where datname = current_database()
"""


@pytest.fixture
def role(maintenance: Callable[[str], None], empty_url: URL) -> Iterator[str]:
    """A role of this test's own in the place of rollup_writer, since roles belong to the whole server."""
    name = f"rollup_writer_of_{empty_url.database}"
    yield name
    maintenance(f"drop role if exists {name}")


@pytest.fixture
def engine(empty_url: URL) -> Iterator[Engine]:
    """An engine of the owner on an empty database."""
    engine = engine_for(empty_url)
    yield engine
    engine.dispose()


def run(engine: Engine, script: str) -> None:
    """Runs a script of several statements as psql does; `begin` and `commit` are its own."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.connection.driver_connection.execute(script)  # type: ignore[union-attr]


def uninstall(engine: Engine, role: str) -> None:
    run(engine, (DEPLOY / "uninstall.sql").read_text().replace("rollup_writer", role))


def contents(engine: Engine) -> dict[str, Any]:
    """Every object of the database, and the rows of the API's tables."""
    with engine.begin() as connection:
        objects = sorted(connection.execute(text(OBJECTS)).scalars())
        logs = connection.execute(text("select to_jsonb(l) - 'xact_id' from calculation_logs l order by id")).scalars()
        return {"objects": objects, "logs": list(logs), "stats": stored(engine)}


@pytest.mark.parametrize("tables", [ONE_TABLE, PARTITIONS], ids=["inherited", "partitioned"])
def test_nothing_of_the_project_is_left_and_the_apis_tables_are_as_before(engine: Engine, role: str, tables: str):
    run(engine, tables)
    run(engine, "comment on column calculation_logs.source is 'the API''s own words'")
    before = contents(engine)
    db = Database(engine, LOG, "UTC")
    install(db)
    run(engine, least_privilege(role))
    run(engine, f"alter role {role} in database {engine.url.database} set search_path = public")
    rebuild(db, [DAY])
    installed = contents(engine)
    assert len(installed["objects"]) > len(before["objects"]) + 50
    assert installed["stats"] != before["stats"]

    for _ in range(2):
        uninstall(engine, role)
        left = contents(engine)
        assert set(left["objects"]) ^ set(before["objects"]) == set()
        assert left == {**before, "stats": installed["stats"]}
    run(engine, f"drop role {role}")


def test_the_project_can_be_installed_again(engine: Engine, role: str):
    run(engine, ONE_TABLE)
    db = Database(engine, LOG, "UTC")
    install(db)
    rebuild(db, [DAY])
    counted = stored(engine)
    uninstall(engine, role)
    install(db)
    assert rebuild(db, [DAY]).days == [DAY]
    assert stored(engine) == counted


def test_the_readme_names_every_object_that_the_script_removes():
    script = re.sub("^ *--.*$", "", (DEPLOY / "uninstall.sql").read_text(), flags=re.M)
    section = README.split("### Uninstall")[1].split("\n## ")[0]
    dropped = re.findall(r"\b(?:calculation|rollup|calc_analytics)_\w+", script)
    assert {*LOG.names, "rollup_state", "rollup_days", "rollup_journal"} <= {*dropped, "calculation_stats_daily"}
    for name in {name.removesuffix("_live") for name in dropped}:
        assert name in section, name
