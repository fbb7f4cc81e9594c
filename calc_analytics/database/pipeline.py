"""A transaction in one network round trip: psycopg's pipeline mode."""

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.rows import dict_row
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import settings_sql
from calc_analytics.database.errors import translate_db_errors

# The prepared statement is gone or another client's (a pooler in between), or a table changed under it.
_UNPREPARED = ("26000", "42P05", "0A000")


def run_in_one_trip(engine: Engine, statements: Sequence[str]) -> list[dict[str, Any]]:
    """Runs the statements as one transaction in one network round trip (psycopg's pipeline mode).

    Returns the rows of the last one. Statements must have no parameters: they are prepared, where the server itself
    answers, and planned once per connection.
    """
    with translate_db_errors(engine.url):
        fairy = engine.raw_connection()
        try:
            connection: Any = fairy.driver_connection
            connection.autocommit = True
            settings = settings_sql(engine, fairy.info)
            try:
                return _pipeline(connection, [settings, *statements], bool(fairy.info.get("is_direct")))
            except psycopg.Error as error:
                if error.sqlstate not in _UNPREPARED or connection.broken:
                    raise
                return _pipeline(connection, [settings, *statements], False)
        except BaseException:
            fairy.invalidate()
            raise
        finally:
            if fairy.is_valid:
                connection.autocommit = False
            fairy.close()


def _pipeline(connection: psycopg.Connection, statements: Sequence[str], prepare: bool) -> list[dict[str, Any]]:
    connection.prepare_threshold = 1 if prepare else None
    cursor = connection.cursor(row_factory=dict_row)
    try:
        with connection.pipeline():
            cursor.execute("begin isolation level read committed", prepare=False)
            for statement in statements:
                cursor = connection.cursor(row_factory=dict_row)
                cursor.execute(statement, prepare=prepare)
            connection.cursor().execute("commit", prepare=False)
        return cursor.fetchall()
    except psycopg.Error as error:
        interrupt = _interrupt_behind(error)
        if interrupt is not None:
            raise interrupt from None
        if not connection.broken:
            connection.execute("rollback")
        raise
    finally:
        connection.prepare_threshold = None


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    """What interrupted the wait for the server, if something did: psycopg then fails to leave the pipeline as well, and
    raises that instead. Taken for a lost connection, it would be repeated, and a run that is canceled would go on."""
    while isinstance(error, Exception):
        error = error.__context__
    return error
