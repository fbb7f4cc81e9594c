"""Connections: which URL, one small pool, one kind of transaction, and errors a user can act on.

Every transaction runs at READ COMMITTED whatever the role's default is, because each statement must see what was
committed before it. Settings are local to the transaction: nothing is left in a session that a pooler such as
PgBouncer hands to somebody else, and nothing is asked for in the start-up packet.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
import sqlalchemy
from psycopg.adapt import Loader
from psycopg.rows import dict_row
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from calc_analytics.addresses import beside, completed, redact_url, without_secrets
from calc_analytics.config import DAGSTER_DATABASE, Settings
from calc_analytics.database import embedded
from calc_analytics.database.connecting import connect, connect_seconds
from calc_analytics.errors import CalcAnalyticsError

# SQLSTATE classes and codes after which the same transaction may well succeed: connection trouble, rolled back by the
# server (serialization, deadlock), a timeout, out of disk, memory or connections, lock not available, shutting down or
# starting, I/O error. Npgsql's list is nearly the same.
_TRANSIENT = (
    "08",
    "40",
    "53",
    "57014",
    "57P01",
    "57P02",
    "57P03",
    "57P05",
    "55P03",
    "58000",
    "58030",
    "25P03",
    "25P04",
)

# While connecting, psycopg has the server's words only. After these, trying again is of no use.
_REFUSALS = (
    "does not exist",
    "authentication failed",
    "not permitted to log in",
    "no pg_hba.conf entry",
    "permission denied",
    "no password supplied",
    "received invalid response to",
    "expected authentication request",
    "unsupported startup parameter",
    "no such database",
    "no such user",
    "definition of service",
)

# What each transaction sets for itself, whatever the role's or the database's defaults are. New rows must be found by
# index: after retention the planner's statistics of `xact_id` can make it read the whole table; compiling never pays.
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
# The server rolls back a second after this process was killed, even in the midst of a long statement or a wait for a
# lock; a server on Windows cannot, and finishes the statement first.
CLIENT_CHECK = ("client_connection_check_interval", "1000")
# Since PostgreSQL 17 a role may have a limit on whole transactions as well.
TRANSACTION_TIMEOUT_SINCE = 170_000
# The prepared statement is gone or another client's (a pooler in between), or a table changed under it.
_UNPREPARED = ("26000", "42P05", "0A000")

# For the rest of a transaction: a day may well be most of the table; and back.
WHOLE_DAYS = text("set local enable_seqscan = on")
NEW_ROWS = text("set local enable_seqscan = off")
# For a transaction without LOCAL_SETTINGS: an error where a policy would hide rows.
ALL_ROWS = text("set local row_security = off")


# How long a pooler may take to notice that a database was created.
POOLER_SECONDS = 30.0

T = TypeVar("T")
# Pauses of about 0.1, 0.2, 0.4 and 0.8 seconds: a lost connection, a deadlock or a restart is over by then. What takes
# longer is an error, which Dagster's own policies try again.
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.1


class LenientText(Loader):
    """Text of a database in SQL_ASCII, which takes any bytes: those that are not UTF-8 are replaced, not an error."""

    def load(self, data: Any) -> str:
        """The text."""
        return bytes(data).decode(errors="replace")


class DatabaseError(CalcAnalyticsError):
    """PostgreSQL refused (`sqlstate` says why) or was not there. `transient` tells whether trying again can help."""

    sqlstate: str | None = None

    def __init__(self, message: str, transient: bool, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.transient, self.sqlstate = transient, sqlstate


class NoAnswer(DatabaseError):
    """Nothing answered in time. That may pass, but who waits for a command is not made to wait again and again."""


class NoDatabase(CalcAnalyticsError):
    """A database that is needed is missing, and the role may not create one."""


def quoted(name: str) -> str:
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def database_url(settings: Settings) -> URL:
    """DATABASE_URL, or the embedded server's (which this starts)."""
    return settings.database_url or embedded.url()


def dagster_url(settings: Settings) -> URL:
    """DAGSTER_POSTGRES_URL, or the database `dagster` beside DATABASE_URL; psycopg 3 form.

    PGOPTIONS is for the logs' database: an option that is empty turns it off.
    """
    url = settings.dagster_postgres_url or beside(database_url(settings), DAGSTER_DATABASE)
    return url.update_query_dict({"options": "", **url.query})


def create_engine(settings: Settings, application_name: str = "calc_analytics") -> Engine:
    """An engine on the project's database; nothing is connected until the first use."""
    return engine_for(database_url(settings), application_name)


def engine_for(url: URL, application_name: str = "calc_analytics", statement_seconds: float | None = None) -> Engine:
    """An engine on any URL with the project's rules: at most 5 connections, READ COMMITTED, settings per transaction.

    `statement_seconds` limits each statement (default: an hour).
    """
    settings = dict(LOCAL_SETTINGS)
    if statement_seconds is not None:
        settings["statement_timeout"] = f"{round(statement_seconds * 1000)}ms"
    # A statement that fails in a pipeline is reported by its exception.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    engine = sqlalchemy.create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=2,
        max_overflow=3,
        connect_args={
            "prepare_threshold": None,
            "client_encoding": "utf8",
            "application_name": application_name,
            "connect_timeout": connect_seconds(url),
        },
        execution_options={"local_settings": settings},
    )
    event.listen(engine, "connect", _ask_for_bytes, insert=True)
    event.listen(engine, "do_connect", connect)
    event.listen(engine, "connect", _look_at_server)
    event.listen(engine, "before_cursor_execute", _encode, retval=True)
    return engine


def _ask_for_bytes(connection: psycopg.Connection, record: Any) -> None:
    """A database in SQL_ASCII holds bytes: it is asked for them as they are, which are decoded here."""
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


def _look_at_server(connection: psycopg.Connection, record: Any) -> None:
    """Notes whether the server itself answers (a pooler makes up the process id that it tells its clients), whether it
    can notice that a client has died, and what its transactions have to set."""
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


def settings_sql(engine: Engine, info: Any, **changes: str) -> str:
    """'select set_config(…), …': the settings of a transaction on a connection with that `info`, and `changes`."""
    settings = {**engine.get_execution_options()["local_settings"], **changes}
    if info.get("notices_dead_clients"):
        settings.update([CLIENT_CHECK])
    if info.get("limits_transactions"):
        settings["transaction_timeout"] = "0"
    return "select " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())


@contextmanager
def without_limits(connection: Connection) -> Iterator[None]:
    """Lifts the role's limits on waiting for what cannot be in a transaction, as CREATE INDEX CONCURRENTLY.

    That needs settings of the session. Behind a pooler, which hands the session to others, they stay as they are.
    """
    if not connection.info.get("is_direct"):
        yield
        return
    limits = ("lock_timeout", "statement_timeout")
    for name in limits:
        connection.execute(text(f"set {name} = 0"))
    try:
        yield
    finally:
        for name in limits if not connection.invalidated else ():
            connection.execute(text(f"reset {name}"))


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


def ensure_database(url: URL) -> None:
    """Creates the URL's database if the server lacks it; raises `DatabaseError` if it may not."""
    maintenance = engine_for(url.set(database="postgres"))
    try:
        with translate_db_errors(url):
            if _exists(url):
                return
            with maintenance.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                try:
                    connection.execute(text(f"create database {quoted(str(url.database))}"))
                except DBAPIError as error:
                    if sqlstate(error) == "42501":
                        raise NoDatabase(
                            f"database '{url.database}' does not exist and the role '{completed(url).username}' "
                            "may not create it: let an administrator create it"
                        ) from error
                    if sqlstate(error) not in ("42P04", "23505"):  # somebody else was quicker
                        raise
            _await_pooler(url)
    finally:
        maintenance.dispose()


def _await_pooler(url: URL) -> None:
    """A pooler that has found no such database looks again after a while (PgBouncer: 15 seconds)."""
    deadline = time.monotonic() + POOLER_SECONDS
    while time.monotonic() < deadline:
        with suppress(OperationalError):
            if _exists(url):
                return
        time.sleep(0.2)


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


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: all of it or nothing. Database errors leave as `DatabaseError`, in one line."""
    with translate_db_errors(engine.url), _begun(engine) as connection:
        yield connection
        connection.commit()


def _begun(engine: Engine) -> Connection:
    """A connection in a transaction with its settings. One from the pool that turns out to be dead is replaced."""
    for is_last in (False, True):
        connection = engine.connect()
        try:
            connection.exec_driver_sql(settings_sql(engine, connection.info))
            return connection
        except BaseException as error:
            connection.close()
            if is_last or not (isinstance(error, DBAPIError) and error.connection_invalidated):
                raise
    raise AssertionError("unreachable")


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
    except psycopg.Error:
        if not connection.broken:
            connection.execute("rollback")
        raise
    finally:
        connection.prepare_threshold = None


def retry_transient(work: Callable[[], T]) -> T:
    """What `work` returns; after transient trouble it is called again, with exponential pauses and jitter.

    A dropped connection leaves the commit's outcome unknown, so `work` must be one transaction that may be repeated.
    """
    again = Retrying(
        retry=retry_if_exception(_is_worth_repeating),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=FIRST_PAUSE_SECONDS) + wait_random(0, FIRST_PAUSE_SECONDS),
        reraise=True,
    )
    return again(work)


def _is_worth_repeating(error: BaseException) -> bool:
    return isinstance(error, CalcAnalyticsError) and error.transient and not isinstance(error, NoAnswer)


@contextmanager
def translate_db_errors(url: URL) -> Iterator[None]:
    """Turns driver errors into `DatabaseError` with one line that never holds the password."""
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        kind = NoAnswer if isinstance(_driver_error(error), psycopg.errors.ConnectionTimeout) else DatabaseError
        raise kind(_describe(error, url), is_transient(error), sqlstate(error)) from error
    except NoConnectionLeft as error:
        raise DatabaseError(f"all of this process's connections to {redact_url(url)} are in use", True) from error


def is_transient(error: DBAPIError | psycopg.Error) -> bool:
    """Whether the same work may succeed a moment later."""
    state, said = sqlstate(error), _driver_error(error)
    if state is None:
        broken = isinstance(said, psycopg.OperationalError | psycopg.InterfaceError)
        return broken and not any(refusal in str(said) for refusal in _REFUSALS)
    return state.startswith(_TRANSIENT)


def sqlstate(error: DBAPIError | psycopg.Error) -> str | None:
    """PostgreSQL's five-character code, or None where the server never answered."""
    return getattr(_driver_error(error), "sqlstate", None)


def is_row_security(error: DBAPIError | psycopg.Error) -> bool:
    """Whether PostgreSQL refused because a policy would hide rows; its text may be in any language."""
    said = _driver_error(error)
    return isinstance(said, psycopg.Error) and said.diag.source_function == "check_enable_rls"


def _driver_error(error: DBAPIError | psycopg.Error) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _describe(error: DBAPIError | psycopg.Error, url: URL) -> str:
    place, original = redact_url(url), _driver_error(error)
    said = str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
    said = without_secrets(said, url)
    match sqlstate(error):
        case "42501" if is_row_security(error):
            return (
                f"{said}: rows would be hidden from the role '{url.username}' in {place}, and the numbers be wrong. "
                f"Exempt it with 'alter role {quoted(url.username or '')} bypassrls', or, if it owns the table, with "
                "'alter table … no force row level security'"
            )
        case "42501":
            return f"{said}: grant it to the role '{completed(url).username}', or use another role in {place}"
        case "42P01" | "42703":
            return f"{said}: run 'calc-analytics migrate' against {place}; or 'calc-analytics doctor', if it is there"
        case "3F000":
            return f"{said}: no schema of the role's search_path exists in {place}; 'calc-analytics doctor' says more"
        case "25006":
            return f"{said}: {place} is read-only (a standby?); use the primary's address"
        case None if "does not exist" in said and "database" in said:
            return (
                f"{said}: run 'calc-analytics migrate' to create it, or correct DATABASE_URL (or DAGSTER_POSTGRES_URL)"
            )
        case None if isinstance(original, psycopg.errors.ConnectionTimeout):
            return (
                f"no answer from {place}: {said}; "
                "is it PostgreSQL's port, and DATABASE_URL (or DAGSTER_POSTGRES_URL) right?"
            )
        case None if "unsupported startup parameter" in said:
            return (
                f"{said} at {place}: a pooler such as PgBouncer accepts none; leave 'options' out of the URL and unset "
                "PGOPTIONS, and use 'alter role … set …' instead"
            )
        case None if "no such database" in said:
            return (
                f"{said}: the pooler at {place} does not serve it; add it there, or set DATABASE_URL (or "
                "DAGSTER_POSTGRES_URL) to the server's own address"
            )
        case None if isinstance(original, psycopg.OperationalError):
            return (
                f"cannot connect to {place}: {said}; "
                "is PostgreSQL running, and DATABASE_URL (or DAGSTER_POSTGRES_URL) right?"
            )
        case None:
            return f"{said} at {place}"
        case code:
            return f"{said} ({code}) at {place}"
