"""A backlog: rows of many days in any order, written while nothing refreshed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import psycopg

from benchmarks.common import COLUMNS
from benchmarks.peers.peer import Peer
from benchmarks.peers.rows import LOG_TABLE, MIDNIGHT, TODAY, Difference, compare, fill
from benchmarks.peers.scale import Scale
from benchmarks.peers.server import Server
from benchmarks.peers.stage import Quartiles, installed, make_template, quartiles
from benchmarks.peers.systems import Found

TEMPLATE, TRANSACTION_ROWS = "backlog_rows", 5_000
LONG_SECONDS = 15.0


@dataclass(frozen=True)
class Backlog:
    """Seconds to write the rows, seconds to count them, and what is wrong afterwards."""

    system: type[Peer]
    writing: Quartiles
    counting: Quartiles
    difference: Difference


def measure(server: Server, found: Found, scale: Scale) -> Iterator[Backlog]:
    """Rounds in turn; one for a system whose first takes long."""
    _make_backlog(server, scale)
    times: dict[type[Peer], list[tuple[float, float]]] = {system: [] for system in found.with_statistics()}
    differences: dict[type[Peer], Difference] = {}
    for round_ in range(scale.backlog_rounds):
        for system in times:
            if round_ and (system.is_slow or sum(times[system][0]) > LONG_SECONDS):
                continue
            writing, counting, differences[system] = _catch_up(server, system, scale)
            times[system].append((writing, counting))
    server.drop(TEMPLATE)
    for system, pairs in times.items():
        writing_seconds, counting_seconds = zip(*pairs, strict=True)
        yield Backlog(system, quartiles(writing_seconds), quartiles(counting_seconds), differences[system])


def _make_backlog(server: Server, scale: Scale) -> None:
    """A template with an empty log, and the rows in another table."""
    make_template(server, TEMPLATE, 0, MIDNIGHT)
    with server.connect(TEMPLATE) as connection:
        connection.execute(LOG_TABLE.replace("calculation_logs", "backlog"))
        begin = MIDNIGHT - timedelta(days=scale.backlog_days)
        fill(connection, "backlog", scale.backlog_rows, begin, MIDNIGHT, "at random")
        connection.execute("vacuum analyze")


def _catch_up(server: Server, system: type[Peer], scale: Scale) -> tuple[float, float, Difference]:
    with installed(server, [system], TEMPLATE) as (peer,), server.connect(peer.key) as writer:
        started = time.perf_counter()
        _write(writer, scale.backlog_rows)
        writing = time.perf_counter() - started
        writer.execute("analyze calculation_logs")
        writer.execute("checkpoint")
        peer.prepare()
        started = time.perf_counter()
        peer.catch_up(TODAY - timedelta(days=scale.backlog_days))
        return writing, time.perf_counter() - started, compare(writer, peer.target)


def _write(writer: psycopg.Connection, rows: int) -> None:
    for begin in range(1, rows + 1, TRANSACTION_ROWS):
        writer.execute(
            f"insert into calculation_logs ({COLUMNS}) select {COLUMNS} from backlog where id >= %s and id < %s",
            [begin, begin + TRANSACTION_ROWS],
        )
