"""What refreshes, rebuilds and proofs report: one log line each, and counts for `/metrics`.

Whoever runs an operation (a tick, a run, the HTTP service, the command line) hands its report to these functions, in
whichever process that is. They never raise: observing must not stop the counting. Nothing heavy is imported before
the first report, and an operation that found nothing new is silent.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from calc_analytics.telemetry import logs

if TYPE_CHECKING:
    from calc_analytics.rollup.reports import PruneReport, RebuildReport, RefreshReport, VerifyReport
    from calc_analytics.telemetry.metrics import Counts


def refreshed(report: "RefreshReport", log: bool = True, **fields: Any) -> None:
    """One refresh. `fields` go into the log line; the command line, which prints its report, wants no line."""
    _count(lambda counts: counts.refreshed(report))
    if log:
        waiting = [str(day.day) for day in report.unbuilt]
        fields = {**({"never_built_days": waiting} if waiting else {}), **fields}
        level = logging.INFO if report.rows or waiting else logging.DEBUG
        days = [str(day.day) for day in report.counted]
        _log(level, "refresh", rows=report.rows, days=days, seconds=round(report.seconds, 4), **fields)


def rebuilt(report: "RebuildReport", log: bool = True, **fields: Any) -> None:
    """One rebuild of one or more days; days left alone are a warning, unless they are known to be pruned."""
    _count(lambda counts: counts.rebuilt(report, unexpectedly_refused(report)))
    if log:
        refused = [str(day.day) for day in report.refused]
        fields = {**({"refused_days": refused} if refused else {}), **fields}
        level = logging.WARNING if unexpectedly_refused(report) else logging.INFO
        days = _span([str(day.day) for day in report.rebuilt])
        _log(level, "rebuild", rows=report.rows, days=days, seconds=round(report.seconds, 4), **fields)


def unexpectedly_refused(report: "RebuildReport") -> int:
    """Days left alone for another reason than that their logs are known to be pruned."""
    deleted = [day for day in report.shrunk if day.counted_rows - day.raw_rows != day.pruned_rows]
    return len(deleted) + len(report.overflowed)


def pruned(report: "PruneReport") -> None:
    """Log rows deleted; the command line prints them, so there is no line."""
    _count(lambda counts: counts.pruned(report))


def verified(report: "VerifyReport", log: bool = True) -> None:
    """One proof of one or more days; a difference is an error."""
    _count(lambda counts: counts.verified(report))
    if log:
        different = [str(day.day) for day in report.different]
        fields: dict[str, Any] = {"different_days": different} if different else {}
        level = logging.ERROR if different else logging.INFO
        days = _span([str(day.day) for day in report.days])
        _log(level, "verify", difference=report.difference, days=days, seconds=round(report.seconds, 4), **fields)


def failed(operation: str, error: Exception, log: bool = True, **fields: Any) -> None:
    """A refresh, rebuild or verify that ended in an error; one that may succeed when tried again is a warning."""
    _count(lambda counts: counts.failed(operation))
    if log:
        level = logging.WARNING if getattr(error, "transient", False) else logging.ERROR
        _log(level, operation, failed=logs.in_one_line(error), **fields)


@contextmanager
def failures_noted(operation: str, log: bool = True, **fields: Any) -> Iterator[None]:
    """Reports an error on its way to whoever handles it."""
    try:
        yield
    except Exception as error:
        failed(operation, error, log, **fields)
        raise


def _span(days: list[str]) -> list[str] | str:
    """The days, or of many the first and the last."""
    return days if len(days) <= 3 else f"{days[0]}..{days[-1]}"


def _count(add: "Callable[[Counts], None]") -> None:
    """Counts, if the files can be written; if not, says so once per process."""
    try:
        from calc_analytics.telemetry import metrics

        add(metrics.counts())
    except Exception as error:
        _say_once(f"nothing is counted for /metrics: {type(error).__name__}: {error}")


@lru_cache
def _say_once(what: str) -> None:
    _log(logging.WARNING, "telemetry", failed=what)


def _log(level: int, event: str, **fields: Any) -> None:
    with suppress(Exception):
        logs.line(level, event, **fields)
