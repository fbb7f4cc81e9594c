"""What an error may disclose over HTTP: a code and general words, never a name, an address, a path or SQL.

The error's own line goes to the log, `status` and `doctor`. An error of a class that is not listed here is described by
the first sentence of its docstring, which holds no values.
"""

import re
from dataclasses import dataclass

from calc_analytics.database.errors import DatabaseError
from calc_analytics.errors import CalcAnalyticsError

DOCTOR, MIGRATE, REBASE = "calc-analytics doctor", "calc-analytics migrate", "calc-analytics rebase"
DATABASE, DAGSTER = "the database", "Dagster's storage"
NO_ANSWER = "no_answer"
# What PostgreSQL reported, by the beginning of its SQLSTATE; the first that fits.
_BY_STATE = {
    "42501": "permission_denied",
    "42P01": "not_installed",
    "42703": "not_installed",
    "42883": "not_installed",
    "3F000": "not_installed",
    "3D000": "no_database",
    "25006": "read_only",
    "57014": "timeout",
    "55P03": "timeout",
    "28": "access_refused",
    "53300": "too_many_connections",
    "53": "out_of_resources",
    "58": "out_of_resources",
    "08": "database_unreachable",
    "57P": "database_unreachable",
}
# While connecting there is no SQLSTATE, only words.
_BY_WORDS = {
    "authentication failed|no password supplied|no pg_hba.conf entry|not permitted to log in": "access_refused",
    r'role "[^"]*" does not exist': "access_refused",
    "permission denied": "permission_denied",
    'database "[^"]*" does not exist': "no_database",
    "too many clients|too many connections|connection slots|connections to .* are in use": "too_many_connections",
}
_WORDS = {
    "permission_denied": "permission denied: the role lacks a right in {place}",
    "not_installed": "{place} lacks a table, a column or a function that is needed",
    "no_database": "{place} does not exist",
    "read_only": "{place} is read-only",
    "timeout": "{place} took too long to answer, or a lock was not free",
    "access_refused": "{place} refused the login",
    "too_many_connections": "{place} has no free connection",
    "out_of_resources": "{place} is out of disk space or memory, or cannot read its files",
    "database_unreachable": "{place} is unreachable",
    "database_error": "{place} reported an error",
}
_COMMANDS = {
    "not_installed": MIGRATE,
    "restored_elsewhere": REBASE,
    "log_replaced": f"{MIGRATE} && {REBASE} && calc-analytics rollup",
    "time_zone_changed": f"set ROLLUP_TIMEZONE back, or {REBASE}",
    "rollups_changed": f"set ROLLUPS back, or {MIGRATE}",
}
# The project's own errors, by the name of their class.
_BY_CLASS = {
    "NotInstalled": ("not_installed", "the migrations have not run on this database"),
    "ClusterChanged": ("restored_elsewhere", "the database was restored into another cluster"),
    "TimezoneChanged": ("time_zone_changed", "the days were built in another time zone than ROLLUP_TIMEZONE's"),
    "RollupsChanged": ("rollups_changed", "the database keeps other rollups than ROLLUPS names"),
    "InvalidSetting": ("invalid_setting", "a setting is not usable"),
    "NoDatabase": ("no_database", "the database does not exist"),
    "EmbeddedServerFailed": ("database_unreachable", "the database is unreachable"),
    "DagsterUnavailable": ("dagster_unavailable", "Dagster's storage is unreachable, or its configuration not usable"),
}  # fmt: skip


@dataclass(frozen=True)
class Cause:
    """Why something failed, in public words: the code is for programs, the words for people."""

    code: str
    words: str
    command: str = DOCTOR


def cause_of(error: BaseException) -> Cause:
    """The public cause of the error."""
    if isinstance(error, DatabaseError):
        return _of_database(error, DATABASE, "")
    if type(error).__name__ == "DagsterUnavailable" and isinstance(error.__cause__, DatabaseError):
        return _of_database(error.__cause__, DAGSTER, "dagster_")
    if not isinstance(error, CalcAnalyticsError):
        return Cause("internal_error", "internal error")
    code, words = _BY_CLASS.get(type(error).__name__) or (_snake_case(error), _first_sentence(error))
    return Cause(code, words, _COMMANDS.get(code, DOCTOR))


def _of_database(error: DatabaseError, place: str, prefix: str) -> Cause:
    code = _code(error)
    command = DOCTOR if prefix else _COMMANDS.get(code, DOCTOR)
    return Cause(f"{prefix}{code}", _WORDS[code].format(place=place), command)


def _code(error: DatabaseError) -> str:
    if error.sqlstate is not None:
        return next((code for state, code in _BY_STATE.items() if error.sqlstate.startswith(state)), "database_error")
    message = str(error)
    return next((code for words, code in _BY_WORDS.items() if re.search(words, message)), "database_unreachable")


def _snake_case(error: BaseException) -> str:
    return re.sub("(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


def _first_sentence(error: BaseException) -> str:
    described = " ".join((type(error).__doc__ or "").split())
    return re.split(r"[.:;] |\.$", described)[0] or "the operation was refused"
