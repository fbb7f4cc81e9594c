"""Installations that run at the same time."""

import threading

from sqlalchemy.engine import URL

from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollups import LOG


def install_at_once(url: URL, number: int) -> list[Exception]:
    """Installs on the database in so many threads at once; returns their errors."""
    errors: list[Exception] = []

    def one() -> None:
        engine = engine_for(url)
        try:
            install(Database(engine, LOG, "UTC"))
        except Exception as error:
            errors.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=one) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors
