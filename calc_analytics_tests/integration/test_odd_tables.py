"""Odd tables: columns of any name and type, inheritance, a database in SQL_ASCII, roles with settings of their own.

Each is counted to the right numbers, or refused in one line before anything is changed.
"""

import ast
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from click.testing import CliRunner
from dagster import AssetKey, AssetMaterialization
from sqlalchemy import Column, Date, Integer, MetaData, Table, func, text
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.schema import CreateTable

import calc_analytics
from calc_analytics.cli.main import main
from calc_analytics.database import adopt, log_index
from calc_analytics.database.adopt import UnfitTable
from calc_analytics.database.engine import engine_for, transaction
from calc_analytics.database.log_index import summarize
from calc_analytics.orchestration import history
from calc_analytics.rollup import diagnosis
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.erasure import erase
from calc_analytics.rollup.figures import log_figures, top_keys, violations
from calc_analytics.rollup.install import install, is_installed, rebase
from calc_analytics.rollup.ledger import waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.integration.conftest import instance_on
from calc_analytics_tests.integration.test_migrations import API_TABLES, DAY, INSERT_INTO, assert_untouched, scalar
from calc_analytics_tests.logs import execute, live, oracle, stored

ROOT = Path(calc_analytics.__file__).parent
ODD = {"date": "date '2000-01-01'", "hour": "5", "rows": "7", "day": "9"}
A_DAY = date(2000, 1, 1)


@pytest.fixture
def api(empty_url: URL) -> Iterator[Engine]:
    """A database as the API left it."""
    engine = engine_for(empty_url)
    run(engine, API_TABLES)
    yield engine
    engine.dispose()


@pytest.fixture
def db(api: Engine) -> Database:
    """What operations take, on that database."""
    return Database(api, LOG, "UTC")


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def words() -> set[str]:
    """Every word of the strings that hold SQL, and so every alias and every computed column."""
    trees = [ast.parse(path.read_text()) for part in ("rollup", "database") for path in (ROOT / part).glob("*.py")]
    strings = [each.value for tree in trees for each in ast.walk(tree) if isinstance(each, ast.Constant)]
    sql = [each for each in strings if isinstance(each, str) and re.search(r"\b(select|as|from|where|with)\b", each)]
    return set(re.findall(r"\b[a-z_][a-z_0-9]*\b", " ".join(sql))) - {"ctid", "xmin", "xmax", "tableoid"}


def count_everything(db: Database, reader: Engine | None = None) -> None:
    """Everything that the project does with a log, to the right numbers, as the `reader` sees them."""
    there = reader or db.engine
    with db.engine.begin() as connection:
        connection.execute(text(INSERT_INTO.format(table=LOG.name, at="2026-03-02 12:00Z")))
    assert refresh(db).rows == 1
    rebuild(db, [DAY])
    with db.engine.begin() as connection:
        connection.execute(text(INSERT_INTO.format(table=LOG.name, at="2026-03-01 15:00Z")))
    assert refresh(db, step_rows=None).rows == 1
    assert verify(db, [DAY]).difference == 0
    assert audit(db).different == []
    assert stored(there)[(1, DAY)] == live(there)[(1, DAY)] == oracle(there, "UTC")[(1, DAY)]
    assert log_figures(db).uncounted_rows == 0
    for rollup in LOG.rollups:
        assert top_keys(db, rollup, [DAY])
        for check in rollup.checks:
            violations(db, rollup, check, [DAY])
    assert prune(db, DAY.replace(day=2)).rows == 101
    assert verify(db, [DAY]).difference == 0
    if all("publisher_id" in rollup.keys for rollup in db.log.rollups):
        assert erase(db, {"publisher_id": 1}, even_if_writing=True).left == []
        assert {key[0] for key in stored(there)} == {0, 2, 5}
    assert verify(db, [DAY, DAY.replace(day=2)]).difference == 0


def test_columns_of_any_other_name_change_nothing(db: Database):
    own = {LOG.name: {*LOG.table.columns.keys(), "xact_id", "city_id"}}
    own |= {rollup.name: set(rollup.target.columns.keys()) for rollup in LOG.rollups}
    assert {"date", "hour", "l", "t", "day", "rollup_sampled", "place"} <= words()
    install(db)
    for table, names in own.items():
        run(db.engine, f"alter table {table} " + ", ".join(f'add column "{word}" text' for word in words() - names))
    install(db)
    count_everything(db)


def test_a_rollup_may_read_columns_that_are_named_as_computed_ones(db: Database):
    columns = [Column("date", Date), Column("hour", Integer), Column("rows", Integer), Column("day", Integer)]
    table = LOG.table.to_metadata(MetaData())
    target = Table(
        "calculation_odd_daily",
        table.metadata,
        Column("asked", Date, primary_key=True),
        Column("hour", Integer, primary_key=True),
        Column("date", Date, primary_key=True),
        Column("calculations", Integer),
        Column("rows", Integer),
        Column("oldest", Integer),
    )
    for column in columns:
        table.append_column(column)
        run(
            db.engine,
            f"alter table calculation_logs add column {column.name} {column.type} not null default {ODD[column.name]}",
        )
    rollup = Rollup(
        target=target,
        key_expressions={"asked": table.c.date, "hour": table.c.hour},
        aggregates={
            "calculations": func.count(),
            "rows": func.coalesce(func.sum(table.c.rows), 0),
            "oldest": func.coalesce(func.sum(table.c.day), 0),
        },
        description="A rollup over odd columns.",
    )
    run(db.engine, str(CreateTable(target)))
    odd = Database(db.engine, replace(LOG, table=table, rollups=(*LOG.rollups, rollup)), "UTC")
    install(odd)
    count_everything(odd)
    alone = Database(db.engine, odd.log.only([rollup.name]), "UTC")
    install(alone)
    run(db.engine, INSERT_INTO.format(table=LOG.name, at="2026-03-03 12:00Z"))
    assert refresh(alone).rows == 1
    with db.engine.begin() as connection:
        statement = "select * from {} where date = '2026-03-03'"
        for relation in (rollup.name, rollup.live_view):
            assert connection.execute(text(statement.format(relation))).all() == [
                (A_DAY, 5, A_DAY.replace(2026, 3, 3), 1, 7, 9)
            ]


REFUSED = {
    "alter column cache_hit drop default, alter column cache_hit type smallint using 0": "cache_hit is smallint",
    "alter column cache_hit drop default, alter column cache_hit type text": "cache_hit is text: it must be BOOLEAN",
    "alter column response_time_ms type numeric(10, 3)": "response_time_ms is numeric(10,3): it must be an integer",
    "alter column response_time_ms type real": "response_time_ms is real: it must be an integer",
    "alter column source type text": "source is text: it must be an integer",
    "alter column id type text": "id is text: it must be an integer",
    "alter column created_at type timestamp": "created_at is timestamp without time zone, which has no",
    "alter column created_at type bigint using 0": "created_at is bigint, which has no time zone: make it timestamptz",
    "alter column created_at type odd_time": "created_at is odd_time: it must be timestamptz",
    "add column xact_id integer": "xact_id is integer: it must be bigint",
    "add column xact_id uuid": "xact_id is uuid: it must be bigint",
    "add column xact_id bigint generated always as (id * 2) stored": "xact_id was not created by this project",
    "add column xact_id bigint generated by default as identity": "xact_id was not created by this project",
    "add column xact_id bigint default 7; alter table calculation_logs alter column xact_id drop default": "xact_id",
    "add column xact_id bigint default 5": "xact_id was not created by this project, which needs the name: rename it",
    "alter column cache_hit drop not null": "calculation_logs.cache_hit must not be null",
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_column_that_cannot_be_counted_is_named_before_anything_is_changed(db: Database, change: str):
    run(
        db.engine,
        "create domain odd_time as timestamptz",
        "alter table calculation_logs alter column created_at drop default",
    )
    run(db.engine, f"alter table calculation_logs {change}")
    columns = "select array_agg(attname) from pg_attribute where attrelid = 'calculation_logs'::regclass"
    before = scalar(db.engine, columns)
    with pytest.raises(UnfitTable) as refused:
        install(db)
    assert str(refused.value).startswith("calculation_logs.")
    assert REFUSED[change] in str(refused.value)
    assert scalar(db.engine, columns) == before
    for name in ("rollup_state", "calc_analytics_version", "calculation_stats_hourly"):
        assert scalar(db.engine, f"select to_regclass('{name}')") is None


@pytest.mark.parametrize(
    "change",
    [
        'alter column publisher_id type "odd int"',
        "add column seconds smallint generated always as (response_time_ms / 1000) stored",
        "add column place odd, add column words tsvector, add column area int4range[]",
        "alter column id type integer",
        "add column xact_id bigint",
        "alter column created_at type timestamptz(0)",
        "alter column date_calculated type text",
    ],
)
def test_an_odd_column_that_can_be_counted_is(db: Database, change: str):
    run(db.engine, 'create domain "odd int" as int', "create type odd as (a int, b text)")
    run(db.engine, f"alter table calculation_logs {change}")
    install(db)
    assert is_installed(db)
    count_everything(db)


@pytest.mark.parametrize(
    "change",
    [
        "alter column cache_hit drop default, alter column cache_hit type smallint using 0, "
        "alter column cache_hit set default 1",
        "alter column cache_hit drop default, alter column cache_hit type text, alter column cache_hit set default 'f'",
        "alter column response_time_ms type numeric(10, 3)",
        "alter column source type text",
        "alter column created_at type timestamp",
        "add column xact_id uuid",
        "alter column city_id drop not null",
    ],
)
def test_the_statement_of_the_doctor_makes_the_column_fit(db: Database, change: str):
    run(db.engine, f"alter table calculation_logs {change}")
    with pytest.raises(UnfitTable) as refused:
        install(db)
    for statement in refused.value.statement.split(";\n"):
        run(db.engine, statement)
    install(db)
    count_everything(db)


def test_a_virtual_column_that_no_index_can_hold_is_refused(db: Database):
    if scalar(db.engine, "select current_setting('server_version_num')::int") < 180_000:
        pytest.skip("virtual columns are PostgreSQL 18's")
    run(
        db.engine,
        "alter table calculation_logs rename created_at to asked_at",
        "alter table calculation_logs add created_at timestamptz not null generated always as (asked_at) virtual",
    )
    with pytest.raises(
        UnfitTable, match="created_at is a virtual column, which no index can hold: make it a stored one"
    ):
        install(db)
    assert_untouched(db.engine)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (
            ["alter table calculation_logs rename to logs", "create view calculation_logs as select * from logs"],
            "calculation_logs is a view, whose rows",
        ),
        (
            [
                "alter table calculation_logs rename to logs",
                "create materialized view calculation_logs as select * from logs",
            ],
            "calculation_logs is a materialized view",
        ),
        (
            [
                "alter table calculation_logs rename to old_logs",
                "create table logs (like old_logs) partition by range (created_at)",
                "create table calculation_logs partition of logs default",
            ],
            "calculation_logs is a partition, to which no column can be added: detach it",
        ),
    ],
)
def test_what_is_no_table_of_its_own_is_refused(db: Database, statements: list[str], message: str):
    run(db.engine, *statements)
    with pytest.raises(UnfitTable, match=message):
        install(db)
    assert scalar(db.engine, "select to_regclass('rollup_state')") is None


# -- Inheriting and foreign tables -----------------------------------------------------------------------------------


def test_inheriting_tables_are_counted_and_have_the_index(db: Database):
    install(db)
    run(db.engine, "create table special_logs (note text) inherits (calculation_logs)")
    assert indexes(db) == {"calculation_logs": "there", "special_logs": "missing"}
    for found in diagnosis.log_indexes(db):
        for statement in found.statements:
            execute(db, statement)
    assert indexes(db) == {"calculation_logs": "there", "special_logs": "there"}
    run(db.engine, INSERT_INTO.format(table="special_logs", at="2026-03-02 12:00Z"))
    assert refresh(db).rows == 1
    count_everything(db)
    assert summarize(db.engine)


def test_an_inheriting_table_that_gives_no_ids_is_found_and_repaired(db: Database):
    install(db)
    run(
        db.engine,
        "create table special_logs (like calculation_logs)",
        "alter table special_logs inherit calculation_logs",
        INSERT_INTO.replace("(publisher_id", "(id, cache_hit, publisher_id")
        .replace("values (", "values (1000, false, ")
        .format(table="special_logs", at="2026-03-05 12:00Z"),
    )
    assert not is_installed(db)
    (found,) = [table for table in diagnosis.log_tables(db) if not table.default_in_place]
    assert found.name == "special_logs"
    install(db)
    assert is_installed(db)
    assert DAY.replace(day=5) in waiting_days(db)
    rebuild(db, waiting_days(db))
    assert verify(db, [DAY, DAY.replace(day=5)]).difference == 0


def test_a_rebase_forgets_the_ids_of_inheriting_tables(db: Database):
    install(db)
    run(
        db.engine,
        "create table special_logs (like calculation_logs including defaults)",
        "alter table special_logs inherit calculation_logs",
        "create table more_special_logs () inherits (special_logs)",
    )
    for table in ("special_logs", "more_special_logs"):
        run(db.engine, INSERT_INTO.format(table=table, at="2026-03-05 12:00Z"))
    assert scalar(db.engine, "select count(xact_id) from calculation_logs") == 2
    rebase(db)
    assert scalar(db.engine, "select count(xact_id) from calculation_logs") == 0
    assert is_installed(db)
    assert set(indexes(db).values()) == {"there"}
    rebuild(db, waiting_days(db))
    assert verify(db, [DAY, DAY.replace(day=5)]).difference == 0
    count_everything(db)


def indexes(db: Database) -> dict[str, str]:
    """What the index of each table is."""
    return {found.table: found.state for found in diagnosis.log_indexes(db)}


@pytest.mark.parametrize("how", ["partition", "child"])
def test_a_foreign_table_among_the_logs_is_refused(db: Database, how: str):
    """Its rows are another server's. Nothing has to listen there: it is refused without a look."""
    run(
        db.engine,
        "create foreign data wrapper nothing",
        "create server elsewhere foreign data wrapper nothing",
    )
    if how == "child":
        run(db.engine, "create foreign table far_logs () inherits (calculation_logs) server elsewhere")
    else:
        run(
            db.engine,
            "alter table calculation_logs rename to old_logs",
            "create table calculation_logs (like old_logs) partition by range (created_at)",
            "create foreign table far_logs partition of calculation_logs default server elsewhere",
        )
    with pytest.raises(UnfitTable) as refused:
        install(db)
    message = "far_logs is a foreign table, whose rows cannot get the ids of their transactions: detach it"
    assert str(refused.value) == f"{message} from calculation_logs"
    assert_untouched(db.engine)
    run(db.engine, refused.value.statement)
    install(db)
    assert is_installed(db)


# -- Databases and roles with settings of their own --------------------------------------------------------------------


@pytest.fixture
def ascii_url(server_url: URL, maintenance: Callable[[str], None]) -> Iterator[URL]:
    """A database in SQL_ASCII, which takes any bytes for text."""
    name = f"calc_analytics_ascii_{os.getpid()}"
    maintenance(f"create database {name} encoding 'SQL_ASCII' locale 'C' template template0")
    yield server_url.set(database=name)
    maintenance(f"drop database {name} with (force)")


def test_a_database_in_sql_ascii_is_counted(ascii_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With any bytes in its names."""
    with psycopg.connect(ascii_url.set(drivername="postgresql").render_as_string(False)) as connection:
        connection.execute(API_TABLES.replace("source smallint not null,", "source smallint not null, note text,", 1))
        connection.execute('alter table calculation_logs rename note to "pr\xe9nom"'.encode("latin-1"))
        connection.execute("set client_encoding = 'SQL_ASCII'")
        connection.execute("update calculation_logs set \"pr\xe9nom\" = 'Ren\xe9'".encode("latin-1"))
        connection.execute('create table "\xfcber" (inhalt text)'.encode("latin-1"))
    monkeypatch.setenv("DATABASE_URL", ascii_url.render_as_string(False))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    history.instance.cache_clear()
    for words_ in (
        "migrate",
        "refresh",
        "rollup --day 2026-03-01",
        "verify",
        "history",
        "prune --older-than 1 --yes",
        "simulate --seconds 1",
        "rebase --yes",
    ):
        result = CliRunner().invoke(main, words_.split())
        assert (result.exit_code, result.exception) == (0, None), f"{words_}: {result.output}"
    for words_ in ("status", "doctor"):
        assert "bug" not in CliRunner().invoke(main, words_.split()).output
    history.instance.cache_clear()
    engine = engine_for(ascii_url)
    assert verify(Database(engine, LOG, "UTC"), [DAY]).difference == 0
    with transaction(engine) as connection:
        names = "select attname from pg_attribute where attrelid = 'calculation_logs'::regclass and attnum = 9"
        assert connection.execute(text(names)).scalar_one() == "pr\ufffdnom"
    engine.dispose()


def test_dagsters_storage_may_be_in_sql_ascii(ascii_url: URL, tmp_path: Path):
    with instance_on(ascii_url, tmp_path) as instance:
        instance.report_runless_asset_event(AssetMaterialization("logs", description="größer: ½ ✓"))
        (event,) = instance.fetch_materializations(AssetKey("logs"), limit=1).records
        assert event.asset_materialization.description == "größer: ½ ✓"


SETTINGS = {
    "statement_timeout": "300",
    "lock_timeout": "10",
    "idle_in_transaction_session_timeout": "50",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "intervalstyle": "iso_8601",
    "datestyle": "'German, DMY'",
    "timezone": "'Pacific/Chatham'",
    "client_encoding": "latin1",
    "extra_float_digits": "-5",
    "enable_indexscan": "off",
    "enable_bitmapscan": "off",
    "row_security": "on",
    "array_nulls": "on",
    "transform_null_equals": "on",
    "plan_cache_mode": "force_generic_plan",
    "check_function_bodies": "off",
    "session_replication_role": "replica",
}


def test_settings_of_the_role_change_nothing(db: Database, monkeypatch: pytest.MonkeyPatch):
    """Those that would end a session or a transaction, and those that change what PostgreSQL prints."""
    settings = dict(SETTINGS)
    if scalar(db.engine, "select current_setting('server_version_num')::int") >= 170_000:
        settings["transaction_timeout"] = "300"
    slow = (
        "create function slow() returns int language plpgsql immutable as 'begin perform pg_sleep(0.01); return 1; end'"
    )
    run(db.engine, slow, "alter table calculation_logs add column waited int generated always as (slow()) stored")
    for name, value in settings.items():
        run(db.engine, f'alter database "{db.engine.url.database}" set {name} = {value}')
    db.engine.dispose()
    assert scalar(db.engine, "show lock_timeout") == "10ms"
    with monkeypatch.context() as patch:
        # Every step of it takes longer than the role's limits.
        patch.setattr(adopt, "add_xact_id", slowly(adopt.add_xact_id))
        patch.setattr(log_index, "create_summarize_function", slowly(log_index.create_summarize_function))
        install(db)
    assert is_installed(db)
    reader = sqlalchemy.create_engine(db.engine.url, connect_args={"options": "-c datestyle=ISO -c timezone=UTC"})
    count_everything(db, reader)
    reader.dispose()


def slowly(work: Callable[[Connection], None]) -> Callable[[Connection], None]:
    """The same after half a second, a part of which the server is busy and another part it waits."""

    def run_slowly(connection: Connection) -> None:
        connection.execute(text("select pg_sleep(0.4)"))
        time.sleep(0.1)
        work(connection)

    return run_slowly
