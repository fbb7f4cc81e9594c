"""Where the answers come from: the database and Dagster's record, each connected when first asked for.

Nothing is connected at the start, so that the service comes up, and reports what is wrong, while everything else is
down.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL, Engine

from calc_analytics import rollups
from calc_analytics.config import Settings
from calc_analytics.database.engine import NO_POOL, POOL, database_url, engine_for, joined, with_timeouts
from calc_analytics.operations.daemons import HeartbeatIds
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.unseen import Search

if TYPE_CHECKING:
    from calc_analytics.orchestration.history import Record

# A little longer than the deadline of an answer: one that comes later is of no use.
STATEMENT_SECONDS = 5.0
# Connecting takes three seconds at most.
TRIED_SECONDS = 4.0
# A probe has three seconds. Where a search for days that are not on record takes longer, the patrol finds them.
SEARCH_LIMIT_SECONDS = 1.0


@dataclass
class Sources:
    """The settings, and what they lead to. May be shared by threads."""

    settings: Settings
    search: Search = field(default_factory=partial(Search, SEARCH_LIMIT_SECONDS))
    _engines: dict[tuple[URL, bool], Engine] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _dagster_lock: threading.Lock = field(default_factory=threading.Lock)
    _was_tried: threading.Event = field(default_factory=threading.Event)
    heartbeat_ids: HeartbeatIds = field(default_factory=HeartbeatIds)

    def url(self) -> URL:
        """The database's URL; the embedded server is started if need be."""
        with self._lock:
            return database_url(self.settings)

    @contextmanager
    def reading(self, connects: bool = False) -> Iterator[Database]:
        """The database, for questions that are asked in one transaction, each with a short timeout.

        `connects`: on a new connection, not one of the pool. Raises `InvalidSetting` for an unknown rollup in ROLLUPS.
        """
        key = self.url(), connects
        with self._lock:
            if key not in self._engines:
                name, pool = ("calc_analytics probe", NO_POOL) if connects else ("calc_analytics service", POOL)
                self._engines[key] = engine_for(with_timeouts(key[0]), name, STATEMENT_SECONDS, pool)
            engine = self._engines[key]
        try:
            with joined(engine) as one:
                self._was_tried.set()
                yield rollups.database(one, self.settings)
        finally:
            self._was_tried.set()

    @contextmanager
    def dagster(self) -> "Iterator[Record]":
        """Dagster's record; raises `DagsterUnavailable` if its configuration cannot be read.

        The database is tried first: a server that does not answer, often the same one, is waited for once.
        """
        from calc_analytics.orchestration import history

        self._was_tried.wait(TRIED_SECONDS)
        with self._dagster_lock:
            instance = history.instance()
        yield history.Record(instance)
