"""The only module that imports or calls what Dagster does not publish. The rest uses `dagster` and `dagster_postgres`.

Each group says why it is needed and why nothing public serves. All of it was tested with Dagster 1.13.27;
`test_dagster_internals.py` fails when a name, a signature or a behaviour that the project relies on changes.

Two uses are elsewhere, in modules that may not import this one, and are in the same test:

- `database/dagster_tables.py` has the names of Dagster's tables, and reads the revisions of its migrations from their
  files: before Dagster makes its tables in a database, nothing public shows whether existing tables are its own.
- `processes/supervisor.py` starts the daemon by `python -m dagster._daemon`, as `dagster dev` does. The public command
  `dagster-daemon` is a script, which need not be in the interpreter's folder.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

# The target of an evaluation. The UI shows an evaluation as current only if it names the partition's latest
# materialization. Dagster fills it in only for results that a check returns in a run of a single partition.
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as EvaluationTarget,
)

# The argument of `DagsterInstance.get_tick_retention_settings`, which is public; its type is not.
from dagster._core.definitions.run_request import InstigatorType

# What a launcher must return from `check_run_worker_health`, and what calls of the code server raise. A launcher of
# one's own is a documented extension (`run_launcher` in dagster.yaml); these types have no public name.
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus

# Dagster's own tables. Events without a run and evaluations of checks are not deleted with runs, and nothing public
# deletes them; nor does anything public read the last result of each check in each partition in one query.
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

# Tags of a run: the address of its code server, why it failed, whether the daemon repeats it, and by which run.
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, GRPC_INFO_TAG, RUN_FAILURE_REASON_TAG, WILL_RETRY_TAG

# What dagster-postgres raises when it cannot connect.
from dagster_postgres.utils import DagsterPostgresException

if TYPE_CHECKING:
    # The code server's client, and the state of a sensor or schedule: as annotations only.
    from dagster import DagsterInstance, DagsterRun, DefaultRunLauncher
    from dagster._core.scheduler.instigation import InstigatorState
    from dagster._grpc.client import DagsterGrpcClient
    from dagster_postgres import DagsterPostgresStorage

TESTED_WITH = "1.13.27"

__all__ = [
    "GRPC_INFO_TAG",
    "TESTED_WITH",
    "WILL_RETRY_TAG",
    "AssetCheckExecutionRecordStatus",
    "AssetCheckExecutionsTable",
    "AssetEventTagsTable",
    "CheckRunHealthResult",
    "DagsterGrpcClient",
    "DagsterPostgresException",
    "DagsterUserCodeUnreachableError",
    "EvaluationTarget",
    "InstigatorState",
    "InstigatorType",
    "SqlEventLogStorage",
    "SqlEventLogStorageTable",
    "WorkerStatus",
    "code_server_of",
    "instance_of",
    "is_daemon",
    "keep_pools",
    "location_of_instigator",
    "location_of_run",
    "lost_its_repetition",
    "works_on_run",
    "wrap_check_for_orphaned_runs",
]


def works_on_run(client: "DagsterGrpcClient", run_id: str, timeout_seconds: int) -> bool:
    """Whether a code server executes the run; raises `DagsterUserCodeUnreachableError`.

    Only a worker's own code server knows that; the public instance knows what is stored.
    """
    from dagster import deserialize_value
    from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult

    answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=timeout_seconds)
    return deserialize_value(answer, CanCancelExecutionResult).can_cancel


def location_of_run(run: "DagsterRun") -> str | None:
    """The code location of which the run was launched; None for one that was started on the command line.

    The public record of a run has its origin, but not under a documented name.
    """
    return run.remote_job_origin.location_name if run.remote_job_origin else None


def location_of_instigator(state: "InstigatorState") -> str:
    """The code location of a sensor or schedule; nothing public shows whose the stored state is."""
    return state.origin.repository_origin.code_location_origin.location_name


def lost_its_repetition(instance: "DagsterInstance", run: "DagsterRun") -> bool:
    """Whether by Dagster's own rule the daemon repeats this failed run, and it tried to and could not.

    It notes that only as an event of the run for people, and does not try again; nothing public has the rule.
    """
    from dagster._core.events import RunFailureReason
    from dagster._core.execution.retries import auto_reexecution_should_retry_run

    reason = run.tags.get(RUN_FAILURE_REASON_TAG)
    is_to_be_repeated = auto_reexecution_should_retry_run(instance, run, RunFailureReason(reason) if reason else None)
    is_given_up = run.tags.get(WILL_RETRY_TAG) == "false" and AUTO_RETRY_RUN_ID_TAG not in run.tags
    return is_given_up and is_to_be_repeated


def wrap_check_for_orphaned_runs(wrap: Callable[[Callable[[Any], None]], Callable[[Any], None]]) -> None:
    """Replaces what the code server of this process calls twice a second to look for orphaned runs.

    The thread that calls it ends with the first database error, and there is no setting for that.
    """
    from dagster._grpc.server import DagsterApiServer

    DagsterApiServer._check_for_orphaned_runs = wrap(  # type: ignore[assignment]
        DagsterApiServer._check_for_orphaned_runs
    )


def instance_of(launcher: "DefaultRunLauncher") -> "DagsterInstance":
    """The launcher's instance. Launchers of one's own are documented; how they get at the instance is not."""
    return launcher._instance


def code_server_of(launcher: "DefaultRunLauncher", run_id: str) -> "DagsterGrpcClient | None":
    """A client of the code server that launched the run, by the run's tag; None if it has no such tag.

    The launcher uses it to terminate runs; nothing public makes a client.
    """
    return launcher._get_grpc_client_for_termination(run_id)


def keep_pools(storage: "DagsterPostgresStorage") -> None:
    """Prevents that the webserver replaces the pools of this storage, which Dagster does in its instance.

    Its own would set a statement_timeout per session, which a pooler reuses for other clients. A role may have its own
    statement_timeout. Dagster has no setting for it.
    """
    for each in (storage.run_storage, storage.event_log_storage, storage.schedule_storage):
        vars(each)["optimize_for_webserver"] = lambda **limits: None


def is_daemon(program: str) -> bool:
    """Whether a process that was started by this path is Dagster's daemon: its script, or `python -m`."""
    return program.endswith(("dagster-daemon", "dagster/_daemon/__main__.py"))
