"""Made-up traffic: writes log batches as the API's logging service does.

Each writer has its own connection and sends each batch by COPY in its own transaction, when 100 rows are waiting or a
second has passed. Publishers and their localities are skewed (Zipf), day and week have a rhythm, each kind of publisher
has its mix of sources, about 60 % are cache hits (fewer in the past), response times have a tail and follow the load,
some are null, and a few rows are late. History and live rows come from the same model.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import timezone as fixed_zone
from typing import Any, TypeAlias

import numpy
import psycopg
from numpy.typing import NDArray
from sqlalchemy.engine import URL

from calc_analytics import days
from calc_analytics.database.connecting import connect_seconds
from calc_analytics.database.errors import translate_db_errors

COLUMNS = "publisher_id, locality_id, date_calculated, cache_hit, response_time_ms, zman_count, source, created_at"
LINE = "%d\t%d\t%s\t%s\t%s\t%d\t%d\t%sZ\n"
DAY_SECONDS = 86_400
# Calculations per hour of the day relative to the mean: most before dawn, at noon, and before sunset.
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
# A publisher uses at most this many of them, the first most often.
LOCALITIES_PER_PUBLISHER = 6
# Weights of web, API and external, for three kinds of publishers: web sites, apps, partners.
SOURCE_MIXES = ((8, 1, 1), (4, 5, 1), (2, 2, 6))
CACHE_HIT_SHARE = 0.6
# The share grew by this much a day, for this many days, and swings by this much within two weeks.
CACHE_HIT_GROWTH, GROWTH_DAYS, CACHE_HIT_SWING = 0.003, 40, 0.015
# This many publishers were added each day.
PUBLISHER_GROWTH = 1.5
NULL_RESPONSE_SHARE = 0.02
# Of the rows that are not cache hits: they take up to 20 times as long.
SLOW_SHARE = 0.01
TODAY_SHARE = 0.6
LATE_SECONDS = 2 * 24 * 3600
HISTORY_BATCH_ROWS = 20_000

Floats: TypeAlias = NDArray[numpy.float64]
Integers: TypeAlias = NDArray[numpy.int64]
Booleans: TypeAlias = NDArray[numpy.bool_]


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

    One transaction per 20,000 rows at most; returns the rows written. Raises `DatabaseError`.
    """
    make, written = _Rows(traffic, 0), 0
    with translate_db_errors(url), _connect(url) as connection:
        for day in history:
            for batch in make.day(day, rows_per_day, timezone, now or datetime.now(fixed_zone.utc)):
                _copy(connection, batch)
                written += len(batch)
                progress(len(batch))
    return written


class _Rows:
    """Makes log rows as lines of COPY's text format, column by column."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        self.random = numpy.random.default_rng(None if traffic.seed is None else traffic.seed * 1_000 + number)
        self.publishers, self.ranks = _zipf(traffic.publishers), _zipf(LOCALITIES_PER_PUBLISHER)
        self.late_share = traffic.late_share
        self.now = time.time()

    def live(self, count: int, begin: float, seconds: float) -> list[str]:
        """Rows asked for within `seconds` from `begin` (epoch); a share of them up to two days earlier."""
        delays = self.random.uniform(0, LATE_SECONDS, count) * self._are(self.late_share, count)
        return self._lines(begin + seconds * numpy.arange(count) / count - delays)

    def day(self, day: date, count: int, timezone: str, now: datetime) -> Iterator[list[str]]:
        """Batches of about `count` rows in all, over one day with its rhythm, none after `now`."""
        midnight = datetime(day.year, day.month, day.day, tzinfo=days.zone(timezone))
        begin = midnight.timestamp()
        end = min((midnight + timedelta(days=1)).timestamp(), now.timestamp())
        hours = self._chosen(_shares(RHYTHM), count)
        times = numpy.sort(begin + (hours + self.random.random(count)) * 3600)
        times = times[times < end]
        for first in range(0, len(times), HISTORY_BATCH_ROWS):
            yield self._lines(times[first : first + HISTORY_BATCH_ROWS])

    def _lines(self, times: Floats) -> list[str]:
        """A line for each instant (epoch), in the order of COLUMNS."""
        count, hours = len(times), (times % DAY_SECONDS // 3600).astype(int)
        ages = numpy.clip((self.now - times) / DAY_SECONDS, 0, GROWTH_DAYS)
        hits = self.random.random(count) < _cache_hit_share(ages)
        there = numpy.maximum(len(self.publishers) - PUBLISHER_GROWTH * ages, 1).astype(int)
        publishers = 1 + self._chosen(self.publishers, count) % there
        places = (7 * publishers + self._chosen(self.ranks, count)) % len(LOCALITIES)
        columns = (
            publishers,
            numpy.array(LOCALITIES)[places],
            (times // DAY_SECONDS + self._days_ahead(count)).astype("datetime64[D]").astype(str),
            numpy.where(hits, "t", "f"),
            self._response_times_ms(hits, numpy.array(RHYTHM)[hours]),
            self.random.integers(1, 31, count),
            self._sources(publishers),
            (times * 1_000_000).astype("datetime64[us]").astype(str),
        )
        return [LINE % row for row in zip(*(column.tolist() for column in columns), strict=True)]

    def _chosen(self, shares: Floats, count: int) -> Integers:
        """Positions from 0, each as often as its share; `shares` are cumulative."""
        return numpy.searchsorted(shares, self.random.random(count), side="right")

    def _are(self, share: float, count: int) -> Booleans:
        """True for that share of the rows."""
        return self.random.random(count) < share

    def _sources(self, publishers: Integers) -> Integers:
        """By the publisher's kind."""
        shares = numpy.array([_shares(mix) for mix in SOURCE_MIXES])[publishers % len(SOURCE_MIXES)]
        return 1 + (self.random.random((len(publishers), 1)) >= shares).sum(axis=1)

    def _days_ahead(self, count: int) -> Floats:
        """Most are about today, the others about days around it."""
        return numpy.where(self._are(TODAY_SHARE, count), 0, numpy.trunc(self.random.normal(0, 30, count)))

    def _response_times_ms(self, hits: Booleans, loads: Floats) -> NDArray[numpy.object_]:
        """Milliseconds, or COPY's null."""
        count = len(hits)
        milliseconds = self.random.lognormal(numpy.where(hits, 1.0, 3.5 + 0.15 * loads), 0.5)
        slow = ~hits & self._are(SLOW_SHARE, count)
        milliseconds *= numpy.where(slow, self.random.uniform(5, 20, count), 1)
        found = numpy.minimum(milliseconds, 32_767).astype(int).astype(object)
        found[self._are(NULL_RESPONSE_SHARE, count)] = r"\N"
        return found


def _cache_hit_share(ages: Floats) -> Floats:
    """The share of cache hits at these ages, in days."""
    return CACHE_HIT_SHARE - CACHE_HIT_GROWTH * ages - CACHE_HIT_SWING * numpy.sin(ages * math.tau / 14)


def _shares(weights: Sequence[float]) -> Floats:
    """Cumulative shares, the last of which is 1."""
    sums = numpy.cumsum(weights, dtype=float)
    return sums / sums[-1]


def _zipf(count: int) -> Floats:
    """Cumulative shares: the n-th is asked for 1/n as often as the first."""
    return _shares([1 / n for n in range(1, count + 1)])


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
