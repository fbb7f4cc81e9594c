"""Serves the HTTP service with uvicorn, in the foreground, until SIGINT or SIGTERM."""

import logging

import uvicorn

from calc_analytics import logs
from calc_analytics.config import Settings
from calc_analytics.operations.http import Service

# A trigger that still runs gets that long; `up` waits a little longer before it kills.
SHUTDOWN_SECONDS = 3
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(settings: Settings, host: str, port: int, ui_port: int | None = None) -> None:
    """Returns after SIGINT or SIGTERM. `ui_port`: that of Dagster's UI on this machine, if it is known."""
    _log_in_our_format()
    if settings.enable_test_endpoints and settings.trigger_token is None and host not in LOCAL:
        logs.log(
            logging.WARNING, "serve", warning=f"every client that reaches {host} may trigger: set ROLLUP_TRIGGER_TOKEN"
        )
    logs.log(logging.INFO, "serve", url=f"http://{host}:{port}", trigger=settings.enable_test_endpoints)
    uvicorn.run(
        Service(settings, ui_port=ui_port).app(),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def _log_in_our_format() -> None:
    """uvicorn's errors, a bug's stack trace among them, become lines of ours; what else it says is left out."""
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], False
        logger.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addHandler(logs.handler)
