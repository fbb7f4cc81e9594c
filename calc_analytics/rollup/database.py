"""The one object that operations take: where the log and its rollups live, and in which time zone days are."""

from dataclasses import dataclass

from sqlalchemy.engine import Engine

from calc_analytics.rollup.declaration import Log


@dataclass(frozen=True)
class Database:
    """An engine, the log with the rollups that are kept, and the reporting time zone.

    `logs_kept_days`: others delete log rows of days that lie longer ago than this (None: nobody does).
    """

    engine: Engine
    log: Log
    timezone: str
    logs_kept_days: int | None = None
