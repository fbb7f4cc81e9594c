"""Follow: refresh again and again for a while, as batches arrive. What a sensor tick does.

Between refreshes it only probes the index for a row beyond the last snapshot, which costs a fraction of a
millisecond; bursts are coalesced by the debounce.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

from sqlalchemy.engine import Engine

from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.refresh import has_uncounted, refresh
from calc_analytics.rollup.reports import RefreshReport

POLL_SECONDS = 0.1


@dataclass
class Followed:
    """What a stretch of refreshes counted: rows per day added, days seen that were never built, refreshes made."""

    rows_by_day: dict[date, int] = field(default_factory=dict)
    unbuilt_days: set[date] = field(default_factory=set)
    refreshes: int = 0
    probes: int = 0

    @property
    def rows(self) -> int:
        """Log rows added to the statistics."""
        return sum(self.rows_by_day.values())

    def add(self, report: RefreshReport) -> None:
        """Takes one more refresh into account."""
        self.refreshes += 1
        for day in report.counted:
            self.rows_by_day[day.day] = self.rows_by_day.get(day.day, 0) + day.rows
        self.unbuilt_days.update(day.day for day in report.unbuilt)


def follow(
    engine: Engine,
    rollup: Rollup,
    timezone: str,
    *,
    seconds: float,
    debounce_seconds: float,
    stopping: Callable[[], bool] = lambda: False,
) -> Followed:
    """Refreshes at once, then whenever rows are new, at least `debounce_seconds` apart, for `seconds`.

    Ends within a poll interval when `stopping()` turns true. An error ends it; what was counted before stays counted.
    """
    followed, deadline = Followed(), time.monotonic() + seconds
    pause_until = 0.0
    while True:
        if time.monotonic() >= pause_until:
            followed.probes += 1
            if has_uncounted(engine, rollup, timezone):
                followed.add(refresh(engine, rollup, timezone))
                pause_until = time.monotonic() + debounce_seconds
        if stopping() or time.monotonic() + POLL_SECONDS > deadline:
            return followed
        time.sleep(POLL_SECONDS)
