"""Migrations: an empty database, an API's own, a migrated one; with open writers; without the right to."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import BigInteger, Column, MetaData, func, text
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import ProgrammingError

from calc_analytics.config import project_root
from calc_analytics.database import grants, migrate
from calc_analytics.database.adopt import UnfitTable
from calc_analytics.database.engine import engine_for
from calc_analytics.database.errors import DatabaseError
from calc_analytics.database.log_index import summarize
from calc_analytics.database.migrate import NotOwner, UnknownRevision
from calc_analytics.rollup import install as installing
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log
from calc_analytics.rollup.install import install, is_installed
from calc_analytics.rollup.ledger import waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG, STATS
from calc_analytics_tests.conftest import ROLE, least_privilege
from calc_analytics_tests.installs import install_at_once
from calc_analytics_tests.logs import execute, live, oracle, stored

API_TABLES = """
    create table calculation_logs (
        id bigserial primary key, publisher_id integer not null, city_id bigint not null,
        date_calculated date not null, cache_hit boolean not null default false, response_time_ms smallint,
        zman_count smallint, source smallint not null, created_at timestamptz not null default now());
    create table calculation_stats_daily (
        publisher_id integer not null, date date not null, total_calculations integer not null default 0,
        cache_hits integer not null default 0, total_response_time_ms bigint not null default 0,
        source_web integer not null default 0, source_api integer not null default 0,
        source_external integer not null default 0, primary key (publisher_id, date));
    insert into calculation_logs (publisher_id, city_id, date_calculated, source, response_time_ms, created_at)
        select i % 3, i, '2030-01-01', 1 + i % 3, i, '2026-03-01 12:00Z' from generate_series(1, 100) i;
    insert into calculation_stats_daily values (0, '2026-03-01', 999, 0, 0, 999, 0, 0);
    insert into calculation_stats_daily values (5, '2024-01-01', 7, 0, 0, 7, 0, 0)
"""
INSERT = "insert into calculation_logs (publisher_id, {place}, date_calculated, source) values (1, 1, '2030-01-01', 1)"
INSERT_INTO = (
    "insert into {table} (publisher_id, locality_id, date_calculated, source, created_at) "
    "values (1, 1, '2030-01-01', 1, '{at}')"
)
PARTITIONED = (
    """
    create table calculation_logs (
        id bigserial, publisher_id integer not null, city_id bigint not null, date_calculated date not null,
        cache_hit boolean not null default false, response_time_ms smallint, zman_count smallint,
        source smallint not null, created_at timestamptz not null default now(), primary key (id, created_at)
    ) partition by range (created_at)
    """,
    """create table "logs A" partition of calculation_logs for values from ('2026-03-01Z') to ('2026-03-02Z')""",
    "insert into calculation_logs (publisher_id, city_id, date_calculated, source, created_at) "
    "values (1, 1, '2030-01-01', 1, '2026-03-01 10:00Z')",
)
LATENCY_TABLE = """
    create table calculation_latency_daily (publisher_id integer, date {date}, source smallint, {more}
        response_time_ms {milliseconds}, calculations integer, {key})
"""
LATENCY_KEY = "primary key (publisher_id, date, source, response_time_ms)"
DAY, NO_LOGS = date(2026, 3, 1), date(2024, 1, 1)


@pytest.fixture
def empty(empty_url: URL):
    """An engine on a database without anything in it."""
    engine = engine_for(empty_url)
    yield engine
    engine.dispose()


@pytest.fixture
def api(empty: Engine) -> Engine:
    """A database as the API left it: old column name, logs, and statistics that were counted twice."""
    with empty.begin() as connection:
        connection.execute(text(API_TABLES))
    return empty


def database(engine: Engine) -> Database:
    """What operations take: every rollup, days in UTC."""
    return Database(engine, LOG, "UTC")


def scalar(engine: Engine, statement: str):
    with engine.begin() as connection:
        return connection.execute(text(statement)).scalar()


def psycopg_url(engine: Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


def test_an_empty_database_gets_everything(empty: Engine):
    install(database(empty))
    assert stored(empty) == live(empty) == {}
    assert refresh(database(empty)).rows == 0


def test_an_api_database_keeps_every_row_and_is_not_rewritten(api: Engine):
    node = "select pg_relation_filenode('calculation_logs')"
    before, logs = scalar(api, node), "select count(*) from calculation_logs where locality_id > 0 and xact_id is null"
    install(database(api))
    assert scalar(api, node) == before
    assert scalar(api, logs) == 100
    assert scalar(api, "select count(*) from calculation_stats_daily") == 2


def test_old_rows_are_neither_lost_nor_counted_twice(api: Engine):
    install(database(api))
    assert refresh(database(api)).rows == 0
    with api.begin() as connection:
        connection.execute(text(INSERT.format(place="locality_id")))
        connection.execute(
            text("update calculation_logs set created_at = '2026-03-01 13:00Z' where xact_id is not null")
        )
    assert refresh(database(api)).rows == 0
    rebuild(database(api), [DAY])
    assert refresh(database(api)).rows == 0
    expected = {**oracle(api), (5, date(2024, 1, 1)): (7, 0, 0, 7, 0, 0)}
    assert stored(api) == live(api) == expected


def test_a_writer_that_was_open_during_the_migration_is_counted_once(api: Engine):
    with psycopg.connect(psycopg_url(api)) as writer:
        writer.execute(INSERT.format(place="city_id"))
        migration = threading.Thread(target=install, args=(database(api),))
        migration.start()
        while not scalar(api, "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and not granted"):
            assert migration.is_alive()
        with psycopg.connect(psycopg_url(api)) as other:
            other.execute("set lock_timeout = '10s'")
            other.execute(INSERT.format(place="city_id"))
        assert migration.is_alive(), "the other writer was let through before the migration ended"
        writer.commit()
        migration.join()
    today = date.fromisoformat(str(scalar(api, "select cast(now() at time zone 'UTC' as date)")))
    rebuild(database(api), [DAY, today])
    assert scalar(api, "select count(*) from calculation_logs") == 102
    assert {key: value for key, value in stored(api).items() if key[1] >= DAY} == oracle(api)


def test_repeating_changes_nothing(api: Engine):
    install(database(api))
    rebuild(database(api), [DAY])
    before = stored(api)
    install(database(api))
    assert stored(api) == before
    assert scalar(api, "select count(*) from calc_analytics_version") == 1


def test_two_at_once_both_succeed(api: Engine):
    assert install_at_once(api.url, 3) == []
    assert scalar(api, "select count(*) from rollup_state") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("alter column created_at type timestamp", "make it timestamptz"),
        ("alter column publisher_id drop not null", "set it NOT NULL"),
        ("alter column source type text", "must be an integer"),
        ("add column locality_id bigint", "both city_id and locality_id"),
        ("alter column city_id drop not null", "calculation_logs.locality_id must not be null"),
        ("alter column city_id type text", "must be an integer"),
    ],
)
def test_a_log_table_that_cannot_be_counted_exactly_is_refused_untouched(api: Engine, change: str, message: str):
    with api.begin() as connection:
        connection.execute(text(f"alter table calculation_logs {change}"))
    with pytest.raises(UnfitTable, match=message):
        install(database(api))
    assert_untouched(api)


def assert_untouched(engine: Engine) -> None:
    assert scalar(engine, "select to_regclass('rollup_state')") is None
    assert scalar(engine, "select to_regclass('calc_analytics_version')") is None
    added = "select count(*) from pg_attribute where attrelid = 'calculation_logs'::regclass and attname = 'xact_id'"
    assert scalar(engine, added) == 0


def test_a_key_that_may_be_null_is_allowed_if_no_rollup_that_is_kept_has_it(api: Engine):
    with api.begin() as connection:
        connection.execute(text("alter table calculation_logs alter column city_id drop not null"))
    chosen = Database(api, LOG.only([name for name in LOG.names if "locality" not in name]), "UTC")
    install(chosen)
    rebuild(chosen, [DAY])
    assert verify(chosen, [DAY]).difference == 0


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "create table calculation_stats_hourly (publisher_id integer, date date, clicks integer)",
            "table calculation_stats_hourly has no column hour, total_calculations",
        ),
        (
            LATENCY_TABLE.format(date="date", milliseconds="smallint", more="", key=LATENCY_KEY),
            "calculation_latency_daily.response_time_ms is SMALLINT: it must be INTEGER",
        ),
        (
            LATENCY_TABLE.format(date="timestamp", milliseconds="integer", more="", key=LATENCY_KEY),
            "calculation_latency_daily.date is TIMESTAMP: it must be DATE",
        ),
        (
            LATENCY_TABLE.format(date="date", milliseconds="integer", more="", key="unique (publisher_id, date)"),
            "calculation_latency_daily has no primary key",
        ),
        (
            LATENCY_TABLE.format(date="date", milliseconds="integer", more="note text not null,", key=LATENCY_KEY),
            "calculation_latency_daily.note is NOT NULL and has no default",
        ),
        ("create view calculation_stats_hourly as select 1 as hour", "calculation_stats_hourly has no column"),
        (
            "create table calculation_stats_daily_live (n integer)",
            "calculation_stats_daily_live was not created by this",
        ),
        ("create table rollup_days (n integer)", "rollup_days was not created by this project"),
    ],
)
def test_a_table_of_the_same_name_and_another_shape_is_refused_before_anything_changes(
    api: Engine, statement: str, message: str
):
    with api.begin() as connection:
        connection.execute(text(statement))
    with pytest.raises(UnfitTable, match=message):
        install(database(api))
    assert_untouched(api)


def test_wider_integers_and_columns_of_the_apis_own_are_adopted(api: Engine):
    with api.begin() as connection:
        connection.execute(text("alter table calculation_stats_daily alter column total_calculations type bigint"))
        connection.execute(text("alter table calculation_stats_daily add column updated_at timestamptz default now()"))
        connection.execute(text("alter table calculation_stats_daily add column note text"))
    install(database(api))
    rebuild(database(api), [DAY])
    assert verify(database(api), [DAY]).difference == 0
    assert stored(api)[(0, DAY)] == live(api)[(0, DAY)] == oracle(api)[(0, DAY)]


def test_statistics_that_another_role_owns_are_refused_before_anything_changes(api: Engine):
    role = f"somebody_{time.monotonic_ns()}"
    with api.begin() as connection:
        connection.execute(text(f"create role {role} login"))
        connection.execute(text(f"grant all on schema public to {role}"))
        connection.execute(text(f"grant all on calculation_stats_daily to {role}"))
        connection.execute(text(f"alter table calculation_logs owner to {role}"))
    migrator = engine_for(api.url.set(username=role))
    try:
        with pytest.raises(NotOwner, match=f"the role '{role}' does not own calculation_stats_daily: run this"):
            install(database(migrator))
        assert_untouched(api)
        with api.begin() as connection:
            connection.execute(text(f"alter table calculation_stats_daily owner to {role}"))
        install(database(migrator))
        assert is_installed(database(migrator))
    finally:
        migrator.dispose()
        with api.begin() as connection:
            connection.execute(text(f"reassign owned by {role} to {api.url.username}"))
            connection.execute(text(f"drop owned by {role}"))
            connection.execute(text(f"drop role {role}"))


def test_tables_in_a_schema_of_the_search_path_are_adopted_there(empty: Engine):
    with empty.begin() as connection:
        connection.execute(text("create schema api"))
        connection.execute(text(f'alter database "{empty.url.database}" set search_path = api'))
    engine = engine_for(empty.url)
    with engine.begin() as connection:
        connection.execute(text(API_TABLES))
    install(database(engine))
    rebuild(database(engine), [DAY])
    with engine.begin() as connection:
        connection.execute(text(INSERT_INTO.format(table="calculation_logs", at="2026-03-01 15:00Z")))
    assert refresh(database(engine)).rows == 1
    assert verify(database(engine), [DAY]).difference == 0
    assert scalar(engine, "select count(*) from pg_class where relnamespace = 'public'::regnamespace") == 0
    install(database(engine))
    assert is_installed(database(engine))
    engine.dispose()


def test_logs_in_another_schema_than_the_statistics_are_adopted(empty: Engine):
    with empty.begin() as connection:
        connection.execute(text("create schema api"))
        connection.execute(text("create schema reports"))
        connection.execute(text(f'alter database "{empty.url.database}" set search_path = reports, api'))
        connection.execute(text("set local search_path = api"))
        connection.execute(text(API_TABLES))
    engine = engine_for(empty.url)
    install(database(engine))
    rebuild(database(engine), [DAY])
    assert verify(database(engine), [DAY]).difference == 0
    assert scalar(engine, "select to_regclass('reports.rollup_state') is not null") is True
    assert scalar(engine, "select to_regclass('reports.calculation_logs') is null") is True
    install(database(engine))
    assert is_installed(database(engine))
    engine.dispose()


@pytest.fixture
def reader(api: Engine) -> Iterator[str]:
    """A role that may read the API's statistics."""
    role = f"reader_{time.monotonic_ns()}"
    execute(api, f"create role {role} login")
    execute(api, f"grant select on calculation_stats_daily to {role}")
    yield role
    execute(api, f"drop owned by {role}")
    execute(api, f"drop role {role}")


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_who_may_read_the_apis_statistics_may_read_the_new_ones(
    api: Engine, reader: str, is_interrupted: bool, monkeypatch: pytest.MonkeyPatch
):
    # Many installations take it away from every role.
    execute(api, "alter default privileges revoke execute on functions from public")
    if is_interrupted:
        with monkeypatch.context() as patch:
            patch.setattr(installing, "_keep_state", interrupt)
            with pytest.raises(KeyboardInterrupt):
                install(database(api))
    install(database(api))
    reading = engine_for(api.url.set(username=reader))
    for name in LOG.names:
        assert scalar(reading, f"select count(*) from {name}") is not None
    assert scalar(reading, "select count(*) from publisher_usage") == 2
    assert scalar(reading, "select all_time from platform_usage") == scalar(api, "select all_time from platform_usage")
    assert scalar(reading, "select sum(calculations) from publisher_trend(0, 7)") == 0
    for table in ("calculation_logs", "rollup_days", "rollup_state"):
        assert scalar(reading, f"select has_table_privilege('{table}', 'select')") is False
    reading.dispose()


def test_migrate_grants_the_columns_of_the_state_that_reader_sql_grants():
    script = (project_root() / "deploy" / "reader.sql").read_text()
    assert tuple(re.findall(r"^grant (select \(.*) to reader;", script, re.M)) == grants.STATE_READS


def test_who_may_not_read_a_table_behind_the_views_gets_no_right_to_them(api: Engine, reader: str):
    install(database(api))
    execute(api, f"revoke select on calculation_latency_daily, publisher_usage, platform_usage from {reader}")
    execute(api, "drop view publisher_usage, platform_usage")
    install(database(api))
    assert scalar(api, f"select has_table_privilege('{reader}', 'publisher_usage', 'select')") is False


@pytest.mark.parametrize("is_exempt", [False, True])
def test_grants_are_not_copied_to_roles_under_a_policy(api: Engine, reader: str, is_exempt: bool):
    """The new tables have no policy: what a role may not see in the model, it would see there."""
    for statement in (
        "alter table calculation_stats_daily enable row level security",
        f"create policy own on calculation_stats_daily to {reader} using (publisher_id = 5)",
        "grant select on calculation_stats_daily to public",
        f"alter role {reader} {'' if is_exempt else 'no'}bypassrls",
    ):
        execute(api, statement)
    install(database(api))
    views = ("calculation_stats_daily_live", "publisher_usage", "platform_usage", "publisher_usage_summary")
    names = [*LOG.names[1:], *views]
    may = {name: scalar(api, f"select has_table_privilege('{reader}', '{name}', 'select')") for name in names}
    if is_exempt:
        assert all(may.values())
    else:
        assert not any(may.values())
        assert not scalar(api, f"select has_column_privilege('{reader}', 'rollup_state', 'log', 'select')")
        reading = engine_for(api.url.set(username=reader))
        assert scalar(reading, "select count(*) from calculation_stats_daily") == 1
        reading.dispose()


@pytest.mark.parametrize(
    "theirs",
    [
        "create table calculation_latency_daily (n int)",
        "create view calculation_latency_daily as select 1 as response_time_ms",
        LATENCY_TABLE.format(date="date", milliseconds="integer", more="", key=LATENCY_KEY)
        + "; alter table calculation_latency_daily owner to {other}",
    ],
)
def test_another_programs_table_in_place_of_a_rollup_that_is_not_kept_is_left_alone(api: Engine, theirs: str):
    other, migrator = f"other_{time.monotonic_ns()}", f"migrator_{time.monotonic_ns()}"
    for statement in (
        f"create role {other}",
        f"create role {migrator} login",
        f"grant all on schema public to {migrator}",
        f"alter table calculation_logs owner to {migrator}",
        f"alter table calculation_stats_daily owner to {migrator}",
        *theirs.format(other=other).split("; "),
    ):
        execute(api, statement)
    migrating = engine_for(api.url.set(username=migrator))
    try:
        kept = Database(migrating, LOG.only([STATS.name]), "UTC")
        for _ in range(2):
            install(kept)
        rebuild(kept, [DAY])
        assert verify(kept, [DAY]).difference == 0
        found = "select count(*) from pg_description where objoid = 'calculation_latency_daily'::regclass"
        assert scalar(api, found) == 0
        assert scalar(api, "select to_regclass('calculation_latency_daily_unmeasured')") is None
    finally:
        migrating.dispose()
        for role in (migrator, other):
            execute(api, f"reassign owned by {role} to current_user")
            execute(api, f"drop owned by {role}")
            execute(api, f"drop role {role}")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_documented_grants_can_be_repeated(url: URL, owner: Engine, db: Database):
    with owner.begin() as connection:
        connection.execute(text(least_privilege(ROLE)))
    execute(owner, INSERT.format(place="locality_id"))
    assert refresh(db).rows == 1


def test_the_documented_grants_let_the_role_ask_where_functions_are_closed_to_public(url: URL, owner: Engine):
    """Its reports do; PUBLIC's right to call functions may be revoked in the whole database."""
    execute(owner, "revoke execute on all functions in schema public from public")
    execute(owner, f"revoke execute on all functions in schema public from {ROLE}")
    writing = engine_for(url.set(username=ROLE))
    with pytest.raises(ProgrammingError, match="permission denied for function"):
        scalar(writing, "select all_time from platform_usage")
    execute(owner, least_privilege(ROLE))
    assert scalar(writing, "select all_time from platform_usage") == 0
    assert summarize(writing)
    writing.dispose()


def test_a_database_that_a_newer_version_migrated_is_refused(api: Engine):
    install(database(api))
    with api.begin() as connection:
        connection.execute(text("update calc_analytics_version set version_num = '0009_of_the_future'"))
    with pytest.raises(UnknownRevision, match=r"0009_of_the_future.*: the database was made by a newer version"):
        install(database(api))


def test_a_partitioned_log_table_is_adopted_and_its_later_partitions_too(empty: Engine):
    with empty.begin() as connection:
        for statement in PARTITIONED:
            connection.execute(text(statement))
    for _ in range(2):
        install(database(empty))
    with empty.begin() as connection:
        later = "create table logs_b partition of calculation_logs for values from ('2026-03-02Z') to ('2026-03-03Z')"
        connection.execute(text(later))
        for table, at in [("calculation_logs", "2026-03-01 12:00Z"), ('"logs A"', "2026-03-01 13:00Z")]:
            connection.execute(text(INSERT_INTO.format(table=table, at=at)))
        connection.execute(text(INSERT_INTO.format(table="logs_b", at="2026-03-02 12:00Z")))
    assert refresh(database(empty)).rows == 1, "the first day has an older row and waits"
    rebuild(database(empty), [DAY])
    assert summarize(empty)
    assert stored(empty) == live(empty) == oracle(empty)
    brin = "select count(*) from pg_index where indisvalid and indrelid in ('\"logs A\"'::regclass, 'logs_b'::regclass)"
    assert scalar(empty, brin) == 4


def test_the_newest_revision_is_known_without_reading_them_all():
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == migrate.HEAD


def test_one_index_is_added_to_the_apis_own(api: Engine):
    with api.begin() as connection:
        connection.execute(text("create index api_created on calculation_logs (created_at, publisher_id)"))
    install(database(api))
    name = "indexrelid::regclass::text"
    found = f"select array_agg({name} order by {name}) from pg_index where indisvalid and indrelid = "
    assert scalar(api, found + "'calculation_logs'::regclass") == [
        "api_created",
        "calculation_logs_pkey",
        "calculation_logs_rollup_idx",
    ]


def test_an_index_that_a_broken_attempt_left_invalid_is_built_again(api: Engine):
    install(database(api))
    with api.begin() as connection:
        invalid = "update pg_index set indisvalid = false where indexrelid = 'calculation_logs_rollup_idx'::regclass"
        connection.execute(text(invalid))
        connection.execute(text("update calc_analytics_version set version_num = '0001'"))
    install(database(api))
    valid = "select indisvalid from pg_index where indexrelid = 'calculation_logs_rollup_idx'::regclass"
    assert scalar(api, valid) is True


def test_an_index_or_function_that_was_dropped_is_built_again(api: Engine):
    install(database(api))
    with api.begin() as connection:
        connection.execute(text("drop index calculation_logs_rollup_idx"))
        connection.execute(text("drop function calculation_logs_summarize"))
    install(database(api))
    assert scalar(api, "select indisvalid from pg_index where indexrelid = 'calculation_logs_rollup_idx'::regclass")
    assert summarize(api)


@pytest.mark.parametrize(
    "change",
    ["alter column xact_id drop default", "drop column xact_id cascade", "rename column locality_id to city_id"],
)
def test_rows_written_while_the_log_table_was_changed_are_counted_once_it_is_repaired(api: Engine, change: str):
    install(database(api))
    rebuild(database(api), [DAY])
    with api.begin() as connection:
        connection.execute(text(f"alter table calculation_logs {change}"))
        place = "city_id" if "city_id" in change else "locality_id"
        for _ in range(3):
            at = INSERT_INTO.replace("locality_id", place).format(table="calculation_logs", at="2026-03-01 14:00Z")
            connection.execute(text(at))
    assert is_installed(database(api)) is ("city_id" in change)
    install(database(api))
    assert is_installed(database(api))
    assert waiting_days(database(api)) == ([] if "city_id" in change else [NO_LOGS, DAY])
    refresh(database(api))
    assert rebuild(database(api), waiting_days(database(api))).failed == []
    assert waiting_days(database(api)) == []
    assert {key: value for key, value in stored(api).items() if key[1] == DAY} == oracle(api)
    with api.begin() as connection:
        connection.execute(text(INSERT_INTO.format(table="calculation_logs", at="2026-03-01 15:00Z")))
    assert refresh(database(api)).rows == 1
    assert verify(database(api), [DAY]).difference == 0


def test_a_partition_that_lost_its_default_is_repaired(empty: Engine):
    with empty.begin() as connection:
        for statement in PARTITIONED:
            connection.execute(text(statement))
    install(database(empty))
    rebuild(database(empty), [DAY])
    with empty.begin() as connection:
        connection.execute(text('alter table "logs A" alter column xact_id drop default'))
        connection.execute(text(INSERT_INTO.format(table='"logs A"', at="2026-03-01 12:00Z")))
    install(database(empty))
    rebuild(database(empty), waiting_days(database(empty)))
    with empty.begin() as connection:
        connection.execute(text(INSERT_INTO.format(table='"logs A"', at="2026-03-01 12:00Z")))
    refresh(database(empty))
    assert stored(empty) == live(empty) == oracle(empty)


@pytest.mark.parametrize("table", ["calculation_logs", "calculation_stats_daily"])
def test_a_column_that_was_dropped_later_is_named(api: Engine, table: str):
    install(database(api))
    column = {"calculation_logs": "source", "calculation_stats_daily": "cache_hits"}[table]
    with api.begin() as connection:
        connection.execute(text(f"alter table {table} drop column {column} cascade"))
    with pytest.raises(UnfitTable, match=f"table {table} has no column {column}"):
        install(database(api))


def test_a_role_that_does_not_own_the_logs_is_refused_and_nothing_changes(api: Engine):
    role = f"stranger_{time.monotonic_ns()}"
    with api.begin() as connection:
        connection.execute(text(f"create role {role} login password 'x'"))
        connection.execute(text(f"grant all on schema public to {role}"))
        connection.execute(text(f"grant select on all tables in schema public to {role}"))
    stranger = engine_for(api.url.set(username=role, password="x"))
    try:
        with pytest.raises(NotOwner) as refused:
            install(database(stranger))
    finally:
        stranger.dispose()
        with api.begin() as connection:
            connection.execute(text(f"drop owned by {role}"))
            connection.execute(text(f"drop role {role}"))
    assert "owns the API's tables" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert scalar(api, "select count(city_id) from calculation_logs") == 100
    assert scalar(api, "select to_regclass('rollup_state') is null") is True


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("alter table calculation_logs drop column source", "source"),
        ("alter table calculation_stats_daily drop column cache_hits", "cache_hits"),
        ("alter table calculation_stats_daily drop constraint calculation_stats_daily_pkey", "primary key"),
    ],
)
def test_a_table_that_does_not_fit_is_named_and_nothing_changes(api: Engine, change: str, named: str):
    with api.begin() as connection:
        connection.execute(text(change))
    with pytest.raises(UnfitTable, match=named):
        install(database(api))
    assert scalar(api, "select to_regclass('rollup_state') is null") is True


# The measure of CONTRIBUTING's example: the table as it is declared then, and the revision that adds the column.
NEXT_REVISION = """
from alembic import op
from calc_analytics.rollup import ledger
from calc_analytics.rollups import LOG

revision, down_revision = "9999_zmanim", "{head}"

def upgrade():
    op.execute("{statement}")
    ledger.mark_stale(op.get_bind(), LOG)
"""
ADD_ZMANIM = "alter table calculation_stats_daily add column if not exists zmanim bigint not null default 0"


def log_with_zmanim() -> Log:
    table = STATS.target.to_metadata(MetaData())
    column = Column("zmanim", BigInteger, nullable=False, info={"added_by": "9999_zmanim"})
    table.append_column(column)
    zmanim = func.coalesce(func.sum(LOG.table.c.zman_count), 0)
    stats = replace(STATS, target=table, aggregates={**STATS.aggregates, "zmanim": zmanim})
    return replace(LOG, rollups=(stats, *LOG.rollups[1:]))


@pytest.fixture
def add_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Gives the project a newest revision with that statement."""

    def add(statement: str) -> None:
        folder = shutil.copytree(migrate.MIGRATIONS, tmp_path / "migrations", ignore=shutil.ignore_patterns("*.pyc"))
        revision = NEXT_REVISION.format(head=migrate.HEAD, statement=statement)
        (folder / "versions" / "9999_zmanim.py").write_text(revision)
        monkeypatch.setattr(migrate, "MIGRATIONS", folder)
        monkeypatch.setattr(migrate, "HEAD", "9999_zmanim")

    return add


@pytest.mark.parametrize("is_installed_before", [True, False])
def test_a_revision_adds_the_column_of_a_new_measure(api: Engine, add_revision, is_installed_before: bool):
    if is_installed_before:
        install(database(api))
        rebuild(database(api), waiting_days(database(api)))
    with api.begin() as connection:
        connection.execute(text("update calculation_logs set zman_count = 3"))
    add_revision(ADD_ZMANIM)
    db = Database(api, log_with_zmanim(), "UTC")
    install(db)
    assert DAY in waiting_days(db)
    rebuild(db, waiting_days(db))
    total = f"select sum(zmanim) from calculation_stats_daily where date = '{DAY}'"
    assert scalar(api, total) == 300
    assert verify(db, [DAY]).difference == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("alter table calculation_stats_daily drop column cache_hits cascade", "has no column cache_hits: add it"),
        ("alter table calculation_stats_daily add column zmanim text", "zmanim is TEXT: it must be BIGINT"),
    ],
)
def test_a_table_that_lacks_another_column_is_refused_before_a_pending_revision(api, add_revision, change, named):
    install(database(api))
    add_revision(ADD_ZMANIM)
    with api.begin() as connection:
        connection.execute(text(change))
    with pytest.raises(UnfitTable, match=named):
        install(Database(api, log_with_zmanim(), "UTC"))
    assert scalar(api, "select version_num from calc_analytics_version") != "9999_zmanim"


def test_a_revision_that_does_not_add_its_column_is_rolled_back(api: Engine, add_revision):
    install(database(api))
    add_revision("create table added_by_the_revision ()")
    with pytest.raises(UnfitTable, match="table calculation_stats_daily has no column zmanim"):
        install(Database(api, log_with_zmanim(), "UTC"))
    assert scalar(api, "select to_regclass('added_by_the_revision') is null") is True
    assert scalar(api, "select version_num from calc_analytics_version") != "9999_zmanim"


def test_a_read_only_database_is_named_as_such(api: Engine):
    with api.begin() as connection:
        connection.execute(text(f'alter database "{api.url.database}" set default_transaction_read_only = on'))
    read_only = engine_for(api.url)
    with pytest.raises(DatabaseError, match="read-only"):
        install(database(read_only))
    read_only.dispose()


def test_without_migrations_a_refresh_says_what_to_run(api: Engine):
    with pytest.raises(DatabaseError, match="calc-analytics migrate"):
        refresh(database(api))
