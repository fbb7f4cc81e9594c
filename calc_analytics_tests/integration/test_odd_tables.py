"""Odd tables: columns of any name and type, heirs, a database in SQL_ASCII, roles with settings of their own.

Each is counted to the right numbers, or refused in one line before anything is changed.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Column, Date, Integer, MetaData, Table, func, text
from sqlalchemy.engine import URL, Engine
from sqlalchemy.schema import CreateTable

import calc_analytics
from calc_analytics.database.adopt import UnfitTable
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.figures import log_figures, top_keys, violations
from calc_analytics.rollup.install import install, is_installed
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.integration.test_migrations import API_TABLES, DAY, INSERT_INTO, assert_untouched, scalar
from calc_analytics_tests.logs import live, oracle, stored

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


def count_everything(db: Database) -> None:
    """Everything that the project does with a log, to the right numbers."""
    with db.engine.begin() as connection:
        connection.execute(text(INSERT_INTO.format(table=LOG.name, at="2026-03-02 12:00Z")))
    assert refresh(db).rows == 1
    rebuild(db, [DAY])
    with db.engine.begin() as connection:
        connection.execute(text(INSERT_INTO.format(table=LOG.name, at="2026-03-01 15:00Z")))
    assert refresh(db, step_rows=None).rows == 1
    assert verify(db, [DAY]).difference == 0
    assert audit(db).different == []
    assert stored(db)[(1, DAY)] == live(db)[(1, DAY)] == oracle(db)[(1, DAY)]
    assert log_figures(db).uncounted_rows == 0
    for rollup in LOG.rollups:
        assert top_keys(db, rollup, [DAY])
        for check in rollup.checks:
            violations(db, rollup, check, [DAY])
    assert prune(db, DAY.replace(day=2)).rows == 101
    assert verify(db, [DAY]).difference == 0


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
    "alter column created_at type timestamp": "created_at is timestamp without time zone, which names",
    "alter column created_at type bigint using 0": "created_at is bigint, which names no instant: make it timestamptz",
    "alter column created_at type odd_time": "created_at is odd_time: it must be timestamptz",
    "add column xact_id integer": "xact_id is integer: it must be bigint",
    "add column xact_id uuid": "xact_id is uuid: it must be bigint",
    "add column xact_id bigint generated always as (id * 2) stored": "xact_id was not created by this project",
    "add column xact_id bigint generated by default as identity": "xact_id was not created by this project",
    "add column xact_id bigint default 5": "xact_id was not created by this project, which needs the name: rename it",
    "alter column cache_hit drop not null": "calculation_logs.cache_hit may be null",
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
    ("statements", "said"),
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
def test_what_is_no_table_of_its_own_is_refused(db: Database, statements: list[str], said: str):
    run(db.engine, *statements)
    with pytest.raises(UnfitTable, match=said):
        install(db)
    assert scalar(db.engine, "select to_regclass('rollup_state')") is None
