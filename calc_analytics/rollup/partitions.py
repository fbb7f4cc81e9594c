"""The partitions of the log as `calc-analytics partitions` and the health report see them. Nothing is changed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from calc_analytics import days
from calc_analytics.database.engine import transaction
from calc_analytics.database.log_partitions import Layout, Partition, read_layout
from calc_analytics.database.partitioning import LeftCheck, left_check
from calc_analytics.database.partitions_ahead import partman_schema, recognize_step
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.dropping import DaysBefore, touches
from calc_analytics.rollup.retention import days_before


@dataclass(frozen=True)
class PartitionState:
    """A partition: its range (None: no limit), estimated rows, bytes with indexes, and what is known of its days.

    `is_counted` and `is_archived` (None: days are not archived) are about its days that are over. `reason` is why
    `prune` would not drop it, whatever its limit is; None if it would.
    """

    name: str
    lower: datetime | None
    upper: datetime | None
    is_default: bool
    rows: int
    bytes: int
    is_counted: bool
    is_archived: bool | None
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        limits = {name: at.isoformat() if (at := getattr(self, name)) else None for name in ("lower", "upper")}
        return {**asdict(self), **limits}


@dataclass(frozen=True)
class Outlook:
    """Whether rows of the next days have a partition. `until` is when the first has none (None: never).

    `created_by` is pg_partman's schema, or None. `step` is 'month', 'week', 'day' or None.
    """

    until: datetime | None
    has_default: bool
    step: str | None
    created_by: str | None
    left_check: LeftCheck | None = None
    """Of a table that is not partitioned, and whose partitioning was begun."""


@dataclass(frozen=True)
class PartitionsReport:
    """The partitions of the log, oldest first; `is_by_time` is false if their ranges are not of the event time."""

    is_by_time: bool
    outlook: Outlook
    partitions: list[PartitionState]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        until = self.outlook.until
        return {
            "by_time": self.is_by_time,
            "step": self.outlook.step,
            "covered_until": until.isoformat() if until else None,
            "created_by": self.outlook.created_by,
            "partitions": [each.as_dict() for each in self.partitions],
        }


def read_partitions(db: Database, now: datetime) -> PartitionsReport | None:
    """The partitions and what is known of them; None if the log table is not partitioned. Cost: catalogs and ledger."""
    known = days_before(db, days.today(db.timezone))
    with transaction(db.engine) as connection:
        layout = read_layout(connection, db.log.name, db.log.event_time)
        if layout is None:
            return None
        sizes = {row.oid: row for row in connection.execute(_SIZES, {"source": db.log.name})}
    states = [_state(db, known, each, sizes) for each in layout.partitions]
    return PartitionsReport(layout.is_by_time, _outlook(db, layout, now), states)


def outlook(db: Database, now: datetime) -> Outlook | None:
    """Whether rows of the next days have a partition; None if that is no question: no partitions, or not by time."""
    with transaction(db.engine) as connection:
        layout = read_layout(connection, db.log.name, db.log.event_time)
        left = left_check(connection, db.log.name)
    if left is not None:
        return Outlook(left.until, False, None, None, left)
    return _outlook(db, layout, now) if layout and layout.is_by_time else None


def _outlook(db: Database, layout: Layout, now: datetime) -> Outlook:
    found = recognize_step(layout, ("UTC", db.timezone))
    with transaction(db.engine) as connection:
        manager = partman_schema(connection, db.log.name)
    until = layout.covered_until(now) if layout.is_by_time else None
    return Outlook(until, layout.default is not None, found[0].unit if found else None, manager)


def _state(db: Database, known: DaysBefore, partition: Partition, sizes: Mapping[int, Any]) -> PartitionState:
    is_counted = not any(touches(partition, day, db.timezone) for day in known.not_built)
    is_archived = not any(touches(partition, day, db.timezone) for day in known.not_archived)
    size = sizes[partition.oid]
    return PartitionState(
        partition.name,
        partition.lower,
        partition.upper,
        partition.is_default,
        int(size.rows),
        int(size.bytes),
        is_counted,
        None if db.archive_url is None else is_archived,
        known.obstacle(partition, db.timezone),
    )


_SIZES = text(
    """
    select i.inhrelid as oid, coalesce(sum(greatest(c.reltuples, 0)), 0) as rows,
           coalesce(sum(pg_total_relation_size(t.relid)), 0) as bytes
    from pg_inherits i cross join lateral pg_partition_tree(i.inhrelid) t join pg_class c on c.oid = t.relid
    where i.inhparent = to_regclass(:source) and (t.isleaf or c.relkind = 'r') group by 1
    """
)
