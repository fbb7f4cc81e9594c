"""Dagster's own storage: dagster-postgres, at a URL from the settings, and with a pool of connections.

`dagster.yaml` names `CalcAnalyticsStorage`. Dagster's `{env: NAME}` has no default, so a plain `postgres:` block could
not fall back to the embedded server; this class does, and sets the driver that dagster-postgres needs.

Outside of the webserver dagster-postgres opens a connection for every call, which is most of the idle load of
PostgreSQL. It has no setting for that, so the URL names a plugin of SQLAlchemy, which is called for each new engine.
"""

import os
import socket
import sys
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dagster_postgres import DagsterPostgresStorage
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import URL, CreateEnginePlugin, Engine
from sqlalchemy.pool import QueuePool

from calc_analytics.config import process_settings, with_driver
from calc_analytics.database import dagster_tables
from calc_analytics.database.create import ensure_database
from calc_analytics.database.engine import dagster_url
from calc_analytics.database.migrate import ALEMBIC
from calc_analytics.database.schemas import ensure_schema
from calc_analytics.orchestration.dagster_internals import is_daemon, keep_pools

# A connection to a host that disappeared fails after half a minute, not after hours.
CONNECTION = {
    "client_encoding": "utf8",  # in any database: Dagster stores text of any kind
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
# Per engine. Connections beyond the first are closed after use.
POOL = {"pool_size": 1, "max_overflow": 20, "pool_recycle": 600, "pool_pre_ping": True}
PLUGIN = "calc_analytics_pool"
# How the names of the sessions of Dagster's daemons begin.
DAEMON = "dagster daemon"
# An instance has three: runs, events, schedules.
_newest_engines: deque[Engine] = deque(maxlen=3)


class SmallPool(CreateEnginePlugin):
    """Gives an engine a small pool. An idle connection that died is replaced before use.

    A code server makes an instance for a tick, and Dagster does not close its engines. So each new engine closes the
    idle connections of an older one, which reconnects if it is still used.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        """Called by SQLAlchemy with the arguments of `create_engine`, which it may change."""
        super().__init__(url, kwargs)
        # No start-up options, unless the URL itself has some: PGOPTIONS is for the logs' database.
        options = {"options": url.query.get("options", "")}
        kwargs.update(POOL, poolclass=QueuePool, connect_args={**kwargs.get("connect_args", {}), **options})

    def update_url(self, url: URL) -> URL:
        """Required; SQLAlchemy has removed the plugin's name already."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Called by SQLAlchemy with the new engine."""
        older = _newest_engines[0] if len(_newest_engines) == _newest_engines.maxlen else None
        _newest_engines.append(engine)
        if older is not None:
            older.dispose()


plugins.register(PLUGIN, __name__, SmallPool.__name__)


class CalcAnalyticsStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` at DAGSTER_POSTGRES_URL, or in the database `dagster` on its server.

    It only finds the URL: runs, events and schedules are stored by Dagster's own classes.
    """

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Takes no configuration: everything comes from the environment."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> "CalcAnalyticsStorage":
        """Called by Dagster when an instance is loaded; creates the database if it is missing."""
        url = dagster_url(process_settings())
        ensure_database(url)
        _ensure_schema(url)
        require_room(url)
        given = {**CONNECTION, **_named_after_process(), **url.query}
        url = with_driver(url, "psycopg2").update_query_dict({**given, "plugin": PLUGIN})
        with ALEMBIC:
            storage = cls(url.render_as_string(hide_password=False), inst_data=inst_data)
        keep_pools(storage)
        return storage


# Once per process, in whose life the role's search_path does not change.
_ensure_schema = lru_cache(maxsize=4)(ensure_schema)


def _named_after_process() -> dict[str, str]:
    """The name of a daemon's sessions, so that a second daemon is detected."""
    if not is_daemon(Path(sys.argv[0]).as_posix()):
        return {}
    return {"application_name": f"{DAEMON} {os.getpid()} on {socket.gethostname()}"}


@lru_cache(maxsize=4)
def require_room(url: URL) -> None:
    """Raises `SharedDatabase` if Dagster would mistake another program's table for its own; checked once."""
    dagster_tables.require_room(url)


def without_plugin(url: str) -> URL:
    """The storage's URL for engines of other kinds: psycopg 3, and a pool of their own."""
    return with_driver(url, "psycopg").difference_update_query(["plugin"])
