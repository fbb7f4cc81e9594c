"""`calc-analytics demo`: history, live batches, and a table that grows, as a service of some size would write them.

History and live rows have the same mean rate and the same rhythm, so that charts continue where the history ends.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from typing import NamedTuple

from calc_analytics import days
from calc_analytics.config import Settings
from calc_analytics.database import log_index
from calc_analytics.plurals import number
from calc_analytics.processes.simulate import DAY_SECONDS, WEEK, SimulationReport, Traffic, simulate, write_history
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.figures import day_totals
from calc_analytics.rollup.ledger import built_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import verify

SHOWN_DAYS = 5
# Traffic grew by this factor a day until today, and varies by this much from day to day.
GROWTH, NOISE = 1.008, 0.05
REDRAW_SECONDS = 1.0
VERIFY_EVERY_SECONDS = 5.0


class Frame(NamedTuple):
    """One picture of the demo: totals by day of `rollup`, and a line about writer and proof."""

    rollup: Rollup
    totals: dict[date, dict[str, int]]
    caption: str


def missing_history(db: Database, count: int) -> list[date]:
    """Of today and the `count` days before it, those that have no statistics yet."""
    today = days.today(db.timezone)
    past = days.days_between(today - timedelta(days=count), today)
    there = day_totals(db, db.log.rollups[0], past)
    return [day for day in past if day not in there]


def rows_of(day: date, rate: float, timezone: str) -> int:
    """The log rows of a whole day at a mean of `rate` rows per second today: by the weekday, and fewer in the past."""
    age = (days.today(timezone) - day).days
    noise = 1.0 if age == 0 else random.Random(day.toordinal()).uniform(1 - NOISE, 1 + NOISE)
    return round(rate * DAY_SECONDS * WEEK[day.weekday()] * noise / GROWTH**age)


def write_days(
    db: Database, missing: Sequence[date], rate: float, stop: threading.Event, progress: Callable[[int], object]
) -> None:
    """Writes the log rows of each day and counts them. `progress` gets the rows of each batch."""
    traffic = Traffic(rate=rate, writers=1)
    for day in missing:
        if stop.is_set():
            return
        rows = rows_of(day, rate, db.timezone)
        write_history(db.engine.url, [day], rows, traffic, db.timezone, progress=progress)
        log_index.summarize(db.engine)  # else each refresh reads all days before it again
        refresh(db)
    # Only days that are empty yet, or that have rows from before the project was installed.
    rebuild(db, sorted(set(missing) - set(built_days(db))))


def first_partition(db: Database, settings: Settings) -> date:
    """The first day of the demo's history; ROLLUP_START_DATE if that is set."""
    if settings.start_date != Settings().start_date:
        return settings.start_date
    return min(built_days(db), default=days.today(db.timezone))


def live(db: Database, rate: float, seconds: float | None, stop: threading.Event) -> Iterator[Frame]:
    """Writes batches in the background; a frame every second until `seconds` have passed or `stop` is set.

    Raises the writer's error.
    """
    finished = threading.Event()
    writer = _Writer(db, rate, finished)
    writer.start()
    try:
        yield from _frames(db, writer, seconds, stop)
    finally:
        finished.set()
        writer.join()


class _Writer(threading.Thread):
    """The simulated API, with the number of rows written, and the error that ended it."""

    def __init__(self, db: Database, rate: float, stop: threading.Event) -> None:
        super().__init__(name="simulated-api", daemon=True)
        self.db, self.rate, self.stop = db, rate, stop
        self.rows = 0
        self.error: Exception | None = None
        self.report: SimulationReport | None = None

    def run(self) -> None:
        """Writes until `stop` is set."""
        traffic = Traffic(rate=self.rate, writers=4, rhythm=True, timezone=self.db.timezone)
        try:
            self.report = simulate(self.db.engine.url, traffic, stop=self.stop, progress=self._count)
        except Exception as error:
            self.error = error

    def _count(self, rows: int) -> None:
        self.rows += rows


def _frames(db: Database, writer: _Writer, seconds: float | None, stop: threading.Event) -> Iterator[Frame]:
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
        self.db, self.at, self.line = db, 0.0, ""

    def text(self) -> str:
        """For example 'verify: difference 0 in 4 rollups at 12:00:05'."""
        if time.monotonic() - self.at > VERIFY_EVERY_SECONDS:
            report = verify(self.db, _shown_days(self.db))
            self.at = time.monotonic()
            where = f"in {number(len(self.db.log.rollups), 'rollup')} at {time.strftime('%H:%M:%S')}"
            self.line = f"verify: difference {report.difference:,} {where}"
        return self.line


def _shown_days(db: Database) -> Sequence[date]:
    today = days.today(db.timezone)
    return days.days_between(today - timedelta(days=SHOWN_DAYS - 1), today)
