"""What a system of the comparison is: how it is installed, how it refreshes, and where readers find its statistics."""

from datetime import date
from typing import ClassVar

import psycopg

from benchmarks.peers.rows import TARGET_TABLE, grouped, upsert
from benchmarks.peers.server import Server


class Peer:
    """A system on a database of its own, which has the log and is named after it.

    Subclasses use their system as its documentation says. A refresh counts all that was committed before the call.
    """

    key: ClassVar[str]
    name: ClassVar[str]
    # What brings it, for the line "not installed".
    package: ClassVar[str] = ""
    # The PostgreSQL extension that it is, if it is one.
    extension: ClassVar[str] = ""
    # Whether anything has to run besides the writers.
    has_refresher: ClassVar[bool] = True
    # Whether it adds anything to the log table; others cost its writers nothing.
    adds_to_log: ClassVar[bool] = False
    # A run is a process of its own and takes seconds: it is repeated less often.
    is_slow: ClassVar[bool] = False
    # The command's option without which it is left out.
    option: ClassVar[str] = ""
    target: ClassVar[str] = "peer_stats"

    def __init__(self, server: Server) -> None:
        self.server = server
        self._connection: psycopg.Connection | None = None

    @classmethod
    def version(cls, server: Server) -> str | None:
        """Its version, or None if it is not installed."""
        return server.extensions().get(cls.extension) if cls.extension else ""

    @property
    def connection(self) -> psycopg.Connection:
        """The refresher's connection, opened at its first use."""
        if self._connection is None or self._connection.closed:
            self._connection = self.server.connect(self.key)
        return self._connection

    def install(self) -> None:
        """Adds what the system needs to a database that has the log, and counts the rows that are there."""
        self.connection.execute(TARGET_TABLE)

    def prepare(self) -> None:
        """What is known before a refresh and not a part of it."""

    def refresh(self) -> None:
        """Counts what is new."""
        raise NotImplementedError

    def catch_up(self, first: date) -> None:
        """Counts a backlog of rows of the days since `first`."""
        self.refresh()

    def maintain(self) -> None:
        """What the system's daemon does from time to time, not with every refresh."""

    def stored_table(self) -> str:
        """The table that a refresh writes; a lock on it stops a refresh in the middle."""
        return self.target

    def report(self) -> str:
        """What the system itself finds wrong with its statistics: '' if nothing, or if it has no such command."""
        return ""

    def close(self) -> None:
        """Ends its connections."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class CountedAtInstall(Peer):
    """A system that captures new rows only: rows that are there when it is installed are counted by hand."""

    def add_capture(self) -> None:
        """Creates what captures new rows."""

    def install(self) -> None:
        """In one transaction that keeps writers out."""
        super().install()
        with self.connection.transaction():
            self.connection.execute("lock table calculation_logs in share row exclusive mode")
            self.add_capture()
            self.connection.execute(upsert(grouped("calculation_logs")))
