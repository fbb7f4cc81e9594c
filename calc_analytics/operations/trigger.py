"""The manual trigger: refreshes, then rebuilds today and yesterday, in this process, one at a time."""

import threading
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from calc_analytics import logs, rollups
from calc_analytics.config import Settings
from calc_analytics.database.engine import database_url, engine_for, with_timeouts
from calc_analytics.database.server import describe_server
from calc_analytics.days import today_and_yesterday
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations.words import in_rollups
from calc_analytics.plurals import number
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.reports import RebuildReport, RefreshReport, SkippedDay

# A rebuild of two busy days takes a minute at most; the caller gets an answer in any case.
STATEMENT_SECONDS = 120.0


class AlreadyTriggered(CalcAnalyticsError):
    """One trigger runs; a second would wait for its locks and find nothing left to do."""


@dataclass(frozen=True)
class TriggerReport:
    """What one trigger did."""

    request_id: str
    refreshed: RefreshReport
    rebuilt: RebuildReport
    rollups: int
    """How many rollups are kept."""

    def as_dict(self) -> dict[str, Any]:
        """The `data` of the answer."""
        days = ", ".join(str(day) for day in self.rebuilt.days) or "no day"
        message = f"{number(self.refreshed.rows, 'new row')} counted; rebuilt {days}"
        message += "".join(f"; left alone: {line}" for line in self._left_alone())
        return {
            "status": "triggered",
            "request_id": self.request_id,
            "message": message,
            "refresh": self.refreshed.as_dict(),
            "rebuild": self.rebuilt.as_dict(),
        }

    def _left_alone(self) -> list[str]:
        """A line for each day that was not rebuilt: in which rollups, and what the first of them says."""
        days: dict[date, list[SkippedDay]] = {}
        for each in self.rebuilt.refused:
            days.setdefault(each.day, []).append(each)
        return [
            f"{day} in {in_rollups([each.rollup for each in found], self.rollups)}: {found[0]}"
            for day, found in days.items()
        ]


@dataclass
class Trigger:
    """Runs when asked, unless it runs already."""

    settings: Settings
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _running: str = ""

    def run(self, request_id: str) -> TriggerReport:
        """Counts all that was committed before the call; raises `AlreadyTriggered` or what the domain raises."""
        if not self._busy.acquire(blocking=False):
            raise AlreadyTriggered(f"request {self._running} is refreshing and rebuilding: ask again when it is done")
        try:
            self._running = request_id
            return self._refresh_and_rebuild(request_id)
        finally:
            self._busy.release()

    def _refresh_and_rebuild(self, request_id: str) -> TriggerReport:
        url = with_timeouts(database_url(self.settings))
        engine = engine_for(url, "calc_analytics trigger", STATEMENT_SECONDS)
        try:
            db, days = rollups.database(engine, self.settings), today_and_yesterday(self.settings.timezone)
            with logs.record_failures("refresh", db=db, request_id=request_id):
                # A database that is away is reported at once; the refresh would try again and again.
                describe_server(engine)
                refreshed = refresh(db)
            logs.log_refresh(refreshed, request_id=request_id)
            with logs.record_failures("rebuild", db=db, request_id=request_id):
                rebuilt = rebuild(db, days, decision=Decision.AUTOMATIC)
            logs.log_rebuild(rebuilt, request_id=request_id)
            return TriggerReport(request_id, refreshed, rebuilt, len(db.log.rollups))
        finally:
            engine.dispose()
