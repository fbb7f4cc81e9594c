"""The one object that operations take: where the log and its rollups are stored, and the time zone of days."""

from dataclasses import dataclass

from sqlalchemy.engine import Engine

from calc_analytics.rollup.declaration import Log


@dataclass(frozen=True)
class Database:
    """An engine, the log with the rollups that are kept, and the reporting time zone.

    `logs_kept_days`: other programs delete log rows of days longer ago than this (None: no other program deletes).
    """

    engine: Engine
    log: Log
    timezone: str
    logs_kept_days: int | None = None
