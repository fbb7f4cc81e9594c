"""Connections: which URL, one small pool, one kind of transaction.

Every transaction runs at READ COMMITTED, because each statement must see what was committed before it; the role's
default does not matter. Settings are local to the transaction: nothing is left in a session that a pooler such as
PgBouncer gives to another client, and nothing is set in the start-up packet.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy
from psycopg.adapt import Loader
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from tenacity import retry, retry_if_exception, stop_after_attempt

from calc_analytics.addresses import with_database
from calc_analytics.config import DAGSTER_DATABASE, Settings
from calc_analytics.database import embedded
from calc_analytics.database.connecting import connect, connect_seconds
from calc_analytics.database.errors import translate_db_errors

# What each transaction sets for itself, so that the role's and the database's defaults do not matter. New rows must be
# found by index: after retention the planner's statistics of `xact_id` can make it read the whole table. Compiling
# never pays.
LOCAL_SETTINGS = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "row_security": "off",
    "enable_seqscan": "off",
    "jit": "off",
    "hash_mem_multiplier": "8",
    "statement_timeout": "1h",
    "lock_timeout": "5min",
    "idle_in_transaction_session_timeout": "10min",
}
POOL: Mapping[str, Any] = {"pool_size": 2, "max_overflow": 3}
NO_POOL: Mapping[str, Any] = {"poolclass": NullPool}
# The server rolls back a second after this process was killed, even during a long statement or a wait for a
# lock; a server on Windows cannot, and finishes the statement first.
CLIENT_CHECK = ("client_connection_check_interval", "1000")
# Since PostgreSQL 17 a role may have a limit on whole transactions as well.
TRANSACTION_TIMEOUT_SINCE = 170_000
# For the rest of a transaction: a day may be most of the table; and back.
WHOLE_DAYS = text("set local enable_seqscan = on")
NEW_ROWS = text("set local enable_seqscan = off")
# For a transaction without LOCAL_SETTINGS: an error where a policy would hide rows.
ALL_ROWS = text("set local row_security = off")


class LenientText(Loader):
    """Text of a database in SQL_ASCII, which takes any bytes: those that are not UTF-8 are replaced, not an error."""

    def load(self, data: Any) -> str:
        """The text."""
        return bytes(data).decode(errors="replace")


def database_url(settings: Settings) -> URL:
    """DATABASE_URL, or the embedded server's (which this starts)."""
    return settings.database_url or embedded.url()


def dagster_url(settings: Settings) -> URL:
    """DAGSTER_POSTGRES_URL, or the database `dagster` on the server of DATABASE_URL; psycopg 3 form.

    PGOPTIONS is for the logs' database: an option that is empty turns it off.
    """
    url = settings.dagster_postgres_url or with_database(database_url(settings), DAGSTER_DATABASE)
    return url.update_query_dict({"options": "", **url.query})


def engine_for(
    url: URL,
    application_name: str = "calc_analytics",
    statement_seconds: float | None = None,
    pool: Mapping[str, Any] = POOL,
) -> Engine:
    """An engine with the project's rules: at most 5 connections, READ COMMITTED, settings per transaction.

    Nothing is connected before the first use.
    `statement_seconds` limits each statement (default: an hour). With NO_POOL each transaction connects anew.
    """
    settings = dict(LOCAL_SETTINGS)
    if statement_seconds is not None:
        settings["statement_timeout"] = f"{round(statement_seconds * 1000)}ms"
    # A statement that fails in a pipeline is reported by its exception.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    engine = sqlalchemy.create_engine(
        url,
        isolation_level="READ COMMITTED",
        **pool,
        connect_args={
            "prepare_threshold": None,
            "client_encoding": "utf8",
            "application_name": application_name,
            "connect_timeout": connect_seconds(url),
        },
        execution_options={"local_settings": settings},
    )
    event.listen(engine, "connect", _fetch_bytes, insert=True)
    event.listen(engine, "do_connect", connect)
    event.listen(engine, "connect", _inspect_server)
    event.listen(engine, "before_cursor_execute", _encode, retval=True)
    return engine


def with_timeouts(url: URL) -> URL:
    """The URL for a process that would rather get an error than wait for a connection or a dead peer."""
    limits = {
        "connect_timeout": "3",
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "tcp_user_timeout": "20000",
    }
    return url.update_query_dict({**limits, **url.query})


def _fetch_bytes(connection: psycopg.Connection, record: Any) -> None:
    """A database in SQL_ASCII holds bytes: they are fetched as they are, and decoded here."""
    record.info["is_ascii"] = connection.info.parameter_status("server_encoding") == "SQL_ASCII"
    if record.info["is_ascii"]:
        connection.autocommit = True
        connection.execute("set client_encoding = 'SQL_ASCII'")
        connection.autocommit = False
        for type_ in ("text", "varchar", "bpchar", "name"):
            connection.adapters.register_loader(type_, LenientText)


def _encode(connection: Connection, cursor: Any, statement: Any, parameters: Any, *_: Any) -> tuple[Any, Any]:
    """Statements with other than ASCII letters, which psycopg would not encode for such a database."""
    is_ascii = connection.info.get("is_ascii") and not statement.isascii()
    return (statement.encode() if is_ascii else statement), parameters


def _inspect_server(connection: psycopg.Connection, record: Any) -> None:
    """Notes whether the server itself answers, whether it can notice that a client has died, and what its transactions
    have to set. A pooler invents the process id that it sends to its clients."""
    connection.autocommit = True
    record.info["limits_transactions"] = connection.info.server_version >= TRANSACTION_TIMEOUT_SINCE
    try:
        pid = connection.execute("select pg_backend_pid(), set_config(%s, %s, true)", CLIENT_CHECK).fetchone()
        record.info["notices_dead_clients"] = True
    except psycopg.errors.DatabaseError as error:
        if connection.closed or error.sqlstate is None:
            raise
        pid = connection.execute("select pg_backend_pid()").fetchone()
        record.info["notices_dead_clients"] = False
    record.info["is_direct"] = pid is not None and pid[0] == connection.info.backend_pid
    connection.autocommit = False


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: all of it or nothing. Database errors leave as `DatabaseError`, in one line.

    Of an engine from `joined` it is a part of that one's transaction.
    """
    shared = engine.get_execution_options().get("joined")
    with translate_db_errors(engine.url):
        if shared is not None:
            yield shared
            return
        with _begin(engine) as connection:
            yield connection
            connection.commit()


@contextmanager
def joined(engine: Engine) -> Iterator[Engine]:
    """The same engine, all of whose transactions are parts of one, on one connection: for several questions at once."""
    with transaction(engine) as connection:
        yield engine.execution_options(joined=connection)


def _is_dead_connection(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


@retry(retry=retry_if_exception(_is_dead_connection), stop=stop_after_attempt(2), reraise=True)
def _begin(engine: Engine) -> Connection:
    """A connection in a transaction with its settings. One from the pool that turns out to be dead is replaced."""
    connection = engine.connect()
    try:
        connection.exec_driver_sql(settings_sql(engine, connection.info))
    except BaseException:
        connection.close()
        raise
    return connection


def settings_sql(engine: Engine, info: Any, **changes: str) -> str:
    """'select set_config(…), …': the settings of a transaction on a connection with that `info`, and `changes`."""
    settings = {**engine.get_execution_options()["local_settings"], **changes}
    if info.get("notices_dead_clients"):
        settings.update([CLIENT_CHECK])
    if info.get("limits_transactions"):
        settings["transaction_timeout"] = "0"
    return "select " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
