"""Plans: a refresh and the live views touch rows in proportion to new rows, a rebuild its day only.

Statements are explained with the settings that the project gives its transactions, live views with a reader's own. The
BRIN index knows ranges of pages, so a scan reads a range or two more than it needs, however big the table is.
"""

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from calc_analytics.database.adopt import PAGES_PER_RANGE
from calc_analytics.database.engine import settings_sql, transaction
from calc_analytics.database.log_index import summarize
from calc_analytics.rollup import ledger, unseen
from calc_analytics.rollup.comparison import verify_sql
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.recount import count_sql
from calc_analytics.rollup.refresh import STEP_ROWS, refresh
from calc_analytics.rollup.refresh_sql import probe_sql, refresh_sql
from calc_analytics.rollup.snapshot import Snapshot
from calc_analytics.rollup.verify import verify
from calc_analytics.rollup.windows import windows
from calc_analytics.rollups import LOG
from calc_analytics_tests.logs import copy_rows, row, utc, write

DAYS = [date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)]
ROWS_PER_DAY = 40_000
NEW_ROWS = 100
RANGE = 100 * PAGES_PER_RANGE
"""Rows of a range of pages, or a few more."""
FILL = """
    insert into calculation_logs
        (publisher_id, locality_id, date_calculated, source, response_time_ms, created_at)
    select i % 50, (i / 50) % 200, '2030-01-01', 1 + i % 3, i % 1000,
           cast(:day as timestamptz) + i * interval '2 seconds'
    from generate_series(0, :rows - 1) i
"""
Plan = list[dict[str, Any]]


@pytest.fixture
def busy(owner: Engine, connect) -> Database:
    """Three built days of 40,000 rows, and a hundred rows of the last that are not counted yet."""
    db = Database(owner, LOG, "UTC")
    with owner.begin() as connection:
        for day in DAYS:
            connection.execute(text(FILL), {"day": f"{day} 00:00+00", "rows": ROWS_PER_DAY})
    rebuild(db, DAYS)
    # Many small transactions, as the API makes them.
    writer = connect()
    for n in range(50):
        write(writer, [row(utc(2026, 3, 1, 12), publisher=n)])
    refresh(db)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))
    write(writer, [row(utc(2026, 3, 3, 12), publisher=n) for n in range(NEW_ROWS)])
    return db


def explain(connection: Connection, statement: str, parameters: dict[str, Any] | None = None) -> Plan:
    """Runs the statement, rolls back, and returns the nodes of its plan with what each of them really did."""
    explained = connection.execute(text(f"explain (analyze, buffers, format json) {statement}"), parameters or {})
    (plan,) = explained.scalar_one()
    connection.rollback()
    return list(nodes(plan["Plan"]))


def as_the_project(db: Database, statement: str, parameters: dict[str, Any] | None = None) -> Plan:
    """Explained as in a transaction of the project, which holds the state's lock."""
    with db.engine.connect() as connection:
        connection.exec_driver_sql(settings_sql(db.engine, connection.info))
        connection.exec_driver_sql(ledger.lock_sql(db.log))
        return explain(connection, statement.replace(":", "\\:") if parameters is None else statement, parameters)


def of_refresh(db: Database, step_rows: int | None = None) -> Plan:
    """Explains the refresh that would come next."""
    return as_the_project(db, refresh_sql(db, step_rows))


def of_live_view(db: Database, view: str = LOG.rollups[0].live_view) -> Plan:
    """Explains a reader's query, in a session with PostgreSQL's own settings."""
    with db.engine.connect() as connection:
        return explain(connection, f"select * from {view}")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes, all levels."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def rows_read(plan: Plan, relation: str = LOG.name) -> float:
    """Rows of the table that were really touched, filtered ones included; fails on a sequential scan."""
    scans = [node for node in plan if node.get("Relation Name") == relation and "Scan" in node["Node Type"]]
    assert scans
    assert "Seq Scan" not in {scan["Node Type"] for scan in scans}
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    return sum(
        scan["Actual Loops"] * (scan["Actual Rows"] + sum(scan.get(key, 0) for key in removed)) for scan in scans
    )


def pages_read(plan: Plan) -> int:
    """Pages of the log and its index that were really touched."""
    scans = [node for node in plan if node.get("Relation Name") == LOG.name]
    return sum(scan["Shared Hit Blocks"] + scan["Shared Read Blocks"] for scan in scans)


def test_a_refresh_reads_the_new_rows_only(busy: Database):
    plan = of_refresh(busy)
    assert rows_read(plan) <= NEW_ROWS + 2 * RANGE
    assert pages_read(plan) <= 3 * PAGES_PER_RANGE


def test_a_refresh_in_steps_reads_the_new_rows_twice_and_nothing_else(busy: Database):
    plan = of_refresh(busy, STEP_ROWS)
    assert rows_read(plan) <= 2 * NEW_ROWS + 4 * RANGE
    assert pages_read(plan) <= 6 * PAGES_PER_RANGE


def test_a_step_reads_its_rows_and_not_the_rest_of_the_backlog(busy: Database, connect):
    writer = connect()
    for _ in range(40):
        write(writer, [row(utc(2026, 3, 3, 13))] * 1_000)
    summarize(busy.engine)
    assert rows_read(of_refresh(busy, 2_000)) <= 2 * 2_000 + 4 * RANGE


def test_a_refresh_reads_the_target_rows_that_it_changes_only(busy: Database, connect):
    """With a checksum, which proven days have, each of those is read once."""
    refresh(busy)
    assert verify(busy, DAYS).different == []
    write(connect(), [row(utc(2026, 3, 3, 12), publisher=n, locality_id=n) for n in range(50)])
    plan = of_refresh(busy)
    for rollup in LOG.rollups:
        assert rows_read(plan, rollup.name) <= 50
    assert rows_read(plan, "rollup_days") <= 8 * len(LOG.rollups)


def test_a_refresh_that_begins_a_day_does_not_scan_the_targets(busy: Database, connect):
    refresh(busy)
    write(connect(), [row(utc(2026, 3, 4, 12))] * NEW_ROWS)
    plan = of_refresh(busy)
    for rollup in LOG.rollups:
        with busy.engine.begin() as connection:
            stored = connection.execute(text(f"select count(*) from {rollup.name}")).scalar_one()
        assert rows_read(plan, rollup.name) <= max(stored / 3, 150)


def test_a_probe_reads_a_range_or_two_whether_rows_are_new_or_not(busy: Database):
    assert rows_read(as_the_project(busy, probe_sql(busy))) <= 2 * RANGE
    refresh(busy)
    plan = as_the_project(busy, probe_sql(busy))
    assert rows_read(plan) <= 2 * RANGE
    assert pages_read(plan) <= 3 * PAGES_PER_RANGE


def test_a_refresh_reads_the_new_rows_only_after_retention_has_freed_space_that_they_reuse(busy: Database, connect):
    with busy.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("delete from calculation_logs where created_at < '2026-03-02Z'"))
        connection.execute(text("vacuum analyze calculation_logs"))
    refresh(busy)
    writers = [connect() for _ in range(4)]
    for n in range(40):
        write(writers[n % 4], [row(utc(2026, 3, 3, 13))] * NEW_ROWS)
    assert rows_read(of_refresh(busy)) <= 40 * NEW_ROWS + 4 * RANGE
    live_view = as_the_project(busy, f"select * from {LOG.rollups[0].live_view}")
    assert rows_read(live_view) <= 40 * NEW_ROWS + 4 * RANGE


def test_a_refresh_does_not_read_what_an_open_transaction_wrote(busy: Database, connect):
    writer = connect()
    copy_rows(writer, [row(utc(2026, 3, 3, 13))] * 30_000)
    for _ in range(2):
        write(connect(), [row(utc(2026, 3, 3, 14))] * NEW_ROWS)
        refresh(busy)
    write(connect(), [row(utc(2026, 3, 3, 14))] * NEW_ROWS)
    summarize(busy.engine)
    assert rows_read(of_refresh(busy)) <= NEW_ROWS + 2 * RANGE
    assert rows_read(of_live_view(busy)) <= NEW_ROWS + 2 * RANGE


def test_rows_at_the_tables_end_are_in_the_index_after_summarize(busy: Database, connect):
    write(connect(), [row(utc(2026, 3, 3, 13))] * 50_000)
    refresh(busy)
    write(connect(), [row(utc(2026, 3, 3, 14))] * NEW_ROWS)
    assert rows_read(of_refresh(busy)) > 40_000
    assert summarize(busy.engine)
    assert rows_read(of_refresh(busy)) <= NEW_ROWS + 2 * RANGE


def test_summarize_waits_for_no_lock_and_needs_no_rights_on_the_table(busy: Database):
    with busy.engine.begin() as connection:
        connection.execute(text("lock table calculation_logs in share update exclusive mode"))
        assert not summarize(busy.engine)
    with busy.engine.begin() as connection:
        connection.execute(text("drop function calculation_logs_summarize()"))
    assert not summarize(busy.engine)


def test_a_refresh_that_begins_a_day_reads_the_new_rows_only(busy: Database, connect):
    write(connect(), [row(utc(2026, 3, 4, 12))] * NEW_ROWS)
    assert rows_read(of_refresh(busy)) <= 2 * NEW_ROWS + 4 * RANGE


@pytest.mark.parametrize("view", [rollup.live_view for rollup in LOG.rollups])
def test_the_live_view_reads_the_new_rows_only(busy: Database, view: str):
    assert rows_read(of_live_view(busy, view)) <= NEW_ROWS + 2 * RANGE


@pytest.mark.parametrize("name", LOG.names)
@pytest.mark.parametrize(
    "sql",
    [
        lambda db, rollup, span: count_sql(db, rollup, [span]),
        lambda db, rollup, span: verify_sql(db, rollup, span),
    ],
    ids=["rebuild", "verify"],
)
def test_rebuild_and_verify_read_their_day_only(busy: Database, sql: Callable[..., str], name: str):
    with busy.engine.begin() as connection:
        (span,) = windows(connection, [DAYS[1]], "UTC")
        now = Snapshot.now(connection)
    statement = sql(busy, LOG.rollup(name), span)
    given = {**span.parameters(), **span.parameters("_0"), "rollup": name, **now.bind("sa")}
    used = {key: given[key] for key in text(statement).compile().params}
    assert ROWS_PER_DAY <= rows_read(as_the_project(busy, statement, used)) <= ROWS_PER_DAY + 2 * RANGE


def of_search(db: Database) -> Plan:
    """Explains the search for days that are not on record."""
    with db.engine.connect() as connection:
        connection.exec_driver_sql(settings_sql(db.engine, connection.info))
        parameters = {"rollups": db.log.names, "number": len(db.log.names)}
        return explain(connection, unseen.search_sql(db), parameters)


def test_a_search_for_days_that_are_not_on_record_reads_a_range_or_two_for_each_gap(busy: Database):
    """Before the first day and after the last."""
    refresh(busy)
    summarize(busy.engine)
    assert rows_read(of_search(busy)) <= 2 * 2 * RANGE


def test_a_search_reads_a_range_or_two_for_each_day_that_it_finds(busy: Database):
    refresh(busy)
    with busy.engine.begin() as connection:
        for day in ("2026-02-20", "2026-02-24"):
            statement = FILL.replace("created_at)", "created_at, xact_id)").replace("'2 seconds'", "'2 seconds', null")
            connection.execute(text(statement), {"day": f"{day} 00:00+00", "rows": 2 * ROWS_PER_DAY})
    summarize(busy.engine)
    with transaction(busy.engine) as connection:
        assert len(unseen.find_days(connection, busy)) == 4
    found, gaps = 4, 4
    assert rows_read(of_search(busy)) <= (found + gaps) * 2 * RANGE
