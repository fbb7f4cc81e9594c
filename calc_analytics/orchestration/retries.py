"""Retries: transient database errors only, with exponential backoff and jitter."""

from collections.abc import Iterator
from contextlib import contextmanager

from dagster import Backoff, DagsterExecutionInterruptedError, Failure, Jitter, RetryPolicy

from calc_analytics.errors import CalcAnalyticsError

TRANSIENT_ERRORS = RetryPolicy(max_retries=4, delay=1, backoff=Backoff.EXPONENTIAL, jitter=Jitter.PLUS_MINUS)


@contextmanager
def as_dagster_failure() -> Iterator[None]:
    """Turns errors into a Dagster `Failure` with one line; only a transient one may be retried by the policy."""
    try:
        yield
    except Failure:
        raise
    except DagsterExecutionInterruptedError:
        # Dagster would retry an interrupt: a run that was terminated in the UI would continue.
        raise Failure(description="interrupted", allow_retries=False) from None
    except CalcAnalyticsError as error:
        raise Failure(description=str(error), allow_retries=error.transient) from None
    except Exception as error:
        raise Failure(description=f"internal error: {type(error).__name__}: {error}", allow_retries=False) from error
