"""`calc-analytics`: the one command. Each subcommand reads the settings, calls the domain and prints its report.

Errors a user can fix are one line on standard error and exit code 1; wrong usage is exit code 2. A report with
`--json` is one JSON object on standard output.
"""

import math
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import click

from calc_analytics import __version__, days, terminal
from calc_analytics.commands import COMMANDS
from calc_analytics.commands.counting import refresh_with_progress
from calc_analytics.commands.opening import make_ready, open_database
from calc_analytics.commands.options import SERVICE_PORT, UI_PORT, as_json, port_option
from calc_analytics.config import Settings, redact_url
from calc_analytics.database.dagster_tables import require_room
from calc_analytics.database.embedded import data_folder, writable
from calc_analytics.database.engine import dagster_url, database_url, ensure_database
from calc_analytics.database.schemas import Place
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.plurals import number
from calc_analytics.rollup import install, ledger, retention, status
from calc_analytics.rollup.database import Database
from calc_analytics.supervisor import Supervisor, claim
from calc_analytics.terminal import print_report

ui_port_option = port_option("--ui-port", UI_PORT, "Port of the Dagster UI on 127.0.0.1.")
service_port_option = port_option(
    "--service-port", SERVICE_PORT, "Port of the HTTP service (health, metrics, trigger) on 127.0.0.1."
)


class Finite(click.FloatRange):
    """A number that is one: `nan` and `inf` are not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class OneLineErrors(click.Group):
    """Turns the project's errors into one line and exit code 1; Ctrl-C into exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the subcommand."""
        try:
            return super().invoke(ctx)
        except CalcAnalyticsError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except Exception as error:
            click.echo(f"error: internal error: {type(error).__name__}: {error} ({_note(error)})", err=True)
            sys.exit(1)


def _note(error: Exception) -> str:
    """Where the stack trace of an error went that nobody foresaw."""
    log = writable(data_folder()) / "logs" / "cli.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            file.writelines(traceback.format_exception(error))
    except OSError as refused:
        return f"details could not be written to {log}: {refused.strerror}"
    return f"details in {log}"


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Daily statistics of calculation_logs that equal the log, exactly, and prove it.

    \b
    Try it:          calc-analytics demo
    Your database:   export DATABASE_URL=postgresql://user:password@host/database
                     calc-analytics migrate && calc-analytics up
    Build history:   calc-analytics rollup --from 2026-01-01
    Prove it:        calc-analytics verify
    What changed:    calc-analytics history

    Without DATABASE_URL an embedded PostgreSQL is used; its data is in .calc_analytics/ of the project folder.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@main.command()
def migrate() -> None:
    """Create the tables, or adopt the API's; keep the rollups that ROLLUPS names. Prints what became of each table.

    Safe to repeat and safe while the API writes: every row of every table stays, writers are not blocked. Old
    databases get city_id renamed to locality_id. The role must own calculation_logs. Tables are found, and created, by
    its search_path.
    """
    settings = Settings.from_environment()
    places: list[Place] = []
    db = make_ready(settings, always=True, report=places.append)
    zone = ledger.stored_timezone(db)
    click.echo(f"ready: {redact_url(db.engine.url)}, days in {zone}")
    click.echo(f"rollups: {', '.join(db.log.names)}")
    for place in places:
        _say_place(place)
    if _is_to_be_rebased(db):
        click.echo(f"{db.log.name} is not what was counted: run 'calc-analytics rebase', then 'calc-analytics rollup'")
    elif waiting := ledger.waiting_days(db):
        click.echo(f"{_wait(waiting)}: run 'calc-analytics rollup'")
    if zone != settings.timezone:
        click.echo(f"ROLLUP_TIMEZONE is {settings.timezone}: set it to {zone}, or run 'calc-analytics rebase'")


def _is_to_be_rebased(db: Database) -> bool:
    """Whether the log is another table, or another cluster's, than was counted."""
    try:
        status.refreshed(db)
    except (ledger.ClusterChanged, ledger.LogReplaced):
        return True
    except CalcAnalyticsError:
        return False
    return False


def _say_place(place: Place) -> None:
    click.echo(f"  {place.line}")


def _wait(waiting: Sequence[date]) -> str:
    """'1 day waits', '2 days wait'."""
    return f"{number(len(waiting), 'day')} {'waits' if len(waiting) == 1 else 'wait'} for a rebuild"


@main.command()
@click.option(
    "--older-than",
    "keep_days",
    metavar="DAYS",
    required=True,
    type=click.IntRange(0, 100_000),
    help="Keep the logs of today and of so many days before it.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def prune(keep_days: int, yes: bool, as_json: bool) -> None:
    """Delete old raw logs whose days are counted in every rollup, and only those. Their statistics stay.

    In small batches, beside writers; may be stopped and repeated. Days that were never built, or that differ from their
    logs, keep their logs. Of a pruned day late rows still add to its statistics, `verify` compares its totals and a
    checksum, and `rollup` refuses to lower it. The role needs the right to delete from calculation_logs.
    """
    settings = Settings.from_environment()
    db, before = open_database(settings), days.today(settings.timezone) - timedelta(days=keep_days)
    refresh_with_progress(db)
    there = retention.prunable(db, before)
    rows, of_days = number(sum(there.values()), "counted log row"), number(len(there), "day")
    if there and not yes:
        click.confirm(f"Delete {rows} of {of_days} before {before} for good?", abort=True)
    with terminal.bar("deleting log rows", sum(there.values())) as advance:
        report = retention.prune(db, before, progress=advance)
    print_report(report, as_json, terminal.show_prune)


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def rebase(yes: bool) -> None:
    """Start counting afresh after a restore into another cluster, in another log table, or for a new ROLLUP_TIMEZONE.

    Statistics stay until each day is rebuilt; `rollup` without options then rebuilds them. Logs are not touched,
    except that their transaction ids are forgotten (in an instant: the column is dropped and added).
    """
    settings = Settings.from_environment()
    if not yes:
        click.confirm("Mark every built day for a rebuild?", abort=True)
    db = open_database(settings)
    install.rebase(db)
    click.echo(f"{_wait(ledger.waiting_days(db))}: run 'calc-analytics rollup'")


@main.command()
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
    from calc_analytics.simulate import Traffic, simulate

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


@main.command()
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


@main.command()
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
    from calc_analytics import demo as demonstration

    settings = Settings.from_environment()
    if not settings.embedded:
        raise CalcAnalyticsError(
            "demo writes made-up rows: unset DATABASE_URL, so that it uses the embedded PostgreSQL"
        )
    claim(ui_port, service_port)
    stop = _stop_on_signals(insisting=False)
    _prepare(settings, stop)
    demonstration.history(settings, history, stop)
    with _running(settings, ui_port, service_port, stop) as supervisor:
        demonstration.live(settings, rate, seconds, stop, lambda: _watch(supervisor))


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
        install.require_usable(make_ready(settings, report=None if settings.embedded else _say_place))
        ensure_database(dagster_url(settings))
        require_room(dagster_url(settings))


def _watch(supervisor: Supervisor) -> None:
    for line in supervisor.watch():
        click.echo(line, err=True)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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


for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main()
