"""Errors of PostgreSQL and its driver: one line that a user can act on, without secrets; whether a retry can help."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from calc_analytics.addresses import completed, redact_url, without_secrets
from calc_analytics.database.sql import quote_identifier
from calc_analytics.errors import CalcAnalyticsError

# SQLSTATE classes and codes after which the same transaction may succeed: connection errors, rolled back by the
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
# An error while connecting has no SQLSTATE in psycopg, only the server's text. After these a retry cannot help.
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


class DatabaseError(CalcAnalyticsError):
    """PostgreSQL refused (`sqlstate` is the reason) or was unreachable. `transient`: whether a retry can help."""

    sqlstate: str | None = None

    def __init__(self, message: str, transient: bool, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.transient, self.sqlstate = transient, sqlstate


class NoAnswer(DatabaseError):
    """Nothing answered in time. Transient, but not retried here: each attempt would take the whole time limit."""


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
    state, original = sqlstate(error), _driver_error(error)
    if state is None:
        is_broken = isinstance(original, psycopg.OperationalError | psycopg.InterfaceError)
        return is_broken and not any(refusal in str(original) for refusal in _REFUSALS)
    return state.startswith(_TRANSIENT)


def sqlstate(error: DBAPIError | psycopg.Error) -> str | None:
    """PostgreSQL's five-character code, or None where the server never answered."""
    return getattr(_driver_error(error), "sqlstate", None)


def is_row_security(error: DBAPIError | psycopg.Error) -> bool:
    """Whether PostgreSQL refused because a policy would hide rows; its text may be in any language."""
    original = _driver_error(error)
    return isinstance(original, psycopg.Error) and original.diag.source_function == "check_enable_rls"


def first_line(error: DBAPIError | psycopg.Error) -> str:
    """The first line of what PostgreSQL or its driver reported."""
    original = _driver_error(error)
    return next(iter(str(original).strip().splitlines()), type(original).__name__)


def _driver_error(error: DBAPIError | psycopg.Error) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _describe(error: DBAPIError | psycopg.Error, url: URL) -> str:
    text, state = without_secrets(first_line(error), url), sqlstate(error)
    if state is None:
        return _describe_connection(text, _driver_error(error), redact_url(url))
    if is_row_security(error):
        return _describe_row_security(text, url)
    return _describe_refusal(text, state, url)


def _describe_connection(text: str, original: BaseException | None, place: str) -> str:
    """The server was not reached, or refused the connection."""
    if "does not exist" in text and "database" in text:
        return f"{text}: run 'calc-analytics migrate' to create it, or correct DATABASE_URL (or DAGSTER_POSTGRES_URL)"
    if isinstance(original, psycopg.errors.ConnectionTimeout):
        return (
            f"no answer from {place}: {text}; "
            "is it PostgreSQL's port, and DATABASE_URL (or DAGSTER_POSTGRES_URL) right?"
        )
    if "unsupported startup parameter" in text:
        return (
            f"{text} at {place}: a pooler such as PgBouncer accepts none; leave 'options' out of the URL and unset "
            "PGOPTIONS, and use 'alter role … set …' instead"
        )
    if "no such database" in text:
        return (
            f"{text}: the pooler at {place} does not serve it; add it there, or set DATABASE_URL (or "
            "DAGSTER_POSTGRES_URL) to the server's own address"
        )
    if isinstance(original, psycopg.OperationalError):
        return (
            f"cannot connect to {place}: {text}; "
            "is PostgreSQL running, and DATABASE_URL (or DAGSTER_POSTGRES_URL) right?"
        )
    return f"{text} at {place}"


def _describe_row_security(text: str, url: URL) -> str:
    role = quote_identifier(url.username or "")
    return (
        f"{text}: rows would be hidden from the role '{url.username}' in {redact_url(url)}, and the numbers would be "
        f"wrong. Exempt it with 'alter role {role} bypassrls', or, if it owns the table, with "
        "'alter table … no force row level security'"
    )


def _describe_refusal(text: str, state: str, url: URL) -> str:
    """PostgreSQL refused a statement."""
    place = redact_url(url)
    match state:
        case "42501":
            return f"{text}: grant it to the role '{completed(url).username}', or use another role in {place}"
        case "42P01" | "42703" | "42883":
            return f"{text}: run 'calc-analytics migrate' against {place}; or 'calc-analytics doctor', if it is there"
        case "3F000":
            return f"{text}: no schema of the role's search_path exists in {place}; run 'calc-analytics doctor'"
        case "25006":
            return f"{text}: {place} is read-only (a standby?); use the primary's address"
        case _:
            return f"{text} ({state}) at {place}"
