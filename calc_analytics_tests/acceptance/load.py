"""Load on a running `up`, and the questions that are asked about it: proofs, runs, ticks, rows and processes."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from typing import Any

import psutil
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from benchmarks.running import eventually
from calc_analytics.database.errors import DatabaseError
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.ledger import built_days, days_by_status
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.acceptance.comparisons import differing
from calc_analytics_tests.acceptance.conftest import Project, Up
from calc_analytics_tests.logs import FORMS, disagreements

OURS = 'repositoryName: "__repository__", repositoryLocationName: "calc_analytics"'
LAUNCH = f"""
mutation ($day: String!) {{ launchRun(executionParams: {{
  selector: {{{OURS}, jobName: "rollup_job"}}, executionMetadata: {{tags: [{{key: "dagster/partition", value: $day}}]}}
}}) {{ __typename ... on LaunchRunSuccess {{ run {{ runId }} }} }} }}
"""
BACKFILL = """
mutation ($assets: [AssetKeyInput!], $days: [String!]) { launchPartitionBackfill(backfillParams: {
  assetSelection: $assets, partitionNames: $days
}) { __typename ... on LaunchBackfillSuccess { backfillId } } }
"""
RUNS = "query { runsOrError { ... on Runs { results { runId parentRunId status } } } }"
KEYS = "query { runsOrError { ... on Runs { results { runId parentRunId status tags { key value } } } } }"
TICKS = f"""
query {{ instigationStateOrError(instigationSelector: {{{OURS}, name: "new_log_batches"}}) {{
  ... on InstigationState {{ ticks(limit: 1) {{ status timestamp }} }} }} }}
"""
Run = dict[str, Any]


class Proofs(threading.Thread):
    """Whenever the database answers, in every rollup: statistics = logs, and live view = logs, for every built day;
    and the rollups agree with each other."""

    def __init__(self, db: Database) -> None:
        super().__init__(name="proofs", daemon=True)
        self.db, self.over = db, threading.Event()
        self.made = self.unanswered = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        """Proves until `over` is set."""
        while not self.over.wait(0.3):
            try:
                self._prove()
            except (DatabaseError, DBAPIError):
                self.unanswered += 1
            except Exception as error:
                self.wrong.append(f"the proof failed: {error!r}")

    def _prove(self) -> None:
        report = verify(self.db, built_days(self.db))
        if report.difference:
            self.wrong.append(f"statistics differ from logs: {report.as_dict()}")
        if keys := differing(self.db.engine, live=True):
            self.wrong.append(f"the live views differ from the logs, in so many keys: {keys}")
        if found := disagreements(self.db):
            self.wrong.append(f"the rollups do not agree with each other: {found[:5]}")
        self.made += 1


@contextmanager
def proving(up: Up) -> Iterator[Proofs]:
    """Proofs are made until the end of the block, and none may fail."""
    db = up.db()
    proofs = Proofs(db)
    proofs.start()
    try:
        yield proofs
    finally:
        proofs.over.set()
        proofs.join()
        db.engine.dispose()
    assert not proofs.wrong, proofs.wrong


def answered(question: Callable[[], Any]) -> Any:
    """The answer, or None while the server is down."""
    try:
        return question()
    except (OSError, DBAPIError, DatabaseError, psutil.Error, LookupError, ValueError, AssertionError):
        return None


def launch_a_run(up: Up, day: date, seconds: float) -> str:
    """Materializes a day, as an operator does, as soon as there is a webserver that can; returns the run's id."""

    def launched() -> str | None:
        answer = answered(lambda: up.graphql(LAUNCH, day=str(day))["launchRun"])
        return answer["run"]["runId"] if answer and answer["__typename"] == "LaunchRunSuccess" else None

    return eventually(launched, "a run launched", seconds)


def launch_a_backfill(up: Up, wanted: list[date]) -> None:
    """Materializes these days of every rollup."""
    assets = [{"path": [name]} for name in FORMS]
    answer = up.graphql(BACKFILL, assets=assets, days=[str(day) for day in wanted])["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer


def runs(up: Up) -> list[Run]:
    """Every run, newest first."""
    return up.graphql(RUNS)["runsOrError"]["results"]


def with_repetitions(up: Up, run_id: str) -> list[str]:
    """Statuses of the run and its repetitions, newest first, whether Dagster's daemon or the sensor requested them."""
    repeated, found = {run_id}, up.graphql(KEYS)["runsOrError"]["results"]
    for run in reversed(found):
        keys = [tag["value"] for tag in run["tags"] if tag["key"] == "dagster/run_key"]
        if run["parentRunId"] in repeated or any(key == f"repeats {each}" for key in keys for each in repeated):
            repeated.add(run["runId"])
    return [run["status"] for run in found if run["runId"] in repeated]


def unfinished_runs(up: Up) -> list[Run]:
    """Runs that have not come to an end."""
    return [run for run in runs(up) if run["status"] not in ("SUCCESS", "FAILURE", "CANCELED")]


def ticked_well_since(up: Up, instant: float) -> bool:
    """Whether the sensor's last tick began after the instant, and did not fail."""
    ticks = up.graphql(TICKS)["instigationStateOrError"]["ticks"]
    return bool(ticks) and ticks[0]["timestamp"] > instant and ticks[0]["status"] in ("SUCCESS", "SKIPPED")


def scalar(up: Up, statement: str, **values: Any) -> Any:
    """One value from the database."""
    engine = up.engine()
    try:
        with engine.begin() as connection:
            return connection.execute(text(statement), values).scalar()
    finally:
        engine.dispose()


def logged(up: Up) -> dict[int, int]:
    """Rows in the logs by marker."""
    pairs = "select jsonb_object_agg(marker, rows) from (select locality_id, count(*) from calculation_logs group by 1)"
    return {int(marker): int(rows) for marker, rows in scalar(up, f"{pairs} as logs (marker, rows)").items()}


def counted(up: Up) -> dict[str, int]:
    """Rows in the statistics, of each rollup."""
    return {
        name: int(scalar(up, f"select coalesce(sum({measures[0]}), 0) from {name}"))
        for name, (_, measures) in FORMS.items()
    }


def in_every_rollup(rows: int) -> dict[str, int]:
    """What `counted` answers when that many rows are counted."""
    return dict.fromkeys(FORMS, rows)


def built_everywhere(db: Database) -> set[date]:
    """The days that are built in every rollup."""
    return {day for day, names in days_by_status(db, ["built"]).items() if len(names) == len(FORMS)}


@contextmanager
def counting_blocked(up: Up) -> Iterator[None]:
    """Holds the state's lock: refreshes and rebuilds wait in the midst of their transactions, writers do not."""
    engine = up.engine()
    try:
        with engine.connect() as connection:
            connection.execute(text("select from rollup_state for update"))
            yield
            connection.invalidate()
    finally:
        engine.dispose()


def waits_for_the_lock(up: Up) -> bool:
    """Whether a transaction of a run or tick waits for its turn."""
    return bool(scalar(up, f"select count(*) {ACTIVE} and wait_event_type = 'Lock'"))


ACTIVE = "from pg_stat_activity where application_name = 'calc_analytics dagster' and datname = current_database()"


def cmdline(process: psutil.Process) -> str:
    """Its words; nothing if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def processes(up: Up, module: str) -> list[psutil.Process]:
    """Processes below `up` that run the module."""
    return [p for p in psutil.Process(up.process.pid).children(recursive=True) if module in cmdline(p)]


def run_workers(up: Up) -> list[psutil.Process]:
    """The processes of runs."""
    return processes(up, "multiprocessing.spawn")


def postmaster(project: Project) -> psutil.Process | None:
    """The embedded server, if it lives."""
    (process,) = project.postmasters()
    return process if process.status() != psutil.STATUS_ZOMBIE and process.name() == "postgres" else None


def processes_of(project: Project) -> list[psutil.Process]:
    """Every process that runs in the project's folder or for it, wherever it is in the tree of processes."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile, or belongs to another user
            inside = process.cwd().startswith(str(project.folder))
            is_ours = inside or process.environ().get("PYTHONPATH") == str(project.folder)
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def strays(up: Up) -> list[psutil.Process]:
    """Processes of the project that do not belong to the running `up`."""
    server, own = postmaster(up.project), psutil.Process(up.process.pid)
    tree = {own, *own.children(recursive=True), *([server, *server.children(recursive=True)] if server else [])}
    return [process for process in processes_of(up.project) if process not in tree]


def print_line(line: str) -> None:
    """One line of what happens, with the time; shown by pytest -s and after a failure."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
