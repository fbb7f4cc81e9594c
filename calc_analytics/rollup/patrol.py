"""Patrol: proves all days again in turn, and audits the statistics, in the background, within a small share of time.

Audits today and yesterday every minute and all days every hour; searches for days that are not on record every minute,
and when a partition was attached; in between compares the day whose proof is oldest with the log. A comparison costs
as much as its day has rows, so the pause after one is a hundred times as long.
"""

import threading
import time
from collections.abc import Callable, Collection
from datetime import date

from calc_analytics.database.engine import transaction
from calc_analytics.database.retries import retry_transient
from calc_analytics.days import today_and_yesterday
from calc_analytics.rollup import ledger, unseen
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.verify import verify

AUDIT_RECENT_SECONDS, AUDIT_ALL_SECONDS = 60.0, 3600.0
# Comparing takes at most this share of the time; a day is not compared again within an hour after a proof.
VERIFY_SHARE = 0.01
VERIFY_PAUSE_SECONDS, PROOF_SECONDS = 10.0, 3600.0


class Patrol:
    """Does what is due, in a thread of its own, each time `walk` is called; one walk at a time.

    `observe_error` gets the error of what failed; it is tried again after the usual pause.
    """

    def __init__(
        self,
        db: Database,
        stopping: threading.Event,
        observe_error: Callable[[str, Exception], None] = lambda operation, error: None,
    ) -> None:
        self.db, self.stopping, self.observe_error = db, stopping, observe_error
        self._audit_at = self._verify_at = 0.0
        self._failed: set[date] = set()
        self._unseen = unseen.Search()
        self._turn = 0
        self._thread: threading.Thread | None = None

    def walk(self) -> None:
        """Starts what is due, unless the last walk is still running."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self.step, name="patrol", daemon=True)
            self._thread.start()

    def wait(self, seconds: float) -> None:
        """Waits for the running walk, at most this long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def step(self) -> None:
        """Does what is due now."""
        if time.monotonic() >= self._audit_at and not self.stopping.is_set():
            self._audit_at = time.monotonic() + AUDIT_RECENT_SECONDS
            self._attempt("audit", self._audit)
            self._attempt("search", self._search)
        if time.monotonic() >= self._verify_at and not self.stopping.is_set():
            started = time.monotonic()
            self._attempt("verify", self._verify)
            took = time.monotonic() - started
            self._verify_at = time.monotonic() + max(VERIFY_PAUSE_SECONDS, took / VERIFY_SHARE)

    def _attempt(self, operation: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.observe_error(operation, error)

    def _audit(self) -> None:
        audit(self.db, None if _is_audit_due(self.db) else today_and_yesterday(self.db.timezone))

    def _search(self) -> None:
        if retry_transient(lambda: self._unseen.days(self.db)):
            retry_transient(lambda: unseen.record_days(self.db))

    def _verify(self) -> None:
        """Every other turn a day that differed comes first, so that the others are compared as well."""
        self._turn += 1
        day = retry_transient(lambda: oldest_proof(self.db, self._turn % 2 == 0, self._failed))
        if day is None:
            self._failed.clear()
            return
        self._failed.add(day)
        verify(self.db, [day])
        self._failed.discard(day)


def oldest_proof(db: Database, different_first: bool = False, without: Collection[date] = ()) -> date | None:
    """The day with statistics whose proof is oldest in some rollup, if that is older than an hour.

    With `different_first` a day that differed is compared again after a minute: it may have been repaired.
    """
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        again_seconds = AUDIT_RECENT_SECONDS if different_first else None
        return ledger.oldest_proof(connection, db.log, PROOF_SECONDS, again_seconds, without)


def _is_audit_due(db: Database) -> bool:
    """Whether no process has audited all days within the last hour."""
    with transaction(db.engine) as connection:
        return ledger.is_audit_due(connection, db.log, AUDIT_ALL_SECONDS)
