"""Stopping `up` at any moment: within ten seconds, nothing left running, nothing lost, and the next start goes on."""

import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import cycle
from pathlib import Path
from shutil import rmtree

import psutil
import psycopg
from sqlalchemy.engine import URL

from benchmarks.running import eventually
from calc_analytics import days
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.acceptance.comparisons import differing
from calc_analytics_tests.acceptance.conftest import PATIENCE_SECONDS, Project, Up, free_ports
from calc_analytics_tests.acceptance.load import (
    ACTIVE,
    answered,
    built_everywhere,
    counted,
    counting_blocked,
    in_every_rollup,
    launch_a_backfill,
    launch_a_run,
    logged,
    print_line,
    processes_of,
    run_workers,
    runs,
    scalar,
    unfinished_runs,
    waits_for_the_lock,
    with_repetitions,
)
from calc_analytics_tests.acceptance.writers import writing

# The promise.
STOPPED_WITHIN_SECONDS = 10
BACKFILLED_DAYS = 30

Connect = Callable[[], psycopg.Connection]


def assert_stops(up: Up, *signals: int) -> None:
    """In time, successfully, and with all that it had started."""
    begun = time.monotonic()
    for number in signals:
        up.process.send_signal(number)
        time.sleep(0.2)
    assert up.process.wait(STOPPED_WITHIN_SECONDS) == 0
    print_line(f"stopped within {time.monotonic() - begun:.1f} s")
    assert processes_of(up.project) == []


def is_blocked_in_a_run(up: Up) -> bool:
    """Whether a run has started and its transaction, or a tick's, waits for its turn."""
    started = [run for run in unfinished_runs(up) if run["status"] == "STARTED"]
    return bool(started and run_workers(up)) and waits_for_the_lock(up)


def test_a_stop_under_load_in_the_midst_of_a_backfill_loses_nothing_and_the_next_start_finishes_it(project: Project):
    wanted = days.days_between(days.today("UTC") - timedelta(days=BACKFILLED_DAYS - 1), days.today("UTC"))
    with project.up() as up:
        eventually(lambda: runs(up) and unfinished_runs(up) == [], "the first runs to end")
        with writing(up.database_url, project.folder, seed=random.randrange(10**6)) as writers:
            with counting_blocked(up):
                launch_a_backfill(up, wanted)
                eventually(lambda: is_blocked_in_a_run(up), "the backfill in the midst of a transaction")
                assert_stops(up, signal.SIGTERM)
            with project.up() as again:
                db = again.db()
                eventually(lambda: set(wanted) <= built_everywhere(db), "the backfill done", 240)
                eventually(lambda: unfinished_runs(again) == [], "every run at its end", 240)
                assert verify(db, sorted(built_everywhere(db))).difference == 0
                writers.finish()
                committed = writers.committed()
                assert logged(again) == committed
                in_each = in_every_rollup(sum(committed.values()))
                eventually(lambda: counted(again) == in_each, "every row in each rollup")
                assert differing(db.engine, live=False, built_only=False) == {}
                db.engine.dispose()
                with counting_blocked(again):
                    launch_a_run(again, wanted[0], PATIENCE_SECONDS)
                    eventually(lambda: is_blocked_in_a_run(again), "a run in the midst of its transaction")
                    assert_stops(again, signal.SIGINT, signal.SIGTERM, signal.SIGTERM)
    proof = project.cli("verify")
    assert proof.returncode == 0, proof.stdout + proof.stderr
    assert "difference 0" in proof.stdout


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "while the database is created": lambda folder: (folder / "pgdata").exists(),
    "while the database starts": lambda folder: (folder / "pgdata" / "postmaster.pid").exists(),
    "while the tables are created": lambda folder: (folder / "pgdata" / "postmaster.opts").exists(),
    "while the code server starts": lambda folder: (folder / "logs" / "code-server.log").exists(),
    "while the webserver starts": lambda folder: (folder / "logs" / "webserver.log").exists(),
}


def test_a_stop_during_start_up_leaves_nothing_running_and_the_next_start_works():
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    project = Project(folder)
    try:
        for (moment, has_come), number in zip(MOMENTS.items(), cycle([signal.SIGTERM, signal.SIGINT]), strict=False):
            starting = project.start("calc_analytics.cli", "up", *free_ports())
            eventually(partial(has_come, folder / ".calc_analytics"), moment)
            assert_ends(starting, number, moment)
            assert processes_of(project) == [], moment
            rmtree(folder / ".calc_analytics")
        with project.up() as up:
            assert unfinished_runs(up) is not None
            assert_stops(up, signal.SIGTERM)
    finally:
        rmtree(folder)


def test_an_up_that_is_killed_takes_everything_with_it_and_the_next_start_repeats_its_run(project: Project):
    with project.up() as up:
        eventually(lambda: runs(up) and unfinished_runs(up) == [], "the first runs to end")
        with counting_blocked(up):
            run_id = launch_a_run(up, days.today("UTC"), PATIENCE_SECONDS)
            eventually(lambda: is_blocked_in_a_run(up), "a run in the midst of its transaction")
            up.process.kill()
            up.process.wait()
            eventually(lambda: processes_of(project) == [], "the end of every process")
    with project.up() as again:

        def is_made_good() -> bool:
            """A repetition too may be ended on a busy machine, and repeated."""
            found = answered(lambda: with_repetitions(again, run_id))
            return (found[0], found[-1]) == ("SUCCESS", "FAILURE") if found else False

        eventually(is_made_good, "it failed, a repetition succeeds", 2 * PATIENCE_SECONDS)


def test_a_stop_ends_a_start_that_waits_for_a_lock_in_the_database(project: Project, url: URL, connect: Connect):
    holder = connect()
    holder.execute("lock table rollup_state in access exclusive mode")
    settings = {"DATABASE_URL": url.set(drivername="postgresql").render_as_string()}
    starting = project.start("calc_analytics.cli", "up", *free_ports(), **settings)

    def waits() -> bool:
        statement = "select count(*) from pg_locks where relation = 'rollup_state'::regclass and not granted"
        return holder.execute(statement).fetchone() == (1,)

    eventually(waits, "a statement that waits for the lock")
    assert_ends(starting, signal.SIGTERM, "while it waits for a lock")
    eventually(lambda: not waits(), "the end of the statement")


def assert_ends(starting: "subprocess.Popen[str]", number: int, moment: str) -> None:
    """In time, successfully, and without a complaint."""
    starting.send_signal(number)
    message, _ = starting.communicate(timeout=STOPPED_WITHIN_SECONDS)
    assert starting.returncode == 0, f"{moment}: {message}"
    assert "error" not in message, f"{moment}: {message}"


def test_a_termination_or_stop_ends_the_statement_in_a_server_of_ones_own(project: Project, url: URL, empty_url: URL):
    plain = {"DATABASE_URL": url, "DAGSTER_POSTGRES_URL": empty_url}
    settings = {name: value.set(drivername="postgresql").render_as_string() for name, value in plain.items()}
    with project.up(**settings) as up:
        eventually(lambda: runs(up) and unfinished_runs(up) == [], "the first runs to end")
        with counting_blocked(up):
            terminated = launch_a_run(up, days.today("UTC"), PATIENCE_SECONDS)
            eventually(lambda: is_blocked_in_a_run(up), "a run in the midst of its transaction")
            (worker,) = run_workers(up)
            answer = up.graphql("mutation ($id: String!) { terminateRun(runId: $id) { __typename } }", id=terminated)
            assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess"
            canceled = {"runId": terminated, "parentRunId": None, "status": "CANCELED"}
            # Dagster itself gives up after a minute, and the run would go on.
            eventually(lambda: canceled in runs(up), "the run canceled", 45)
            psutil.wait_procs([worker], timeout=PATIENCE_SECONDS)

            launch_a_run(up, days.today("UTC"), PATIENCE_SECONDS)
            eventually(lambda: is_blocked_in_a_run(up), "another run in the midst of its transaction")
            assert_stops(up, signal.SIGTERM)
            eventually(lambda: scalar(up, f"select count(*) {ACTIVE}") == 0, "the end of every transaction", 30)
