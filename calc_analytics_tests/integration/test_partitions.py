"""Partitioned log tables: any depth, any order of events, any names. Each partition has the index, once.

And rows that come with a partition: days that were not counted are found, reported and built.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text
from sqlalchemy.engine import URL

from calc_analytics.cli.main import main
from calc_analytics.database import log_index
from calc_analytics.database.engine import engine_for, transaction
from calc_analytics.database.log_index import summarize
from calc_analytics.orchestration import history
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.ledger import waiting_days
from calc_analytics.rollup.patrol import Patrol
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.unseen import Search, find_days, record_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.integration.test_migrations import scalar
from calc_analytics_tests.integration.test_odd_tables import run
from calc_analytics_tests.logs import assert_exact, oracle

COLUMNS = """
    id bigserial, publisher_id integer not null, locality_id bigint not null, date_calculated date not null,
    cache_hit boolean not null default false, response_time_ms smallint, zman_count smallint,
    source smallint not null, created_at timestamptz not null default now()
"""
LOGS = f"create table calculation_logs ({COLUMNS}) partition by range (created_at)"
MONTH = "create table {} partition of {} for values from ('2026-{:02}-01Z') to ('2026-{:02}-01Z')"


def month(name: str, number: int, of: str = "calculation_logs", more: str = "") -> str:
    """The statement that adds a partition for that month of 2026."""
    return f"{MONTH.format(name, of, number, number + 1)} {more}"


@pytest.fixture
def db(empty_url: URL) -> Iterator[Database]:
    """A database with a partitioned log table that has one partition, not adopted yet."""
    engine = engine_for(empty_url)
    run(engine, LOGS, month("logs_2026_01", 1))
    yield Database(engine, LOG, "UTC")
    engine.dispose()


def write(db: Database, at: str, rows: int = 10, table: str = "calculation_logs", ids: str = "") -> None:
    """Rows at that instant; `ids` names `xact_id` and its value, where it is not the default's."""
    name, value = (f", {each}" for each in ids.split("=")) if ids else ("", "")
    run(
        db.engine,
        f"insert into {table} (publisher_id, locality_id, date_calculated, source, created_at{name}) "
        f"select i % 5, i % 3, '2030-01-01', 1 + i % 3, cast('{at}' as timestamptz) + i * interval '1 second'{value} "
        f"from generate_series(1, {rows}) i",
    )


def states(db: Database) -> dict[str, str]:
    """What the index of each table is."""
    with transaction(db.engine) as connection:
        return {found.table: found.state for found in log_index.examine(connection)}


def indexes(db: Database) -> dict[str, int]:
    """How many valid indexes of that kind each table has."""
    with db.engine.begin() as connection:
        statement = """
            select cast(cast(t.oid as regclass) as text) as name, count(a.oid) as number
            from pg_class t left join pg_index i on i.indrelid = t.oid and i.indisvalid
            left join pg_class c on c.oid = i.indexrelid left join pg_am a on a.oid = c.relam and a.amname = 'brin'
            where t.oid in (select relid from pg_partition_tree('calculation_logs')) or t.relname = 'calculation_logs'
            group by 1
        """
        return {row.name: row.number for row in connection.execute(text(statement))}


def assert_indexed(db: Database) -> None:
    """Every table has its index, once and valid, and `migrate` finds nothing more to do."""
    assert set(states(db).values()) == {"there"}
    before = indexes(db)
    assert set(before.values()) == {1}
    install(db)
    assert indexes(db) == before
    assert summarize(db.engine)


def count_all(db: Database) -> None:
    """Builds all days that wait; everything equals the result of pandas."""
    refresh(db)
    rebuild(db, waiting_days(db))
    assert_exact(db)


@pytest.mark.parametrize(
    "statements",
    [
        [month("logs_2026_12", 11)],
        [month('"Logs of December, 2026"', 11), month('"a:b"', 10)],
        [month("l" * 63, 11), month("l" * 62 + "m", 10), month("ü" * 31, 9)],
        ["create table logs_other partition of calculation_logs default"],
        ["create schema old", month("old.logs_2026_01", 11), month("old.calculation_logs", 10)],
        [
            month("logs_2026_02", 2, more="partition by list (publisher_id)"),
            "create table logs_2026_02_a partition of logs_2026_02 for values in (1, 2) partition by hash (id)",
            "create table logs_2026_02_a1 partition of logs_2026_02_a for values with (modulus 1, remainder 0)",
            "create table logs_2026_02_b partition of logs_2026_02 default",
        ],
        [month("logs_2026_02", 2, more="partition by list (publisher_id)")],
        ["alter table calculation_logs detach partition logs_2026_01", month("logs_2026_01_new", 1)],
        [
            "alter table calculation_logs detach partition logs_2026_01",
            "alter table logs_2026_01 rename to logs_2026_01_old",
            month("logs_2026_01", 1),
        ],
        [
            "alter table calculation_logs detach partition logs_2026_01",
            "alter table calculation_logs attach partition logs_2026_01 "
            "for values from ('2026-01-01Z') to ('2026-02-01Z')",
        ],
        ["drop table logs_2026_01"],
    ],
    ids=[
        "later",
        "odd names",
        "long names",
        "default",
        "schemas",
        "deep",
        "empty",
        "detached",
        "swapped",
        "back",
        "none",
    ],
)
@pytest.mark.parametrize("is_adopted_before", [True, False])
def test_each_table_has_the_index_once_after_each_addition(
    db: Database, statements: list[str], is_adopted_before: bool
):
    if is_adopted_before:
        install(db)
    run(db.engine, *statements)
    install(db)
    assert_indexed(db)
    if "drop table logs_2026_01" not in statements:
        write(db, "2026-01-05 12:00Z")
    refresh(db)
    assert_exact(db)


def test_an_attached_table_with_an_index_of_its_own_keeps_it(db: Database):
    install(db)
    expression = "date_bin('1 hour', created_at, timestamptz '2000-01-01 00:00:00+00')"
    run(
        db.engine,
        f"create table logs_2026_02 ({COLUMNS}, xact_id bigint default txid_current())",
        f"create index mine on logs_2026_02 using brin (xact_id, ({expression})) with (pages_per_range = 32)",
        "create index other on logs_2026_02 using brin (xact_id)",
        "alter table calculation_logs attach partition logs_2026_02 for values from ('2026-02-01Z') to ('2026-03-01Z')",
    )
    install(db)
    assert set(states(db).values()) == {"there"}
    assert indexes(db) == {"calculation_logs": 1, "logs_2026_01": 1, "logs_2026_02": 2}


@pytest.mark.parametrize("style", ["iso_8601", "sql_standard", "postgres_verbose"])
def test_the_index_is_recognized_under_any_settings_of_the_role(db: Database, style: str):
    run(
        db.engine,
        f'alter database "{db.engine.url.database}" set intervalstyle = {style}',
        f'alter database "{db.engine.url.database}" set timezone = "Asia/Kolkata"',
        f'alter database "{db.engine.url.database}" set datestyle = "SQL, DMY"',
        f'alter database "{db.engine.url.database}" set quote_all_identifiers = on',
    )
    db.engine.dispose()
    install(db)
    assert_indexed(db)


def test_what_an_interrupted_build_left_is_found_and_put_right(db: Database):
    install(db)
    for table, column in (("logs_2026_01", "indisvalid"), ("calculation_logs", "indisvalid")):
        index = f"select indexrelid from pg_index where indrelid = '{table}'::regclass"
        run(db.engine, f"update pg_index set {column} = false where indexrelid = ({index})")
    assert states(db) == {"logs_2026_01": "invalid", "calculation_logs": "there"}
    install(db)
    assert set(states(db).values()) == {"there"}


def test_a_left_over_index_is_dropped_where_a_valid_one_exists(empty_url: URL):
    engine = engine_for(empty_url)
    db = Database(engine, LOG, "UTC")
    install(db)
    with transaction(engine) as connection:
        connection.execute(text(log_index.index_sql("left_over", "calculation_logs")))
        connection.execute(text("update pg_index set indisvalid = false where indexrelid = 'left_over'::regclass"))
    assert states(db) == {"calculation_logs": "left over"}
    install(db)
    assert states(db) == {"calculation_logs": "there"}
    assert scalar(engine, "select to_regclass('left_over')") is None
    engine.dispose()


def test_a_log_table_that_took_the_place_of_another_gets_an_index_of_its_own(empty_url: URL):
    engine = engine_for(empty_url)
    db = Database(engine, LOG, "UTC")
    install(db)
    run(
        engine,
        "alter table calculation_logs rename to old_logs",
        "create table calculation_logs (like old_logs including defaults including identity)",
        "alter table calculation_logs add primary key (id)",
    )
    install(db)
    assert indexes(db)["calculation_logs"] == 1
    assert scalar(engine, "select to_regclass('calculation_logs_rollup_idx1')") is not None
    engine.dispose()


# -- Rows that come with a partition -----------------------------------------------------------------------------------

OLD_IDS = {"null": "xact_id=null", "old": "xact_id=3", "of the past": "xact_id=txid_current() / 2"}


def attach(db: Database, number: int, rows: int = 3_000, ids: str = "xact_id=null") -> None:
    """Attaches a month of this year that has rows already, five days of them, which no refresh will count."""
    table = f"logs_2026_{number:02}"
    run(db.engine, f"create table {table} ({COLUMNS}, xact_id bigint default txid_current())")
    for day in range(1, 6):
        write(db, f"2026-{number:02}-{day:02} 12:00Z", rows // 5, table, ids)
    bounds = f"from ('2026-{number:02}-01Z') to ('2026-{number + 1:02}-01Z')"
    run(db.engine, f"alter table calculation_logs attach partition {table} for values {bounds}")


@pytest.fixture
def counted(db: Database) -> Database:
    """The same, adopted, with two days of January counted."""
    install(db)
    write(db, "2026-01-05 12:00Z")
    write(db, "2026-01-07 12:00Z")
    refresh(db)
    assert verify(db, [date(2026, 1, 5)]).difference == 0
    return db


@pytest.mark.parametrize("ids", OLD_IDS.values(), ids=OLD_IDS)
def test_days_that_come_with_a_partition_are_found_and_built(counted: Database, ids: str):
    attach(counted, 3, ids=ids)
    assert refresh(counted).rows == 0
    days = [date(2026, 3, day) for day in range(1, 6)]
    with transaction(counted.engine) as connection:
        assert find_days(connection, counted) == days
    assert record_days(counted) == days == waiting_days(counted)
    assert record_days(counted) == []
    count_all(counted)
    assert verify(counted, days).difference == 0


@pytest.mark.parametrize("ids", OLD_IDS.values(), ids=OLD_IDS)
def test_rows_that_come_to_days_that_are_built_are_a_difference(counted: Database, ids: str):
    write(counted, "2026-01-05 15:00Z", rows=7, table="logs_2026_01", ids=ids)
    assert refresh(counted).rows == 0
    assert record_days(counted) == []
    (report,) = [each for each in verify(counted, [date(2026, 1, 5)]).days if each.rollup == "calculation_stats_daily"]
    assert (report.finding, report.log_rows, report.counted_rows) == ("logs_added", 17, 10)
    rebuild(counted, [date(2026, 1, 5)])
    assert_exact(counted)


def test_a_day_whose_rows_are_not_counted_yet_is_left_to_the_refresh(counted: Database):
    write(counted, "2026-01-20 12:00Z")
    assert record_days(counted) == []
    assert refresh(counted).rows == 10
    assert waiting_days(counted) == []
    assert_exact(counted)


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/Havana", "Pacific/Kiritimati", "America/St_Johns"])
def test_days_are_those_of_the_reporting_zone(db: Database, zone: str):
    db = replace(db, timezone=zone)
    install(db)
    for hour in range(0, 72, 5):
        write(db, f"2026-01-{5 + hour // 24:02} {hour % 24:02}:14Z", rows=1, ids="xact_id=null")
    assert {key[-1] for key in oracle(db)} == set(record_days(db))
    count_all(db)


def test_a_day_on_record_for_one_rollup_alone_is_recorded_for_all(counted: Database):
    """Statistics that another program wrote are on record for their rollup."""
    statement = (
        "insert into calculation_stats_daily (publisher_id, date, total_calculations) values (1, '2026-01-09', 5)"
    )
    run(counted.engine, statement)
    assert [each.day for each in audit(counted).different] == [date(2026, 1, 9)]
    write(counted, "2026-01-09 12:00Z", ids="xact_id=null")
    assert record_days(counted) == [date(2026, 1, 9)]
    count_all(counted)


def test_the_patrol_looks_at_once_when_a_partition_was_attached(counted: Database):
    errors: list[Exception] = []
    patrol = Patrol(counted, threading.Event(), lambda operation, error: errors.append(error))
    patrol.step()
    attach(counted, 2)
    patrol._audit_at = 0.0
    patrol.step()
    assert len(waiting_days(counted)) == 5
    run(counted.engine, "update calculation_logs set xact_id = null, created_at = created_at + interval '10 days'")
    patrol._audit_at = 0.0
    patrol.step()
    assert len(waiting_days(counted)) == 5, "the next search is due in a minute"
    assert errors == []


def test_a_search_that_takes_too_long_is_given_up(counted: Database):
    attach(counted, 2)
    assert Search(limit_seconds=0.001).days(counted) == []
    assert len(Search().days(counted)) == 5


def test_what_was_found_is_forgotten_once_it_is_on_record(counted: Database):
    attach(counted, 2)
    search = Search()
    assert len(search.days(counted)) == len(search.days(counted)) == 5
    record_days(counted)
    assert search.days(counted) == []


@pytest.fixture
def calc(counted: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs `calc-analytics` with these words on that database."""
    monkeypatch.setenv("DATABASE_URL", counted.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    history.instance.cache_clear()
    yield lambda *words: CliRunner().invoke(main, words)
    history.instance.cache_clear()


def test_days_in_no_statistic_are_red_until_they_are_built(counted: Database, calc: Callable[..., Result]):
    assert calc("verify").exit_code == 0
    attach(counted, 2)
    counted_alone = calc("refresh")
    assert "0 rows counted" in counted_alone.output
    answer = json.loads(calc("status", "--json").output)
    (proofs,) = [probe for probe in answer["health"]["probes"] if probe["name"] == "proofs"]
    assert (proofs["ok"], proofs["next_command"]) == (False, "calc-analytics rollup")
    assert (
        "5 days with log rows wait for a rebuild: 2026-02-01, 2026-02-02, 2026-02-03 and 2 more" in proofs["compared"]
    )
    for _ in range(2):
        verified = calc("verify")
        assert verified.exit_code == 1
        assert "5 days wait for a rebuild: run 'calc-analytics rollup'" in verified.output
    assert json.loads(calc("verify", "--json").output)["waiting_days"] == [f"2026-02-0{day}" for day in range(1, 6)]
    assert calc("rollup").exit_code == 0
    assert calc("verify").exit_code == 0
    assert_exact(counted)


def test_the_rebuild_of_days_that_wait_looks_for_them_first(counted: Database, calc: Callable[..., Result]):
    attach(counted, 2)
    assert calc("rollup").exit_code == 0
    assert_exact(counted)
