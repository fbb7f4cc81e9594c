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
from calc_analytics.database.log_columns import UnfitTable
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollups import LATENCY, LOG, STATS
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

IN_OTHER = """
    select relname from pg_class where relnamespace = cast('other' as regnamespace)
    union all select cast(cast(oid as regprocedure) as text) from pg_proc
    where pronamespace = cast('other' as regnamespace)
"""


@pytest.fixture
def role(maintenance: Callable[[str], None], empty_url: URL) -> Iterator[str]:
    """A role of this test's own in the place of rollup_writer, since roles belong to the whole server."""
    yield from own_role(maintenance, empty_url, f"rollup_writer_of_{empty_url.database}")


@pytest.fixture
def reader(maintenance: Callable[[str], None], empty_url: URL) -> Iterator[str]:
    """One in the place of `reader`."""
    yield from own_role(maintenance, empty_url, f"reader_of_{empty_url.database}")


def own_role(maintenance: Callable[[str], None], url: URL, name: str) -> Iterator[str]:
    """The name of a role that the test may create; dropped with all that it has."""
    yield name
    maintenance(f'drop database if exists "{url.database}" with (force)')
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


def uninstall(engine: Engine, role: str = "no_such_writer", reader: str = "no_such_reader") -> None:
    script = (DEPLOY / "uninstall.sql").read_text().replace("rollup_writer", role)
    run(engine, re.sub(r"\breader\b", reader, script))


def grant_reader(engine: Engine, reader: str) -> None:
    run(engine, re.sub(r"\breader\b", reader, (DEPLOY / "reader.sql").read_text()))


def contents(engine: Engine) -> dict[str, Any]:
    """Every object of the database, and the rows of the API's tables."""
    with engine.begin() as connection:
        objects = sorted(connection.execute(text(OBJECTS)).scalars())
        logs = connection.execute(text("select to_jsonb(l) - 'xact_id' from calculation_logs l order by id")).scalars()
        return {"objects": objects, "logs": list(logs), "stats": stored(engine)}


@pytest.mark.parametrize("tables", [ONE_TABLE, PARTITIONS], ids=["inherited", "partitioned"])
def test_nothing_of_the_project_is_left_and_the_apis_tables_are_as_before(
    engine: Engine, role: str, reader: str, tables: str
):
    run(engine, tables)
    run(engine, "comment on column calculation_logs.source is 'the API''s own words'")
    before = contents(engine)
    db = Database(engine, LOG, "UTC")
    install(db)
    run(engine, least_privilege(role))
    grant_reader(engine, reader)
    run(engine, f"alter role {role} in database {engine.url.database} set search_path = public")
    rebuild(db, [DAY])
    installed = contents(engine)
    assert len(installed["objects"]) > len(before["objects"]) + 50
    assert installed["stats"] != before["stats"]

    for _ in range(2):
        uninstall(engine, role, reader)
        left = contents(engine)
        assert set(left["objects"]) ^ set(before["objects"]) == set()
        assert left == {**before, "stats": installed["stats"]}
    run(engine, f"drop role {role}, {reader}")


@pytest.mark.parametrize("has_run", [False, True], ids=["reader.sql never run", "reader.sql run"])
def test_other_rights_and_tables_of_the_roles_stay(engine: Engine, role: str, reader: str, has_run: bool):
    """Roles of these names may be the API's own."""
    run(engine, ONE_TABLE)
    run(engine, "create schema mine; create table mine.notes (n int); create table public.notes (n int)")
    for name in (role, reader):
        run(engine, f"create role {name}; grant usage on schema mine, public to {name}")
        run(engine, f"create table mine.of_{name} (n int); alter table mine.of_{name} owner to {name}")
        run(engine, f"grant select on mine.notes, public.notes to {name}; grant insert on calculation_logs to {name}")
        run(engine, f"alter role {name} in database {engine.url.database} set work_mem = '8MB'")
    if not has_run:
        run(engine, f"grant select on calculation_stats_daily to {reader}")
    run(engine, f"grant update (note) on special_logs to {reader}")
    before = contents(engine)
    install(Database(engine, LOG, "UTC"))
    if has_run:
        grant_reader(engine, reader)
    uninstall(engine, role, reader)
    assert set(contents(engine)["objects"]) ^ set(before["objects"]) == set()


def test_column_rights_that_were_granted_by_the_scripts_go_and_a_schema_of_the_apis_own_is_closed_again(
    engine: Engine, role: str, reader: str
):
    run(engine, 'create schema "Api"; revoke usage on schema public from public')
    run(engine, f'alter database "{engine.url.database}" set search_path = "Api"')
    engine.dispose()
    run(engine, ONE_TABLE)
    install(Database(engine, LOG, "UTC"))
    run(engine, least_privilege(role))
    grant_reader(engine, reader)
    with engine.begin() as connection:
        path = f"select setconfig from pg_db_role_setting where setrole = cast('{role}' as regrole)"
        assert connection.execute(text(path)).scalar() == ['search_path="Api"']
        for name in (role, reader):
            assert connection.execute(text(f"select has_schema_privilege('{name}', 'Api', 'usage')")).scalar()
    uninstall(engine, role, reader)
    # Neither has anything left in this database, nor any right.
    run(engine, f"drop role {role}; drop role {reader}")


def test_an_owner_who_is_no_superuser_uninstalls(
    engine: Engine, role: str, reader: str, maintenance: Callable[[str], None]
):
    name = f"api_of_{engine.url.database}"
    maintenance(f"create role {name} login")
    maintenance(f'alter database "{engine.url.database}" owner to {name}')
    run(engine, f"create role {role}; create role {reader}")
    owning = engine_for(engine.url.set(username=name))
    try:
        run(owning, ONE_TABLE)
        before = contents(owning)
        install(Database(owning, LOG, "UTC"))
        run(owning, least_privilege(role))
        grant_reader(owning, reader)
        run(engine, f"alter role {role} in database {engine.url.database} set search_path = public")
        uninstall(owning, role, reader)
        # Only an administrator may change another role's settings: a warning names the statement.
        setting = f"setting {role} {{search_path=public}}"
        assert set(contents(owning)["objects"]) ^ set(before["objects"]) == {setting}
    finally:
        owning.dispose()
        run(engine, f"reassign owned by {name} to current_user; drop owned by {name}; drop role {name}")


def test_what_another_program_has_under_a_name_of_the_contract_stays(engine: Engine, role: str):
    run(engine, ONE_TABLE)
    db = Database(engine, LOG, "UTC")
    install(db)
    run(engine, "drop view publisher_usage; create view publisher_usage as select 1 as n")
    run(engine, "drop table publisher_usage_summary; create table publisher_usage_summary (n int)")
    run(engine, "create function publisher_trend(n text) returns int language sql as 'select 1'")
    with pytest.raises(UnfitTable, match="publisher_usage_summary was not created"):
        install(db)
    uninstall(engine)
    kept = "select array_agg(distinct relname) from pg_class where relname ~ '^publisher_usage|^rollup_'"
    with engine.begin() as connection:
        assert connection.execute(text(kept)).scalar() == ["publisher_usage", "publisher_usage_summary"]
        assert connection.execute(text("select publisher_trend('mine')")).scalar() == 1


def test_another_programs_table_in_place_of_a_rollup_that_is_not_kept_stays(engine: Engine):
    run(engine, ONE_TABLE)
    theirs = "create table {0} (n int); comment on table {0} is 'ours'; create view {0}_live as select n from {0}"
    run(engine, theirs.format(LATENCY.name))
    before = contents(engine)
    install(Database(engine, LOG.only([STATS.name]), "UTC"))
    uninstall(engine)
    assert set(contents(engine)["objects"]) ^ set(before["objects"]) == set()


def test_tables_of_the_projects_names_stay_where_migrate_was_never_run(engine: Engine):
    run(engine, ONE_TABLE)
    run(engine, "alter table calculation_logs add column xact_id text; create table rollup_state (n int)")
    run(engine, "create table calculation_stats_hourly (n int); create table publisher_usage_summary (n int)")
    before = contents(engine)
    uninstall(engine)
    assert contents(engine) == before


def test_a_second_installation_in_another_schema_stays(engine: Engine, empty_url: URL):
    run(engine, "create schema other")
    one, other = (
        engine_for(empty_url.update_query_dict({"options": f"-c search_path={schema}"}))
        for schema in ("public", "other")
    )
    for each in (one, other):
        run(each, ONE_TABLE)
        install(Database(each, LOG, "UTC"))
    with other.begin() as connection:
        before = sorted(connection.execute(text(IN_OTHER)).scalars())
    uninstall(one)
    one.dispose()
    with other.begin() as connection:
        assert sorted(connection.execute(text(IN_OTHER)).scalars()) == before
        assert connection.execute(text("select all_time from platform_usage")).scalar() == 999 + 7
    other.dispose()


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
