"""Follow: refreshes as batches arrive, in a thread that runs as long as `follow` is called.

Between refreshes it only probes the index for a row beyond the last snapshot, which costs a fraction of a millisecond;
bursts are counted together. The thread outlives the tick that started it by a few seconds, so that there is no gap
before the next tick.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date

from calc_analytics.database.errors import translate_db_errors
from calc_analytics.database.log_index import summarize
from calc_analytics.database.retries import retry_transient
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.refresh import STEP_ROWS, look_for_rows, refresh
from calc_analytics.rollup.reports import RefreshReport

# While nothing is new it looks this often: four times per debounce, within these bounds ...
POLL_SECONDS = (0.05, 0.25)
# ... and once nothing has come for a minute, once a second.
QUIET_SECONDS, QUIET_POLL_SECONDS = 60.0, 1.0
# Refreshing takes at most this share of the time: a slow refresh is followed by a longer pause.
BUSY_SHARE = 0.05
# A refresh that follows the last one this closely has no backlog to look for.
BACKLOG_SECONDS = 10.0
# Ages of rows are noted this often.
SAMPLE_SECONDS = 1.0
# Rows of another cluster are looked for this often.
THOROUGH_SECONDS = 5.0
# The log's index is summarized after so many rows: about as many as one of its ranges holds.
SUMMARIZE_ROWS = 5_000


class IndexKeeper:
    """Summarizes in a thread of its own, so that a refresh never waits for a VACUUM that holds the table."""

    def __init__(self, db: Database) -> None:
        self.db, self.rows = db, SUMMARIZE_ROWS
        self._thread: threading.Thread | None = None

    def counted(self, rows: int) -> None:
        """Adds rows that were counted; begins to summarize when that is due and no thread does it yet."""
        self.rows += rows
        if self.rows >= SUMMARIZE_ROWS and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._summarize, name="index-keeper", daemon=True)
            self._thread.start()

    def _summarize(self) -> None:
        rows = self.rows
        # The next refresh meets the same error, and reports it.
        with suppress(CalcAnalyticsError):
            if summarize(self.db.engine):
                self.rows -= rows


@dataclass
class FollowReport:
    """What a stretch of refreshes counted: rows per day added, refreshes made and how long they took in all, and looks
    taken for new rows."""

    rows_by_day: dict[date, int] = field(default_factory=dict)
    refreshes: int = 0
    seconds: float = 0.0
    probes: int = 0

    @property
    def rows(self) -> int:
        """Log rows added to the statistics."""
        return sum(self.rows_by_day.values())

    def add(self, report: RefreshReport) -> None:
        """Adds one more refresh."""
        self.refreshes += 1
        self.seconds += report.seconds
        for day, rows in report.rows_by_day.items():
            self.rows_by_day[day] = self.rows_by_day.get(day, 0) + rows


class Follower:
    """Refreshes whenever rows are new, at least `debounce_seconds` apart, while `follow` is called often enough.

    `observe` gets each refresh's report, in the follower's thread.
    """

    def __init__(
        self,
        db: Database,
        debounce_seconds: float,
        stopping: threading.Event,
        observe: Callable[[RefreshReport], None] = lambda report: None,
    ) -> None:
        self.db, self.debounce_seconds, self.stopping, self.observe = db, debounce_seconds, stopping, observe
        self._poll_seconds = min(max(debounce_seconds / 4, POLL_SECONDS[0]), POLL_SECONDS[1])
        self._index = IndexKeeper(db)
        self._lock = threading.Lock()
        self._until = 0.0
        self._sampled_at = self._thorough_at = float("-inf")
        self._thread: threading.Thread | None = None
        self._report = FollowReport()
        self._error: Exception | None = None

    def follow(self, seconds: float, linger_seconds: float) -> FollowReport:
        """Waits for `seconds`, then returns what was counted since the last call.

        The thread continues for `linger_seconds`. Returns early when `stopping` is set. Raises the error that ended the
        thread, once; what was counted before it stays counted, and the next call starts a new thread.
        """
        deadline = time.monotonic() + seconds
        self._keep(deadline + linger_seconds)
        while time.monotonic() < deadline and self._error is None:
            if self.stopping.wait(min(POLL_SECONDS[1], max(deadline - time.monotonic(), 0))):
                break
        return self._take()

    def _keep(self, until: float) -> None:
        with self._lock:
            self._until = until
            if self._thread is None and self._error is None:
                self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
                self._thread.start()

    def _take(self) -> FollowReport:
        with self._lock:
            error, self._error = self._error, None
            if error is not None:
                raise error
            report, self._report = self._report, FollowReport()
            return report

    def _run(self) -> None:
        """Transient errors are retried; after a minute without one the attempts are counted from zero."""
        while True:
            started = time.monotonic()
            try:
                retry_transient(self._refresh_when_new)
                return
            except Exception as error:
                if getattr(error, "transient", False) and time.monotonic() - started > QUIET_SECONDS:
                    continue
                with self._lock:
                    self._error, self._thread = error, None
                return

    def _refresh_when_new(self) -> None:
        engine, quiet, thorough, next_at = self.db.engine, None, None, 0.0
        began_at, counted_at = time.monotonic(), float("-inf")
        with translate_db_errors(engine.url), engine.connect() as connection:
            probe = connection.execution_options(isolation_level="AUTOCOMMIT")
            while not self._is_over():
                started = time.monotonic()
                is_thorough = self._is_thorough(started)
                is_new, quiet = look_for_rows(self.db, probe, thorough if is_thorough else quiet, is_thorough)
                if is_thorough and not is_new:
                    thorough = quiet
                if is_new:
                    report = refresh(
                        self.db,
                        step_rows=STEP_ROWS if started - counted_at > BACKLOG_SECONDS else None,
                        sampled=self._is_sampled(started),
                        progress=self._add_report,
                    )
                    quiet, counted_at = report.snapshot, time.monotonic()
                    next_at = started + max(self.debounce_seconds, report.seconds / BUSY_SHARE)
                self._report.probes += 1
                is_idle = time.monotonic() - max(counted_at, began_at) > QUIET_SECONDS
                poll = QUIET_POLL_SECONDS if is_idle else self._poll_seconds
                self.stopping.wait(max(next_at - time.monotonic(), poll))

    def _is_thorough(self, now: float) -> bool:
        """Whether this look also finds rows of another cluster: one in some seconds does, since it reads twice."""
        if now - self._thorough_at < THOROUGH_SECONDS:
            return False
        self._thorough_at = now
        return True

    def _is_sampled(self, now: float) -> bool:
        """Whether this refresh notes the ages of its rows: one in a second does, which is enough for a minute."""
        if now - self._sampled_at < SAMPLE_SECONDS:
            return False
        self._sampled_at = now
        return True

    def _add_report(self, report: RefreshReport) -> None:
        with self._lock:
            self._report.add(report)
        self._index.counted(report.rows)
        self.observe(report)

    def _is_over(self) -> bool:
        """Whether the time has run out. Decided under the lock: a concurrent call of `follow` starts a new thread."""
        with self._lock:
            over = self.stopping.is_set() or time.monotonic() >= self._until
            if over:
                self._thread = None
            return over
