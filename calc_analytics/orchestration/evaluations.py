"""Evaluations of checks as Dagster wants them, so that the UI holds them for current.

An evaluation counts for its partition only if it names the partition's latest materialization. Dagster fills that in
for what a check returns in a run of one partition; for all others this module finds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagster import AssetCheckKey, AssetKey, AssetRecordsFilter, DagsterEventType, DagsterInstance
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as Target,
)

if TYPE_CHECKING:
    from dagster._core.storage.event_log import EventLogStorage


@dataclass(frozen=True)
class LastResult:
    """The last evaluation of a check for a partition. `event` grows with each evaluation.

    One that is not current is not shown as the partition's: it was materialized again since.
    """

    passed: bool
    is_ended: bool
    is_current: bool
    event: int


def targets(events: "EventLogStorage", asset: AssetKey, partitions: Sequence[str]) -> dict[str, Target]:
    """The latest materialization of each of these partitions, in two queries; a partition without one is left out."""
    found = events.get_latest_storage_id_by_partition(asset, DagsterEventType.ASSET_MATERIALIZATION, set(partitions))
    latest = {found[key]: key for key in partitions if key in found}
    if not latest:
        return {}
    wanted = AssetRecordsFilter(asset, storage_ids=list(latest))
    records = events.fetch_materializations(wanted, limit=len(latest)).records
    return {
        latest[record.storage_id]: Target(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
        for record in records
    }


def last_results(
    instance: DagsterInstance, checks: Sequence[AssetCheckKey], partitions: Sequence[str]
) -> dict[tuple[AssetCheckKey, str], LastResult]:
    """The last evaluation of each of these checks and partitions that have one."""
    if not checks or not partitions:
        return {}
    found = instance.event_log_storage.get_asset_check_partition_info(checks, partition_keys=partitions)
    return {
        (each.check_key, each.partition_key): LastResult(
            passed=each.latest_execution_status.value == "SUCCEEDED",
            is_ended=each.latest_execution_status.value in ("SUCCEEDED", "FAILED"),
            is_current=each.is_current,
            event=each.latest_check_event_storage_id,
        )
        for each in found
        if each.partition_key
    }
