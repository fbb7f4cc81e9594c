"""Two daemons on one storage, for example `dagster dev` and `calc-analytics up`: ticks and runs are duplicated.

Each daemon has a session of its own in Dagster's database, named after its process. Where those cannot be seen, the
heartbeats show it: Dagster keeps the last one of each kind, with the daemon's id, and ids that take turns are two.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

# Both send a heartbeat every 30 seconds (the scheduler's every minute); of one that ended this is the last trace.
FORGOTTEN = timedelta(seconds=150)
KEPT_IDS = 5


@dataclass
class HeartbeatIds:
    """The ids of the daemons whose heartbeats this process has seen, by kind of daemon."""

    _ids: dict[str, list[str]] = field(default_factory=dict)
    _returned_at: datetime | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take_turns(self, beats: Iterable[Any]) -> bool:
        """Whether an id has come back after another one, lately. Of a restart, only the new id follows."""
        now = datetime.now(timezone.utc)
        with self._lock:
            for beat in beats:
                if beat.daemon_id is not None and self._has_returned(beat.daemon, beat.daemon_id):
                    self._returned_at = now
            return self._returned_at is not None and now - self._returned_at < FORGOTTEN

    def _has_returned(self, daemon: str, daemon_id: str) -> bool:
        ids = self._ids.setdefault(daemon, [])
        if ids and ids[-1] == daemon_id:
            return False
        is_known = daemon_id in ids
        self._ids[daemon] = [*ids, daemon_id][-KEPT_IDS:]
        return is_known
