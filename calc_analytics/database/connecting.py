"""The time limit of connecting, and the memory of servers that did not answer.

A port that accepts and sends nothing, or an address that drops packets, is an error after a few seconds. A command
that connects several times, concurrently or in turn, waits once.
"""

import time
from typing import Any

import psycopg
from sqlalchemy.engine import URL

from calc_analytics.addresses import libpq_defaults

# An answer takes milliseconds.
CONNECT_SECONDS = 5
# After a timeout, connecting to the same server fails immediately for so long.
REMEMBERED_SECONDS = 2.0

_silent: dict[tuple[Any, ...], tuple[float, psycopg.errors.ConnectionTimeout]] = {}


def connect_seconds(url: URL) -> Any:
    """The limit that the URL or PGCONNECT_TIMEOUT sets, or the project's own."""
    return url.query.get("connect_timeout") or libpq_defaults().get("connect_timeout") or CONNECT_SECONDS


def connect(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
    """SQLAlchemy's event `do_connect`: connects, unless the server did not answer a moment ago."""
    server = parameters.get("host"), parameters.get("port"), parameters.get("service")
    until, error = _silent.get(server, (0.0, None))
    if error is not None and time.monotonic() < until:
        raise psycopg.errors.ConnectionTimeout(str(error))
    try:
        return dialect.connect(*arguments, **parameters)
    except psycopg.errors.ConnectionTimeout as error:
        _silent[server] = time.monotonic() + REMEMBERED_SECONDS, error
        raise
