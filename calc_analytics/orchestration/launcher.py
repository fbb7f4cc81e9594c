"""Dagster's default run launcher, with a health check of run workers for run monitoring.

Dagster's own launcher has none, so a run whose worker was killed together with its code server would stay "started".
`dagster.yaml` names this class.

The daemon repeats a failed run by asking its code server, once: without an answer the run is never repeated. So a run
is reported as failed only after its code server has answered for a while, when the daemon has connected to it again.
"""

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
from dagster import DagsterEventType, DagsterRun, DefaultRunLauncher

from calc_analytics.orchestration.dagster_internals import (
    GRPC_INFO_TAG,
    CheckRunHealthResult,
    DagsterUserCodeUnreachableError,
    WorkerStatus,
    code_server_of,
    instance_of,
    works_on_run,
)

if TYPE_CHECKING:
    from calc_analytics.orchestration.dagster_internals import DagsterGrpcClient

# The worker's clock and the kernel's record of its start differ by less.
SLACK_SECONDS = 2.0
ANSWER_SECONDS = 5
# Dagster's daemon checks every second whether the code server is a new one, and then loads its definitions.
SETTLED_SECONDS = 10.0


class WatchfulRunLauncher(DefaultRunLauncher):
    """`DefaultRunLauncher` with a health check: the worker's pid is in the run's events."""

    def __init__(self, inst_data: Any = None) -> None:
        super().__init__(inst_data)
        # By the tag with the code server's address: its id, and since when it answers.
        self._servers: dict[str, tuple[str, float]] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: run monitoring then checks at each poll."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """FAILED if the worker has ended and the run can be repeated; else RUNNING, and the next poll checks again.

        For a worker on another machine (or in another container) its code server answers: it reports the death of its
        own workers itself, and a code server that was restarted does not know the run.
        """
        if self._is_lost(run):
            return CheckRunHealthResult(WorkerStatus.FAILED, "the run's process was killed or crashed")
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def _is_lost(self, run: DagsterRun) -> bool:
        is_ours = _is_of_this_machine(run)
        if is_ours and any(_is_alive(pid, since) for pid, since in self._workers(run)):
            return False
        client = code_server_of(self, run.run_id)
        if client is None:
            return False
        address = run.tags[GRPC_INFO_TAG]
        try:
            if not self._is_settled(address, client):
                return False
            return is_ours or not works_on_run(client, run.run_id, ANSWER_SECONDS)
        except DagsterUserCodeUnreachableError:
            self._servers.pop(address, None)
            return False

    def _is_settled(self, address: str, client: "DagsterGrpcClient") -> bool:
        """Whether one and the same code server has answered there for SETTLED_SECONDS."""
        server_id, now = client.get_server_id(timeout=ANSWER_SECONDS), time.monotonic()
        if self._servers.get(address, ("", 0.0))[0] != server_id:
            self._servers[address] = (server_id, now)
        return now - self._servers[address][1] >= SETTLED_SECONDS

    def _workers(self, run: DagsterRun) -> list[tuple[int, float]]:
        """Pid and instant of each event in which a process reports that it executes the run."""
        events = instance_of(self).all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
        reported = [
            (event.get_dagster_event().engine_event_data.metadata.get("pid"), event.timestamp) for event in events
        ]
        return [(int(str(pid.value)), at) for pid, at in reported if pid is not None]


def _is_of_this_machine(run: DagsterRun) -> bool:
    server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    return "socket" in server or server.get("host") in ("localhost", "127.0.0.1")


def _is_alive(pid: int, since: float) -> bool:
    """Whether the process that had this pid at that instant still runs; a later process may have the same number."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < since + SLACK_SECONDS
    return False
