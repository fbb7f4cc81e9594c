"""Patrol: proves every day again in turn, and audits the statistics, in the background and within a small budget.

Audits today and yesterday every minute and all days every hour; in between compares the day whose proof is oldest with
the log. A comparison costs as much as its day has rows, so the pause after one is a hundred times as long.
"""

import threading
import time
from datetime import date

from sqlalchemy import text

from calc_analytics.database.engine import persistently, transaction
from calc_analytics.days import today_and_yesterday
from calc_analytics.rollup import ledger
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.verify import verify

AUDIT_RECENT_SECONDS, AUDIT_ALL_SECONDS = 60.0, 3600.0
# Comparing takes at most this share of the time; a day is left alone for an hour after a proof.
VERIFY_SHARE = 0.01
VERIFY_PAUSE_SECONDS, PROOF_SECONDS = 10.0, 3600.0


class Patrol:
    """Does what is due, in a thread of its own, each time `walk` is called; one walk at a time."""

    def __init__(self, db: Database, stopping: threading.Event) -> None:
        self.db, self.stopping = db, stopping
        self._audit_at = self._verify_at = 0.0
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def walk(self) -> None:
        """Begins what is due, unless the last walk still goes on. Raises the error that ended it, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="patrol", daemon=True)
            self._thread.start()

    def wait(self, seconds: float) -> None:
        """Waits for the walk that goes on, but not longer."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self.step()
        except Exception as error:
            self._error = error

    def step(self) -> None:
        """Does what is due now."""
        if self.stopping.is_set():
            return
        now = time.monotonic()
        if now >= self._audit_at:
            audit(self.db, None if _is_audit_due(self.db) else today_and_yesterday(self.db.timezone))
            self._audit_at = now + AUDIT_RECENT_SECONDS
        if now >= self._verify_at and not self.stopping.is_set():
            started = time.monotonic()
            day = persistently(lambda: oldest_proof(self.db))
            if day is not None:
                verify(self.db, [day])
            took = time.monotonic() - started
            self._verify_at = time.monotonic() + max(VERIFY_PAUSE_SECONDS, took / VERIFY_SHARE)


def oldest_proof(db: Database) -> date | None:
    """The day with statistics whose proof is oldest in some rollup, if that is older than an hour.

    A day that differed is compared again after a minute: it may have been repaired.
    """
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        parameters = {"rollups": db.log.names, "seconds": PROOF_SECONDS, "again": AUDIT_RECENT_SECONDS}
        day: date | None = connection.execute(_OLDEST, parameters).scalar()
    return day


def _is_audit_due(db: Database) -> bool:
    """Whether no process has audited all days within the last hour."""
    parameters = {"log": db.log.name, "seconds": AUDIT_ALL_SECONDS}
    with transaction(db.engine) as connection:
        return bool(connection.execute(_AUDIT_DUE, parameters).scalar())


_OLDEST = text(
    """
    select date from rollup_days
    where rollup = any(cast(:rollups as text[])) and counted is not null
      and (status = 'built' or (status = 'frozen' and deleted is not null))
      and (verified_at is null or verified_at < clock_timestamp() - make_interval(secs => :seconds)
           or (difference <> 0 and verified_at < clock_timestamp() - make_interval(secs => :again)))
    order by coalesce(difference, 0) <> 0 desc, verified_at nulls first, date desc limit 1
    """
)
_AUDIT_DUE = text(
    """
    select coalesce(audited_at < clock_timestamp() - make_interval(secs => :seconds), true)
    from rollup_state where log = :log
    """
)
