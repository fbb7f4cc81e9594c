"""Evaluations of checks as Dagster wants them, so that the UI holds them for current.

An evaluation counts for its partition only if it names the partition's latest materialization. Dagster fills that in
for what a check returns in a run of one partition; for all others this module finds it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagster import AssetKey, AssetRecordsFilter, DagsterEventType
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as Target,
)

if TYPE_CHECKING:
    from dagster._core.storage.event_log import EventLogStorage


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
