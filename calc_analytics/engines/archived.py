"""What a rebuild asks of the archive: proves the files of days, and has an engine reduce them.

Whatever goes wrong becomes a refusal of the days concerned, in one line, so that the other days of a rebuild go on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING

from calc_analytics.archive.checking import proven_manifest
from calc_analytics.archive.place import Archive
from calc_analytics.archive.store import CannotUseArchive
from calc_analytics.config import Settings
from calc_analytics.engines import Engine, engine_for
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.from_archive import Reduction, refusal
from calc_analytics.rollup.ledger import ArchivedDay
from calc_analytics.rollup.reports import SkippedDay

if TYPE_CHECKING:
    import pyarrow


def archived_rows(db: Database, settings: Settings) -> "ArchivedDays | None":
    """The archive at ARCHIVE_URL, counted by the engine of the settings; None without a setting."""
    return None if db.archive_url is None else ArchivedDays(Archive(db), settings)


@dataclass(frozen=True)
class ArchivedDays:
    """The days of an archive, which a rebuild may reduce; see `ArchivedRows`."""

    place: Archive
    settings: Settings

    @cached_property
    def engine(self) -> Engine:
        """The engine of the settings, which remembers a cluster that cannot be reached. Raises `NoEngine`."""
        return engine_for(self.settings)

    def reduce(self, rollups: Sequence[Rollup], records: Mapping[date, ArchivedDay]) -> Reduction:
        """Proves the days' files by their checksums, and reduces them."""
        work = _Reducing(self.place, rollups)
        engine = work.ask(lambda: self.engine, records)
        files = work.proven_files(records) if engine is not None else {}
        tables = {} if engine is None else work.reduced(engine, files)
        kept = {day: records[day] for day in files}
        return Reduction("" if engine is None else engine.name, tables, kept, work.refused)


@dataclass
class _Reducing:
    """One reduction: the days that were refused so far."""

    place: Archive
    rollups: Sequence[Rollup]
    refused: list[SkippedDay] = field(default_factory=list)

    def ask(self, engine: Callable[[], Engine], records: Mapping[date, ArchivedDay]) -> Engine | None:
        try:
            return engine()
        except CalcAnalyticsError as error:
            self._refuse(self.rollups, list(records), error)
            return None

    def proven_files(self, records: Mapping[date, ArchivedDay]) -> dict[date, list[str]]:
        """The files of each day whose files are what was written.

        A bucket that cannot be used is not asked again: each request waits until it is given up.
        """
        found, days = dict[date, list[str]](), list(records)
        for n, day in enumerate(days):
            try:
                found[day] = proven_manifest(self.place, records[day]).names
            except CalcAnalyticsError as error:
                is_lost = isinstance(error, CannotUseArchive) and self.place.store.address.protocol != "file"
                self._refuse(self.rollups, days[n:] if is_lost else [day], error)
                if is_lost:
                    break
        return found

    def reduced(self, engine: Engine, files: Mapping[date, Sequence[str]]) -> "dict[str, pyarrow.Table]":
        """The rows of each rollup that the engine can count."""
        found: dict[str, pyarrow.Table] = {}
        for rollup in self.rollups if files else ():
            try:
                found[rollup.name] = engine.reduce(rollup, files)
            except CalcAnalyticsError as error:
                self._refuse([rollup], list(files), error)
        return found

    def _refuse(self, rollups: Sequence[Rollup], days: Sequence[date], error: CalcAnalyticsError) -> None:
        self.refused += [refusal(rollup, day, str(error)) for rollup in rollups for day in days]
