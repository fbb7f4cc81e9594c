"""What workloads share: databases with rows, systems installed on them, and quartiles."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from benchmarks.peers.peer import Peer
from benchmarks.peers.rows import DELETED_TABLE, LOG_TABLE, MIDNIGHT, NOW, fill
from benchmarks.peers.server import Server

FEW = "few_rows"


@dataclass(frozen=True)
class Quartiles:
    """The first quartile, the median and the third quartile."""

    first: float
    median: float
    third: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Of one value or more."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


def make_template(server: Server, name: str, count: int, begin: datetime, end: datetime = NOW) -> None:
    """A database with that many log rows in the order of time, to be copied for each system."""
    server.create(name)
    with server.connect(name) as connection:
        connection.execute(LOG_TABLE)
        connection.execute(DELETED_TABLE)
        if count:
            fill(connection, "calculation_logs", count, begin, end, "by time")
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")


def make_few_rows(server: Server, count: int) -> None:
    """The template of most workloads: rows of yesterday and today."""
    make_template(server, FEW, count, MIDNIGHT - timedelta(days=1))


@contextmanager
def installed(server: Server, systems: Sequence[type[Peer]], template: str) -> Iterator[list[Peer]]:
    """Each system on its copy of the template; the databases are dropped afterwards."""
    peers: list[Peer] = []
    try:
        for system in systems:
            server.create(system.key, template)
            peer = system(server)
            peers.append(peer)
            peer.install()
        yield peers
    finally:
        for peer in peers:
            peer.close()
            server.drop(peer.key)
