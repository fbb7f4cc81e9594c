"""Deletes old rows of Dagster's event log: the one place that touches Dagster's own tables.

Dagster deletes runs (`instance.delete_run`), but what a sensor's ticks reported belongs to no run, and evaluations of
checks outlive theirs; nothing public deletes those by age. So this uses Dagster's own table definitions, on the
storage and the versions it was tested with and on no other, and only for this project's assets.

What the UI shows stays: of every partition the latest materialization and observation, of every check and partition
the latest evaluation with each result, and what these refer to. Imported when used: it needs SQLAlchemy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import dagster
from dagster import AssetKey, DagsterEventType, DagsterInstance
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy import ColumnElement, Select, Table, delete, func, or_, select
from sqlalchemy.engine import Row

from calc_analytics.errors import CalcAnalyticsError

TESTED_WITH = "1.13."
# Rows per transaction.
BATCH = 2_000
NO_RUN = ""

events, checks, tags = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c, AssetEventTagsTable.c
_KINDS = [
    DagsterEventType.ASSET_MATERIALIZATION.value,
    DagsterEventType.ASSET_OBSERVATION.value,
    DagsterEventType.FRESHNESS_STATE_CHANGE.value,
]
_ENDED = [AssetCheckExecutionRecordStatus.SUCCEEDED.value, AssetCheckExecutionRecordStatus.FAILED.value]


class UnknownEventLog(CalcAnalyticsError):
    """Dagster's storage is not the one, or not of a version, that pruning was tested with; nothing was deleted."""


@dataclass
class Kept:
    """Ids of event-log rows and of check executions that must stay, and the runs that hold them."""

    events: set[int] = field(default_factory=set)
    checks: set[int] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)


def storage_of(instance: DagsterInstance) -> PostgresEventLogStorage:
    """The instance's event log; raises `UnknownEventLog` unless pruning it was tested."""
    storage = instance.event_log_storage
    if not isinstance(storage, PostgresEventLogStorage) or not dagster.__version__.startswith(TESTED_WITH):
        raise UnknownEventLog(
            f"the event log is {type(storage).__name__} of Dagster {dagster.__version__}, but pruning was tested with "
            f"PostgreSQL and Dagster {TESTED_WITH}*: nothing was deleted; switch the schedule daily_housekeeping off"
        )
    return storage


def kept(storage: PostgresEventLogStorage, assets: Sequence[AssetKey]) -> Kept:
    """What the UI shows of these assets now. Whatever is newer later only makes some of it superfluous."""
    found = Kept()
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
    storage: PostgresEventLogStorage, assets: Sequence[AssetKey], before: datetime, keep: Kept
) -> Iterator[int]:
    """Deletes old check executions, and the events of those that belong to no run; yields how many rows it deletes.

    `before` is a UTC instant without a time zone, as Dagster stores them.
    """
    old = (checks.asset_key.in_([asset.to_string() for asset in assets]), checks.evaluation_event_timestamp < before)
    columns = select(checks.id, checks.run_id, checks.evaluation_event_storage_id)
    for batch in _batches(storage, columns, AssetCheckExecutionsTable, *old):
        gone = [row for row in batch if row.id not in keep.checks]
        runless = {row.evaluation_event_storage_id for row in gone if (row.run_id or NO_RUN) == NO_RUN}
        stale = runless - keep.events - {None}
        with storage.index_transaction() as connection:
            connection.execute(delete(AssetCheckExecutionsTable).where(checks.id.in_([row.id for row in gone])))
            connection.execute(delete(SqlEventLogStorageTable).where(events.id.in_(stale), events.run_id == NO_RUN))
        yield len(gone) + len(stale)


def prune_events(
    storage: PostgresEventLogStorage, assets: Sequence[AssetKey], before: datetime, keep: Kept
) -> Iterator[int]:
    """Deletes old materializations, observations and freshness changes that belong to no run; yields how many."""
    old = (
        events.run_id == NO_RUN,
        events.asset_key.in_([asset.to_string() for asset in assets]),
        events.dagster_event_type.in_(_KINDS),
        events.timestamp < before,
    )
    for batch in _batches(storage, select(events.id), SqlEventLogStorageTable, *old):
        gone = [row.id for row in batch if row.id not in keep.events]
        with storage.index_transaction() as connection:
            connection.execute(delete(AssetEventTagsTable).where(tags.event_id.in_(gone)))
            connection.execute(delete(SqlEventLogStorageTable).where(events.id.in_(gone)))
        yield len(gone)


def _batches(
    storage: PostgresEventLogStorage, columns: "Select[Any]", table: Table, *old: ColumnElement[bool]
) -> "Iterator[Sequence[Row[Any]]]":
    """The matching rows in the order of their ids, BATCH at a time."""
    last = 0
    while rows := _rows(storage, columns.where(table.c.id > last, *old).order_by(table.c.id).limit(BATCH)):
        yield rows
        last = rows[-1].id


def _rows(storage: PostgresEventLogStorage, statement: "Select[Any]") -> "Sequence[Row[Any]]":
    with storage.index_connection() as connection:
        return connection.execute(statement).all()
