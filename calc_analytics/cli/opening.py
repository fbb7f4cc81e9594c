"""How commands open the database: with the rollups that the settings choose."""

from collections.abc import Callable

from calc_analytics.config import Settings
from calc_analytics.database.create import ensure_database
from calc_analytics.database.engine import create_engine
from calc_analytics.database.schemas import Place
from calc_analytics.rollup import install
from calc_analytics.rollup.database import Database
from calc_analytics.rollups import database


def open_database(settings: Settings) -> Database:
    """The database; the embedded one is the project's own and is installed on the way.

    Other rollups than it keeps are refused by the operation itself: only `migrate`, `up` and `demo` switch them.
    """
    db = database(create_engine(settings), settings)
    if settings.embedded:
        ensure_database(db.engine.url)
        if not install.is_installed(db, with_these_rollups=False):
            install.install(db, settings.start_date)
    return db


def make_ready(settings: Settings, always: bool = False, report: Callable[[Place], object] | None = None) -> Database:
    """The database with everything in it, and with the rollups of the settings.

    What is there already needs no right to create it, unless `always`. `report` gets each table that was looked after.
    """
    db = database(create_engine(settings), settings)
    ensure_database(db.engine.url)
    if always or not install.is_installed(db):
        for place in install.install(db, settings.start_date):
            if report is not None:
                report(place)
    return db
