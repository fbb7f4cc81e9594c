"""The commands that run until they are stopped: `up`, `demo`, `simulate`, `serve`."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import click

from calc_analytics.cli import terminal
from calc_analytics.cli.opening import make_ready, open_database, with_settings
from calc_analytics.cli.options import (
    SERVICE_PORT,
    FiniteRange,
    Integer,
    IntegerRange,
    as_json,
    host_option,
    port_option,
    service_port_option,
    ui_port_option,
)
from calc_analytics.cli.schema import print_place
from calc_analytics.cli.terminal import print_report
from calc_analytics.config import Settings, redact_url
from calc_analytics.database.create import ensure_database
from calc_analytics.database.dagster_tables import require_room
from calc_analytics.database.embedded import data_folder, writable
from calc_analytics.database.engine import dagster_url, database_url
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.plurals import number
from calc_analytics.processes.supervisor import Supervisor, claim, require_free
from calc_analytics.rollup import install
from calc_analytics.rollup.database import Database
from calc_analytics.rollups import chosen_log

Command = TypeVar("Command", bound=Callable[..., Any])
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _rate_option(default: float, meaning: str, most: float | None = None) -> Callable[[Command], Command]:
    return click.option("--rate", default=default, show_default=True, type=FiniteRange(0.1, most), help=meaning)


@click.command()
@ui_port_option
@service_port_option
@with_settings
def up(settings: Settings, ui_port: int, service_port: int) -> None:
    """Run everything in the foreground.

    Databases, migrations, Dagster's processes, and the HTTP service. Prints the addresses of the Dagster UI and
    of the service. A process that dies is started again. Ctrl-C or SIGTERM stops all of it within ten seconds.
    The output of each process is in .calc_analytics/logs/.

    \b
    Changes:     creates missing databases and tables, then counts new log rows
                 continuously
    Example:     calc-analytics up --ui-port 3001
    Exit codes:  0 stopped; 1 could not start, the line on standard error says
                 why
    """
    claim(ui_port, service_port)
    stop = _stop_on_signals(insisting=False)
    _prepare(settings, stop).engine.dispose()
    with _running(settings, ui_port, service_port, stop) as supervisor:
        while not stop.wait(0.5):
            _watch(supervisor)


@click.command()
@ui_port_option
@service_port_option
@_rate_option(1.0, "Mean log rows per second, live and in the history, which takes that much longer to write.", 10)
@click.option(
    "--days",
    "history",
    default=30,
    show_default=True,
    type=IntegerRange(1, 365),
    help="Days of history to write first.",
)
@click.option("--seconds", type=FiniteRange(min=1), help="Stop after this many seconds. Default: until Ctrl-C.")
@with_settings
def demo(settings: Settings, ui_port: int, service_port: int, rate: float, history: int, seconds: float | None) -> None:
    """Show the project at work, with made-up data.

    A history (`--days`), live batches, and a table of totals that grows. Uses the embedded PostgreSQL only, and
    refuses to start while DATABASE_URL is set. The Dagster UI shows the same figures. Ctrl-C stops it; the next
    `demo` continues with the same data.

    \b
    Changes:     writes made-up log rows to the embedded database in
                 .calc_analytics/
    Example:     calc-analytics demo --days 90 --rate 2
    Exit codes:  0 stopped; 1 could not start, the line on standard error says
                 why
    """
    from calc_analytics.processes import demo as demonstration

    if not settings.embedded:
        raise CalcAnalyticsError(
            "demo writes made-up rows: unset DATABASE_URL, so that it uses the embedded PostgreSQL"
        )
    claim(ui_port, service_port)
    stop = _stop_on_signals(insisting=False)
    db = _prepare(settings, stop)
    missing = demonstration.missing_history(db, history)
    total = sum(demonstration.rows_of(day, rate, settings.timezone) for day in missing)
    with terminal.bar("writing history", total) as advance:
        demonstration.write_days(db, missing, rate, stop, advance)
    settings = replace(settings, start_date=demonstration.first_partition(db, settings))
    with _running(settings, ui_port, service_port, stop) as supervisor:
        with terminal.live_table() as draw:
            for frame in demonstration.live(db, rate, seconds, stop):
                _watch(supervisor)
                draw(*frame)


@contextmanager
def _running(settings: Settings, ui_port: int, service_port: int, stop: threading.Event) -> Iterator[Supervisor]:
    """Starts everything, prints the addresses, and stops everything at the end."""
    click.echo(f"database  {redact_url(database_url(settings))}")
    if (spare := writable(data_folder())) != data_folder():
        click.echo(f"logs      {spare}, since the project folder cannot be written to")
    click.echo("starting Dagster: about ten seconds")
    supervisor = Supervisor(ui_port, service_port, stop, start_date=settings.start_date)
    try:
        supervisor.start()
        click.echo(f"page      http://127.0.0.1:{service_port}")
        click.echo(f"service   http://127.0.0.1:{service_port}/health/rollup")
        click.echo(f"Dagster   http://127.0.0.1:{ui_port}   (Ctrl-C stops everything)")
        yield supervisor
    finally:
        click.echo("stopping")
        supervisor.stop()


def _prepare(settings: Settings, stop: threading.Event) -> Database:
    """Creates and installs both databases; returns the one with the log.

    A signal ends a migration that waits for a lock, but not the start of the embedded server, half of which would be
    left running.
    """
    database_url(settings)
    with _ending_immediately(stop):
        db = make_ready(settings, report=None if settings.embedded else print_place)
        install.require_usable(db)
        ensure_database(dagster_url(settings))
        require_room(dagster_url(settings))
    return db


def _watch(supervisor: Supervisor) -> None:
    for line in supervisor.watch():
        click.echo(line, err=True)


@click.command()
@_rate_option(200.0, "Rows per second, all writers together.")
@click.option("--writers", default=4, show_default=True, type=IntegerRange(1, 64), help="Concurrent writers.")
@click.option("--seconds", type=FiniteRange(min=0), help="Stop after this many seconds. Default: until Ctrl-C.")
@click.option("--rows", type=IntegerRange(min=1), help="Stop after about that many rows.")
@click.option(
    "--late-share",
    default=0.005,
    show_default=True,
    type=FiniteRange(0, 1),
    help="Share of rows up to two days late.",
)
@click.option("--rhythm", is_flag=True, help="Vary the rate with the time of day (UTC); --rate is the mean.")
@click.option("--seed", type=Integer(), help="Seed of the random numbers, for the same rows every time.")
@as_json
@with_settings
def simulate(
    settings: Settings,
    rate: float,
    writers: int,
    seconds: float | None,
    rows: int | None,
    late_share: float,
    rhythm: bool,
    seed: int | None,
    as_json: bool,
) -> None:
    """Write made-up log rows, as the API does.

    By COPY, in batches of 100 rows or one second, from several writers. 200 publishers (Zipf), about 60 % cache
    hits, some response times null, some rows up to two days late. Ctrl-C ends it after the current batches.

    \b
    Changes:     inserts into calculation_logs of DATABASE_URL, or of the
                 embedded database: never use it on production
    Example:     calc-analytics simulate --rate 500 --seconds 60
    Exit codes:  0 done; 1 the database refused; batches committed before stay
    """
    from calc_analytics.processes.simulate import Traffic, simulate

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
@host_option
@port_option("--port", SERVICE_PORT, "Port to listen on.")
@click.option("--ui-port", type=click.IntRange(1, 65535), help="Port of Dagster's UI here, for the page's link to it.")
@with_settings
def serve(settings: Settings, host: str, port: int, ui_port: int | None) -> None:
    """Serve the page, health, metrics, reports and the manual trigger over HTTP, and post alerts.

    GET / (the page), /health/rollup, /health/live, /metrics and /report (if REPORT_TOKEN is set), in the
    foreground. `up` runs it too. It starts, and keeps running, while the database and Dagster are down, and then
    answers with status 503. Ctrl-C or SIGTERM stops it.

    \b
    Changes:     nothing in the database, except when a client posts to the
                 manual trigger (ENABLE_TEST_ENDPOINTS); posts alerts to
                 ALERT_WEBHOOK_URL, if it is set
    Example:     calc-analytics serve --host 0.0.0.0 --port 8080
    Exit codes:  0 stopped; 1 a setting is wrong, or the port is taken
    """
    from calc_analytics.operations.server import serve as serve_http

    chosen_log(settings.rollups)  # raises for an unknown name, which else every probe would report
    require_free(port, "--port", host)
    serve_http(settings, host, port, ui_port)


def _stop_on_signals(insisting: bool = True) -> threading.Event:
    """An event that SIGINT, SIGTERM and SIGHUP set. With `insisting`, a second signal has its default effect."""
    stop = threading.Event()

    def handle(number: int, frame: Any) -> None:
        stop.set()
        if insisting:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for each in STOP_SIGNALS:
        signal.signal(each, handle)
    return stop


@contextmanager
def _ending_immediately(stop: threading.Event) -> Iterator[None]:
    """Inside, a stop signal (or one received before) ends the command immediately, with exit code 0."""

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
