"""Where the answers come from: the database and Dagster's record, each connected when first asked for.

Nothing is connected at the start, so that the service comes up, and says what is wrong, while everything else is down.
"""

import threading
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.engine import URL, Engine

from calc_analytics.config import Settings
from calc_analytics.database.engine import database_url, engine_for, impatient

STATEMENT_SECONDS = 10.0


@dataclass
class Sources:
    """The settings, and what they lead to. May be shared by threads."""

    settings: Settings
    _engines: dict[URL, Engine] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _dagster_lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self) -> URL:
        """The database's URL; the embedded server is started if need be."""
        with self._lock:
            return database_url(self.settings)

    def engine(self) -> Engine:
        """The database, for reading, by an impatient application of its own."""
        url = self.url()
        with self._lock:
            if url not in self._engines:
                self._engines[url] = engine_for(impatient(url, STATEMENT_SECONDS), "calc_analytics service")
            return self._engines[url]

    def dagster(self) -> Any:
        """Dagster's instance, if its storage answers; else trouble in one line, at once."""
        from calc_analytics.orchestration import history

        with self._dagster_lock:
            instance = history.instance()
        history.require_answer(instance)
        return instance
