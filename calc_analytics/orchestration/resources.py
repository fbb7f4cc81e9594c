"""The one resource: the database that holds logs and statistics, with the settings that go with it.

Nothing is read or connected until a run or a tick uses it. An engine is kept per URL for the life of the process,
so that ticks do not reconnect.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from dagster import ConfigurableResource

from calc_analytics import rollup
from calc_analytics.config import Settings

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine

    from calc_analytics.rollup.declaration import Rollup


@lru_cache(maxsize=4)
def _engine(url: "URL", embedded: bool, timezone: str) -> "Engine":
    """The embedded database is the project's own, so it is migrated when first used; yours waits for `migrate`."""
    from calc_analytics.database.engine import engine_for, ensure_database

    engine = engine_for(url, "calc_analytics dagster")
    if embedded:
        ensure_database(url)
        rollup.install.install(engine, timezone)
    return engine


class RollupDatabase(ConfigurableResource):
    """The database behind DATABASE_URL (or the embedded one) and the rollup kept in it."""

    @property
    def settings(self) -> Settings:
        """The validated settings, read when they are needed."""
        return Settings.from_environment()

    @property
    def engine(self) -> "Engine":
        """A pooled engine; raises a one-line error if the embedded server cannot start."""
        from calc_analytics.database.engine import database_url

        settings = self.settings
        return _engine(database_url(settings), settings.embedded, settings.timezone)

    @property
    def timezone(self) -> str:
        """The reporting time zone."""
        return self.settings.timezone

    @property
    def rollup(self) -> "Rollup":
        """The declaration of `calculation_stats_daily`."""
        return rollup.declaration.CALCULATION_STATS_DAILY
