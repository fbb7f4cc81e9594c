"""Dagster's code server, with graceful SIGTERM handling, and able to outlast a database that is away for a while.

`calc-analytics up` starts it as `python -m calc_analytics.orchestration.code_server --port N`; the arguments are those
of `dagster api grpc`. Told to stop, Dagster waits for calls and runs in flight however long they take: here a
streaming tick ends at once, and a run gets a few seconds and is then killed (its transaction is rolled back).
"""

import functools
import logging
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from dagster._cli import cli
from dagster._grpc.server import DagsterApiServer

from calc_analytics.orchestration.sensors import stopping

RUNS_MAY_END_SECONDS = 2.0


def main() -> None:
    """Installs the handler (Dagster maps SIGTERM to the handler of SIGINT) and serves."""
    signal.signal(signal.SIGINT, _stop)
    # Dagster's watch over run workers would end with the first database error, and their runs would never end.
    DagsterApiServer._check_for_orphaned_runs = _tried_again(  # type: ignore[assignment]
        DagsterApiServer._check_for_orphaned_runs
    )
    cli(["api", "grpc", "--module-name", "calc_analytics.definitions", *sys.argv[1:]])


def _stop(signum: int, frame: FrameType | None) -> None:
    stopping.set()
    patience = threading.Timer(RUNS_MAY_END_SECONDS, _kill_run_workers)
    patience.daemon = True
    patience.start()
    signal.default_int_handler(signum, frame)


def _kill_run_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def _tried_again(check: Callable[[DagsterApiServer], None]) -> Callable[[DagsterApiServer], None]:
    """The check, an error of which is logged; Dagster's thread calls it twice a second anyway."""

    @functools.wraps(check)
    def checked(server: DagsterApiServer) -> None:
        try:
            check(server)
        except Exception as error:
            logging.getLogger("dagster.code_server").error(
                f"cannot look after run workers at the moment ({type(error).__name__})"
            )

    return checked


if __name__ == "__main__":
    main()
