"""Looks at health every 15 seconds, in a thread of the HTTP service: logs its changes and posts alerts.

It lives in the service because that keeps running while Dagster, its daemon or the database does not.
"""

import logging
import threading
import time
from dataclasses import dataclass, field

from calc_analytics import logs
from calc_analytics.operations.alerts import Alerts, message
from calc_analytics.operations.health import Health, health
from calc_analytics.operations.probes import Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.operations.webhook import AlertNotDelivered, place, post

SOURCE = "calc_analytics"
LOOK_SECONDS = 15.0
# What is wrong while everything starts is no alert.
START_SECONDS = 45.0
# While the webhook fails, attempts become rarer.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 30.0, 900.0
STOP_SECONDS = 1.0


@dataclass
class Monitor:
    """The thread and what it knows. Without a webhook's URL it logs only."""

    sources: Sources
    prober: Prober
    webhook_url: str | None
    alerts: Alerts = field(default_factory=Alerts)
    stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _failures: int = 0
    _next_attempt: float = 0.0
    _was_healthy: bool | None = None
    _logged: frozenset[str] = frozenset()

    def start(self) -> None:
        """Begins to look; a daemon thread, so that it never keeps the process from ending."""
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, or leaves it behind after a second."""
        self.stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def waiting(self) -> int:
        """How many alerts are due and not delivered."""
        return len(self.alerts.due())

    def look(self, posts_alerts: bool = True) -> None:
        """Reads health once, logs its change, and posts what is due."""
        found = health(self.sources, self.prober)
        if self.stopping.is_set():
            return
        self._log_change(found)
        if self.webhook_url and posts_alerts:
            self.alerts.look(found)
            self._deliver(self.webhook_url, found)

    def _run(self) -> None:
        alerts_from = time.monotonic() + START_SECONDS
        while not self.stopping.is_set():
            try:
                self.look(posts_alerts=time.monotonic() >= alerts_from)
            except Exception:
                logs.log(logging.ERROR, "monitor", exc_info=True)
            self.stopping.wait(LOOK_SECONDS)

    def _deliver(self, url: str, found: Health) -> None:
        """Posts what is due, unless the webhook failed a short time ago; what it does not take stays due."""
        due = self.alerts.due()
        if not due or time.monotonic() < self._next_attempt:
            return
        try:
            post(url, message(due, SOURCE), self.stopping)
        except AlertNotDelivered as error:
            pause = min(FIRST_PAUSE_SECONDS * 2**self._failures, LONGEST_PAUSE_SECONDS)
            self._failures, self._next_attempt = self._failures + 1, time.monotonic() + pause
            logs.log(logging.WARNING, "alert", failed=str(error), waiting=len(due), retry_seconds=pause)
            return
        self._failures, self._next_attempt = 0, 0.0
        self.alerts.delivered(found.at)
        logs.log(logging.INFO, "alert", posted=len(due), to=place(url))

    def _log_change(self, found: Health) -> None:
        """A line when the health changes, and one for each error that the last report did not have."""
        errors: dict[str, str] = {}
        for finding in found.wrong:
            if finding.code:
                errors.setdefault(finding.fact, finding.name)
        for fact, name in errors.items():
            if fact not in self._logged:
                logs.log(logging.WARNING, "probe", name=name, failed=fact)
        self._logged = frozenset(errors)
        if found.healthy != self._was_healthy:
            self._was_healthy = found.healthy
            if found.healthy:
                logs.log(logging.INFO, "health", status="ok")
            else:
                wrong = [finding.name for finding in found.wrong]
                logs.log(logging.WARNING, "health", status="unhealthy", wrong=wrong, first=found.wrong[0].fact)
