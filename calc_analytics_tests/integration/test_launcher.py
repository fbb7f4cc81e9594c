"""The health check of run workers distinguishes live from dead ones, and survives errors."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from dagster import DagsterInstance, DagsterRun
from dagster._core.events import EngineEventData
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from benchmarks.running import eventually
from calc_analytics.orchestration import launcher
from calc_analytics.orchestration.code_server import log_errors
from calc_analytics.orchestration.launcher import WatchfulRunLauncher
from calc_analytics.ports import is_listening
from calc_analytics.processes.supervisor import free_port

Health = Callable[[DagsterRun], WorkerStatus]


@contextmanager
def code_server(port: int) -> Iterator[None]:
    """The project's, listening there."""
    command = ["-m", "calc_analytics.orchestration.code_server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: is_listening(port), "a code server")
        yield
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where a code server listens."""
    with code_server(port := free_port()):
        yield port


@pytest.fixture
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code server has answered for a while."""
    monkeypatch.setattr(launcher, "SETTLED_SECONDS", 0.0)


@pytest.fixture
def worker() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that plays the run's worker."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def health(instance: DagsterInstance) -> Health:
    """The launcher's result for a run."""
    launcher = WatchfulRunLauncher()
    launcher.register_instance(instance)
    assert launcher.supports_check_run_worker_health
    return lambda run: launcher.check_run_worker_health(run).status


def launched(instance: DagsterInstance, pid: int, port: int, host: str = "127.0.0.1") -> DagsterRun:
    """A run whose record names the process with this pid as its worker, launched through the code server there."""
    run = create_run_for_test(instance, tags={GRPC_INFO_TAG: json.dumps({"host": host, "port": port})})
    instance.report_engine_event("Launching", run)
    instance.report_engine_event(f"Started process for run (pid: {pid}).", run, EngineEventData.in_process(pid))
    return run


@pytest.mark.usefixtures("_settled")
def test_a_living_worker_runs(instance: DagsterInstance, health: Health, worker: "subprocess.Popen[bytes]", port: int):
    assert health(launched(instance, worker.pid, port)) == WorkerStatus.RUNNING


@pytest.mark.usefixtures("_settled")
def test_a_killed_worker_has_failed_while_it_is_still_a_zombie(
    instance: DagsterInstance, health: Health, worker: "subprocess.Popen[bytes]", port: int
):
    run = launched(instance, worker.pid, port)
    worker.kill()
    eventually(lambda: health(run) == WorkerStatus.FAILED, "a dead worker is seen")
    worker.wait()
    assert health(run) == WorkerStatus.FAILED


@pytest.mark.usefixtures("_settled")
def test_a_later_process_with_the_workers_number_is_not_the_worker(
    instance: DagsterInstance,
    health: Health,
    worker: "subprocess.Popen[bytes]",
    port: int,
    monkeypatch: pytest.MonkeyPatch,
):
    an_hour_ago = time.time() - 3600
    with monkeypatch.context() as earlier:
        earlier.setattr("time.time", lambda: an_hour_ago)
        run = launched(instance, worker.pid, port)
    assert health(run) == WorkerStatus.FAILED


@pytest.mark.usefixtures("_settled")
def test_a_run_whose_code_server_does_not_answer_counts_as_running(instance: DagsterInstance, health: Health):
    assert health(launched(instance, 2**22 + 1, 4000, "code.example.org")) == WorkerStatus.RUNNING
    assert health(launched(instance, 2**22 + 1, free_port())) == WorkerStatus.RUNNING
    assert health(create_run_for_test(instance)) == WorkerStatus.RUNNING


@pytest.mark.usefixtures("_settled")
def test_a_run_that_another_machines_code_server_does_not_know_has_failed(
    instance: DagsterInstance, health: Health, port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launcher, "_is_of_this_machine", lambda run: False)
    assert health(launched(instance, 2**22 + 1, port)) == WorkerStatus.FAILED


@pytest.mark.long
def test_a_dead_workers_run_fails_only_when_one_code_server_has_answered_for_a_while(
    instance: DagsterInstance, health: Health, monkeypatch: pytest.MonkeyPatch
):
    """Then the daemon can have the run repeated: it tries once."""
    run = launched(instance, 2**22 + 1, (port := free_port()))
    with code_server(port):
        assert health(run) == WorkerStatus.RUNNING
        monkeypatch.setattr(launcher, "SETTLED_SECONDS", 0.5)
        time.sleep(0.5)
        assert health(run) == WorkerStatus.FAILED
    with code_server(port):
        assert health(run) == WorkerStatus.RUNNING, "another server"


def test_the_code_servers_search_for_orphaned_runs_survives_a_database_that_is_away(caplog: pytest.LogCaptureFixture):
    def look(server: object) -> None:
        raise ConnectionError("a URL with a password")

    log_errors(look)(None)
    assert [record.message for record in caplog.records] == [
        "cannot look for orphaned runs at the moment (ConnectionError)"
    ]
