"""Ordinary set-ups and events after which a statistic may be wrong; each on a new database.

Every system's table is then compared, publisher by publisher and day by day, with a GROUP BY of every row that was ever
committed: the log and what was deleted from it. After an UPDATE it is compared with the log as it is then.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from benchmarks.common import COLUMNS
from benchmarks.peers.peer import Peer
from benchmarks.peers.rows import MIDNIGHT, NOW, YESTERDAY, Difference, compare, insert
from benchmarks.peers.server import ROLE, Server
from benchmarks.peers.stage import FEW
from benchmarks.peers.systems import Found

# A refresh or a writer that has not ended by then waits for another transaction.
PATIENCE_SECONDS, SLOW_PATIENCE_SECONDS, LONG_SECONDS = 1.5, 30.0, 120.0
NOON = MIDNIGHT - timedelta(hours=12)
KILLS = 2


@dataclass(frozen=True)
class WrongRows:
    """What is wrong after an event, what the system's own check finds, and whether other writers had to wait."""

    system: type[Peer]
    scenario: str
    difference: Difference
    report: str
    writers_waited: bool


class Scenario:
    """A system on a new database, two writers, and refreshes and writes that may have to wait for them."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.first, self.second = peer.server.connect(peer.key), peer.server.connect(peer.key)
        self.patience = SLOW_PATIENCE_SECONDS if peer.is_slow else PATIENCE_SECONDS
        self.waiting: list[threading.Thread] = []
        self.writers_waited = False
        self.error: Exception | None = None

    def write(self, rows: int = 10) -> None:
        """Rows of the second writer, one per publisher."""
        if self._attempt(lambda: insert(self.second, range(1, rows + 1), NOW), PATIENCE_SECONDS):
            self.writers_waited = True

    def refresh(self) -> None:
        """A refresh, which continues in the background if it has to wait."""
        self._attempt(self._refresh, self.patience)

    def settle(self) -> None:
        """Ends what waits, then refreshes twice; raises what a refresh or a writer raised."""
        for thread in self.waiting:
            thread.join(LONG_SECONDS)
            assert not thread.is_alive(), "it still waits for another transaction"
        if self.error is not None:
            raise self.error
        for _ in range(1 if self.peer.is_slow else 2):
            self._refresh()

    def close(self) -> None:
        """Ends the writers, rolled back."""
        self.first.close()
        self.second.close()

    def _refresh(self) -> None:
        self.peer.prepare()
        self.peer.refresh()

    def _attempt(self, work: Callable[[], None], seconds: float) -> bool:
        """Whether it has to wait."""
        thread = threading.Thread(target=self._guard, args=(work,), daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self.waiting.append(thread)
        return thread.is_alive()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.error = error


def commit_after_a_newer_one(scenario: Scenario) -> None:
    """The first writer's ids are lower than those that are committed and counted before it."""
    scenario.first.execute("begin")
    insert(scenario.first, range(1, 6), NOW)
    scenario.write()
    scenario.refresh()
    scenario.first.execute("commit")


def draw_an_id_first(scenario: Scenario) -> None:
    """As an ORM does: the id is fetched, and the row that has it is inserted later."""
    drawn = scenario.first.execute("select nextval('calculation_logs_id_seq')").fetchone()
    scenario.write()
    scenario.refresh()
    insert(scenario.first, [1], NOW, drawn[0] if drawn else None)


def read_repeatably(scenario: Scenario) -> None:
    """`alter role … set default_transaction_isolation = 'repeatable read'`, and a writer that commits while a refresh
    runs or waits."""
    peer = scenario.peer
    peer.close()
    with peer.server.connect("postgres") as connection:
        setting = "default_transaction_isolation = 'repeatable read'"
        connection.execute(f"alter role {ROLE} in database {peer.key} set {setting}".encode())
    scenario.first.execute("begin")
    insert(scenario.first, range(1, 6), NOW)
    scenario.refresh()
    scenario.first.execute("commit")


def cache_ids(scenario: Scenario) -> None:
    """`alter sequence … cache 50`: each connection draws 50 ids at once, and uses them one by one."""
    scenario.first.execute("alter sequence calculation_logs_id_seq cache 50")
    insert(scenario.first, [1], NOW)
    scenario.write()
    scenario.refresh()
    insert(scenario.first, range(1, 6), NOW)


def delete_half_a_day(scenario: Scenario) -> None:
    """Retention: the log rows of yesterday's first half are deleted, then a row of yesterday comes late."""
    morning = f"created_at >= '{YESTERDAY} 00:00Z' and created_at < '{YESTERDAY} 12:00Z'"
    scenario.first.execute(
        f"with gone as (delete from calculation_logs where {morning} returning *) "
        f"insert into deleted_rows ({COLUMNS}) select {COLUMNS} from gone".encode()
    )
    scenario.refresh()
    insert(scenario.first, [1], NOON)


def roll_back(scenario: Scenario) -> None:
    """Transactions and savepoints that are rolled back, among others that are committed."""
    scenario.first.execute("begin")
    insert(scenario.first, range(1, 50), NOW)
    scenario.write()
    scenario.first.execute("rollback")
    scenario.refresh()
    scenario.first.execute("begin")
    insert(scenario.first, range(1, 6), NOW)
    scenario.first.execute("savepoint half")
    insert(scenario.first, range(1, 50), NOW)
    scenario.first.execute("rollback to half")
    insert(scenario.first, range(1, 4), NOW)
    scenario.first.execute("commit")


def update(scenario: Scenario) -> None:
    """Log rows of yesterday that were counted are corrected."""
    scenario.first.execute(
        "update calculation_logs set response_time_ms = response_time_ms + 1 "
        f"where id % 100 = 0 and created_at < '{YESTERDAY} 24:00Z'".encode()
    )


def kill_the_refresher(scenario: Scenario) -> None:
    """A refresh is stopped by a lock on its table, and its connection is killed; twice."""
    if not scenario.peer.has_refresher:
        return
    table = scenario.peer.stored_table()
    for _ in range(KILLS):
        scenario.write()
        scenario.first.execute(f"begin; lock table {table} in exclusive mode".encode())
        refresh = threading.Thread(target=_refresh_until_killed, args=(scenario.peer,), daemon=True)
        refresh.start()
        _kill_who_waits(scenario)
        scenario.first.execute("commit")
        refresh.join(LONG_SECONDS)


def _refresh_until_killed(peer: Peer) -> None:
    """This project's refresh retries after a loss of its connection; the others end with an error."""
    with suppress(Exception):
        peer.prepare()
        peer.refresh()


def _kill_who_waits(scenario: Scenario) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    statement = b"select count(pg_terminate_backend(pid)) from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
    while time.monotonic() < deadline:
        killed = scenario.second.execute(statement, [scenario.first.info.backend_pid]).fetchone()
        if killed and killed[0]:
            return
        time.sleep(0.02)
    raise AssertionError("no refresh waits for the lock")


SCENARIOS: dict[str, Callable[[Scenario], None]] = {
    "a transaction that commits after a newer one": commit_after_a_newer_one,
    "an id drawn before its insert": draw_an_id_first,
    "a role with repeatable read": read_repeatably,
    "a sequence with CACHE 50": cache_ids,
    "half a day deleted, then a late row": delete_half_a_day,
    "rollbacks and savepoints": roll_back,
    "an UPDATE of log rows": update,
    "a refresher killed in the middle": kill_the_refresher,
}


def measure(server: Server, found: Found) -> list[WrongRows]:
    """Two systems at a time; no time is measured."""
    with ThreadPoolExecutor(2) as pool:
        systems = sorted(found.with_statistics(), key=lambda system: not system.is_slow)
        return [each for results in pool.map(lambda system: _all_of(server, system), systems) for each in results]


def _all_of(server: Server, system: type[Peer]) -> list[WrongRows]:
    """A system that takes long to install is installed once and copied."""
    template, is_copied = FEW, system.is_slow
    if is_copied:
        template = f"{system.key}_installed"
        server.create(system.key, FEW)
        peer = system(server)
        peer.install()
        peer.close()
        server.create(template, system.key)
    try:
        return [_one(server, system, template, is_copied, scenario) for scenario in SCENARIOS]
    finally:
        server.drop(system.key)
        if is_copied:
            server.drop(template)


def _one(server: Server, system: type[Peer], template: str, is_installed: bool, name: str) -> WrongRows:
    server.create(system.key, template)
    peer = system(server)
    if not is_installed:
        peer.install()
    scenario = Scenario(peer)
    try:
        SCENARIOS[name](scenario)
        scenario.settle()
        difference = compare(scenario.second, peer.target)
        return WrongRows(system, name, difference, peer.report(), scenario.writers_waited)
    finally:
        scenario.close()
        peer.close()
