"""Made-up traffic: writes log batches as the API's logging service does.

Each writer has a connection of its own and sends a batch by COPY in a transaction of its own, when 100 rows are
waiting or a second has passed. Publishers are skewed (Zipf), the day has a rhythm, about 60 % are cache hits, some
response times are null, and a few rows are late.
"""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import timezone as fixed_zone
from typing import Any

import psycopg
from sqlalchemy.engine import URL

from calc_analytics import days
from calc_analytics.database.connecting import connect_seconds
from calc_analytics.database.errors import translate_db_errors

COLUMNS = "publisher_id, locality_id, date_calculated, cache_hit, response_time_ms, zman_count, source, created_at"
# Calculations per hour of the day relative to the mean: people ask before dawn, at noon, and before sunset.
RHYTHM = (
    0.3, 0.2, 0.2, 0.4, 0.9, 1.7, 1.9, 1.6, 1.2, 0.9, 0.9, 1.1,
    1.3, 1.1, 1.0, 1.2, 1.6, 1.8, 1.5, 1.1, 0.8, 0.6, 0.4, 0.3,
)  # fmt: skip
LOCALITIES = (281184, 293397, 2643743, 2988507, 5128581, 5368361)
CACHE_HIT_SHARE = 0.6
NULL_RESPONSE_SHARE = 0.02
LATE_SECONDS = 2 * 24 * 3600
HISTORY_BATCH_ROWS = 5_000


@dataclass(frozen=True)
class Traffic:
    """What the writers write: `rate` is log rows per second, all writers together."""

    rate: float
    writers: int
    publishers: int = 200
    batch_rows: int = 100
    flush_seconds: float = 1.0
    late_share: float = 0.005
    rhythm: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class SimulationReport:
    """What was committed."""

    rows: int
    batches: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"rows": self.rows, "batches": self.batches, "seconds": round(self.seconds, 3)}


def simulate(
    url: URL,
    traffic: Traffic,
    *,
    seconds: float | None = None,
    rows: int | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> SimulationReport:
    """Writes until `seconds` have passed, `rows` are written or `stop` is set, whichever is first.

    `progress` gets the number of rows of each committed batch, from several threads. Raises `DatabaseError` if a
    writer's connection fails; batches committed before stay.
    """
    started, stop = time.monotonic(), stop or threading.Event()
    deadline = started + seconds if seconds is not None else float("inf")
    writers = [
        _Writer(url, traffic, number, _share(rows, traffic.writers, number), deadline, stop, progress)
        for number in range(traffic.writers)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for writer in writers:
        if writer.error is not None:
            raise writer.error
    return SimulationReport(
        rows=sum(writer.rows for writer in writers),
        batches=sum(writer.batches for writer in writers),
        seconds=time.monotonic() - started,
    )


def _share(rows: int | None, writers: int, number: int) -> float:
    """How many of `rows` this writer is to write."""
    return float("inf") if rows is None else rows // writers + (number < rows % writers)


class _Writer(threading.Thread):
    """One API server."""

    def __init__(
        self,
        url: URL,
        traffic: Traffic,
        number: int,
        limit: float,
        deadline: float,
        stop: threading.Event,
        progress: Callable[[int], object],
    ) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.url, self.traffic, self.limit, self.deadline = url, traffic, limit, deadline
        self.stop, self.progress = stop, progress
        self.rows = self.batches = 0
        self.error: Exception | None = None
        self.make = _Rows(traffic, number)

    def run(self) -> None:
        """Writes batches; an error ends this writer and, through `stop`, the others."""
        try:
            with translate_db_errors(self.url), _connect(self.url) as connection:
                self._write_batches(connection)
        except Exception as error:
            self.error = error
            self.stop.set()

    def _write_batches(self, connection: psycopg.Connection) -> None:
        due, carried = time.time(), 0.0
        while self.rows < self.limit:
            rate = self.traffic.rate / self.traffic.writers * self._rhythm(due)
            length = min(self.traffic.flush_seconds, self.traffic.batch_rows / rate)
            wait = due + length - time.time()
            left = self.deadline - time.monotonic()
            ending = self.stop.wait(max(min(wait, left), 0.0)) or left <= wait
            if ending:  # what has come in so far is still written, as a server does that is stopped
                length = min(max(time.time() - due, 0.0), length)
            carried += rate * length
            count = int(min(carried, self.limit - self.rows))
            carried -= count
            if count:
                _copy(connection, self.make.live(count, due, length))
                self.rows, self.batches = self.rows + count, self.batches + 1
                self.progress(count)
            if ending:
                return
            due += length

    def _rhythm(self, at: float) -> float:
        return RHYTHM[datetime.fromtimestamp(at, fixed_zone.utc).hour] if self.traffic.rhythm else 1.0


def write_history(
    url: URL,
    history: list[date],
    rows_per_day: int,
    traffic: Traffic,
    timezone: str = "UTC",
    now: datetime | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> int:
    """Writes `rows_per_day` rows for each of these days of `timezone`, the part before `now` of today.

    One transaction per 5,000 rows; returns the rows written. Raises `DatabaseError`.
    """
    make, written = _Rows(traffic, 0), 0
    with translate_db_errors(url), _connect(url) as connection:
        for day in history:
            rows = make.day(day, rows_per_day, timezone, now or datetime.now(fixed_zone.utc))
            while batch := list(itertools.islice(rows, HISTORY_BATCH_ROWS)):
                _copy(connection, batch)
                written += len(batch)
                progress(len(batch))
    return written


class _Rows:
    """Makes log rows as lines of COPY's text format."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        self.random = random.Random(None if traffic.seed is None else traffic.seed * 1_000 + number)
        self.publishers = range(1, traffic.publishers + 1)
        self.zipf = list(itertools.accumulate(1 / n for n in self.publishers))
        self.late_share = traffic.late_share

    def live(self, count: int, begin: float, seconds: float) -> list[str]:
        """Rows asked for within `seconds` from `begin` (epoch); a share of them up to two days earlier."""
        times = (begin + seconds * n / count for n in range(count))
        return self._lines(t - self._delay() for t in times)

    def day(self, day: date, count: int, timezone: str, now: datetime) -> Iterable[str]:
        """About `count` rows over one day with its rhythm, none after `now`."""
        midnight = datetime(day.year, day.month, day.day, tzinfo=days.zone(timezone))
        hours = self.random.choices(range(24), weights=RHYTHM, k=count)
        begin = midnight.timestamp()
        times = sorted(begin + (hour + self.random.random()) * 3600 for hour in hours)
        return iter(self._lines(t for t in times if t < now.timestamp()))

    def _delay(self) -> float:
        return self.random.uniform(0, LATE_SECONDS) if self.random.random() < self.late_share else 0.0

    def _lines(self, times: Iterable[float]) -> list[str]:
        at = [datetime.fromtimestamp(t, fixed_zone.utc) for t in times]
        publishers = self.random.choices(self.publishers, cum_weights=self.zipf, k=len(at))
        sources = self.random.choices((1, 2, 3), weights=(5, 3, 2), k=len(at))
        return [self._line(*row) for row in zip(at, publishers, sources, strict=True)]

    def _line(self, at: datetime, publisher: int, source: int) -> str:
        hit = self.random.random() < CACHE_HIT_SHARE
        asked_about = at.date() + timedelta(days=int(self.random.gauss(0, 30)))
        values = (
            publisher,
            LOCALITIES[publisher % len(LOCALITIES)],
            asked_about,
            "t" if hit else "f",
            self._response_time_ms(hit),
            self.random.randint(1, 30),
            source,
            at.isoformat(),
        )
        return "\t".join(map(str, values)) + "\n"

    def _response_time_ms(self, hit: bool) -> str:
        if self.random.random() < NULL_RESPONSE_SHARE:
            return "\\N"
        return str(min(int(self.random.lognormvariate(1.0 if hit else 3.7, 0.6)), 32_767))


def _connect(url: URL) -> psycopg.Connection:
    # Not as one string: SQLAlchemy and libpq differ in which characters of a password they want percent-encoded.
    _, arguments = url.get_dialect()().create_connect_args(url)
    return psycopg.connect(
        **{**arguments, "connect_timeout": connect_seconds(url), "application_name": "calc_analytics simulate"}
    )


def _copy(connection: psycopg.Connection, lines: list[str]) -> None:
    """One batch, one transaction."""
    with connection.transaction(), connection.cursor().copy(f"copy calculation_logs ({COLUMNS}) from stdin") as copy:
        copy.write("".join(lines))
