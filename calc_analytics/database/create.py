"""Creates a database that is missing on a server that is there."""

from contextlib import suppress
from operator import not_

from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from calc_analytics.addresses import completed
from calc_analytics.database.engine import engine_for
from calc_analytics.database.errors import sqlstate, translate_db_errors
from calc_analytics.database.sql import quote_identifier
from calc_analytics.errors import CalcAnalyticsError

# How long a pooler may remember that a database was missing (PgBouncer: 15 seconds).
POOLER_SECONDS = 30.0
INSUFFICIENT_PRIVILEGE = "42501"
# Another process created it at the same time.
ALREADY_CREATED = ("42P04", "23505")


class NoDatabase(CalcAnalyticsError):
    """A database that is needed is missing, and the role may not create one."""


def ensure_database(url: URL) -> None:
    """Creates the URL's database if the server lacks it; raises `NoDatabase` if the role may not, `DatabaseError`."""
    with translate_db_errors(url):
        if not _exists(url):
            _create(url)
            _await_pooler(url)


def _create(url: URL) -> None:
    maintenance = engine_for(url.set(database="postgres"))
    try:
        with maintenance.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"create database {quote_identifier(str(url.database))}"))
    except DBAPIError as error:
        if sqlstate(error) == INSUFFICIENT_PRIVILEGE:
            raise NoDatabase(
                f"database '{url.database}' does not exist and the role '{completed(url).username}' "
                "may not create it: let an administrator create it"
            ) from error
        if sqlstate(error) not in ALREADY_CREATED:
            raise
    finally:
        maintenance.dispose()


def _await_pooler(url: URL) -> None:
    """Waits until the database can be used: a pooler that found no such database looks again after a while."""
    attempts = Retrying(retry=retry_if_result(not_), stop=stop_after_delay(POOLER_SECONDS), wait=wait_fixed(0.2))
    with suppress(RetryError):
        attempts(_is_usable, url)


def _is_usable(url: URL) -> bool:
    with suppress(OperationalError):
        return _exists(url)
    return False


def _exists(url: URL) -> bool:
    engine = engine_for(url)
    try:
        engine.connect().close()
    except OperationalError as error:
        if "does not exist" in str(error.orig) and "database" in str(error.orig):
            return False
        raise
    finally:
        engine.dispose()
    return True
