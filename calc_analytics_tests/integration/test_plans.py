"""Plans: a refresh and the live view touch rows in proportion to new rows, a rebuild its day only.

The BRIN index knows ranges of pages, so a scan reads a range or two more than it needs, however big the table is.
"""

import json
import re
from datetime import date
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.adopt import PAGES_PER_RANGE
from calc_analytics.rollup import state
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.index import summarize
from calc_analytics.rollup.rebuild import count_sql, rebuild
from calc_analytics.rollup.refresh import refresh, refresh_sql
from calc_analytics.rollup.snapshot import Snapshot, between
from calc_analytics.rollup.verify import verify_sql
from calc_analytics.rollup.windows import windows
from calc_analytics_tests.logs import copy_rows, row, utc, write

DAYS = [date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)]
ROWS_PER_DAY = 40_000
NEW_ROWS = 100
RANGE = 100 * PAGES_PER_RANGE
"""Rows of a range of pages, or a few more."""


@pytest.fixture
def busy(owner: Engine, connect) -> Engine:
    """Three built days of 40,000 rows, and a hundred rows of the last that are not counted yet."""
    with owner.begin() as connection:
        for day in DAYS:
            connection.execute(
                text(
                    "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at) "
                    "select i % 50, 1, '2030-01-01', 1 + i % 3, cast(:day as timestamptz) + i * interval '2 seconds' "
                    "from generate_series(0, :rows - 1) i"
                ),
                {"day": f"{day} 00:00+00", "rows": ROWS_PER_DAY},
            )
    rebuild(owner, ROLLUP, "UTC", DAYS)
    # Many small transactions, as the API makes them.
    writer = connect()
    for n in range(50):
        write(writer, [row(utc(2026, 3, 1, 12), publisher=n)])
    refresh(owner, ROLLUP, "UTC")
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))
    write(writer, [row(utc(2026, 3, 3, 12), publisher=n) for n in range(NEW_ROWS)])
    return owner


def rows_read(engine: Engine, statement: str, parameters: dict[str, Any]) -> int:
    """Rows of the log table that the statement really touched, filtered ones included; fails on a sequential scan."""
    with engine.connect() as connection:
        explained = connection.execute(text(f"explain (analyze, format json) {statement}"), parameters).scalar_one()
        connection.rollback()
    plan = explained if isinstance(explained, list) else json.loads(explained)
    scans = [node for node in nodes(plan[0]["Plan"]) if node.get("Relation Name") == ROLLUP.source]
    assert scans
    assert "Seq Scan" not in {scan["Node Type"] for scan in scans}
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    return sum(
        scan["Actual Loops"] * (scan["Actual Rows"] + sum(scan.get(key, 0) for key in removed)) for scan in scans
    )


def nodes(plan: dict[str, Any]):
    """A plan's nodes, all levels."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def snapshots(engine: Engine) -> dict[str, Any]:
    """The parameters of a refresh: the stored snapshot and this moment's."""
    with engine.begin() as connection:
        before = state.read(connection, ROLLUP, "UTC").snapshot
        return {"rollup": ROLLUP.name, "tz": "UTC", **before.bind("s1"), **between(before, Snapshot.now(connection))}


def test_a_refresh_reads_the_new_rows_only(busy: Engine):
    assert rows_read(busy, refresh_sql(ROLLUP), snapshots(busy)) <= NEW_ROWS + 2 * RANGE


def test_a_refresh_reads_the_new_rows_only_after_retention_has_freed_space_that_they_reuse(busy: Engine, connect):
    with busy.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("delete from calculation_logs where created_at < '2026-03-02Z'"))
        connection.execute(text("vacuum analyze calculation_logs"))
    refresh(busy, ROLLUP, "UTC")
    writers = [connect() for _ in range(4)]
    for n in range(40):
        write(writers[n % 4], [row(utc(2026, 3, 3, 13))] * NEW_ROWS)
    assert rows_read(busy, refresh_sql(ROLLUP), snapshots(busy)) <= 40 * NEW_ROWS + 4 * RANGE
    assert rows_read(busy, f"select * from {ROLLUP.live_view}", {}) <= 40 * NEW_ROWS + 4 * RANGE


def test_a_refresh_does_not_read_what_an_open_transaction_wrote(busy: Engine, connect):
    writer = connect()
    copy_rows(writer, [row(utc(2026, 3, 3, 13))] * 30_000)
    for _ in range(2):
        write(connect(), [row(utc(2026, 3, 3, 14))] * NEW_ROWS)
        refresh(busy, ROLLUP, "UTC")
    write(connect(), [row(utc(2026, 3, 3, 14))] * NEW_ROWS)
    summarize(busy, ROLLUP)
    assert rows_read(busy, refresh_sql(ROLLUP), snapshots(busy)) <= NEW_ROWS + 2 * RANGE
    assert rows_read(busy, f"select * from {ROLLUP.live_view}", {}) <= NEW_ROWS + 2 * RANGE


def test_rows_at_the_tables_end_are_in_the_index_after_summarize(busy: Engine, connect):
    write(connect(), [row(utc(2026, 3, 3, 13))] * 50_000)
    refresh(busy, ROLLUP, "UTC")
    write(connect(), [row(utc(2026, 3, 3, 14))] * NEW_ROWS)
    assert rows_read(busy, refresh_sql(ROLLUP), snapshots(busy)) > 40_000
    assert summarize(busy, ROLLUP)
    assert rows_read(busy, refresh_sql(ROLLUP), snapshots(busy)) <= NEW_ROWS + 2 * RANGE


def test_summarize_waits_for_nobody_and_needs_no_rights_on_the_table(busy: Engine, connect):
    with busy.begin() as connection:
        connection.execute(text("lock table calculation_logs in share update exclusive mode"))
        assert not summarize(busy, ROLLUP)
    with busy.begin() as connection:
        connection.execute(text("drop function calculation_logs_summarize()"))
    assert not summarize(busy, ROLLUP)


def test_a_refresh_that_begins_a_day_reads_the_new_rows_only(busy: Engine, connect):
    write(connect(), [row(utc(2026, 3, 4, 12))] * NEW_ROWS)
    assert rows_read(busy, refresh_sql(ROLLUP), snapshots(busy)) <= 2 * NEW_ROWS + 4 * RANGE


def test_the_live_view_reads_the_new_rows_only(busy: Engine):
    assert rows_read(busy, f"select * from {ROLLUP.live_view}", {}) <= NEW_ROWS + 2 * RANGE


@pytest.mark.parametrize("sql", [lambda span: count_sql(ROLLUP, [span]), lambda span: verify_sql(ROLLUP, span)])
def test_rebuild_and_verify_read_their_day_only(busy: Engine, sql):
    with busy.begin() as connection:
        (span,) = windows(connection, [DAYS[1]], "UTC")
        now = Snapshot.now(connection)
    given = {**span.parameters(), **span.parameters("_0"), "rollup": ROLLUP.name, **now.bind("sa")}
    used = {name: value for name, value in given.items() if re.search(rf":{name}\b", sql(span))}
    assert ROWS_PER_DAY <= rows_read(busy, sql(span), used) <= ROWS_PER_DAY + 2 * RANGE
