"""The manual trigger: refreshes, then rebuilds today and yesterday, in this process, one at a time."""

import threading
from dataclasses import dataclass, field
from typing import Any

from calc_analytics import telemetry
from calc_analytics.config import Settings
from calc_analytics.database.engine import database_url, engine_for, impatient
from calc_analytics.days import today_and_yesterday
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.reports import RebuildReport, RefreshReport
from calc_analytics.rollup.status import server

# A rebuild of two busy days takes a minute at most; an answer is wanted in any case.
STATEMENT_SECONDS = 120.0


class AlreadyTriggered(CalcAnalyticsError):
    """One trigger runs; a second would wait for its locks and find nothing left to do."""


@dataclass(frozen=True)
class Triggered:
    """What one trigger did."""

    request_id: str
    refreshed: RefreshReport
    rebuilt: RebuildReport

    def as_dict(self) -> dict[str, Any]:
        """The `data` of the answer."""
        refused = [str(day) for day in self.rebuilt.refused]
        days = ", ".join(str(day.day) for day in self.rebuilt.rebuilt) or "no day"
        message = f"{self.refreshed.rows:,} new rows counted; rebuilt {days}" + "".join(f"; {day}" for day in refused)
        return {
            "status": "triggered",
            "request_id": self.request_id,
            "message": message,
            "refresh": self.refreshed.as_dict(),
            "rebuild": self.rebuilt.as_dict(),
        }


@dataclass
class Trigger:
    """Runs when asked, unless it runs already."""

    settings: Settings
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _running: str = ""

    def run(self, request_id: str) -> Triggered:
        """Counts all that was committed before the call; raises `AlreadyTriggered` or what the domain raises."""
        if not self._busy.acquire(blocking=False):
            raise AlreadyTriggered(f"request {self._running} is refreshing and rebuilding: ask again when it is done")
        try:
            self._running = request_id
            return self._refresh_and_rebuild(request_id)
        finally:
            self._busy.release()

    def _refresh_and_rebuild(self, request_id: str) -> Triggered:
        zone = self.settings.timezone
        engine = engine_for(impatient(database_url(self.settings), STATEMENT_SECONDS), "calc_analytics trigger")
        try:
            with telemetry.failures_noted("refresh", request_id=request_id):
                server(engine)  # a database that is away is said at once; the refresh would try again and again
                refreshed = refresh(engine, ROLLUP, zone)
            telemetry.refreshed(refreshed, request_id=request_id)
            with telemetry.failures_noted("rebuild", request_id=request_id):
                rebuilt = rebuild(engine, ROLLUP, zone, today_and_yesterday(zone))
            telemetry.rebuilt(rebuilt, request_id=request_id)
            return Triggered(request_id, refreshed, rebuilt)
        finally:
            engine.dispose()
