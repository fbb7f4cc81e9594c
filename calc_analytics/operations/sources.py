"""Where the answers come from: the database and Dagster's record, each connected when first asked for.

Nothing is connected at the start, so that the service comes up, and reports what is wrong, while everything else is
down.
"""

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy.engine import URL, Engine

from calc_analytics import rollups
from calc_analytics.config import Settings
from calc_analytics.database.engine import database_url, engine_for, with_timeouts
from calc_analytics.database.errors import translate_db_errors
from calc_analytics.operations.daemons import HeartbeatIds
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.unseen import Search

STATEMENT_SECONDS = 10.0
# A probe has three seconds. Where a search for days that are not on record takes longer, the patrol finds them.
SEARCH_LIMIT_SECONDS = 1.0


@dataclass
class Sources:
    """The settings, and what they lead to. May be shared by threads."""

    settings: Settings
    search: Search = field(default_factory=partial(Search, SEARCH_LIMIT_SECONDS))
    _engines: dict[tuple[URL, str], Engine] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _has_answered: bool = False
    _answer_lock: threading.Lock = field(default_factory=threading.Lock)
    _dagster_lock: threading.Lock = field(default_factory=threading.Lock)
    heartbeat_ids: HeartbeatIds = field(default_factory=HeartbeatIds)

    def url(self) -> URL:
        """The database's URL; the embedded server is started if need be."""
        with self._lock:
            return database_url(self.settings)

    def engine(self, application_name: str = "calc_analytics service") -> Engine:
        """The database server, for reading, with short timeouts; one engine for each application's name."""
        key = self.url(), application_name
        with self._lock:
            if key not in self._engines:
                self._engines[key] = engine_for(with_timeouts(key[0]), application_name, STATEMENT_SECONDS)
            engine = self._engines[key]
        self._require_answer(engine)
        return engine

    def _require_answer(self, engine: Engine) -> None:
        """Until the server has answered once, one question at a time connects: the others would wait for a place in the
        pool, which connections that fail do not give back to them."""
        with self._answer_lock:
            if not self._has_answered:
                with translate_db_errors(engine.url):
                    engine.connect().close()
                self._has_answered = True

    def database(self) -> Database:
        """The log and the rollups that are kept of it; `UnknownRollup` if ROLLUPS names one that is not declared."""
        return rollups.database(self.engine(), self.settings)

    def dagster(self) -> Any:
        """Dagster's instance; if its storage does not answer, an error in one line, at once."""
        from calc_analytics.orchestration import history

        with self._dagster_lock:
            instance = history.instance()
        history.require_answer(instance)
        return instance
