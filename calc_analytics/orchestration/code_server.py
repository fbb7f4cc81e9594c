"""Dagster's code server, told by SIGTERM to let a streaming tick end at once.

`calc-analytics up` starts it as `python -m calc_analytics.orchestration.code_server --port N`; the arguments are those
of `dagster api grpc`. Dagster waits for calls in flight when it stops, and a tick may have seconds left.
"""

import signal
import sys
from types import FrameType

from dagster._cli import cli

from calc_analytics.orchestration.sensors import stopping


def _stop(signum: int, frame: FrameType | None) -> None:
    stopping.set()
    signal.default_int_handler(signum, frame)


def main() -> None:
    """Installs the handler (Dagster maps SIGTERM to the handler of SIGINT) and serves."""
    signal.signal(signal.SIGINT, _stop)
    cli(["api", "grpc", "--module-name", "calc_analytics.definitions", *sys.argv[1:]])


if __name__ == "__main__":
    main()
