"""`calc-analytics serve`: the HTTP service alone, as `up` starts it."""

import click

from calc_analytics.config import Settings


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
def serve(host: str, port: int) -> None:
    """Serve /health/rollup, /health/live, /metrics and the manual trigger, in the foreground.

    `up` does this too. It starts, and stays up, while the database and Dagster are down, and says so with status 503.
    """
    from calc_analytics.service.server import serve as serve_http

    serve_http(Settings.from_environment(), host, port)
