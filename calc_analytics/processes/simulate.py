"""Made-up traffic: writes log batches as the API's logging service does.

Each writer has its own connection and sends each batch by COPY in its own transaction, when 100 rows are waiting or a
second has passed. Publishers and their localities are skewed (Zipf), day and week have a rhythm, each kind of publisher
has its mix of sources, about 60 % are cache hits (fewer in the past), response times have a tail and follow the load,
some are null, and a few rows are late. History and live rows come from the same model.
"""

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
DAY_SECONDS = 86_400
# Calculations per hour of the day relative to the mean: people ask before dawn, at noon, and before sunset.
RHYTHM = (
    0.3, 0.2, 0.2, 0.4, 0.9, 1.7, 1.9, 1.6, 1.2, 0.9, 0.9, 1.1,
    1.3, 1.1, 1.0, 1.2, 1.6, 1.8, 1.5, 1.1, 0.8, 0.6, 0.4, 0.3,
)  # fmt: skip
# From Monday on, relative to the mean: most on Friday, before the sabbath, and few on it.
WEEK = (1.0, 1.0, 1.05, 1.2, 1.45, 0.35, 0.95)
LOCALITIES = (
    281184, 293397, 294801, 295530, 2643743, 2643123, 2988507, 2995469, 5128581, 5110302, 5368361, 4164138,
    4887398, 4930956, 6077243, 6167865, 2147714, 2158177, 3435910, 993800, 524901, 703448, 2759794, 2800866,
)  # fmt: skip
# A publisher asks about up to so many of them, the first most often.
LOCALITIES_PER_PUBLISHER = 6
# Weights of web, API and external, for three kinds of publishers: web sites, apps, partners.
SOURCE_MIXES = ((8, 1, 1), (4, 5, 1), (2, 2, 6))
CACHE_HIT_SHARE = 0.6
# The share grew by this much a day, for so many days, and swings by this much within two weeks.
CACHE_HIT_GROWTH, GROWTH_DAYS, CACHE_HIT_SWING = 0.003, 40, 0.015
# So many publishers came each day.
PUBLISHER_GROWTH = 1.5
NULL_RESPONSE_SHARE = 0.02
# Of the rows that are not cache hits: they take up to 20 times as long.
SLOW_SHARE = 0.01
TODAY_SHARE = 0.6
LATE_SECONDS = 2 * 24 * 3600
HISTORY_BATCH_ROWS = 5_000


@dataclass(frozen=True)
class Traffic:
    """What the writers write: `rate` is log rows per second, all writers together.

    With `rhythm` it is the mean, and follows the hour of the day and the day of the week in `timezone`.
    """

    rate: float
    writers: int
    publishers: int = 200
    batch_rows: int = 100
    flush_seconds: float = 1.0
    late_share: float = 0.005
    rhythm: bool = False
    timezone: str = "UTC"
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
        self.make, self.zone = _Rows(traffic, number), days.zone(traffic.timezone)

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
        return relative_load(datetime.fromtimestamp(at, self.zone)) if self.traffic.rhythm else 1.0


def relative_load(at: datetime) -> float:
    """The traffic at that local time, relative to the mean of a week."""
    return RHYTHM[at.hour] * WEEK[at.weekday()]


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
        self.publishers, self.publisher_weights = range(1, traffic.publishers + 1), _zipf(traffic.publishers)
        self.ranks, self.rank_weights = range(LOCALITIES_PER_PUBLISHER), _zipf(LOCALITIES_PER_PUBLISHER)
        self.late_share = traffic.late_share
        self.now = time.time()

    def live(self, count: int, begin: float, seconds: float) -> list[str]:
        """Rows asked for within `seconds` from `begin` (epoch); a share of them up to two days earlier."""
        times = (begin + seconds * n / count for n in range(count))
        return self._lines([t - self._delay() for t in times])

    def day(self, day: date, count: int, timezone: str, now: datetime) -> Iterator[str]:
        """About `count` rows over one day with its rhythm, none after `now`."""
        midnight = datetime(day.year, day.month, day.day, tzinfo=days.zone(timezone))
        hours = self.random.choices(range(24), weights=RHYTHM, k=count)
        begin = midnight.timestamp()
        end = min((midnight + timedelta(days=1)).timestamp(), now.timestamp())
        times = sorted(begin + (hour + self.random.random()) * 3600 for hour in hours)
        return iter(self._lines([t for t in times if t < end]))

    def _delay(self) -> float:
        return self.random.uniform(0, LATE_SECONDS) if self.random.random() < self.late_share else 0.0

    def _lines(self, times: Sequence[float]) -> list[str]:
        publishers = self.random.choices(self.publishers, cum_weights=self.publisher_weights, k=len(times))
        ranks = self.random.choices(self.ranks, cum_weights=self.rank_weights, k=len(times))
        return [self._line(*row) for row in zip(times, publishers, ranks, strict=True)]

    def _line(self, asked_at: float, publisher: int, rank: int) -> str:
        at = datetime.fromtimestamp(asked_at, fixed_zone.utc)
        hit = self.random.random() < self._cache_hit_share(asked_at)
        publisher = 1 + (publisher - 1) % self._publishers(asked_at)
        (source,) = self.random.choices((1, 2, 3), weights=SOURCE_MIXES[publisher % len(SOURCE_MIXES)])
        values = (
            publisher,
            LOCALITIES[(7 * publisher + rank) % len(LOCALITIES)],
            at.date() + timedelta(days=self._days_ahead()),
            "t" if hit else "f",
            self._response_time_ms(hit, RHYTHM[at.hour]),
            self.random.randint(1, 30),
            source,
            at.isoformat(),
        )
        return "\t".join(map(str, values)) + "\n"

    def _cache_hit_share(self, asked_at: float) -> float:
        age = self._age_days(asked_at)
        return CACHE_HIT_SHARE - CACHE_HIT_GROWTH * age - CACHE_HIT_SWING * math.sin(age * math.tau / 14)

    def _publishers(self, asked_at: float) -> int:
        return max(int(len(self.publishers) - PUBLISHER_GROWTH * self._age_days(asked_at)), 1)

    def _age_days(self, asked_at: float) -> float:
        return min(max(self.now - asked_at, 0.0) / DAY_SECONDS, GROWTH_DAYS)

    def _days_ahead(self) -> int:
        """Most ask about today, the others about days around it."""
        return 0 if self.random.random() < TODAY_SHARE else int(self.random.gauss(0, 30))

    def _response_time_ms(self, hit: bool, load: float) -> str:
        if self.random.random() < NULL_RESPONSE_SHARE:
            return "\\N"
        milliseconds = self.random.lognormvariate(1.0 if hit else 3.5 + 0.15 * load, 0.5)
        if not hit and self.random.random() < SLOW_SHARE:
            milliseconds *= self.random.uniform(5, 20)
        return str(min(int(milliseconds), 32_767))


def _zipf(count: int) -> list[float]:
    """Cumulative weights: the n-th is asked for 1/n as often as the first."""
    return list(itertools.accumulate(1 / n for n in range(1, count + 1)))


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
