"""Dagster's code server, with graceful SIGTERM handling, and able to outlast a database that is away for a while.

`calc-analytics up` starts it as `python -m calc_analytics.orchestration.code_server --port N`; the arguments are those
of `dagster api grpc`. On SIGTERM Dagster waits for calls and runs in flight, however long they take. Here a streaming
tick ends immediately; runs get a few seconds and are then killed, which rolls back their transactions.
"""

import functools
import logging
import multiprocessing
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from calc_analytics.orchestration.dagster_internals import wrap_check_for_orphaned_runs
from calc_analytics.orchestration.sensors import stopping

GRACE_SECONDS = 2.0


def main() -> None:
    """Installs the handler (Dagster maps SIGTERM to the handler of SIGINT) and serves, as `python -m dagster` does."""
    signal.signal(signal.SIGINT, _stop)
    # Without this the thread that looks for orphaned runs ends with the first database error, and such runs never end.
    wrap_check_for_orphaned_runs(log_errors)
    sys.argv[1:1] = ["api", "grpc", "--module-name", "calc_analytics.definitions"]
    runpy.run_module("dagster", run_name="__main__")


def _stop(signum: int, frame: FrameType | None) -> None:
    stopping.set()
    killing = threading.Timer(GRACE_SECONDS, _kill_run_workers)
    killing.daemon = True
    killing.start()
    signal.default_int_handler(signum, frame)


def _kill_run_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def log_errors(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """The check with its errors logged instead of raised; Dagster's thread calls it twice a second."""

    @functools.wraps(check)
    def checked(server: Any) -> None:
        try:
            check(server)
        except Exception as error:
            logging.getLogger("dagster.code_server").error(
                f"cannot look for orphaned runs at the moment ({type(error).__name__})"
            )

    return checked


if __name__ == "__main__":
    main()
