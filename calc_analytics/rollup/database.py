"""The one object that operations take: where the log and its rollups are stored, and the time zone of days."""

from dataclasses import dataclass

from sqlalchemy.engine import Engine

from calc_analytics.addresses import ArchiveUrl
from calc_analytics.rollup.declaration import Log


@dataclass(frozen=True)
class Database:
    """An engine, the log with the rollups that are kept, and the reporting time zone.

    `logs_kept_days`: other programs delete log rows of days longer ago than this (None: no other program deletes).
    `archive_url`: where counted days are archived; only rows that are archived may be pruned (None: no archive).
    """

    engine: Engine
    log: Log
    timezone: str
    logs_kept_days: int | None = None
    archive_url: ArchiveUrl | None = None
