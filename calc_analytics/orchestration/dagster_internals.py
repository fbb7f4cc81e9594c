"""The only module that imports what Dagster does not publish. Everything else uses `dagster` and `dagster_postgres`.

Each group says why it is needed and why nothing public serves. All of it was tested with Dagster 1.13.27;
`test_dagster_internals.py` fails when a name, a signature or a behaviour that the project relies on changes.
"""

from typing import TYPE_CHECKING

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

# Tags of a run: the address of its code server, and whether the daemon repeats the run.
from dagster._core.storage.tags import GRPC_INFO_TAG, WILL_RETRY_TAG

# The code server. Its thread that looks for orphaned runs ends with the first database error; see `code_server`.
from dagster._grpc.server import DagsterApiServer

# What dagster-postgres raises when it cannot connect.
from dagster_postgres.utils import DagsterPostgresException

if TYPE_CHECKING:
    # The code server's client, and the state of a sensor or schedule: as annotations only.
    from dagster import DagsterRun
    from dagster._core.scheduler.instigation import InstigatorState
    from dagster._grpc.client import DagsterGrpcClient

TESTED_WITH = "1.13.27"

__all__ = [
    "GRPC_INFO_TAG",
    "TESTED_WITH",
    "WILL_RETRY_TAG",
    "AssetCheckExecutionRecordStatus",
    "AssetCheckExecutionsTable",
    "AssetEventTagsTable",
    "CheckRunHealthResult",
    "DagsterApiServer",
    "DagsterGrpcClient",
    "DagsterPostgresException",
    "DagsterUserCodeUnreachableError",
    "EvaluationTarget",
    "InstigatorState",
    "InstigatorType",
    "SqlEventLogStorage",
    "SqlEventLogStorageTable",
    "WorkerStatus",
    "location_of_instigator",
    "location_of_run",
    "works_on_run",
]


def works_on_run(client: "DagsterGrpcClient", run_id: str, timeout_seconds: int) -> bool:
    """Asks a code server whether it executes the run; raises `DagsterUserCodeUnreachableError`.

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
    """The code location of a sensor or schedule; nothing public says whose the stored state is."""
    return state.origin.repository_origin.code_location_origin.location_name
