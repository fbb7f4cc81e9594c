"""Runs the migrations: one at a time, safe to repeat, safe while the API writes.

A lock keeps two `migrate` apart. It belongs to a transaction on a separate connection, so it ends with the process, and
a pooler gives it to no other client. Locks on tables are requested with a short timeout, repeatedly, so that
a long writer delays the migration and never the other writers. All settings are local to their transactions.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from operator import not_
from pathlib import Path

from sqlalchemy import TextClause, event, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception,
    retry_if_result,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
)

from calc_analytics.database import log_index
from calc_analytics.database.engine import settings_sql, transaction
from calc_analytics.database.errors import first_line, is_row_security, sqlstate, translate_db_errors
from calc_analytics.errors import CalcAnalyticsError

MIGRATIONS = Path(__file__).parent / "migrations"
# The newest revision in migrations/versions.
HEAD = "0009_archive_balance"
ADVISORY_LOCK = 7_244_100_501
# Shorter than deadlock_timeout (one second): a deadlock never aborts another transaction.
LOCK_TIMEOUT = "800ms"
# Alembic keeps what it works on in its modules: one thread of a process at a time. Dagster uses it for its tables, too.
ALEMBIC = threading.Lock()
ATTEMPTS = 60
# How long another migration is waited for.
TURN_SECONDS = 60.0


class NotOwner(CalcAnalyticsError):
    """The role may not alter the API's table; its owner can run the same command, or the SQL in the message."""


class TableBusy(CalcAnalyticsError):
    """The log table stayed locked by others for a minute of short attempts; nothing was changed."""


class MigrationUnderWay(CalcAnalyticsError):
    """Another process migrates the database and was not done within a minute; nothing was changed by this one."""


class UnknownRevision(CalcAnalyticsError):
    """A newer version has migrated the database."""


def is_at_head(connection: Connection) -> bool:
    """Whether every revision has run."""
    if not connection.execute(text("select to_regclass('calc_analytics_version')")).scalar():
        return False
    return connection.execute(text("select version_num from calc_analytics_version")).scalar() == HEAD


def upgrade(engine: Engine, prepare: Callable[[Connection], None], finish: Callable[[Connection], None]) -> None:
    """Brings the tables to the newest revision and repairs the log table's index.

    `prepare` is called first, to check and refuse. `finish` is called in the transaction of the last revisions, so that
    no session sees the new tables without what it adds. One at a time: the others wait their turn. Raises
    `CalcAnalyticsError` subclasses; a revision that fails changed nothing.
    """
    with translate_db_errors(engine.url), turn(engine):
        with engine.connect() as connection:
            with_brief_locks(connection, lambda: _in_a_transaction(connection, prepare))
            with_brief_locks(connection, lambda: _run_revisions(connection, finish))
        build_log_index(engine)


def _in_a_transaction(connection: Connection, work: Callable[[Connection], object]) -> None:
    with connection.begin():
        work(connection)


def build_log_index(engine: Engine) -> None:
    """Builds what is missing of the log table's index, on each of its tables; writers are not blocked.

    Twice if need be: a partition may be added meanwhile.
    """
    for _ in range(2):
        with transaction(engine) as connection:
            statements = [each for table in log_index.examine(connection) for each in table.statements]
        for statement in statements:
            _run(engine, text(statement.replace(":", r"\:")), " concurrently " in statement)
    with transaction(engine) as connection:
        log_index.create_summarize_function(connection)


def _run(engine: Engine, statement: TextClause, is_concurrent: bool) -> None:
    """What works CONCURRENTLY waits for open writers, without a limit; for all else writers would have to wait."""
    with engine.connect() as connection:
        if is_concurrent:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            with _without_limits(connection):
                connection.execute(statement)
        else:
            execute = partial(Connection.execute, statement=statement)
            with_brief_locks(connection, lambda: _in_a_transaction(connection, execute))


@contextmanager
def _without_limits(connection: Connection) -> Iterator[None]:
    """Lifts the role's limits on waiting, for what cannot run in a transaction, as CREATE INDEX CONCURRENTLY.

    That needs settings of the session. Behind a pooler, which reuses the session for others, they stay as they are.
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


@contextmanager
def turn(engine: Engine) -> Iterator[None]:
    """Keeps other migrations of the database out; raises `MigrationUnderWay` after a minute.

    The lock is tried again and again: a session that waits inside PostgreSQL holds a snapshot, for which the first
    one's CREATE INDEX CONCURRENTLY would wait in turn. A transaction that has the lock and does nothing holds none.
    """
    attempts = Retrying(retry=retry_if_result(not_), stop=stop_after_delay(TURN_SECONDS), wait=wait_fixed(0.1))
    with engine.connect() as connection:
        try:
            attempts(_has_turn, connection)
        except RetryError:
            raise MigrationUnderWay(
                f"another 'calc-analytics migrate' of this database was not done within {TURN_SECONDS:.0f} s: "
                "run the command again when it is; nothing was changed"
            ) from None
        yield


def _has_turn(connection: Connection) -> bool:
    """Takes the lock if it is free, in a new transaction.

    Without parameters: a statement that has some keeps its snapshot until the next one.
    """
    connection.rollback()
    connection.execute(_NO_TIMEOUTS)
    return bool(connection.exec_driver_sql(f"select pg_try_advisory_xact_lock({ADVISORY_LOCK})").scalar())


def _run_revisions(connection: Connection, finish: Callable[[Connection], None]) -> None:
    """Alembic, pointed at this package's revisions and at an open connection. Imported when used: it is heavy."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"], config.attributes["finish"] = connection, finish
    try:
        with ALEMBIC:
            command.upgrade(config, "head")
    except CommandError as error:
        raise UnknownRevision(f"{error}: the database was made by a newer version; install that one here") from error


def with_brief_locks(connection: Connection, work: Callable[[], object]) -> None:
    """Runs `work` until it gets its locks within the timeout; `TableBusy` after a minute, `NotOwner` immediately."""
    is_locked, ends = retry_if_exception(_is_lock_timeout), stop_after_attempt(ATTEMPTS)
    attempts = Retrying(retry=is_locked, stop=ends, wait=wait_fixed(0.2), reraise=True)
    event.listen(connection, "begin", _limit_locks)
    try:
        attempts(_run_or_roll_back, connection, work)
    except DBAPIError as error:
        if _is_lock_timeout(error):
            raise TableBusy(
                "calculation_logs stayed locked by open transactions; see pg_stat_activity for idle ones, "
                "end them, and run the command again: nothing was changed"
            ) from error
        if sqlstate(error) == "42501" and not is_row_security(error):
            raise _not_owner(first_line(error)) from error
        raise
    finally:
        event.remove(connection, "begin", _limit_locks)
        if not connection.invalidated:
            connection.rollback()


def _run_or_roll_back(connection: Connection, work: Callable[[], object]) -> None:
    try:
        work()
    except DBAPIError:
        connection.rollback()
        raise


def _is_lock_timeout(error: BaseException) -> bool:
    """Whether another transaction held a lock for too long, or a deadlock ended this one."""
    return isinstance(error, DBAPIError) and sqlstate(error) in ("55P03", "40P01")


def _limit_locks(connection: Connection) -> None:
    """At the beginning of each transaction of a migration: it waits briefly for locks, and works without a limit."""
    limits = {"lock_timeout": LOCK_TIMEOUT, "statement_timeout": "0", "enable_seqscan": "on"}
    connection.exec_driver_sql(settings_sql(connection.engine, connection.info, **limits))


def require_ownership(connection: Connection, names: Collection[str]) -> None:
    """Raises `NotOwner` unless the role owns those of the tables and views that exist, or is a member of who does."""
    foreign = connection.execute(_NOT_OWNED, {"names": list(names)}).all()
    if foreign:
        tables = ", ".join(row.relname for row in foreign)
        raise _not_owner(f"the role '{foreign[0].role}' does not own {tables}")


def _not_owner(reason: str) -> NotOwner:
    return NotOwner(
        f"{reason}: run this command once with DATABASE_URL naming the role that owns the API's tables; "
        "nothing was changed"
    )


# What would end a transaction that only waits; the last one exists since PostgreSQL 17.
_NO_TIMEOUTS = text(
    """
    select set_config(name, '0', true) from pg_settings
    where name in ('idle_in_transaction_session_timeout', 'transaction_timeout')
    """
)
_NOT_OWNED = text(
    """
    select relname, current_user as role from pg_class
    where oid in (select to_regclass(name) from unnest(cast(:names as text[])) as n (name))
      and not pg_has_role(relowner, 'USAGE')
    order by relname
    """
)
