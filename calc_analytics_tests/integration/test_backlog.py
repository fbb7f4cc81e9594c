"""Backlogs: counted in bounded steps, each a transaction of its own whose snapshot is a valid earlier cut; and days
that were never built, judged in one pass."""

import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.rollup import ledger
from calc_analytics.rollup import rebuild as rebuild_module
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.ledger import built_days, days_by_status, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.reports import RefreshReport
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.logs import (
    FORMS,
    assert_exact,
    assert_live,
    copy_rows,
    disagreements,
    execute,
    random_rows,
    row,
    stored,
    utc,
    write,
)

FIRST, DAYS = date(2026, 1, 20), 40
STEP, BATCH, BATCHES = 500, 50, 60
NOON = utc(2026, 3, 1, 12)
# What the stored snapshot says is counted, by PostgreSQL's own function for each row.
COUNTED = """
    select l.publisher_id, cast(l.created_at at time zone 'UTC' as date) as date, count(*)
    from calculation_logs l, rollup_state s
    where pg_visible_in_snapshot(cast(cast(l.xact_id as text) as xid8), s.snapshot) group by 1, 2
"""


@pytest.fixture
def backlog(db: Database, connect) -> Iterator[Callable[[], tuple[psycopg.Connection, psycopg.Connection]]]:
    """Writes rows of 40 days in no order of time, in many transactions, and returns the sessions of two whose ids lie
    below nearly all: one that stays open, and one that is prepared."""
    prepared: list[psycopg.Connection] = []

    def fill() -> tuple[psycopg.Connection, psycopg.Connection]:
        rng, writer, is_open, is_prepared = random.Random(9), connect(), connect(), connect()
        begin = utc(2026, 1, 20)
        for n in range(BATCHES):
            write(writer, random_rows(rng, BATCH, begin, begin + timedelta(days=DAYS)))
            if n == 3:
                copy_rows(is_open, random_rows(rng, 30, begin, begin + timedelta(days=DAYS)))
                is_prepared.tpc_begin(is_prepared.xid(1, "backlog", "rows"))
                copy_rows(is_prepared, random_rows(rng, 20, begin, begin + timedelta(days=DAYS)))
                is_prepared.tpc_prepare()
                prepared.append(is_prepared)
        return is_open, is_prepared

    yield fill
    for connection in prepared:
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE or connection._tpc:
            connection.tpc_rollback()


def assert_valid_cut(db: Database) -> None:
    """Targets hold exactly what the stored snapshot says is counted, agree, and are proven; the live views have all."""
    with db.engine.begin() as connection:
        counted = {(row[0], row[1]): row[2] for row in connection.execute(text(COUNTED))}
    assert {key: sums[0] for key, sums in stored(db).items()} == counted
    assert disagreements(db) == []
    assert verify(db, list(days_by_status(db, ledger.COUNTED))).different == []
    assert_live(db)


@pytest.mark.long
def test_each_step_of_a_backlog_commits_a_valid_earlier_cut(db: Database, backlog):
    is_open, is_prepared = backlog()
    steps: list[RefreshReport] = []

    def look(report: RefreshReport) -> None:
        steps.append(report)
        assert_valid_cut(db)

    total = refresh(db, step_rows=STEP, progress=look)
    assert len(steps) == BATCH * BATCHES // STEP + 1
    assert all(step.rows <= STEP + BATCH for step in steps)
    assert total.rows == sum(step.rows for step in steps) == BATCH * BATCHES
    assert_exact(db)
    for end, rows in ((is_open.commit, 30), (is_prepared.tpc_commit, 20)):
        assert refresh(db, step_rows=STEP).rows == 0
        end()
        assert refresh(db, step_rows=STEP).rows == rows
        assert_exact(db)


@pytest.mark.long
def test_writers_that_go_on_during_the_steps_are_counted_once(db: Database, backlog, connect):
    is_open, is_prepared = backlog()
    rng, writer, late = random.Random(10), connect(), connect()
    left = [7, 8, 9]

    def go_on(report: RefreshReport) -> None:
        assert_valid_cut(db)
        if left:
            late.commit()
            write(writer, random_rows(rng, left.pop(), utc(2026, 1, 20), utc(2026, 3, 1)))
            copy_rows(late, random_rows(rng, 5, utc(2026, 1, 20), utc(2026, 3, 1)))
        elif not is_open.closed:
            is_open.commit()

    refresh(db, step_rows=STEP, progress=go_on)
    late.commit()
    is_prepared.tpc_commit()
    refresh(db, step_rows=STEP)
    assert_exact(db)


class Killed(Exception):
    """Stands for the end of the process."""


def test_an_end_between_two_steps_loses_nothing(db: Database, backlog):
    is_open, _ = backlog()

    def die(report: RefreshReport) -> None:
        raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            refresh(db, step_rows=STEP, progress=die)
        assert_valid_cut(db)
    is_open.commit()
    refresh(db)
    assert_exact(db)


def test_connections_that_are_killed_between_two_steps_lose_nothing(db: Database, backlog, connect):
    backlog()
    killer = connect()
    killer.autocommit = True
    kill = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s and datname = %s"

    def die(report: RefreshReport) -> None:
        killer.execute(kill, [db.engine.url.username, db.engine.url.database])

    assert refresh(db, step_rows=STEP, progress=die).rows == BATCH * BATCHES
    db.engine.dispose()  # the last one that was killed
    assert_exact(db)


def test_a_backlog_whose_transaction_is_larger_than_a_step_is_counted(db: Database, connect):
    writer = connect()
    for rows in (10, 1_000, 10):
        write(writer, [row(NOON)] * rows)
    steps: list[int] = []
    refresh(db, step_rows=100, progress=lambda step: steps.append(step.rows))
    assert steps[0] >= 1_000
    assert sum(steps) == 1_020
    assert_exact(db)


def test_a_rebuild_counts_a_backlog_in_steps_before_it_locks(db: Database, backlog, monkeypatch):
    backlog()
    steps: list[RefreshReport] = []
    monkeypatch.setattr(rebuild_module, "refresh", partial(refresh, step_rows=STEP, progress=steps.append))
    report = rebuild(db, [FIRST + timedelta(days=n) for n in range(DAYS)])
    assert len(steps) == BATCH * BATCHES // STEP + 1
    assert report.rows == BATCH * BATCHES
    assert_exact(db)


def test_of_many_days_never_built_those_with_rows_from_before_wait_and_the_others_begin(db: Database, connect):
    """Rows without an id, of four of forty days, are older than the project."""
    old = [FIRST + timedelta(days=n) for n in (0, 7, 8, 39)]
    writer = connect()
    write(writer, [row(utc(day.year, day.month, day.day, 23, 59, 59)) for day in old])
    execute(db, "update calculation_logs set xact_id = null")
    every = [FIRST + timedelta(days=n) for n in range(DAYS)]
    write(writer, [row(utc(day.year, day.month, day.day)) for day in every] * 2)
    report = refresh(db)
    assert report.waiting_by_day == dict.fromkeys(old, 2)
    assert waiting_days(db) == old
    assert built_days(db) == [day for day in every if day not in old]
    assert {key[-1] for key in stored(db)} == set(built_days(db))
    rebuild(db, old)
    assert_exact(db)


def test_a_day_waits_if_rows_of_it_came_with_a_partition_that_was_attached(db: Database, owner: Engine, connect):
    """They have ids that every snapshot since includes, but no refresh has counted them."""
    attached, other = date(2026, 2, 1), date(2026, 2, 2)
    with owner.begin() as connection:
        connection.execute(text("create table attached (like calculation_logs including all)"))
    writer = connect()
    copy_rows(writer, [row(utc(2026, 2, 1, 12))] * 3, "attached")
    writer.commit()
    write(writer, [row(NOON)])
    refresh(db)
    with owner.begin() as connection:
        connection.execute(text("alter table attached inherit calculation_logs"))
    write(writer, [row(utc(2026, 2, 1, 13)), row(utc(2026, 2, 2))])
    report = refresh(db)
    assert report.waiting_by_day == {attached: 1}
    assert {day.rollup for day in report.unbuilt} == set(FORMS)
    assert waiting_days(db) == [attached]
    assert built_days(db) == [other, NOON.date()]
    rebuild(db, [attached])
    assert_exact(db)
