"""Retries of transient errors, for transactions that may be repeated."""

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from calc_analytics.database.errors import NoAnswer
from calc_analytics.errors import CalcAnalyticsError

T = TypeVar("T")
# Pauses of about 0.1, 0.2, 0.4 and 0.8 seconds: a lost connection, a deadlock or a restart is over by then. What takes
# longer is an error, which Dagster's own policies retry.
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.1


def retry_transient(work: Callable[[], T]) -> T:
    """What `work` returns; after a transient error it is called again, with exponential pauses and jitter.

    A dropped connection leaves the commit's outcome unknown, so `work` must be one transaction that may be repeated.
    """
    attempts = Retrying(
        retry=retry_if_exception(_is_worth_repeating),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=FIRST_PAUSE_SECONDS) + wait_random(0, FIRST_PAUSE_SECONDS),
        reraise=True,
    )
    return attempts(work)


def _is_worth_repeating(error: BaseException) -> bool:
    return isinstance(error, CalcAnalyticsError) and error.transient and not isinstance(error, NoAnswer)
