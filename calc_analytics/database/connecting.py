"""How long a connection is waited for: one limit, and one wait for whoever needs the same server at the same time.

A port that accepts and says nothing, or an address that swallows everything, is known after a few seconds. Commands
that ask several questions at once, or one after the other, do not wait for each of them.
"""

import time
from typing import Any

import psycopg
from sqlalchemy.engine import URL

from calc_analytics.addresses import libpq_defaults

# An answer takes milliseconds.
CONNECT_SECONDS = 5
# So long after a wait in vain nobody begins another one.
REMEMBERED_SECONDS = 2.0

_silent: dict[tuple[Any, ...], tuple[float, psycopg.errors.ConnectionTimeout]] = {}


def connect_seconds(url: URL) -> Any:
    """The limit that the URL or PGCONNECT_TIMEOUT sets, or the project's own."""
    return url.query.get("connect_timeout") or libpq_defaults().get("connect_timeout") or CONNECT_SECONDS


def connect(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
    """SQLAlchemy's event `do_connect`: connects, unless the server has just been waited for in vain."""
    server = parameters.get("host"), parameters.get("port"), parameters.get("service")
    until, error = _silent.get(server, (0.0, None))
    if error is not None and time.monotonic() < until:
        raise psycopg.errors.ConnectionTimeout(str(error))
    try:
        return dialect.connect(*arguments, **parameters)
    except psycopg.errors.ConnectionTimeout as error:
        _silent[server] = time.monotonic() + REMEMBERED_SECONDS, error
        raise
