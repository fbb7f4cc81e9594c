"""`calc-analytics serve`: the HTTP service alone, as `up` starts it."""

import click

from calc_analytics.commands.options import SERVICE_PORT, port_option
from calc_analytics.config import Settings
from calc_analytics.rollups import chosen_log


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@port_option("--port", SERVICE_PORT, "Port to listen on.")
def serve(host: str, port: int) -> None:
    """Serve /health/rollup, /health/live, /metrics and the manual trigger, in the foreground.

    `up` does this too. It starts, and stays up, while the database and Dagster are down, and says so with status 503.
    """
    from calc_analytics.service.server import serve as serve_http

    settings = Settings.from_environment()
    chosen_log(settings.rollups)  # an unknown name is an error now, not of every probe
    serve_http(settings, host, port)
