"""Plans: a refresh and the live view touch rows in proportion to new rows, a rebuild its day only."""

import json
from datetime import date
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.rollup import state
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.rebuild import count_sql, rebuild
from calc_analytics.rollup.refresh import refresh, refresh_sql
from calc_analytics.rollup.snapshot import Snapshot, visible
from calc_analytics.rollup.verify import verify_sql
from calc_analytics.rollup.windows import windows
from calc_analytics_tests.logs import row, utc, write

DAYS = [date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)]
ROWS_PER_DAY = 20_000
NEW_ROWS = 100


@pytest.fixture
def busy(engine: Engine, connect) -> Engine:
    """Three built days of 20,000 rows, and a hundred rows of the last that are not counted yet."""
    with engine.begin() as connection:
        for day in DAYS:
            connection.execute(
                text(
                    "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at) "
                    "select i % 50, 1, '2030-01-01', 1 + i % 3, cast(:day as timestamptz) + i * interval '4 seconds' "
                    "from generate_series(0, :rows - 1) i"
                ),
                {"day": f"{day} 00:00+00", "rows": ROWS_PER_DAY},
            )
    rebuild(engine, ROLLUP, "UTC", DAYS)
    # Many small transactions, as the API makes them.
    writer = connect()
    for n in range(50):
        write(writer, [row(utc(2026, 3, 1, 12), publisher=n)])
    refresh(engine, ROLLUP, "UTC")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))
    write(writer, [row(utc(2026, 3, 3, 12), publisher=n) for n in range(NEW_ROWS)])
    return engine


def rows_read(engine: Engine, statement: str, parameters: dict[str, Any]) -> int:
    """Rows of the log table that the statement really touched, filtered ones included; fails on a sequential scan."""
    with engine.connect() as connection:
        explained = connection.execute(text(f"explain (analyze, format json) {statement}"), parameters).scalar_one()
        connection.rollback()
    plan = explained if isinstance(explained, list) else json.loads(explained)
    scans = [node for node in nodes(plan[0]["Plan"]) if node.get("Relation Name") == ROLLUP.source]
    assert scans
    assert "Seq Scan" not in {scan["Node Type"] for scan in scans}
    return sum(scan["Actual Loops"] * (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) for scan in scans)


def nodes(plan: dict[str, Any]):
    """A plan's nodes, all levels."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def snapshots(engine: Engine) -> dict[str, Any]:
    """The parameters of a refresh: the stored snapshot and this moment's."""
    with engine.begin() as connection:
        before = state.read(connection, ROLLUP, "UTC").snapshot
        return {"rollup": ROLLUP.name, "tz": "UTC", **before.bind("s1"), **Snapshot.now(connection).bind("s2")}


def test_a_refresh_reads_the_new_rows_only(busy: Engine):
    assert rows_read(busy, refresh_sql(ROLLUP), snapshots(busy)) <= 2 * NEW_ROWS


def test_a_refresh_that_begins_a_day_reads_the_new_rows_only(busy: Engine, connect):
    write(connect(), [row(utc(2026, 3, 4, 12))] * NEW_ROWS)
    assert rows_read(busy, refresh_sql(ROLLUP), snapshots(busy)) <= 4 * NEW_ROWS


def test_the_live_view_reads_the_new_rows_only(busy: Engine):
    assert rows_read(busy, f"select * from {ROLLUP.live_view}", {}) <= 2 * NEW_ROWS


@pytest.mark.parametrize("sql", [lambda span: count_sql(ROLLUP, span, visible("sa")), lambda s: verify_sql(ROLLUP, s)])
def test_rebuild_and_verify_read_their_day_only(busy: Engine, sql):
    with busy.begin() as connection:
        (span,) = windows(connection, [DAYS[1]], "UTC")
        now = Snapshot.now(connection)
        if "into rebuilt" in sql(span):
            connection.execute(text(f"create table rebuilt as select * from {ROLLUP.target} limit 0"))
    parameters = {"day": span.day, "begin": span.begin, "end": span.end, "tz": "UTC", "rollup": ROLLUP.name}
    used = {name: value for name, value in {**parameters, **now.bind("sa")}.items() if f":{name}" in sql(span)}
    assert ROWS_PER_DAY <= rows_read(busy, sql(span), used) <= ROWS_PER_DAY + 100
