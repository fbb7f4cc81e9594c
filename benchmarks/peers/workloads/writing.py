"""What a system costs the log's writers: CPU and WAL per row, and single-row commits per second."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from benchmarks.common import COLUMNS, cpu_seconds
from benchmarks.peers.peer import Peer
from benchmarks.peers.rows import copy, lines
from benchmarks.peers.scale import Scale
from benchmarks.peers.server import ROLE, Server
from benchmarks.peers.stage import FEW, Quartiles, installed, quartiles
from benchmarks.peers.systems import Found

COPY_ROWS, CLIENTS = 100, 8
COMMIT = f"""
\\set publisher random(1, 200)
insert into calculation_logs ({COLUMNS}) values (:publisher, 281184, '2030-01-01', true, 7, 30, 1, now());
"""


@dataclass(frozen=True)
class Writing:
    """CPU seconds and WAL bytes per row in the writer's own backend, and commits per second of eight clients."""

    system: type[Peer]
    cpu: Quartiles
    wal: Quartiles
    commits: Quartiles


def measure(server: Server, found: Found, scale: Scale) -> list[Writing]:
    """Rounds in turn. Nothing refreshes. Systems that add nothing to the log table write as to the bare table."""
    systems = [system for system in found.systems if system.adds_to_log]
    with installed(server, systems, FEW) as peers:
        per_row = _copies(server, peers, scale)
        commits = _commits(server, peers, scale)
    return [
        Writing(
            system,
            quartiles([cpu for cpu, _ in per_row[system]]),
            quartiles([wal for _, wal in per_row[system]]),
            quartiles(commits[system]),
        )
        for system in systems
    ]


def _copies(server: Server, peers: Sequence[Peer], scale: Scale) -> dict[type[Peer], list[tuple[float, float]]]:
    """CPU and WAL per row, in each round."""
    found: dict[type[Peer], list[tuple[float, float]]] = {type(peer): [] for peer in peers}
    writers = {type(peer): server.connect(peer.key) for peer in peers}
    next(iter(writers.values())).execute("checkpoint")
    for round_ in range(scale.writing_rounds + 1):
        for system, writer in writers.items():
            cost = _copy_all(writer, scale.copies, round_)
            if round_:  # the first has the full page images after the checkpoint
                found[system].append(cost)
    for writer in writers.values():
        writer.close()
    return found


def _copy_all(writer: psycopg.Connection, copies: int, round_: int) -> tuple[float, float]:
    texts = [lines(COPY_ROWS, seed=round_ * copies + n) for n in range(copies)]
    pid, wal = writer.info.backend_pid, _wal_position(writer)
    cpu = cpu_seconds(pid)
    for text in texts:
        copy(writer, text)
    count = copies * COPY_ROWS
    return (cpu_seconds(pid) - cpu) / count, (_wal_position(writer) - wal) / count


def _wal_position(connection: psycopg.Connection) -> int:
    found = connection.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
    return int(found[0]) if found else 0


def _commits(server: Server, peers: Sequence[Peer], scale: Scale) -> dict[type[Peer], list[float]]:
    """Commits per second, in each round."""
    script = server.folder / "commit.sql"
    script.write_text(COMMIT)
    found: dict[type[Peer], list[float]] = {type(peer): [] for peer in peers}
    for _ in range(scale.commit_rounds):
        for peer in peers:
            found[type(peer)].append(_pgbench(server, peer.key, str(script), scale.commit_seconds))
            peer.refresh()
            peer.maintain()
    return found


def _pgbench(server: Server, database: str, script: str, seconds: int) -> float:
    command = [
        str(server.programs / "pgbench"), "-n", "-c", str(CLIENTS), "-j", "2", "-M", "prepared", "-T", str(seconds),
        "-f", script, "-h", str(server.folder), "-U", ROLE, database,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    found = re.findall(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if not found:
        raise RuntimeError(f"pgbench failed: {done.stdout}")
    return float(found[0])
