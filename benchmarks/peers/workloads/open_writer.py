"""A writer that leaves its transaction open, while others write and the refresher works."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.peers.peer import Peer
from benchmarks.peers.rows import NOW, Difference, compare, insert
from benchmarks.peers.scale import Scale
from benchmarks.peers.server import Server
from benchmarks.peers.stage import FEW, Quartiles, installed, quartiles
from benchmarks.peers.systems import Found

WRITERS, WRITER_SECONDS, ROWS = 2, 0.1, 5
# Least time between the beginnings of two refreshes: this project's default. Look at the statistics this often.
DEBOUNCE_SECONDS, WATCH_SECONDS = 0.2, 0.02


@dataclass
class Events:
    """What happened, by the monotonic clock."""

    commits: list[tuple[float, float]] = field(default_factory=list)  # when it began, when it was committed
    refreshes: list[tuple[float, float]] = field(default_factory=list)  # when it began, when it ended
    seen: list[tuple[float, int]] = field(default_factory=list)  # rows in the statistics
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class OpenWriter:
    """In the seconds with the open transaction: refreshes, the other writers' commits, the 95th percentiles of their
    rows' age and of their own latency (a commit that waited to the end counts), and what is wrong afterwards.

    `is_cut`: rows were not counted before the end, so that the age is a lower bound.
    """

    system: type[Peer]
    refreshes: int
    commits: int
    staleness: float | None
    is_cut: bool
    latency: Quartiles
    latency_p95: float
    difference: Difference


def measure(server: Server, found: Found, scale: Scale) -> Iterator[OpenWriter]:
    """Each system in turn."""
    for system in found.with_statistics():
        with installed(server, [system], FEW) as (peer,):
            yield _measure(peer, scale)


def _measure(peer: Peer, scale: Scale) -> OpenWriter:
    events = Events()
    with peer.server.connect(peer.key) as open_writer, peer.server.connect(peer.key) as reader:
        counted = f"select coalesce(sum(total_calculations), 0)::bigint from {peer.target}"
        base = int(reader.execute(counted.encode()).fetchone()[0])  # type: ignore[index]
        with _working(peer, events):
            time.sleep(scale.steady_seconds)
            open_writer.execute("begin")
            insert(open_writer, [1], NOW)
            began = time.monotonic()
            time.sleep(scale.open_seconds)
            ended = time.monotonic()
            open_writer.execute("commit")
        peer.prepare()
        peer.refresh()
        assert not events.errors, events.errors
        return _summarize(peer, events, base, (began, ended), compare(reader, peer.target))


@contextmanager
def _working(peer: Peer, events: Events) -> Iterator[None]:
    """The other writers, the refresher and the watcher, in threads that end with the block."""
    stopping = threading.Event()
    works = [_write] * WRITERS + [_watch] + ([_refresh] if peer.has_refresher else [])
    threads = [threading.Thread(target=_guard, args=(work, peer, events, stopping), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(60)


def _guard(work: Callable[..., None], peer: Peer, events: Events, stopping: threading.Event) -> None:
    try:
        work(peer, events, stopping)
    except Exception as error:
        events.errors.append(f"{work.__name__}: {error}")


def _write(peer: Peer, events: Events, stopping: threading.Event) -> None:
    with peer.server.connect(peer.key) as writer:
        while not stopping.wait(WRITER_SECONDS):
            began = time.monotonic()
            insert(writer, range(1, ROWS + 1), NOW)
            events.commits.append((began, time.monotonic()))


def _watch(peer: Peer, events: Events, stopping: threading.Event) -> None:
    counted = f"select coalesce(sum(total_calculations), 0)::bigint from {peer.target}"
    with peer.server.connect(peer.key) as reader:
        while not stopping.wait(WATCH_SECONDS):
            found = reader.execute(counted.encode(), prepare=True).fetchone()
            events.seen.append((time.monotonic(), int(found[0]) if found else 0))


def _refresh(peer: Peer, events: Events, stopping: threading.Event) -> None:
    while not stopping.is_set():
        started = time.monotonic()
        peer.prepare()
        peer.refresh()
        events.refreshes.append((started, time.monotonic()))
        stopping.wait(max(started + DEBOUNCE_SECONDS - time.monotonic(), 0))


def _summarize(
    peer: Peer, events: Events, base: int, window: tuple[float, float], difference: Difference
) -> OpenWriter:
    began, ended = window
    commits = sorted(events.commits, key=lambda commit: commit[1])
    ages, cut, seen = [], 0, iter(events.seen)
    at, total = next(seen, (ended, 0))
    for number, (_, committed) in enumerate(commits, start=1):
        while total < base + number * ROWS and at < ended:
            at, total = next(seen, (ended, total))
        if began <= committed <= ended:
            cut += at >= ended
            ages.append(max(min(at, ended) - committed, 0.0))
    latencies = [committed - start for start, committed in commits if began - WRITER_SECONDS <= start <= ended]
    return OpenWriter(
        type(peer),
        refreshes=sum(began <= start and end <= ended for start, end in events.refreshes),
        commits=len(ages),
        staleness=percentile_95(ages) if ages else None,
        is_cut=cut > len(ages) * 0.05,
        latency=quartiles(latencies),
        latency_p95=percentile_95(latencies),
        difference=difference,
    )


def percentile_95(values: list[float]) -> float:
    """The value that at least 95 % of the values do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, -(-len(ranked) * 95 // 100) - 1)]
