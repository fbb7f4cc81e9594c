"""Kills: `up` under load loses its processes and its database at random moments, and no row with them.

Writers that remember what they committed write all the time, and proofs are made all the time. When it is over, every
committed row is in the logs once and in each rollup once, no run hangs, and everything runs again by itself.

    KILLS=60 pytest -m kills -s     # the long form; KILL_SEED=… repeats a run's choices
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from benchmarks.running import eventually
from calc_analytics import days
from calc_analytics_tests.acceptance.comparisons import differing
from calc_analytics_tests.acceptance.conftest import PATIENCE_SECONDS, Up
from calc_analytics_tests.acceptance.load import (
    Proofs,
    answered,
    counted,
    counting_blocked,
    in_every_rollup,
    launch_a_run,
    logged,
    postmaster,
    print_line,
    processes,
    processes_of,
    proving,
    run_workers,
    runs,
    strays,
    ticked_well_since,
    unfinished_runs,
    waits_for_the_lock,
    with_repetitions,
)
from calc_analytics_tests.acceptance.writers import WRITERS, Writers, writing

pytestmark = pytest.mark.kills

KILLS = int(os.environ.get("KILLS", "10"))
SEED = int(os.environ.get("KILL_SEED", str(random.SystemRandom().randrange(10**6))))
# A process that keeps dying is started again after up to half a minute; a lost run is asked for again after five.
WAIT_SECONDS = 4 * PATIENCE_SECONDS
# Runs are looked after every 15 seconds.
AWAY_SECONDS = 20


class Killer:
    """Kills one thing at a time, in any state of the others."""

    def __init__(self, up: Up, writers: Writers, rng: random.Random) -> None:
        self.up, self.writers, self.rng = up, writers, rng
        self.kinds: dict[str, Callable[[], None]] = {
            "code server": lambda: self._kill("calc_analytics.orchestration.code_server"),
            "daemon": lambda: self._kill("dagster._daemon"),
            "webserver": lambda: self._kill("dagster_webserver"),
            "HTTP service": lambda: self._kill("calc_analytics.cli serve"),
            "run worker": self._kill_run_worker,
            "database": self._kill_database,
            "writer stopped": self._stop_a_writer,
        }
        self.done: Counter[str] = Counter()

    def choose(self, count: int) -> list[str]:
        """Each kind as often as any other, in random order."""
        rounds = [self.rng.sample(sorted(self.kinds), len(self.kinds)) for _ in range(-(-count // len(self.kinds)))]
        return [kind for each in rounds for kind in each][:count]

    def kill(self, kind: str) -> None:
        """Waits for a victim, and kills it."""
        self.kinds[kind]()
        self.done[kind] += 1

    def launch_a_run(self) -> None:
        """Of one of the days that the writers write to."""
        launch_a_run(self.up, days.today("UTC") - timedelta(days=self.rng.randrange(30)), WAIT_SECONDS)

    def _kill(self, module: str) -> None:
        victim = eventually(lambda: processes(self.up, module), f"a living {module}", WAIT_SECONDS)[0]
        victim.kill()

    def _kill_run_worker(self) -> None:
        """At any moment of its life: while it starts, while it counts, while it reports."""
        while True:
            workers = run_workers(self.up)
            if not workers:
                self.launch_a_run()
                workers = self._workers_of_the_launched_run()
            time.sleep(self.rng.uniform(0, 4))
            for worker in workers:
                if worker.is_running():
                    worker.kill()
                    return

    def _workers_of_the_launched_run(self) -> list[psutil.Process]:
        """None if the code server is dead and the run waits: then another is launched."""
        deadline = time.monotonic() + PATIENCE_SECONDS / 2
        while not (workers := run_workers(self.up)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return workers

    def _kill_database(self) -> None:
        server = eventually(lambda: answered(lambda: postmaster(self.up.project)), "a living database", WAIT_SECONDS)
        server.kill()

    def _stop_a_writer(self) -> None:
        """In an open transaction, for as long as several refreshes take; then it goes on."""
        number = self.rng.randrange(WRITERS)
        process = psutil.Process(self.writers.processes[number].pid)
        engine = self.up.engine()

        def stopped_in_a_transaction() -> bool:
            process.suspend()
            if answered(lambda: is_in_transaction(engine, f"writer {number + 1}")):
                return True
            process.resume()
            return False

        try:
            eventually(stopped_in_a_transaction, "a writer stopped in a transaction", WAIT_SECONDS)
            time.sleep(self.rng.uniform(1, 5))
        finally:
            process.resume()
            engine.dispose()


def keep_dead(up: Up, module: str, seconds: float) -> None:
    """However often it is started again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for process in processes(up, module):
            process.kill()
        time.sleep(0.1)


def is_in_transaction(engine: Engine, application: str) -> bool:
    """Whether that connection has written and not yet committed."""
    statement = (
        "select count(*) from pg_stat_activity "
        "where application_name = :name and state = 'idle in transaction' and backend_xid is not null"
    )
    with engine.begin() as connection:
        return bool(connection.execute(text(statement), {"name": application}).scalar())


def test_a_killed_code_servers_run_ends_with_it_and_is_repeated_though_the_database_dies_too(up: Up):
    eventually(lambda: answered(lambda: runs(up) and unfinished_runs(up) == []), "the first runs to end", WAIT_SECONDS)
    with counting_blocked(up):
        run_id = launch_a_run(up, days.today("UTC"), WAIT_SECONDS)
        started = {"runId": run_id, "parentRunId": None, "status": "STARTED"}
        eventually(lambda: started in runs(up) and waits_for_the_lock(up), "the run in its transaction")
        (worker,), (code_server,) = run_workers(up), processes(up, "orchestration.code_server")
        code_server.kill()
        eventually(lambda: worker not in processes_of(up.project), "the end of the run's worker")
        server = postmaster(up.project)
        assert server
        server.kill()
    keep_dead(up, "orchestration.code_server", AWAY_SECONDS)

    eventually(
        lambda: answered(lambda: with_repetitions(up, run_id)) == ["SUCCESS", "FAILURE"],
        "the run failed, its repetition done",
        WAIT_SECONDS,
    )


def test_a_database_that_cannot_start_is_tried_again_until_it_can(up: Up):
    settings = up.project.folder / ".calc_analytics" / "pgdata" / "postgresql.conf"
    good, server = settings.read_text(), postmaster(up.project)
    assert server
    settings.write_text(good + "\nshared_buffers = nonsense\n")
    server.kill()
    assert up.process.stdout
    while "did not start" not in (line := up.process.stdout.readline()):
        assert line, "up ended"
    assert line.endswith("; trying again\n")
    settings.write_text(good)
    begun = time.time()
    eventually(lambda: answered(lambda: ticked_well_since(up, begun)), "a tick that succeeds", WAIT_SECONDS)


def test_kills_at_random_moments_lose_no_row_and_everything_runs_again_by_itself(up: Up):
    print_line(f"KILL_SEED={SEED} KILLS={KILLS}")
    rng = random.Random(SEED)
    with writing(up.database_url, up.project.folder, SEED) as writers, proving(up) as proofs:
        killer = Killer(up, writers, rng)
        for number, kind in enumerate(killer.choose(KILLS), 1):
            time.sleep(rng.uniform(0, 3))
            print_line(f"kill {number}: {kind}")
            killer.kill(kind)
            writers.assert_alive()
            assert up.process.poll() is None, "up ended"
            assert not proofs.wrong, proofs.wrong
        assert_all_is_well(up, writers, proofs, killer)
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(PATIENCE_SECONDS) == 0
    assert processes_of(up.project) == []


def wait_for_health(up: Up) -> None:
    """Fails with what the HTTP service answered last."""
    answer: Any = None

    def healthy() -> bool:
        nonlocal answer
        answer = up.get("/health/rollup")
        return bool(answer[0] == 200)

    try:
        eventually(healthy, "a healthy answer of the HTTP service", WAIT_SECONDS)
    except TimeoutError as error:
        raise AssertionError(f"{error}: {answer}") from None


def assert_all_is_well(up: Up, writers: Writers, proofs: Proofs, killer: Killer) -> None:
    """Nothing is repaired by hand; everything is waited for."""
    over, started = time.time(), time.monotonic()

    def after(what: str) -> None:
        print_line(f"{what} {time.monotonic() - started:.1f} s after the last kill")

    eventually(lambda: answered(lambda: ticked_well_since(up, over)), "a tick that succeeds", WAIT_SECONDS)
    after("a tick succeeded")
    killer.launch_a_run()
    eventually(lambda: answered(lambda: unfinished_runs(up) == []), "every run at its end", WAIT_SECONDS)
    after("every run had ended")
    wait_for_health(up)
    after("the HTTP service had called it healthy")
    writers.finish()
    committed = writers.committed()
    assert eventually(lambda: answered(lambda: logged(up)), "the logs") == committed
    rows = sum(committed.values())
    wanted = in_every_rollup(rows)
    eventually(lambda: answered(lambda: counted(up)) == wanted, f"{rows} rows in each rollup", WAIT_SECONDS)
    after("every row was counted")
    engine = up.engine()
    assert differing(engine, live=False, built_only=False) == {}
    engine.dispose()
    assert proofs.made > KILLS
    eventually(lambda: strays(up) == [], "no process of a killed process")
    asked = [entry for entry in writers.entries() if entry["how"] == "asked"]
    print_line(
        f"{sum(killer.done.values())} kills ({dict(killer.done)}): {rows:,} rows in {len(committed):,} batches, "
        f"{len(asked)} commits of unknown outcome ({sum(1 for entry in asked if entry['rows'])} had succeeded), "
        f"{proofs.made:,} proofs ({proofs.unanswered} not answered): difference 0"
    )
