"""Follow: refresh again and again as batches arrive, in a thread that lives as long as somebody keeps asking.

Between refreshes it only probes the index for a row beyond the last snapshot, which costs a fraction of a
millisecond; bursts are coalesced by the debounce. The thread outlives the tick that asked for it by a few seconds, so
that there is no gap before the next tick asks again.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

from sqlalchemy.engine import Engine

from calc_analytics.database.engine import persistently, trouble_in_words
from calc_analytics.rollup import state
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.index import SUMMARIZE_ROWS, summarize
from calc_analytics.rollup.refresh import is_uncounted_since, refresh
from calc_analytics.rollup.reports import RefreshReport

# While nothing is new it looks this often: four times per debounce, within these bounds.
POLL_SECONDS = (0.05, 0.25)


@dataclass
class Followed:
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
        """Takes one more refresh into account."""
        self.refreshes += 1
        self.seconds += report.seconds
        for day in report.counted:
            self.rows_by_day[day.day] = self.rows_by_day.get(day.day, 0) + day.rows
        for day in report.unbuilt:
            if day.status == "overflow":  # for its check to say so
                self.rows_by_day.setdefault(day.day, 0)


class Follower:
    """Refreshes whenever rows are new, at least `debounce_seconds` apart, while `follow` is called often enough.

    `observe` gets each refresh's report, in the follower's thread.
    """

    def __init__(
        self,
        engine: Engine,
        rollup: Rollup,
        timezone: str,
        debounce_seconds: float,
        stopping: threading.Event,
        observe: Callable[[RefreshReport], None] = lambda report: None,
    ) -> None:
        self.engine, self.rollup, self.timezone = engine, rollup, timezone
        self.debounce_seconds, self.stopping, self.observe = debounce_seconds, stopping, observe
        self._poll_seconds = min(max(debounce_seconds / 4, POLL_SECONDS[0]), POLL_SECONDS[1])
        self._lock = threading.Lock()
        self._until = 0.0
        self._thread: threading.Thread | None = None
        self._followed = Followed()
        self._error: Exception | None = None

    def follow(self, seconds: float, linger_seconds: float) -> Followed:
        """Waits for `seconds`, then returns what was counted since the last call; the thread goes on to linger.

        Returns early when `stopping` is set. Raises the error that ended the thread, once; what was counted before
        it stays counted, and the next call starts afresh.
        """
        deadline = time.monotonic() + seconds
        self._keep(deadline + linger_seconds)
        while time.monotonic() < deadline and self._error is None:
            if self.stopping.wait(min(self._poll_seconds, max(deadline - time.monotonic(), 0))):
                break
        return self._take()

    def _keep(self, until: float) -> None:
        with self._lock:
            self._until = until
            if self._thread is None and self._error is None:
                self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
                self._thread.start()

    def _take(self) -> Followed:
        with self._lock:
            error, self._error = self._error, None
            if error is not None:
                raise error
            followed, self._followed = self._followed, Followed()
            return followed

    def _run(self) -> None:
        try:
            persistently(self._refresh_when_new_in_words)
        except Exception as error:
            with self._lock:
                self._error, self._thread = error, None

    def _refresh_when_new_in_words(self) -> None:
        with trouble_in_words(self.engine.url):
            self._refresh_when_new()

    def _refresh_when_new(self) -> None:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            counted, next_at = state.read(connection, self.rollup, self.timezone).snapshot, 0.0
            unsummarized = SUMMARIZE_ROWS
            while not self._is_over():
                started = time.monotonic()
                if is_uncounted_since(connection, self.rollup, counted):
                    report = refresh(self.engine, self.rollup, self.timezone)
                    counted = report.snapshot
                    next_at = started + self.debounce_seconds
                    with self._lock:
                        self._followed.add(report)
                    self.observe(report)
                    unsummarized += report.rows
                    if unsummarized >= SUMMARIZE_ROWS and summarize(self.engine, self.rollup):
                        unsummarized = 0
                self._followed.probes += 1
                self.stopping.wait(max(next_at - time.monotonic(), self._poll_seconds))

    def _is_over(self) -> bool:
        """Whether nobody asks any more. Decided under the lock: who asks at this moment gets a new thread."""
        with self._lock:
            over = self.stopping.is_set() or time.monotonic() >= self._until
            if over:
                self._thread = None
            return over
