"""How commands get the settings and the database: the only module of `cli/` that makes a `Database`."""

import functools
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click
from sqlalchemy import event
from sqlalchemy.engine import Engine

from calc_analytics import logs
from calc_analytics.config import Settings, misspelled, process_settings
from calc_analytics.database.create import ensure_database
from calc_analytics.database.engine import database_url, engine_for
from calc_analytics.database.locks import lock_wait
from calc_analytics.database.schemas import Place
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup import install
from calc_analytics.rollup.database import Database
from calc_analytics.rollups import LOG, database

# A statement that waits longer for a lock is reported. This is also the interval of the look.
LOCK_WAIT_SECONDS = 3.0


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Reads the settings, once for the process, sets up its log lines, and passes the settings as first argument."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        settings = process_settings()
        logs.configure(settings.log_format, settings.log_level)
        for name, known in misspelled().items():
            click.echo(f"warning: the variable {name} is not a setting: did you mean {known}?", err=True)
        return command(settings, *arguments, **options)

    return run


def open_database(settings: Settings, every_rollup: bool = False) -> Database:
    """The database with the rollups of the settings, or with every declared one. Installs the embedded one if needed.

    Only `migrate`, `up` and `demo` change which rollups are kept: operations refuse a database that keeps others.
    """
    db = _connected(settings)
    if settings.embedded:
        ensure_database(db.engine.url)
        if not install.is_installed(db, with_these_rollups=False):
            install.install(db, settings.start_date)
    return replace(db, log=LOG) if every_rollup else db


def make_ready(settings: Settings, always: bool = False, report: Callable[[Place], object] | None = None) -> Database:
    """The database, created and installed with the rollups of the settings. `report` gets each table.

    What is installed already is left alone, and needs no right to create anything, unless `always`.
    """
    db = _connected(settings)
    ensure_database(db.engine.url)
    if always or not install.is_installed(db):
        for place in install.install(db, settings.start_date):
            if report is not None:
                report(place)
    return db


def _connected(settings: Settings) -> Database:
    db = database(engine_for(database_url(settings)), settings)
    if (context := click.get_current_context(silent=True)) is not None:
        context.call_on_close(db.engine.dispose)
        context.call_on_close(_report_lock_waits(db.engine))
    return db


def _report_lock_waits(engine: Engine) -> Callable[[], None]:
    """Prints a line on standard error when a statement waits for a lock. Returns the function that ends this.

    Behind a pooler nothing is printed: process ids are the pooler's own there.
    """
    pids: set[int] = set()
    stop = threading.Event()

    def note_pid(connection: Any, record: Any) -> None:
        if record.info.get("is_direct"):
            pids.add(connection.info.backend_pid)

    def watch() -> None:
        reported = None
        while not stop.wait(LOCK_WAIT_SECONDS):
            if pids and engine.pool.checkedout():  # type: ignore[attr-defined]
                with suppress(CalcAnalyticsError):
                    found = lock_wait(engine, pids)
                    if found is not None and found != reported:
                        click.echo(found.describe(), err=True)
                    reported = found

    event.listen(engine, "connect", note_pid)
    threading.Thread(target=watch, name="lock waits", daemon=True).start()
    return stop.set
