"""The database and the files together: what the operations of the archive take."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cached_property

from sqlalchemy.engine import Connection

from calc_analytics.archive.manifest import name_of_manifest
from calc_analytics.archive.store import Store, open_store
from calc_analytics.database.engine import transaction
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.plurals import number
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.windows import Window, windows


class NoArchive(CalcAnalyticsError):
    """ARCHIVE_URL is not set, and it is needed: for the archive's own commands, or because days are archived."""


@dataclass(frozen=True)
class Archive:
    """A database with an `archive_url`, and the files there."""

    db: Database

    @cached_property
    def store(self) -> Store:
        """The files; `NoArchive` without a setting."""
        if self.db.archive_url is None:
            raise NoArchive("ARCHIVE_URL is not set: set it to a folder, or to s3://bucket/prefix")
        return open_store(self.db.archive_url)

    @contextmanager
    def turn(self, *, is_state_needed: bool = True) -> Iterator[Connection]:
        """A transaction in which no other process archives or deletes log rows; those that wish to wait for its end.

        The state is read after the waits, if it is needed: a rebase meanwhile, a new zone or cluster is noticed.
        """
        with transaction(self.db.engine) as connection:
            ledger.take_turn_archiving(connection, self.db.log)
            ledger.keep_out_prune(connection, self.db.log)
            if is_state_needed:
                ledger.read(connection, self.db)
            yield connection

    def record(self, connection: Connection, day: date) -> ledger.ArchivedDay:
        """What the database holds of the day."""
        return ledger.archived_days(connection, self.db.log, [day]).get(day, ledger.ArchivedDay(day))

    def window(self, connection: Connection, day: date) -> Window:
        """The day's instants."""
        (span,) = windows(connection, [day], self.db.timezone)
        return span

    def delete_leftovers(self, record: ledger.ArchivedDay) -> None:
        """Deletes files that the database knows to be no part of the archive, and publishes the manifest it holds again
        if an interrupted operation has published another; safe to repeat.

        The caller has the turn, and has made sure that no unknown manifest is there (`known_manifest`).
        """
        if not record.leftovers:
            return
        name = name_of_manifest(record.day)
        if record.manifest is None:
            self.store.delete(name)
        elif self.store.read(name) != record.manifest.encode():
            self.store.publish(name, record.manifest.encode())
        for leftover in record.leftovers:
            self.store.delete(leftover)
        with transaction(self.db.engine) as connection:
            ledger.forget_leftovers(connection, self.db.log, record.day)


def archive_of(db: Database, purpose: str) -> Archive | None:
    """The archive, which a command has to know; None if no day was ever archived.

    Raises `NoArchive` if days are archived, and the place is not known. `purpose` says what it is for.
    """
    if db.archive_url is not None:
        return Archive(db)
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        records = ledger.archived_days(connection, db.log).values()
        if days := [each.day for each in records if each.may_have_files]:
            archived = f"{number(len(days), 'day')} of {db.log.name} are archived"
            raise NoArchive(f"{archived}, but ARCHIVE_URL is not set: set it, {purpose}")
    return None
