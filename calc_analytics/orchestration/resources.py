"""The one resource: the database that holds logs and statistics, with the settings that go with it.

Nothing is read or connected until a run or a tick uses it. An engine is kept per URL for the life of the process,
so that ticks do not reconnect.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from dagster import ConfigurableResource

from calc_analytics.config import Settings, process_settings
from calc_analytics.rollups import database

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from calc_analytics.rollup.database import Database


@lru_cache(maxsize=4)
def _database(url: "URL", settings: Settings) -> "Database":
    """The embedded database belongs to the project and is migrated when first used; others need `migrate`."""
    from calc_analytics.database.create import ensure_database
    from calc_analytics.database.engine import engine_for
    from calc_analytics.rollup.install import install

    db = database(engine_for(url, "calc_analytics dagster"), settings)
    if settings.embedded:
        ensure_database(url)
        install(db, settings.start_date)
    return db


class RollupDatabase(ConfigurableResource):
    """The database behind DATABASE_URL (or the embedded one) and the rollups kept in it."""

    @property
    def settings(self) -> Settings:
        """The validated settings of the process."""
        return process_settings()

    @property
    def db(self) -> "Database":
        """What operations take, with a pooled engine; raises a one-line error if the embedded server cannot start."""
        from calc_analytics.database.engine import database_url

        settings = self.settings
        return _database(database_url(settings), settings)
