"""Which systems there are, and which of them can run here."""

from collections.abc import Collection
from dataclasses import dataclass

from benchmarks.peers.handwritten import Bare, Floor, WholeDay
from benchmarks.peers.incremental import PgIncremental, PgIvm, Timescale
from benchmarks.peers.ours import Ours, OursAll
from benchmarks.peers.peer import Peer
from benchmarks.peers.pgq import PgQ
from benchmarks.peers.rows import compare
from benchmarks.peers.server import Server
from benchmarks.peers.stage import FEW, installed
from benchmarks.peers.transforming import Dbt, SqlMesh
from benchmarks.peers.trigger import Trigger

SYSTEMS: tuple[type[Peer], ...] = (
    Bare, Floor, Ours, OursAll, Trigger, PgQ, PgIncremental, PgIvm, Timescale, WholeDay, Dbt, SqlMesh,
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The systems that can run, with their versions, and those that cannot, with what brings them."""

    systems: dict[type[Peer], str]
    missing: dict[type[Peer], str]

    def with_statistics(self) -> list[type[Peer]]:
        """All that can run but the bare table."""
        return [system for system in self.systems if system is not Bare]


def leave_out_broken(server: Server, found: Found) -> Found:
    """Installs each on few rows and compares; a system that fails here is listed with its error, and not measured."""
    kept = Found({}, dict(found.missing))
    for system, version in found.systems.items():
        try:
            with installed(server, [system], FEW) as (peer,):
                peer.refresh()
                if system is not Bare:
                    assert compare(peer.connection, peer.target).days == 0, "it differs from the log"
            kept.systems[system] = version
        except Exception as error:
            if not system.package:
                raise
            kept.missing[system] = f"{version}, which failed: {str(error).splitlines()[-1]}"
    return kept


def find(server: Server, options: Collection[str]) -> Found:
    """Looks for each; those that need an option are left out unless it is given."""
    found = Found({}, {})
    for system in SYSTEMS:
        is_chosen = not system.option or system.option in options
        version = system.version(server) if is_chosen else None
        if version is None:
            found.missing[system] = system.package + (f" ({system.option})" if system.option else "")
        else:
            found.systems[system] = version
    return found
