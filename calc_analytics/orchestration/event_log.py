"""Reads and deletes rows of Dagster's event log, in Dagster's own tables.

Dagster deletes runs (`instance.delete_run`), but materializations and observations from a sensor's ticks belong to no
run, and evaluations of checks outlive theirs; nothing public deletes those by age. Nor does anything public return the
last results of many checks in all of their partitions with a fixed number of queries, without the results that a run
has planned and not reported. So this uses Dagster's own table definitions, and only for this project's assets.

Rows are deleted only on the storage and the versions that this was tested with. What the UI shows stays: of
every partition the latest materialization and observation, of every check and partition the latest evaluation with
each result, and what these refer to. Imported when used: it needs SQLAlchemy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import dagster
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    EventLogEntry,
    deserialize_value,
)
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy import ColumnElement, Select, Table, delete, func, or_, select
from sqlalchemy.engine import Row

from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.orchestration.dagster_internals import (
    TESTED_WITH,
    AssetCheckExecutionRecordStatus,
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorage,
    SqlEventLogStorageTable,
)

# Patch releases of Dagster keep its tables.
TESTED_MINOR = TESTED_WITH.rpartition(".")[0] + "."
# Rows per transaction.
BATCH = 2_000
# Of a check that fails in more partitions, the newest are read.
FAILED_AT_MOST = 100
NO_RUN = ""

events, checks, tags = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c, AssetEventTagsTable.c
_KINDS = [
    DagsterEventType.ASSET_MATERIALIZATION.value,
    DagsterEventType.ASSET_OBSERVATION.value,
    DagsterEventType.FRESHNESS_STATE_CHANGE.value,
]
_FAILED = AssetCheckExecutionRecordStatus.FAILED.value
_ENDED = [AssetCheckExecutionRecordStatus.SUCCEEDED.value, _FAILED]


class UnknownEventLog(CalcAnalyticsError):
    """Dagster's storage is not the one, or not of a version, that this was tested with; nothing was deleted."""


@dataclass
class RetainedIds:
    """Ids of event-log rows and of check executions that must stay, and the runs that hold them."""

    events: set[int] = field(default_factory=set)
    checks: set[int] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)


@dataclass
class CheckResults:
    """A check's last results in all partitions: when it was last evaluated, and in how many of them it failed.

    `failed` are the evaluations of those, with their times, the newest first, and at most FAILED_AT_MOST.
    """

    at: datetime
    failed_partitions: int = 0
    failed: list[tuple[datetime, AssetCheckEvaluation]] = field(default_factory=list)


def results_of_checks(instance: DagsterInstance, keys: Sequence[AssetCheckKey]) -> dict[AssetCheckKey, CheckResults]:
    """The last result of each check in each partition, in two queries; of the checks that were ever evaluated.

    A run plans its evaluations when it begins. Until they are reported, the previous ones count.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise UnknownEventLog(f"the event log is {type(storage).__name__}: results of checks cannot be read from it")
    assets = {key.asset_key.to_string() for key in keys}
    ended = (checks.asset_key.in_(assets), checks.partition.is_not(None), checks.execution_status.in_(_ENDED))
    each = (checks.asset_key, checks.check_name)
    newest = select(*each, func.max(checks.evaluation_event_timestamp).label("at")).where(*ended).group_by(*each)
    found = {_key(row): CheckResults(row.at.replace(tzinfo=timezone.utc)) for row in _rows(storage, newest)}
    latest = select(func.max(checks.id)).where(*ended).group_by(*each, checks.partition)
    failed = select(*each, checks.evaluation_event).where(checks.id.in_(latest), checks.execution_status == _FAILED)
    for row in _rows(storage, failed.order_by(checks.id.desc())):
        results = found[_key(row)]
        results.failed_partitions += 1
        if len(results.failed) < FAILED_AT_MOST:
            results.failed.append(_evaluation(row.evaluation_event))
    return {key: found[key] for key in keys if key in found}


def _key(row: "Row[Any]") -> AssetCheckKey:
    return AssetCheckKey(AssetKey.from_db_string(row.asset_key) or AssetKey(row.asset_key), row.check_name)


def _evaluation(event: str) -> tuple[datetime, AssetCheckEvaluation]:
    entry = deserialize_value(event, EventLogEntry)
    at = datetime.fromtimestamp(entry.timestamp, timezone.utc)
    return at, entry.get_dagster_event().asset_check_evaluation_data


def storage_of(instance: DagsterInstance) -> PostgresEventLogStorage:
    """The instance's event log; raises `UnknownEventLog` unless pruning it was tested."""
    storage = instance.event_log_storage
    if not isinstance(storage, PostgresEventLogStorage) or not dagster.__version__.startswith(TESTED_MINOR):
        raise UnknownEventLog(
            f"the event log is {type(storage).__name__} of Dagster {dagster.__version__}, but pruning was tested with "
            f"PostgreSQL and Dagster {TESTED_MINOR}*: nothing was deleted; switch the schedule daily_housekeeping off"
        )
    return storage


def find_retained(storage: PostgresEventLogStorage, assets: Sequence[AssetKey]) -> RetainedIds:
    """What the UI shows of these assets now; events that come later can only replace some of it."""
    found = RetainedIds()
    keys = [asset.to_string() for asset in assets]
    latest = (
        select(func.max(events.id))
        .where(events.asset_key.in_(keys), events.dagster_event_type.in_(_KINDS))
        .group_by(events.dagster_event_type, events.asset_key, events.partition)
    )
    found.events.update(row[0] for row in _rows(storage, latest))
    for row in _rows(storage, _latest_executions(keys)):
        found.checks.add(row.id)
        found.runs.add(row.run_id or NO_RUN)
        found.events.update({row.evaluation_event_storage_id, row.materialization_event_storage_id} - {None})
    holders = select(events.run_id).where(events.id.in_(found.events)).distinct()
    found.runs.update(row.run_id or NO_RUN for row in _rows(storage, holders))
    for asset in assets:
        attempts = storage.get_latest_asset_partition_materialization_attempts_without_materializations(asset)
        found.runs.update(run_id for run_id, _ in attempts.values())
    return found


def _latest_executions(keys: list[str]) -> "Select[Any]":
    """The latest execution of each check and partition, and the latest that passed and that failed."""
    each = (checks.asset_key, checks.check_name, checks.partition)
    latest = select(func.max(checks.id)).where(checks.asset_key.in_(keys)).group_by(*each)
    ended = latest.where(checks.execution_status.in_(_ENDED)).group_by(checks.execution_status)
    columns = (checks.id, checks.run_id, checks.evaluation_event_storage_id, checks.materialization_event_storage_id)
    return select(*columns).where(or_(checks.id.in_(latest), checks.id.in_(ended)))


def prune_executions(
    storage: PostgresEventLogStorage, assets: Sequence[AssetKey], before: datetime, keep: RetainedIds
) -> Iterator[int]:
    """Deletes old check executions, and the events of those that belong to no run; yields how many rows it deletes.

    `before` is a UTC instant without a time zone, as Dagster stores them.
    """
    old = (checks.asset_key.in_([asset.to_string() for asset in assets]), checks.evaluation_event_timestamp < before)
    columns = select(checks.id, checks.run_id, checks.evaluation_event_storage_id)
    for batch in _batches(storage, columns, AssetCheckExecutionsTable, *old):
        deleted = [row for row in batch if row.id not in keep.checks]
        runless = {row.evaluation_event_storage_id for row in deleted if (row.run_id or NO_RUN) == NO_RUN}
        stale = runless - keep.events - {None}
        with storage.index_transaction() as connection:
            connection.execute(delete(AssetCheckExecutionsTable).where(checks.id.in_([row.id for row in deleted])))
            connection.execute(delete(SqlEventLogStorageTable).where(events.id.in_(stale), events.run_id == NO_RUN))
        yield len(deleted) + len(stale)


def prune_events(
    storage: PostgresEventLogStorage, assets: Sequence[AssetKey], before: datetime, keep: RetainedIds
) -> Iterator[int]:
    """Deletes old materializations, observations and freshness changes that belong to no run; yields how many."""
    old = (
        events.run_id == NO_RUN,
        events.asset_key.in_([asset.to_string() for asset in assets]),
        events.dagster_event_type.in_(_KINDS),
        events.timestamp < before,
    )
    for batch in _batches(storage, select(events.id), SqlEventLogStorageTable, *old):
        deleted = [row.id for row in batch if row.id not in keep.events]
        with storage.index_transaction() as connection:
            connection.execute(delete(AssetEventTagsTable).where(tags.event_id.in_(deleted)))
            connection.execute(delete(SqlEventLogStorageTable).where(events.id.in_(deleted)))
        yield len(deleted)


def _batches(
    storage: PostgresEventLogStorage, columns: "Select[Any]", table: Table, *old: ColumnElement[bool]
) -> "Iterator[Sequence[Row[Any]]]":
    """The matching rows in the order of their ids, BATCH at a time."""
    last = 0
    while rows := _rows(storage, columns.where(table.c.id > last, *old).order_by(table.c.id).limit(BATCH)):
        yield rows
        last = rows[-1].id


def _rows(storage: SqlEventLogStorage, statement: "Select[Any]") -> "Sequence[Row[Any]]":
    with storage.index_connection() as connection:
        return connection.execute(statement).all()
