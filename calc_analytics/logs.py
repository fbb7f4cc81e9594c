"""Log lines of operations: one line per event on standard error, as text or JSON; failures also go to the journal.

Ticks, runs, the HTTP service and the command line pass their reports to the `log_…` functions. These never raise, so
logging cannot stop the counting. Operations that found nothing new are logged at level debug. Only the logger
`calc_analytics` is configured here; Dagster's own logging stays as it is. `/metrics` reads the journal.
"""

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

from calc_analytics.errors import CalcAnalyticsError

if TYPE_CHECKING:
    from structlog.typing import EventDict

    from calc_analytics.rollup.database import Database
    from calc_analytics.rollup.reports import RebuildReport, RefreshReport, VerifyReport

# SQLSTATE classes and codes of a server that cannot write the journal: connection lost, out of resources, starting or
# stopping, read-only.
UNREACHABLE = ("08", "53", "57P", "25006")
# Limits for writing a failure to the journal.
JOURNAL_LIMITS = {"statement_timeout": "2s", "lock_timeout": "1s"}
HEAD = ("at", "level", "event")


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes lines to the current `sys.stderr`. structlog is imported with the first line: it would slow loading."""

    as_json = False

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line."""
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        return _formatter(self.as_json).format(record)


handler = _StandardError()
_logger = logging.getLogger("calc_analytics")
_logger.addHandler(handler)
_logger.propagate = False


def configure(log_format: str = "text", log_level: str = "info") -> None:
    """Sets how lines are written ('text' or 'json') and the lowest level that is written."""
    handler.as_json = log_format == "json"
    _logger.setLevel(log_level.upper())


@lru_cache
def _events() -> Any:
    """The structlog logger in front of the project's logger."""
    from structlog import stdlib, wrap_logger

    processors = [*_common_processors(), stdlib.ProcessorFormatter.wrap_for_formatter]
    return wrap_logger(_logger, processors=processors, wrapper_class=stdlib.BoundLogger)


@lru_cache
def _formatter(as_json: bool) -> logging.Formatter:
    """Renders events of this module and lines of other loggers, such as uvicorn's, alike."""
    from structlog.stdlib import ProcessorFormatter

    processors: list[Any] = [ProcessorFormatter.remove_processors_meta, _render_json if as_json else _render_text]
    return ProcessorFormatter(foreign_pre_chain=_common_processors(), processors=processors)


def _common_processors() -> list[Any]:
    from structlog import processors, stdlib

    instant = processors.TimeStamper(fmt="iso", utc=True, key="at")
    return [stdlib.add_log_level, instant, processors.format_exc_info]


def log(level: int, event: str, **fields: Any) -> None:
    """Writes one line, for example `2026-03-01T12:00:00.5Z INFO refresh rows=12 seconds=0.003`."""
    with suppress(Exception):
        if _logger.isEnabledFor(level):
            _events().log(level, event, **fields)


def log_refresh(report: "RefreshReport", **fields: Any) -> None:
    """Logs one refresh, with `fields` added to the line."""
    waiting = [str(day) for day in report.waiting_by_day]
    fields = {**({"never_built_days": waiting} if waiting else {}), **fields}
    level = logging.INFO if report.rows or waiting else logging.DEBUG
    for misfit in report.misfits:
        log(logging.ERROR, "overflow", day=str(misfit.day), found=f"{misfit}. {misfit.advice}")
    days = [str(day) for day in report.rows_by_day]
    log(level, "refresh", rows=report.rows, days=days, seconds=round(report.seconds, 4), **fields)


def log_rebuild(report: "RebuildReport", **fields: Any) -> None:
    """Logs one rebuild; days that need a decision make it a warning."""
    left = {"refused_days": _days_of(report.refused), "kept_days": _days_of(report.kept)}
    fields = {**{name: days for name, days in left.items() if days}, **fields}
    for refused in report.failed:
        if refused.reason == "overflow":
            log(logging.ERROR, "overflow", day=str(refused.day), found=refused.detail)
    level = logging.WARNING if report.failed else logging.INFO
    days = _shortened([str(day) for day in report.days])
    log(level, "rebuild", rows=report.rows, days=days, seconds=round(report.seconds, 4), **fields)


def log_verify(report: "VerifyReport") -> None:
    """Logs one comparison, and each difference in a line of its own that names the command to run."""
    different = _days_of(report.different)
    fields = {"different_days": different} if different else {}
    level = logging.ERROR if different else logging.INFO
    days = _shortened(_days_of(report.days))
    log(level, "verify", difference=report.difference, days=days, seconds=round(report.seconds, 4), **fields)
    for proof in report.different:
        log(logging.ERROR, "verify", difference=proof.difference, found=proof.describe())
    for unbalanced in report.archive:
        log(logging.ERROR, "verify", found=str(unbalanced))


def log_failure(operation: str, error: Exception, db: "Database | None" = None, **fields: Any) -> None:
    """Logs an operation that raised; a transient error is a warning.

    With `db` the failure is also written to the journal, unless the error shows that the database cannot be written.
    """
    level = logging.WARNING if getattr(error, "transient", False) else logging.ERROR
    log(level, operation, failed=error_line(error), **fields)
    if db is not None and _is_reachable(error):
        with suppress(Exception):
            _write_to_journal(db, operation, error_line(error))


@contextmanager
def record_failures(operation: str, db: "Database | None" = None, **fields: Any) -> Iterator[None]:
    """Calls `log_failure` for an error raised inside, and raises it again."""
    try:
        yield
    except Exception as error:
        log_failure(operation, error, db, **fields)
        raise


def error_line(error: BaseException) -> str:
    """The error in one line that is safe to show: the project's own message, or only the type of any other error."""
    if isinstance(error, CalcAnalyticsError):
        return str(error)
    return f"internal error: {type(error).__name__}"


def _render_json(logger: Any, method: str, fields: "EventDict") -> str:
    ordered = {name: fields.pop(name) for name in HEAD}
    return json.dumps({**ordered, **fields}, default=str)


def _render_text(logger: Any, method: str, fields: "EventDict") -> str:
    at, level, event = (fields.pop(name) for name in HEAD)
    return " ".join([at, level.upper(), event, *(f"{name}={_quoted(value)}" for name, value in fields.items())])


def _quoted(value: Any) -> str:
    """The value, in quotes if it is empty or has spaces, quotes, `=` or control characters."""
    text = ",".join(str(each) for each in value) if isinstance(value, list) else str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


def _is_reachable(error: Exception) -> bool:
    """Whether the database can take a journal entry. A database error without SQLSTATE means a lost connection."""
    from calc_analytics.database.errors import DatabaseError

    if not isinstance(error, DatabaseError):
        return True
    return error.sqlstate is not None and not error.sqlstate.startswith(UNREACHABLE)


def _write_to_journal(db: "Database", operation: str, reason: str) -> None:
    from calc_analytics.rollup import journal

    settings = db.engine.get_execution_options()["local_settings"]
    limited = db.engine.execution_options(local_settings={**settings, **JOURNAL_LIMITS})
    journal.note_failure(replace(db, engine=limited), operation, reason)


def _days_of(parts: "Iterable[Any]") -> list[str]:
    """The days of these parts of a report, each once."""
    return [str(day) for day in dict.fromkeys(each.day for each in parts)]


def _shortened(days: list[str]) -> list[str] | str:
    """The days; of more than three, the first and the last."""
    return days if len(days) <= 3 else f"{days[0]}..{days[-1]}"


configure()
