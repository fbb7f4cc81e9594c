"""Dagster's default run launcher, which can also say whether a run's worker process still lives.

Run monitoring asks the launcher. Dagster's own has no answer, so a run whose worker was killed together with its code
server stayed "started" for ever. `dagster.yaml` names this class.
"""

import json
from contextlib import suppress

import psutil
from dagster import DagsterEventType, DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import deserialize_value

# Worker's clock and the kernel's record of when it began differ by less.
SLACK_SECONDS = 2.0
ANSWER_SECONDS = 5


class WatchfulRunLauncher(DefaultRunLauncher):
    """`DefaultRunLauncher` with a health check: the worker's pid is in the run's events."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: run monitoring then asks at each poll."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """FAILED if the worker is gone; of another machine's (or container's) run its code server is asked."""
        if _is_of_this_machine(run):
            lives = any(_lives(pid, since) for pid, since in self._workers(run))
        else:
            lives = self._is_known_to_its_server(run)
        if lives:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "the run's process was killed or crashed")

    def _is_known_to_its_server(self, run: DagsterRun) -> bool:
        """Whether the run's code server works on it; one that does not answer is given the benefit of the doubt.

        A code server knows the death of its own workers. One that was started again has never heard of the run.
        """
        from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult

        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            return True
        try:
            said = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=ANSWER_SECONDS)
        except DagsterUserCodeUnreachableError:
            return True
        return deserialize_value(said, CanCancelExecutionResult).can_cancel

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
