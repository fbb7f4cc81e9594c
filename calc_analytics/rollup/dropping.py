"""Dropping a whole partition instead of deleting its rows: what may be dropped, and the accounts of it.

Two transactions. In the first, what the partition holds is added up while its writers go on. If every row is counted
(and archived), and lies in days that may be pruned, writers are locked out. If no row was written or deleted since, the
sums are noted as deleted, and the partition is emptied by TRUNCATE, which needs no lock on the log table. The second
drops the empty partition, which does need it, for milliseconds. At every commit, and after a kill at any moment, the
books balance: an empty partition may be left, which the next prune drops.

Neither form of DETACH would do: CONCURRENTLY runs in no transaction, so the rows would be gone before they are noted.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import partial

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics import days
from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.locks import IN_USE
from calc_analytics.database.log_partitions import (
    CHANGED,
    Partition,
    attempt,
    count_versions,
    drop_empty,
    escaped,
    is_unchanged,
    keep_drops_out,
    keep_writers_out,
    oldest_running,
    read_layout,
)
from calc_analytics.database.retries import retry_transient
from calc_analytics.plurals import number
from calc_analytics.rollup import journal, ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.snapshot import Snapshot, visible
from calc_analytics.rollup.windows import Window, of_day, windows

NOT_COUNTED = "it has rows that are not counted, or not of these days"
NOT_PROVEN = "one of its days is not proven any more"
WRITTEN_TO = "its rows were written to while they were added up"


@dataclass
class DropResult:
    """What became of a partition: rows by day that are gone, and why it is still there, in part or empty."""

    rows_by_day: dict[date, int] = field(default_factory=dict)
    reason: str | None = None
    is_busy: bool = False
    """Other sessions use it: its rows are left to the next prune, rather than deleted one by one."""

    @property
    def rows(self) -> int:
        """The rows that are gone."""
        return sum(self.rows_by_day.values())


@dataclass(frozen=True)
class DaysBefore:
    """The days before the limit that concern partitions: with counted log rows, and those whose rows have to stay."""

    before: date
    begin: datetime
    """When the first day begins whose rows stay."""
    prunable: Mapping[date, int]
    not_built: Sequence[date]
    not_archived: Sequence[date]

    def days_of(self, partition: Partition, timezone: str) -> list[date]:
        """The days with counted rows that the partition's range touches."""
        return [day for day in self.prunable if touches(partition, day, timezone)]

    def obstacle(self, partition: Partition, timezone: str) -> str | None:
        """Why the partition may not be dropped, from the ledger and the catalogs; None if nothing is known."""
        if not partition.is_ranged:
            return "it holds no range of time"
        if partition.upper is None or partition.upper > self.begin:
            return f"its range ends after the beginning of {self.before}"
        for kept, why in ((self.not_built, "not built in every rollup"), (self.not_archived, "not archived")):
            if found := [day for day in kept if touches(partition, day, timezone)]:
                return f"{number(len(found), 'day')} of it {'is' if len(found) == 1 else 'are'} {why}: {found[0]}"
        return partition.obstacle


def touches(partition: Partition, day: date, timezone: str) -> bool:
    """Whether the partition's range has instants of that day."""
    zone = days.zone(timezone)
    is_after = partition.lower is not None and day < partition.lower.astimezone(zone).date()
    is_before = (
        partition.upper is not None and day > (partition.upper - timedelta(microseconds=1)).astimezone(zone).date()
    )
    return not (is_after or is_before)


def droppable(db: Database, before: DaysBefore) -> tuple[list[Partition], dict[str, str]]:
    """The partitions that may be dropped as far as is known without reading rows, oldest first; and for those whose
    range ends before the limit and that may not, why."""
    with transaction(db.engine) as connection:
        layout = read_layout(connection, db.log.name, db.log.event_time)
    found, left = list[Partition](), dict[str, str]()
    for each in layout.partitions if layout else []:
        reason = before.obstacle(each, db.timezone)
        if reason is None:
            found.append(each)
        elif each.is_ranged and each.upper is not None and each.upper <= before.begin:
            left[each.name] = reason
    return found, left


def drop_partition(db: Database, partition: Partition, of_days: Sequence[date]) -> DropResult:
    """Drops the partition if all its rows are counted rows of these days, which were proven; safe to repeat."""
    result = retry_transient(partial(_empty, db, partition, of_days))
    if result.reason is None:
        rows = result.rows

        def note(connection: Connection) -> None:
            detail = f"dropped partition {partition.name} ({number(rows, 'row')})"
            journal.note(connection, db.log, "prune", detail=detail)

        result.reason = retry_transient(partial(drop_empty, db.engine, partition, note))
        result.is_busy = (result.reason or "").startswith(IN_USE)
    return result


def _empty(db: Database, partition: Partition, of_days: Sequence[date]) -> DropResult:
    """One transaction: the rows of the partition are noted as deleted, and are gone; or nothing has happened."""
    started = time.perf_counter()
    with transaction(db.engine) as connection:
        # Before the partition's lock, as everything that deletes does: none of them waits for the other in a circle.
        ledger.keep_out_rebuilds(connection, db.log)
        if waiting := keep_drops_out(connection, partition):
            return DropResult(reason=waiting, is_busy=True)
        if not is_unchanged(connection, partition):
            return DropResult(reason=CHANGED)
        holdings = _Holdings.read(connection, db, partition, of_days)
        if holdings is None:
            return DropResult(reason=NOT_COUNTED)
        if not holdings.rows_by_day:
            return DropResult()
        seconds = time.perf_counter() - started
        reason = _lock_as_read(connection, partition, holdings) or attempt(
            connection, [partition.oid], lambda: _take_out(connection, db, partition, holdings, seconds)
        )
        if reason is not None:
            return DropResult(reason=reason, is_busy=reason == WRITTEN_TO or reason.startswith(IN_USE))
    return DropResult(holdings.rows_by_day)


def _lock_as_read(connection: Connection, partition: Partition, holdings: "_Holdings") -> str | None:
    """Keeps writers out from now on; returns why the partition, or a row of it, may not be what was read.

    Cost: one scan of the partition that computes nothing.
    """
    if waiting := keep_writers_out(connection, partition):
        return waiting
    if not is_unchanged(connection, partition):
        return CHANGED
    # A row that was deleted is missing in the number; one that was inserted or updated has a newer version.
    rows, written = count_versions(connection, partition, holdings.oldest)
    return WRITTEN_TO if written or rows != sum(holdings.rows_by_day.values()) else None


@dataclass(frozen=True)
class _Holdings:
    """What a partition holds: rows by day, and the measures of each rollup and day, as JSON.

    Row versions of transactions before `oldest` were there when the reading began.
    """

    oldest: str
    rows_by_day: dict[date, int]
    totals: dict[tuple[str, date], str]

    @classmethod
    def read(
        cls, connection: Connection, db: Database, partition: Partition, of_days: Sequence[date]
    ) -> "_Holdings | None":
        """Adds up the partition; None if it has rows that may not be deleted. Cost: its rows, once per rollup."""
        connection.execute(WHOLE_DAYS)
        oldest = oldest_running(connection)
        deletable = _deletable(connection, db, of_days)
        rows, totals = dict[tuple[str, date], int](), dict[tuple[str, date], str]()
        for span in windows(connection, list(deletable), db.timezone):
            for rollup in db.log.rollups:
                parameters = {**span.parameters(), "tz": db.timezone, **deletable[span.day].bind("s1")}
                row = connection.execute(text(_totals_sql(db, rollup, partition, span)), parameters).one()
                if row.rows:
                    rows[rollup.name, span.day], totals[rollup.name, span.day] = int(row.rows), row.totals
        whole = connection.execute(text(f"select count(*) from only {escaped(partition.path)}")).scalar_one()
        by_day = {day: found for (rollup, day), found in rows.items() if rollup == db.log.names[0]}
        # The rollups were read one after the other: rows may have been deleted in between.
        is_same = rows == {(rollup, day): found for rollup in db.log.names for day, found in by_day.items()}
        return cls(oldest, by_day, totals) if is_same and sum(by_day.values()) == whole else None


def _deletable(connection: Connection, db: Database, of_days: Sequence[date]) -> dict[date, Snapshot]:
    """For each day the snapshot in which its rows are counted, or, where days are archived, archived.

    What is visible in it stays so: the state's snapshot only moves on, and the archive's day is kept by our lock.
    """
    counted = ledger.read(connection, db).snapshot
    if db.archive_url is None:
        return dict.fromkeys(of_days, counted)
    archived = ledger.archived_days(connection, db.log, of_days)
    return {day: each.snapshot for day, each in archived.items() if each.snapshot is not None}


def _totals_sql(db: Database, rollup: Rollup, partition: Partition, span: Window) -> str:
    """SQL: the rows of the day in the partition that are visible in the snapshot, and their measures as JSON."""
    return f"""
        select sum({rollup.count}) as rows, cast({ledger.totals_with_keys(rollup)} as text) as totals
        from (
            select {rollup.key_selects}, {rollup.measure_selects} from only {escaped(partition.path)}
            where {of_day(db.log.event_time, span)} and {visible("s1")} group by {rollup.group_by}
        ) part
    """


def _take_out(
    connection: Connection, db: Database, partition: Partition, holdings: _Holdings, seconds: float
) -> str | None:
    """Notes the partition's rows as deleted, and deletes them; returns why that was not done."""
    ledger.lock(connection, db)
    connection.execute(text(f"lock table only {escaped(partition.path)} in access exclusive mode"))
    parameters = {"rollups": db.log.names, "number": len(db.log.names)}
    for day in holdings.rows_by_day:
        statement = text(f"select {ledger.is_prunable_sql(db.log)}")
        if not connection.execute(statement, {**parameters, "day": day}).scalar():
            return NOT_PROVEN
    for rollup in db.log.rollups:
        for day in holdings.rows_by_day:
            ledger.record_deleted(connection, rollup, day, holdings.totals[rollup.name, day])
    detail = f"emptied partition {partition.name}"
    journal.note_rows(connection, db.log, "prune", holdings.rows_by_day, seconds, detail)
    connection.execute(text(f"truncate only {escaped(partition.path)}"))
    return None
