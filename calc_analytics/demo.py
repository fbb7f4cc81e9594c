"""`calc-analytics demo`: the whole picture in a minute: history, live batches, and a table that grows."""

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import date, timedelta
from typing import Any

from calc_analytics import days, terminal
from calc_analytics.config import Settings
from calc_analytics.database.engine import create_engine, database_url
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.figures import day_totals
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import database
from calc_analytics.simulate import SimulationReport, Traffic, simulate, write_history

SHOWN_DAYS = 5
ROWS_PER_DAY = 5_000
REDRAW_SECONDS = 1.0
VERIFY_EVERY_SECONDS = 5.0


def history(settings: Settings, count: int, stop: threading.Event) -> None:
    """Writes the days before today, each counted at once; a second demo finds them and goes on."""
    db, today = database(create_engine(settings), settings), days.today(settings.timezone)
    past = days.days_between(today - timedelta(days=count), today)
    there = day_totals(db, db.log.rollups[0], past)
    missing = [day for day in past if day not in there]
    traffic = Traffic(rate=1, writers=1)
    with terminal.bar("writing history", len(missing) * ROWS_PER_DAY) as advance:
        for day in missing:
            if stop.is_set():
                return
            write_history(database_url(settings), [day], ROWS_PER_DAY, traffic, settings.timezone, progress=advance)
            rebuild(db, [day])


def live(settings: Settings, rate: float, seconds: float | None, stop: threading.Event, watch: Any) -> None:
    """Writes batches in the background and redraws the table until `seconds` have passed or `stop` is set."""
    finished = threading.Event()
    writer = _Writer(settings, rate, finished)
    writer.start()
    try:
        _draw(settings, writer, seconds, stop, watch)
    finally:
        finished.set()
        writer.join()


class _Writer(threading.Thread):
    """The simulated API; keeps the number of rows written, and its error if it had to give up."""

    def __init__(self, settings: Settings, rate: float, stop: threading.Event) -> None:
        super().__init__(name="simulated-api", daemon=True)
        self.settings, self.rate, self.stop = settings, rate, stop
        self.rows = 0
        self.error: Exception | None = None
        self.report: SimulationReport | None = None

    def run(self) -> None:
        """Writes until `stop` is set."""
        traffic = Traffic(rate=self.rate, writers=4)
        try:
            self.report = simulate(database_url(self.settings), traffic, stop=self.stop, progress=self._count)
        except Exception as error:
            self.error = error

    def _count(self, rows: int) -> None:
        self.rows += rows


def _draw(settings: Settings, writer: _Writer, seconds: float | None, stop: threading.Event, watch: Any) -> None:
    from rich.console import Console
    from rich.live import Live

    console, db = Console(), database(create_engine(settings), settings)
    shown, proof = db.log.rollups[0], _Proof(db)
    deadline = time.monotonic() + seconds if seconds else None
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as screen:
        while not stop.wait(REDRAW_SECONDS) and (deadline is None or time.monotonic() < deadline):
            if writer.error:
                raise writer.error
            watch()
            totals = day_totals(db, shown, _shown_days(db))
            caption = f"{terminal.number(writer.rows, 'row')} written live · {proof.text()}"
            if screen:
                screen.update(terminal.totals_table(shown, totals, caption), refresh=True)
            else:
                terminal.say(terminal.totals_line(shown, totals, caption))


class _Proof:
    """The verdict of `verify` on the shown days in every rollup, renewed every few seconds."""

    def __init__(self, db: Database) -> None:
        self.db, self.at, self.said = db, 0.0, ""

    def text(self) -> str:
        """For example 'verify: difference 0 in 4 rollups at 12:00:05'."""
        if time.monotonic() - self.at > VERIFY_EVERY_SECONDS:
            report = verify(self.db, _shown_days(self.db))
            self.at = time.monotonic()
            where = f"in {terminal.number(len(self.db.log.rollups), 'rollup')} at {time.strftime('%H:%M:%S')}"
            self.said = f"verify: difference {report.difference:,} {where}"
        return self.said


def _shown_days(db: Database) -> Sequence[date]:
    today = days.today(db.timezone)
    return days.days_between(today - timedelta(days=SHOWN_DAYS - 1), today)
