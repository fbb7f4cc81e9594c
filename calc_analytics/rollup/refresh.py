"""Refresh: adds the rows that became visible since the stored snapshot to every rollup.

The cost depends on the new rows, not on the size of the log.

One transaction in one network round trip: lock the state row, then one statement (`refresh_sql.py`). Every committed
transaction lies between exactly one pair of snapshots, so nothing is skipped or counted twice and nothing waits for a
slow writer; a crash undoes statistics and state together.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.engine import Connection

from calc_analytics.database.engine import transaction
from calc_analytics.database.errors import DatabaseError
from calc_analytics.database.pipeline import run_in_one_trip
from calc_analytics.database.retries import retry_transient
from calc_analytics.rollup import ledger, overflow
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.foreign import foreign_rows
from calc_analytics.rollup.overflow import Misfit
from calc_analytics.rollup.refresh_sql import counts_between, probe_sql, refresh_sql
from calc_analytics.rollup.reports import DayCount, RefreshReport
from calc_analytics.rollup.snapshot import Snapshot, between

T = TypeVar("T")
NUMBER_OUT_OF_RANGE = "22003"
UNUSABLE_LOG = ("42501", "42703", "42P01")
# A backlog is counted in steps of about this many rows, each its own transaction.
STEP_ROWS = 500_000
# While days are set aside, rows of others that do not fit may be committed.
SET_ASIDE_AT_MOST = 3


def refresh(
    db: Database,
    *,
    step_rows: int | None = STEP_ROWS,
    sampled: bool = True,
    progress: Callable[[RefreshReport], None] = lambda report: None,
) -> RefreshReport:
    """Counts all that was committed before the call, and maybe more. Safe to repeat.

    A backlog is counted in steps of about `step_rows` rows (None: in one step), each a transaction of its own;
    `progress` gets each step's report. `sampled`: whether the ages of rows are noted in the journal, which costs a few
    per cent. Transient errors are retried. A day with a value that does not fit its column is
    set aside (status 'overflow') and does not keep the others from being counted. Raises what `ledger.require_usable`
    raises, `DatabaseError`, or, after all others are counted, `ForeignRows`.
    """
    total = None
    while True:
        started, misfits = time.perf_counter(), list[Misfit]()
        rows = isolate_overflow(db, partial(_refresh_in_one_trip, db, step_rows, sampled), misfits)
        report = replace(_report(db, rows, time.perf_counter() - started), misfits=misfits)
        progress(report)
        total = report if total is None else total + report
        if not rows[0]["more"]:
            break
    if rows[0]["has_foreign_rows"]:
        raise foreign_rows(db.log)
    return total


def _refresh_in_one_trip(db: Database, step_rows: int | None, sampled: bool) -> list[dict[str, Any]]:
    return _run(db, [ledger.lock_sql(db.log), refresh_sql(db, step_rows, sampled)])


def _run(db: Database, statements: Sequence[str]) -> list[dict[str, Any]]:
    """The last statement's rows, which have the state's columns; raises what `ledger.require_usable` raises."""
    try:
        rows = run_in_one_trip(db.engine, statements)
    except DatabaseError as error:
        # A table that lacks a column or a right may be another one than was counted.
        if error.sqlstate in UNUSABLE_LOG:
            with transaction(db.engine) as connection:
                ledger.read(connection, db)
        raise
    ledger.require_usable(db, rows[0] if rows else None)
    return rows


def refresh_locked(connection: Connection, db: Database) -> RefreshReport:
    """The refresh inside the caller's transaction, which holds the state's lock until it ends; in one step."""
    started = time.perf_counter()
    ledger.lock(connection, db)
    # After the lock, in a statement of its own: only now does its snapshot include what the last holder counted.
    statement = refresh_sql(db, None).replace("%", "%%")
    rows = [dict(row) for row in connection.exec_driver_sql(statement).mappings()]
    return _report(db, rows, time.perf_counter() - started)


def _report(db: Database, rows: list[dict[str, Any]], seconds: float) -> RefreshReport:
    days = [_day_count(db.log.rollup(row["rollup"]), row) for row in rows if row["date"] is not None]
    return RefreshReport(days, seconds, Snapshot.parse(rows[0]["upto"]))


def _day_count(rollup: Rollup, row: dict[str, Any]) -> DayCount:
    measures, day = {name: int(row["totals"][name]) for name in rollup.measure_names}, date.fromisoformat(row["date"])
    return DayCount(rollup.name, day, measures[rollup.count], measures, row["keys"], row["status"])


def isolate_overflow(db: Database, work: Callable[[], T], found: list[Misfit] | None = None) -> T:
    """What `work` returns, a transaction with a refresh in it; days with values that do not fit are set aside first.

    The values are added to `found`.
    """
    for _ in range(SET_ASIDE_AT_MOST):
        try:
            return retry_transient(work)
        except DatabaseError as error:
            misfits = _set_aside(db) if error.sqlstate == NUMBER_OUT_OF_RANGE else []
            if not misfits:
                raise
            if found is not None:
                found += misfits
    return retry_transient(work)


def _set_aside(db: Database) -> list[Misfit]:
    """Marks the days that the next refresh cannot count; returns why."""
    found: list[Misfit] = []
    with transaction(db.engine) as connection:
        before = ledger.lock(connection, db)
        parameters = between(before.snapshot, Snapshot.now(connection))
        for rollup in db.log.rollups:
            new = overflow.misfits(connection, rollup, counts_between(db, rollup), parameters, are_added=True)
            set_aside = ledger.set_aside(connection, rollup, [each.day for each in new])
            found += [each for each in new if each.day in set_aside]
        if found:
            overflow.note(connection, db, found)
    return found


def look_for_rows(
    db: Database, connection: Connection, quiet: Snapshot | None, thorough: bool = True
) -> tuple[bool, Snapshot]:
    """Whether a row has been committed since the stored snapshot, and the snapshot of this look.

    An index probe, without a lock. First, `connection` (in autocommit) shows more cheaply whether there was any write
    since `quiet`, the snapshot of a look that found nothing or of a refresh (None: unknown). Raises as
    `refresh`; `ForeignRows` only if `thorough`.
    """
    now = Snapshot.now(connection)
    if quiet is not None and now.xmax == quiet.xmax and set(quiet.xip) <= set(now.xip):
        return False, quiet
    found = _run(db, [probe_sql(db, thorough)])[0]
    if found["has_foreign_rows"]:
        raise foreign_rows(db.log)
    return bool(found["is_uncounted"]), now
