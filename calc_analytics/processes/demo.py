"""`calc-analytics demo`: the whole picture in a minute: history, live batches, and a table that grows."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from typing import NamedTuple

from calc_analytics import days
from calc_analytics.config import Settings
from calc_analytics.database.engine import create_engine, database_url
from calc_analytics.plurals import number
from calc_analytics.processes.simulate import SimulationReport, Traffic, simulate, write_history
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.figures import day_totals
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import database

SHOWN_DAYS = 5
ROWS_PER_DAY = 5_000
REDRAW_SECONDS = 1.0
VERIFY_EVERY_SECONDS = 5.0


class Frame(NamedTuple):
    """One picture of the demo: totals by day of `rollup`, and a line about writer and proof."""

    rollup: Rollup
    totals: dict[date, dict[str, int]]
    caption: str


def missing_history(settings: Settings, count: int) -> list[date]:
    """The days of the `count` before today that have no statistics yet."""
    db, today = database(create_engine(settings), settings), days.today(settings.timezone)
    past = days.days_between(today - timedelta(days=count), today)
    there = day_totals(db, db.log.rollups[0], past)
    return [day for day in past if day not in there]


def write_days(
    settings: Settings, missing: Sequence[date], stop: threading.Event, progress: Callable[[int], object]
) -> None:
    """Writes `ROWS_PER_DAY` log rows for each day and counts them. `progress` gets the rows of each batch."""
    db = database(create_engine(settings), settings)
    traffic = Traffic(rate=1, writers=1)
    for day in missing:
        if stop.is_set():
            return
        write_history(database_url(settings), [day], ROWS_PER_DAY, traffic, settings.timezone, progress=progress)
        rebuild(db, [day])


def live(settings: Settings, rate: float, seconds: float | None, stop: threading.Event) -> Iterator[Frame]:
    """Writes batches in the background; a frame every second until `seconds` have passed or `stop` is set.

    Raises the writer's error.
    """
    finished = threading.Event()
    writer = _Writer(settings, rate, finished)
    writer.start()
    try:
        yield from _frames(settings, writer, seconds, stop)
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


def _frames(settings: Settings, writer: _Writer, seconds: float | None, stop: threading.Event) -> Iterator[Frame]:
    db = database(create_engine(settings), settings)
    shown, proof = db.log.rollups[0], _Proof(db)
    deadline = time.monotonic() + seconds if seconds else None
    while not stop.wait(REDRAW_SECONDS) and (deadline is None or time.monotonic() < deadline):
        if writer.error:
            raise writer.error
        caption = f"{number(writer.rows, 'row')} written live · {proof.text()}"
        yield Frame(shown, day_totals(db, shown, _shown_days(db)), caption)


class _Proof:
    """The verdict of `verify` on the shown days in every rollup, renewed every few seconds."""

    def __init__(self, db: Database) -> None:
        self.db, self.at, self.said = db, 0.0, ""

    def text(self) -> str:
        """For example 'verify: difference 0 in 4 rollups at 12:00:05'."""
        if time.monotonic() - self.at > VERIFY_EVERY_SECONDS:
            report = verify(self.db, _shown_days(self.db))
            self.at = time.monotonic()
            where = f"in {number(len(self.db.log.rollups), 'rollup')} at {time.strftime('%H:%M:%S')}"
            self.said = f"verify: difference {report.difference:,} {where}"
        return self.said


def _shown_days(db: Database) -> Sequence[date]:
    today = days.today(db.timezone)
    return days.days_between(today - timedelta(days=SHOWN_DAYS - 1), today)
