"""A refresh of new rows, while the day has more and more of them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.peers.peer import Peer
from benchmarks.peers.rows import MIDNIGHT, copy, lines
from benchmarks.peers.scale import Scale
from benchmarks.peers.server import Server
from benchmarks.peers.stage import Quartiles, installed, make_template, quartiles
from benchmarks.peers.systems import Found

TEMPLATE = "rows_of_today"


@dataclass(frozen=True)
class Refreshing:
    """Seconds of a refresh of `batch` new rows with `rows_today` in the day."""

    system: type[Peer]
    rows_today: int
    batch: int
    seconds: Quartiles


def measure(server: Server, found: Found, scale: Scale) -> Iterator[Refreshing]:
    """Rounds in turn, after one that is not measured (a process per run needs none). Systems without a refresher are
    left out."""
    systems = [system for system in found.with_statistics() if system.has_refresher]
    for rows_today, batches in scale.refreshes:
        make_template(server, TEMPLATE, rows_today, MIDNIGHT)
        with installed(server, systems, TEMPLATE) as peers:
            for batch in batches:
                for system, seconds in _rounds(peers, batch, scale).items():
                    yield Refreshing(system, rows_today, batch, quartiles(seconds))
        server.drop(TEMPLATE)


def _rounds(peers: list[Peer], batch: int, scale: Scale) -> dict[type[Peer], list[float]]:
    found: dict[type[Peer], list[float]] = {type(peer): [] for peer in peers}
    for round_ in range(scale.rounds + 1):
        text = lines(batch, seed=round_)
        for peer in peers:
            if peer.is_slow and round_ >= scale.slow_rounds:
                continue
            took = _refresh(peer, text)
            if round_ or peer.is_slow:
                found[type(peer)].append(took)
    return found


def _refresh(peer: Peer, text: str) -> float:
    with peer.server.connect(peer.key) as writer:
        copy(writer, text)
    peer.prepare()
    started = time.perf_counter()
    peer.refresh()
    took = time.perf_counter() - started
    peer.maintain()
    return took
