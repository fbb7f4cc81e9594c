"""The commands that run until they are stopped: `up`, `demo`, `simulate`, `serve`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from calc_analytics.cli import terminal
from calc_analytics.cli.opening import make_ready, open_database
from calc_analytics.cli.options import SERVICE_PORT, Finite, as_json, port_option, service_port_option, ui_port_option
from calc_analytics.cli.schema import print_place
from calc_analytics.cli.terminal import print_report
from calc_analytics.config import Settings, redact_url
from calc_analytics.database.dagster_tables import require_room
from calc_analytics.database.embedded import data_folder, writable
from calc_analytics.database.engine import dagster_url, database_url, ensure_database
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.plurals import number
from calc_analytics.processes.supervisor import Supervisor, claim
from calc_analytics.rollup import install
from calc_analytics.rollups import chosen_log

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@ui_port_option
@service_port_option
def up(ui_port: int, service_port: int) -> None:
    """Run everything in the foreground: database, migrations, code server, webserver, daemon, HTTP service.

    Ctrl-C or SIGTERM stops all of it. Logs are in .calc_analytics/logs/.
    """
    settings = Settings.from_environment()
    claim(ui_port, service_port)
    stop = _stop_on_signals(insisting=False)
    with _running(settings, ui_port, service_port, stop) as supervisor:
        while not stop.wait(0.5):
            _watch(supervisor)


@click.command()
@ui_port_option
@service_port_option
@click.option("--rate", default=100.0, show_default=True, type=Finite(min=0.1), help="Live rows per second.")
@click.option(
    "--days",
    "history",
    default=30,
    show_default=True,
    type=click.IntRange(1, 365),
    help="Days of history to write first.",
)
@click.option("--seconds", type=Finite(min=1), help="Stop after that long. Default: until Ctrl-C.")
def demo(ui_port: int, service_port: int, rate: float, history: int, seconds: float | None) -> None:
    """See it work: history, live batches, and a table of today's totals that grows.

    Always on the embedded PostgreSQL, never on DATABASE_URL. The Dagster UI shows the same figures.
    """
    from calc_analytics.processes import demo as demonstration

    settings = Settings.from_environment()
    if not settings.embedded:
        raise CalcAnalyticsError(
            "demo writes made-up rows: unset DATABASE_URL, so that it uses the embedded PostgreSQL"
        )
    claim(ui_port, service_port)
    stop = _stop_on_signals(insisting=False)
    _prepare(settings, stop)
    missing = demonstration.missing_history(settings, history)
    with terminal.bar("writing history", len(missing) * demonstration.ROWS_PER_DAY) as advance:
        demonstration.write_days(settings, missing, stop, advance)
    with _running(settings, ui_port, service_port, stop) as supervisor:
        with terminal.live_table() as draw:
            for frame in demonstration.live(settings, rate, seconds, stop):
                _watch(supervisor)
                draw(*frame)


@contextmanager
def _running(settings: Settings, ui_port: int, service_port: int, stop: threading.Event) -> Iterator[Supervisor]:
    """A context in which everything runs; says where it is, and stops it all at the end."""
    _prepare(settings, stop)
    click.echo(f"database  {redact_url(database_url(settings))}")
    if (spare := writable(data_folder())) != data_folder():
        click.echo(f"logs      {spare}, since the project folder cannot be written to")
    click.echo("starting Dagster, which takes about ten seconds")
    supervisor = Supervisor(ui_port, service_port, stop)
    try:
        supervisor.start()
        click.echo(f"page      http://127.0.0.1:{service_port}")
        click.echo(f"service   http://127.0.0.1:{service_port}/health/rollup")
        click.echo(f"Dagster   http://127.0.0.1:{ui_port}   (Ctrl-C stops everything)")
        yield supervisor
    finally:
        click.echo("stopping")
        supervisor.stop()


def _prepare(settings: Settings, stop: threading.Event) -> None:
    """Both databases with everything in them. A signal ends a migration that waits for its turn, but not the start
    of the embedded server, half of which would be left running."""
    database_url(settings)
    with _ending_at_once(stop):
        install.require_usable(make_ready(settings, report=None if settings.embedded else print_place))
        ensure_database(dagster_url(settings))
        require_room(dagster_url(settings))


def _watch(supervisor: Supervisor) -> None:
    for line in supervisor.watch():
        click.echo(line, err=True)


@click.command()
@click.option(
    "--rate",
    default=200.0,
    show_default=True,
    type=Finite(min=0.1),
    help="Rows per second, all writers together.",
)
@click.option("--writers", default=4, show_default=True, type=click.IntRange(1, 64), help="Concurrent writers.")
@click.option("--seconds", type=Finite(min=0), help="Stop after that long. Default: until Ctrl-C.")
@click.option("--rows", type=click.IntRange(min=1), help="Stop after about that many rows.")
@click.option(
    "--late-share",
    default=0.005,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of rows up to two days late.",
)
@click.option("--rhythm", is_flag=True, help="Let the rate follow the time of day (UTC); --rate is then the mean.")
@click.option("--seed", type=int, help="Makes publishers, sources and times repeatable.")
@as_json
def simulate(
    rate: float,
    writers: int,
    seconds: float | None,
    rows: int | None,
    late_share: float,
    rhythm: bool,
    seed: int | None,
    as_json: bool,
) -> None:
    """Write log batches as the API does: COPY, 100 rows or 1 s per batch, several writers.

    200 publishers (Zipf), about 60 % cache hits, some null response times, some late rows. On the embedded database,
    or on DATABASE_URL: the rows are made up, so do not point it at production.
    """
    from calc_analytics.processes.simulate import Traffic, simulate

    settings = Settings.from_environment()
    open_database(settings)
    traffic = Traffic(rate=rate, writers=writers, late_share=late_share, rhythm=rhythm, seed=seed)
    total = rows or (round(rate * seconds) if seconds else None)
    with terminal.bar("writing rows", total) as advance:
        report = simulate(
            database_url(settings), traffic, seconds=seconds, rows=rows, stop=_stop_on_signals(), progress=advance
        )
    print_report(
        report,
        as_json,
        lambda r: click.echo(
            f"{number(r.rows, 'row')} in {number(r.batches, 'batch')}, {r.rows / max(r.seconds, 0.001):,.0f} rows/s"
        ),
    )


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@port_option("--port", SERVICE_PORT, "Port to listen on.")
@click.option("--ui-port", type=click.IntRange(1, 65535), help="Port of Dagster's UI here, for the page's link to it.")
def serve(host: str, port: int, ui_port: int | None) -> None:
    """Serve the page, /health/rollup, /health/live, /metrics and the manual trigger, in the foreground.

    `up` does this too. It starts, and stays up, while the database and Dagster are down, and says so with status 503.
    """
    from calc_analytics.operations.server import serve as serve_http

    settings = Settings.from_environment()
    chosen_log(settings.rollups)  # an unknown name is an error now, not of every probe
    serve_http(settings, host, port, ui_port)


def _stop_on_signals(insisting: bool = True) -> threading.Event:
    """An event that SIGINT, SIGTERM and SIGHUP set; a second signal is the default again if that is `insisting`."""
    stop = threading.Event()

    def handle(number: int, frame: Any) -> None:
        stop.set()
        if insisting:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for each in STOP_SIGNALS:
        signal.signal(each, handle)
    return stop


@contextmanager
def _ending_at_once(stop: threading.Event) -> Iterator[None]:
    """Within it a signal that stops, or one that came before, ends the command wherever it is, with exit code 0."""

    def end(number: int, frame: Any) -> None:
        stop.set()
        raise SystemExit(0)

    handlers = [signal.signal(number, end) for number in STOP_SIGNALS]
    try:
        if stop.is_set():
            raise SystemExit(0)
        yield
    finally:
        for each, handler in zip(STOP_SIGNALS, handlers, strict=True):
            signal.signal(each, handler)
