"""What refreshes, rebuilds and proofs report: one log line each, and failures also as entries of the journal.

Whoever runs an operation (a tick, a run, the HTTP service, the command line) hands its report to these functions, in
whichever process that is. They never raise: observing must not stop the counting. An operation that found nothing new
is silent. The counters of `/metrics` come from the journal, which each operation writes in its own transaction.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from calc_analytics.telemetry import logs

if TYPE_CHECKING:
    from calc_analytics.rollup.database import Database
    from calc_analytics.rollup.reports import RebuildReport, RefreshReport, VerifyReport

# The server did not answer, is starting or stopping, is out of something, or is read-only: nothing can be noted there.
UNREACHABLE = ("08", "53", "57P", "25006")
# What noting a failure may take.
NOTE_LIMITS = {"statement_timeout": "2s", "lock_timeout": "1s"}


def refreshed(report: "RefreshReport", **fields: Any) -> None:
    """One refresh. `fields` go into the log line."""
    waiting = [str(day) for day in report.waiting_by_day]
    fields = {**({"never_built_days": waiting} if waiting else {}), **fields}
    level = logging.INFO if report.rows or waiting else logging.DEBUG
    days = [str(day) for day in report.rows_by_day]
    for misfit in report.misfits:
        _log(logging.ERROR, "overflow", day=str(misfit.day), found=f"{misfit}. {misfit.advice}")
    _log(level, "refresh", rows=report.rows, days=days, seconds=round(report.seconds, 4), **fields)


def rebuilt(report: "RebuildReport", **fields: Any) -> None:
    """One rebuild of one or more days; a day that was left alone and needs somebody is a warning."""
    left = {"refused_days": _named(report.refused), "kept_days": _named(report.kept)}
    fields = {**{name: days for name, days in left.items() if days}, **fields}
    level = logging.WARNING if report.failed else logging.INFO
    days = _span([str(day) for day in report.days])
    for refused in report.failed:
        if refused.reason == "overflow":
            _log(logging.ERROR, "overflow", day=str(refused.day), found=refused.detail)
    _log(level, "rebuild", rows=report.rows, days=days, seconds=round(report.seconds, 4), **fields)


def verified(report: "VerifyReport") -> None:
    """One comparison of one or more days: a line, and for each difference a line that says what to do."""
    different = _named(report.different)
    fields: dict[str, Any] = {"different_days": different} if different else {}
    level = logging.ERROR if different else logging.INFO
    days = _span(_named(report.days))
    _log(level, "verify", difference=report.difference, days=days, seconds=round(report.seconds, 4), **fields)
    for proof in report.different:
        _log(logging.ERROR, "verify", difference=proof.difference, found=proof.describe())


def failed(operation: str, error: Exception, db: "Database | None" = None, **fields: Any) -> None:
    """An operation that ended in an error; one that may succeed when tried again is a warning.

    With `db` it is also noted in the journal, unless the error says that the database cannot be written to.
    """
    level = logging.WARNING if getattr(error, "transient", False) else logging.ERROR
    _log(level, operation, failed=logs.in_one_line(error), **fields)
    if db is not None and _can_be_noted(error):
        with suppress(Exception):
            _note(db, operation, logs.in_one_line(error))


@contextmanager
def record_failures(operation: str, db: "Database | None" = None, **fields: Any) -> Iterator[None]:
    """Reports an error on its way to whoever handles it."""
    try:
        yield
    except Exception as error:
        failed(operation, error, db, **fields)
        raise


def _can_be_noted(error: Exception) -> bool:
    """Whether the database answers: without a code the connection was lost, or there was none."""
    from calc_analytics.database.errors import DatabaseError

    if not isinstance(error, DatabaseError):
        return True
    return error.sqlstate is not None and not error.sqlstate.startswith(UNREACHABLE)


def _note(db: "Database", operation: str, reason: str) -> None:
    from calc_analytics.rollup import journal

    settings = db.engine.get_execution_options()["local_settings"]
    brief = db.engine.execution_options(local_settings={**settings, **NOTE_LIMITS})
    journal.note_failure(replace(db, engine=brief), operation, reason)


def _named(reported: "Iterable[Any]") -> list[str]:
    """The days of these, each once."""
    return [str(day) for day in dict.fromkeys(each.day for each in reported)]


def _span(days: list[str]) -> list[str] | str:
    """The days, or of many the first and the last."""
    return days if len(days) <= 3 else f"{days[0]}..{days[-1]}"


def _log(level: int, event: str, **fields: Any) -> None:
    with suppress(Exception):
        logs.line(level, event, **fields)
