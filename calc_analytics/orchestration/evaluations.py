"""Evaluations of checks in Dagster's record: the last results, and what new ones must refer to.

The UI shows an evaluation as current only if it names the partition's latest materialization. Dagster fills that in for
what a check returns in a run of one partition; for all others `latest_materializations` finds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagster import AssetCheckKey, AssetKey, AssetRecordsFilter, DagsterEventType, DagsterInstance

if TYPE_CHECKING:
    from calc_analytics.orchestration.dagster_internals import EvaluationTarget


@dataclass(frozen=True)
class PartitionResult:
    """The last evaluation of a check for a partition. `event` grows with each evaluation.

    It is current unless the partition was materialized again since; the UI hides one that is not.
    """

    passed: bool
    is_ended: bool
    is_current: bool
    event: int


def latest_materializations(
    instance: DagsterInstance, asset: AssetKey, partitions: Sequence[str]
) -> dict[str, "EvaluationTarget"]:
    """The latest materialization of each of these partitions, in two queries; a partition without one is left out."""
    from calc_analytics.orchestration.dagster_internals import EvaluationTarget

    kind = DagsterEventType.ASSET_MATERIALIZATION
    found = instance.event_log_storage.get_latest_storage_id_by_partition(asset, kind, set(partitions))
    latest = {found[key]: key for key in partitions if key in found}
    if not latest:
        return {}
    records = instance.fetch_materializations(
        AssetRecordsFilter(asset, storage_ids=list(latest)), limit=len(latest)
    ).records
    return {
        latest[record.storage_id]: EvaluationTarget(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
        for record in records
    }


def results_of_partitions(
    instance: DagsterInstance, checks: Sequence[AssetCheckKey], partitions: Sequence[str]
) -> dict[tuple[AssetCheckKey, str], PartitionResult]:
    """The last evaluation of each of these checks and partitions that have one."""
    if not checks or not partitions:
        return {}
    found = instance.event_log_storage.get_asset_check_partition_info(checks, partition_keys=partitions)
    return {
        (each.check_key, each.partition_key): PartitionResult(
            passed=each.latest_execution_status.value == "SUCCEEDED",
            is_ended=each.latest_execution_status.value in ("SUCCEEDED", "FAILED"),
            is_current=each.is_current,
            event=each.latest_check_event_storage_id,
        )
        for each in found
        if each.partition_key
    }
