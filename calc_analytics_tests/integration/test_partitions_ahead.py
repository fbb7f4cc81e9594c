"""`calc-analytics partitions`: what it lists, and the next partitions, once, whoever else creates some."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text
from sqlalchemy.engine import URL

from calc_analytics.cli.main import main
from calc_analytics.config import Settings
from calc_analytics.database import log_partitions
from calc_analytics.database.engine import engine_for
from calc_analytics.database.migrate import NotOwner
from calc_analytics.database.partitions_ahead import NoPartitions, create_ahead, partman_schema
from calc_analytics.operations import health
from calc_analytics.operations.probes import Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.rollup import diagnosis, partitions
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.ledger import waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.partitioned import LOGS, month, run, scalar, write_days
from calc_analytics_tests.partitioned import partitions as tables

NOW = datetime(2026, 2, 10, 12, tzinfo=timezone.utc)


@pytest.fixture
def db(empty_url: URL) -> Iterator[Database]:
    """A partitioned log table without partitions."""
    engine = engine_for(empty_url)
    run(engine, LOGS)
    yield Database(engine, LOG, "UTC")
    engine.dispose()


def create(db: Database, ahead: int | None = None, now: datetime = NOW) -> list[str]:
    return create_ahead(db.engine, LOG.name, LOG.event_time, db.timezone, ahead, now)


def part(name: str, begin: str, end: str) -> str:
    return f"create table {name} partition of calculation_logs for values from ('{begin}') to ('{end}')"


def connect_to(db: Database) -> psycopg.Connection:
    return psycopg.connect(db.engine.url.set(drivername="postgresql").render_as_string(hide_password=False))


STEPS: dict[str, tuple[list[str], list[str]]] = {
    "months": ([month(1), month(2)], ["calculation_logs_2026_03"]),
    "months, some missing": ([part("p2025_11", "2025-11-01Z", "2025-12-01Z")], ["p2026_02", "p2026_03"]),
    "months and everything before": (
        [month(2), part("old", "-infinity", "2026-01-01Z")],
        ["calculation_logs_2026_03"],
    ),
    "weeks": ([part("w_20260202", "2026-02-02Z", "2026-02-09Z")], ["w_20260209", "w_20260216", "w_20260223"]),
    "days": (
        [part("d_2026_02_09", "2026-02-09Z", "2026-02-10Z"), part("d_2026_02_10", "2026-02-10Z", "2026-02-11Z")],
        [f"d_2026_02_{day}" for day in range(11, 19)],
    ),
    "names without a date": ([part('"Last: one"', "2026-01-01Z", "2026-02-01Z")],
                             ["calculation_logs_2026_02", "calculation_logs_2026_03"]),
    "midnights of the reporting zone": (
        [part("n_2026_02", "2026-02-01 00:00 America/New_York", "2026-03-01 00:00 America/New_York")],
        ["n_2026_03"],
    ),
    "all is covered": ([month(2), part("later", "2026-03-01Z", "infinity")], []),
}  # fmt: skip


@pytest.mark.parametrize("case", ["months", *(pytest.param(each, marks=pytest.mark.long) for each in [*STEPS][1:])])
def test_the_step_of_the_newest_partitions_goes_on(db: Database, case: str):
    there, expected = STEPS[case]
    run(db, *there)
    install(db)
    zoned = Database(db.engine, LOG, "America/New_York")
    assert create(zoned) == expected
    assert create(zoned) == []
    assert {index.state for index in diagnosis.log_indexes(db)} == {"there"}
    for number in (0, 3, 6):
        write_days(db, [date(2026, 2, 10) + timedelta(days=number)], 4)
    refresh(db)
    rebuild(db, waiting_days(db))
    assert scalar(db, "select count(distinct id) from calculation_logs") == 12
    assert verify(db, [date(2026, 2, 10)]).difference == 0


@pytest.mark.long
def test_months_across_a_change_of_clocks_begin_at_midnight(db: Database):
    run(db, part("n_2026_02", "2026-02-01 00:00 America/New_York", "2026-03-01 00:00 America/New_York"))
    db = Database(db.engine, LOG, "America/New_York")
    assert create(db, 10) == [f"n_2026_{number:02}" for number in range(3, 13)]
    bounds = "select pg_get_expr(relpartbound, oid) from pg_class where relname = 'n_2026_04'"
    run(db, f'alter database "{db.engine.url.database}" set timezone = "UTC"')
    db.engine.dispose()
    assert scalar(db, bounds) == "FOR VALUES FROM ('2026-04-01 04:00:00+00') TO ('2026-05-01 04:00:00+00')"


def test_two_at_once_create_each_once_and_writers_go_on(db: Database):
    run(db, month(2))
    install(db)
    with connect_to(db) as writer:
        writer.execute("insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at) "
                       "values (1, 1, '2030-01-01', 1, '2026-02-03Z')")  # fmt: skip
        created: list[list[str]] = []
        threads = [threading.Thread(target=lambda: created.append(create(db, 5))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(len, created)) == [0, 0, 5]
        writer.commit()
    assert len(tables(db)) == 6


PARTMAN = [
    "create schema partman",
    "create table partman.part_config (parent_table text primary key)",
    "insert into partman.part_config values ('public.calculation_logs')",
]
REFUSED: dict[str, tuple[list[str], str]] = {
    "no partition": ([], "have no step that is known here"),
    "no step": ([part("a", "2026-01-01Z", "2026-01-04Z")], "have no step that is known here"),
    "rows in the default partition": (
        [month(2), "create table other partition of calculation_logs default",
         "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at) "
         "values (1, 1, '2030-01-01', 1, '2026-03-05Z')"],
        "the default partition other has rows of 2026-03-01 to 2026-04-01",
    ),
    "a table of that name": ([month(2), "create table calculation_logs_2026_03 ()"], "that is no partition"),
    "a part of the range": (
        [month(1), month(2), "create table x (like calculation_logs including all)",
         "alter table calculation_logs detach partition calculation_logs_2026_02",
         "alter table calculation_logs attach partition x for values from ('2026-02-03Z') to ('2026-02-04Z')",
         *(part(f"p_2026_{n:02}", f"2026-{n:02}-01Z", f"2026-{n + 1:02}-01Z") for n in range(5, 11))],
        "x has a part of the range from 2026-02-01 00:00 to 2026-03-01 00:00 UTC",
    ),
    "sub-partitions": ([month(2, more="partition by hash (id)")], "has partitions of its own"),
    "pg_partman": ([month(2), *PARTMAN], r"pg_partman \(schema partman\) creates the partitions"),
    "not by time": (["drop table calculation_logs", LOGS.replace("range (created_at)", "hash (id)")], "by ranges of"),
    "not partitioned": (["drop table calculation_logs", LOGS.partition(" partition by")[0]], "is not partitioned"),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_continued_is_refused_and_nothing_is_created(db: Database, case: str):
    statements, message = REFUSED[case]
    run(db, *statements)
    before = scalar(db, "select array_agg(oid order by oid) from pg_class where relkind in ('r', 'p')")
    with pytest.raises(NoPartitions, match=message):
        create(db, 2)
    assert scalar(db, "select array_agg(oid order by oid) from pg_class where relkind in ('r', 'p')") == before


@pytest.mark.long
def test_a_session_in_the_way_of_the_default_partition_is_named(db: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_partitions, "ATTEMPTS", 2)
    run(db, month(2), "create table other partition of calculation_logs default")
    with connect_to(db) as reader:
        reader.execute("select from other")
        with pytest.raises(NoPartitions, match=f"in use by process {reader.info.backend_pid}"):
            create(db)
    assert create(db) == ["calculation_logs_2026_03"]


@pytest.mark.long
def test_a_role_that_does_not_own_the_log_is_refused(db: Database, template: str):
    run(db, month(2), f"grant all on calculation_logs to {ROLE}", f"grant create on schema public to {ROLE}")
    engine = engine_for(db.engine.url.set(username=ROLE))
    with pytest.raises(NotOwner, match=f"the role '{ROLE}' does not own calculation_logs"):
        create(Database(engine, LOG, "UTC"))
    engine.dispose()
    assert tables(db) == ["calculation_logs_2026_02"]


# -- The list, the command, and health ---------------------------------------------------------------------------------


@pytest.fixture
def calc(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("DATABASE_URL", db.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return lambda *words: CliRunner().invoke(main, words)


def probe() -> tuple[str, str]:
    report = health.health(Sources(Settings.from_environment()), Prober(30.0))
    (found,) = [each for each in report.findings if each.name == "partitions"]
    return found.level, found.command


def test_the_command_lists_and_creates_and_health_warns_before(db: Database, calc: Callable[..., Result]):
    today = datetime.now(timezone.utc).date()
    first, old = today.replace(day=1), date(2026, 1, 1)
    following = (first + timedelta(days=32)).replace(day=1)
    run(db, month(1), part(f"calculation_logs_{first:%Y_%m}", f"{first}Z", f"{following}Z"))
    install(db)
    write_days(db, [old, today])
    refresh(db)
    listed = calc("partitions")
    assert listed.exit_code == 0, listed.output
    lines = listed.output.splitlines()
    assert lines[0].startswith("  calculation_logs_2026_01  2026-01-01 00:00 to 2026-02-01 00:00")
    assert lines[0].endswith("  counted, droppable")
    assert lines[1].endswith(f"  counted, not droppable: its range ends after the beginning of {today}")
    assert lines[2] == f"rows have a partition until {following} 00:00 UTC; then the API's INSERT fails"
    created = calc("partitions", "--create", "--ahead", "2")
    assert created.output.splitlines()[0] == f"created partition calculation_logs_{following:%Y_%m}"
    assert len(created.output.splitlines()) == 2
    assert calc("partitions", "--create").output == "no partition was missing\n"
    report = json.loads(calc("partitions", "--json").output)
    assert (report["partitioned"], report["step"], report["created_by"]) == (True, "month", None)
    assert [each["reason"] is None for each in report["partitions"]] == [True, False, False, False]
    assert report["partitions"][0]["bytes"] > 0
    assert probe() == ("ok", "")
    run(db, f"drop table calculation_logs_{first:%Y_%m}")
    assert probe() == ("wrong", "calc-analytics partitions --create")


@pytest.mark.long
def test_of_a_table_without_partitions_it_says_so(db: Database, calc: Callable[..., Result]):
    run(db, "drop table calculation_logs")
    install(db)
    assert "is not partitioned: 'calc-analytics doctor --partitioning'" in calc("partitions").output
    assert json.loads(calc("partitions", "--json").output) == {"partitioned": False, "created": [], "partitions": []}
    refused = calc("partitions", "--create")
    assert (refused.exit_code, "is not partitioned" in refused.output) == (1, True)
    assert probe() == ("ok", "")


@pytest.mark.long
def test_why_a_partition_is_not_droppable_is_listed(db: Database):
    run(db, month(1), month(2), "create table other partition of calculation_logs default", *PARTMAN)
    install(db)
    write_days(db, [date(2026, 1, 3), date(2026, 2, 3)])
    refresh(db)
    run(db, "update rollup_days set status = 'stale' where date = '2026-01-03'")
    report = partitions.read_partitions(db, NOW)
    assert report is not None
    assert [(each.name, each.is_counted, each.reason) for each in report.partitions] == [
        ("calculation_logs_2026_01", False, "1 day of it is not built in every rollup: 2026-01-03"),
        ("calculation_logs_2026_02", True, None),
        ("other", False, "it holds no range of time"),
    ]
    assert report.outlook == partitions.Outlook(datetime(2026, 3, 1, tzinfo=timezone.utc), True, "month", "partman")


@pytest.mark.parametrize("may_use", [True, False])
def test_of_pg_partmans_tables_only_the_log_is_looked_up(db: Database, may_use: bool):
    """A role that may not use its schema does without; tables of others may be in schemas that it may not use."""
    role = f"reader_{scalar(db, 'select current_database()')}"
    run(
        db, month(2), *PARTMAN, "create schema theirs", "create table theirs.events (at timestamptz)",
        "insert into partman.part_config values ('theirs.events'), ('gone.away'), ('a.b.c.d')",
        f"create role {role}", f"grant select on partman.part_config to {role}",
        *([f"grant usage on schema partman to {role}"] if may_use else []),
    )  # fmt: skip
    with db.engine.begin() as connection:
        connection.execute(text(f"set local role {role}"))
        assert partman_schema(connection, "calculation_logs") == ("partman" if may_use else None)
    run(db, f"drop owned by {role}", f"drop role {role}")


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Jerusalem"])
def test_ranges_that_begin_or_end_outside_of_the_calendar_are_no_error(db: Database, zone: str):
    db = replace(db, timezone=zone)
    run(db, part("ancient", "4000-01-01 BC", "0001-01-01Z"), part("past", "0001-01-01Z", "2026-01-01Z"), month(1))
    run(db, month(2), part("future", "2026-03-01Z", "9999-12-31 23:59:59Z"), part("last", "12000-01-01", "13000-01-01"))
    install(db)
    write_days(db, [date(2026, 1, 3), date(2026, 2, 3)])
    refresh(db)
    report = partitions.read_partitions(db, NOW)
    assert report is not None
    assert [each.name for each in report.partitions if each.is_counted] != []
    rebuild(db, [date(2026, 1, 3), date(2026, 2, 3)])
    prune(db, date(2026, 2, 3))
    assert scalar(db, "select count(*) from calculation_logs where created_at < '2026-01-15'") == 0
    assert verify(db, [date(2026, 1, 3), date(2026, 2, 3)]).difference == 0
