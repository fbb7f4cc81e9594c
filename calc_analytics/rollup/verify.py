"""Verify: compares statistics, ledger and log of a day at the stored snapshot, in one statement.

One statement sees one state of the database, so the answer is exact while writers run at full speed. It takes no lock.
What it finds is recorded in the ledger, so that the command line, health, metrics and Dagster never show two truths.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import partial

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.retries import retry_transient
from calc_analytics.database.server import is_read_only
from calc_analytics.days import today
from calc_analytics.rollup import journal, ledger, overflow
from calc_analytics.rollup.comparison import read_proof, verify_sql
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.diagnosis import require_own_rows
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.reports import DayProof, VerifyReport
from calc_analytics.rollup.windows import windows


def verify(
    db: Database,
    days: Sequence[date],
    rollups: Sequence[str] | None = None,
    *,
    with_checksum: bool = False,
    progress: Callable[[DayProof], None] = lambda proof: None,
) -> VerifyReport:
    """Compares these days of these rollups (None: all) and records the result.

    A day that was never built and has log rows is reported as such, not compared. `with_checksum`: days of any age that
    are proven get the checksum that `prune` needs. Deletions that `LOGS_KEPT_DAYS` announced are noted first.
    Transient errors are retried. Raises as `ledger.read`, `DatabaseError`, or, after all days were compared,
    `ForeignRows`.
    """
    started = time.perf_counter()
    chosen = db.log.only(rollups).rollups
    proofs = [proof for day in sorted(set(days)) for proof in _verify_day(db, chosen, day, with_checksum, progress)]
    retry_transient(partial(require_own_rows, db))
    seen, archive = [p for p in proofs if p.status or p.log_rows or p.stored_rows], _unbalanced_archive(db, days)
    return VerifyReport(seen, time.perf_counter() - started, archive=archive)


def _unbalanced_archive(db: Database, days: Sequence[date]) -> list[ledger.ArchiveBalance]:
    """The archived days whose rows do not add up to what was counted; recorded, day by day."""
    if db.archive_url is None:
        return []
    with transaction(db.engine) as connection:
        archived = ledger.archived_days(connection, db.log, sorted(set(days)))
    may_record = bool(archived) and not is_read_only(db.engine)
    return [found for day in archived if (found := _balance(db, day, may_record)) is not None]


def _balance(db: Database, day: date, may_record: bool) -> ledger.ArchiveBalance | None:
    """Rows may be counted or deleted between two statements, so what differs is looked at once more."""
    found = retry_transient(partial(_balance_once, db, day, may_record, is_last=False))
    return retry_transient(partial(_balance_once, db, day, may_record, is_last=True)) if found else None


def _balance_once(db: Database, day: date, may_record: bool, *, is_last: bool) -> ledger.ArchiveBalance | None:
    """What differs; recorded in the same transaction, unless it is to be looked at once more."""
    with transaction(db.engine) as connection:
        connection.execute(WHOLE_DAYS)
        (span,) = windows(connection, [day], db.timezone)
        found = ledger.balance(connection, db, span)
        if found is not None and may_record and (is_last or not found.difference):
            ledger.record_balance(connection, db.log, found)
        return found if found is not None and found.difference else None


def _verify_day(
    db: Database, rollups: Sequence[Rollup], day: date, with_checksum: bool, progress: Callable[[DayProof], None]
) -> Iterator[DayProof]:
    may_be_announced = db.logs_kept_days is not None and day < today(db.timezone) - timedelta(days=db.logs_kept_days)
    for rollup in rollups:
        proof = retry_transient(partial(_prove, db, rollup, day, with_checksum, may_be_announced))
        if proof.finding == "logs_missing" and may_be_announced and not is_read_only(db.engine):
            rebuild(db, [day], [rollup.name], decision=Decision.AUTOMATIC)
            proof = retry_transient(partial(_prove, db, rollup, day, with_checksum, False))
        progress(proof)
        yield proof


def _prove(db: Database, rollup: Rollup, day: date, with_checksum: bool, may_be_announced: bool) -> DayProof:
    """Compares the day of one rollup, and records what was found, in one transaction.

    Missing log rows whose deletion may have been announced are not recorded: the day is compared again.
    """
    started = time.perf_counter()
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        (span,) = windows(connection, [day], db.timezone)
        parameters = {"rollup": rollup.name, "tz": db.timezone, **span.parameters()}
        connection.execute(WHOLE_DAYS)
        row = connection.execute(text(verify_sql(db, rollup, span)), parameters).mappings().one()
        proof = read_proof(rollup, day, row, db.timezone, time.perf_counter() - started)
        if proof.finding == "overflow":
            proof = replace(proof, misfit=overflow.in_log(connection, db, rollup, span))
        is_open = may_be_announced and proof.finding == "logs_missing"
        # A standby's answer is right, and not recorded.
        if proof.status is not None and not is_open and not row["is_read_only"]:
            seen = ledger.ComparedRecord(row["version"], row["written_by"], row["checksum_now"])
            if ledger.record_verified(connection, db, rollup, proof, seen, with_checksum):
                _note(connection, db, proof, is_new=proof.difference != (row["known_difference"] or 0))
    return proof


def _note(connection: Connection, db: Database, proof: DayProof, is_new: bool) -> None:
    done = {proof.day: {proof.rollup: {"difference": proof.difference, "finding": proof.finding}}}
    journal.note_proof(connection, db.log, "verify", done if proof.difference and is_new else {}, proof.seconds)
