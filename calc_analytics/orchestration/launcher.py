"""Dagster's default run launcher, which can also say whether a run's worker process still lives.

Run monitoring asks the launcher. Dagster's own has no answer, so a run whose worker was killed together with its code
server stayed "started" for ever. `dagster.yaml` names this class.

A failed run is repeated by the daemon, which asks the code server for it: once, and if nobody answers, never again. So
a run fails only when its code server has answered for a while, and the daemon has found it again.
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
    works_on_run,
)

if TYPE_CHECKING:
    from calc_analytics.orchestration.dagster_internals import DagsterGrpcClient

# Worker's clock and the kernel's record of when it began differ by less.
SLACK_SECONDS = 2.0
ANSWER_SECONDS = 5
# Dagster's daemon asks every second whether the code server is a new one, and then loads its definitions.
SETTLED_SECONDS = 10.0


class WatchfulRunLauncher(DefaultRunLauncher):
    """`DefaultRunLauncher` with a health check: the worker's pid is in the run's events."""

    def __init__(self, inst_data: Any = None) -> None:
        super().__init__(inst_data)
        # By the tag that says where the code server is: its id, and since when it answers.
        self._servers: dict[str, tuple[str, float]] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: run monitoring then asks at each poll."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """FAILED if the worker is gone and the run can be repeated; else RUNNING, and the next poll asks again.

        Of a worker on another machine (or in another container) its code server is asked. A code server knows the
        death of its own workers. One that was started again has never heard of the run.
        """
        if self._is_lost(run):
            return CheckRunHealthResult(WorkerStatus.FAILED, "the run's process was killed or crashed")
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def _is_lost(self, run: DagsterRun) -> bool:
        is_ours = _is_of_this_machine(run)
        if is_ours and any(_lives(pid, since) for pid, since in self._workers(run)):
            return False
        client = self._get_grpc_client_for_termination(run.run_id)
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
        """Pid and instant of each event in which a process says that it works on the run."""
        events = self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
        said = [(event.get_dagster_event().engine_event_data.metadata.get("pid"), event.timestamp) for event in events]
        return [(int(str(pid.value)), at) for pid, at in said if pid is not None]


def _is_of_this_machine(run: DagsterRun) -> bool:
    server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    return "socket" in server or server.get("host") in ("localhost", "127.0.0.1")


def _lives(pid: int, since: float) -> bool:
    """Whether the process that had this pid at that instant is there; a later one has the number by chance."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < since + SLACK_SECONDS
    return False
