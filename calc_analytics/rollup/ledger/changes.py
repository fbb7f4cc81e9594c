"""What starts or restarts the counting: installing, switching rollups on and off, and a rebase.

These write the state row, and mark the days that have to be rebuilt because of it.
"""

from collections.abc import Sequence
from datetime import date

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.log_partitions import Partition, read_layout
from calc_analytics.days import FIRST, LAST
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log, Rollup
from calc_analytics.rollup.ledger.archived import forget_archived_snapshots
from calc_analytics.rollup.ledger.state import here, kept_rollups, lock_unchecked, still_here
from calc_analytics.rollup.snapshot import SAME_CLUSTER, log_oid
from calc_analytics.rollup.windows import windows


def create_if_missing(connection: Connection, db: Database) -> bool:
    """Creates the state a log starts with: nothing built, this moment's snapshot. Returns whether it was missing."""
    parameters = {"log": db.log.name, "timezone": db.timezone, "rollups": db.log.names}
    return connection.execute(text(_CREATE.format(log=log_oid(db.log))), parameters).rowcount > 0


def keep_rollups(connection: Connection, log: Log) -> tuple[list[str], list[str]]:
    """Makes the log's rollups those that every refresh adds to; returns those switched on, and those switched off.

    The days of a rollup that is switched on are to be rebuilt: stale where they have statistics, pending where the
    other rollups have some. Those of one that is switched off are stale from now on.
    """
    lock_unchecked(connection, log)
    kept = kept_rollups(connection, log)
    on, off = [name for name in log.names if name not in kept], [name for name in kept if name not in log.names]
    for name in [*on, *off]:
        connection.execute(_SWITCHED, {"rollup": name})
    for name in on:
        connection.execute(_PENDING_AS_OTHERS, {"rollup": name, "others": kept})
    if on or off:
        statement = f"update rollup_state s set rollups = cast(:names as text[]), {still_here(log)} where log = :log"
        connection.execute(text(statement), {"log": log.name, "names": log.names})
    return on, off


def mark_stale(connection: Connection, log: Log) -> None:
    """Every built or frozen day with counted rows is to be rebuilt; its statistics stay until then."""
    connection.execute(_STALE, {"rollups": log.names})


def start_afresh(connection: Connection, db: Database) -> None:
    """Takes this cluster's snapshot and marks every built or frozen day stale; its statistics stay until rebuilt."""
    create_if_missing(connection, db)
    log = db.log
    parameters = {"log": log.name, "rollups": log.names, "timezone": db.timezone, "first": FIRST, "last": LAST}
    for statement in (_NEIGHBOURS, _STALE, text(_AFRESH.format(here=here(log)))):
        connection.execute(statement, parameters)
    forget_archived_snapshots(connection, log)


def follow_into_partition(connection: Connection, db: Database) -> str | None:
    """The table that was counted became a partition of the one that has its name now: the counting goes on.

    Only if all days on record lie in the partition's range: rows of another partition then were never counted, and
    none that was counted is in another one. Returns the partition's name, or None if there was nothing to follow.
    """
    lock_unchecked(connection, db.log)
    counted = connection.execute(text(_COUNTED_TABLE.format(log=log_oid(db.log))), {"log": db.log.name}).scalar()
    layout = read_layout(connection, db.log.name, db.log.event_time)
    found = [each for each in (layout.partitions if layout else []) if each.is_ranged and each.oid == counted]
    if not found or not _holds_all_days(connection, db, found[0]):
        return None
    connection.execute(text(f"update rollup_state s set {here(db.log)} where log = :log"), {"log": db.log.name})
    return found[0].name


def _holds_all_days(connection: Connection, db: Database, partition: Partition) -> bool:
    first, last = connection.execute(_DAYS_ON_RECORD, {"rollups": db.log.names}).one()
    if first is None:
        return True
    spans = windows(connection, sorted({first, last}), db.timezone)
    begins_before = partition.lower is None or partition.lower <= spans[0].begin
    return begins_before and (partition.upper is None or spans[-1].end <= partition.upper)


def record_pending(connection: Connection, log: Log, days: Sequence[date]) -> None:
    """Those of these days that are not on record wait for a rebuild, in every rollup."""
    statement = """
        insert into rollup_days (rollup, date, status)
        select rollup, date, 'pending'
        from unnest(cast(:rollups as text[])) as r (rollup) cross join unnest(cast(:days as date[])) as d (date)
        on conflict (rollup, date) do nothing
    """
    connection.execute(text(statement), {"rollups": log.names, "days": list(days)})


def record_predecessors_day(connection: Connection, rollup: Rollup, day: date) -> None:
    """The day has statistics from before this project, and log rows: it waits for its first rebuild."""
    statement = text(
        "insert into rollup_days (rollup, date, status, method) values (:rollup, :day, 'pending', 'predecessor') "
        "on conflict do nothing"
    )
    connection.execute(statement, {"rollup": rollup.name, "day": day})


def forget_empty_days(connection: Connection, db: Database, first: date) -> None:
    """Removes records of days before `first` or after today that were built and hold nothing, as version 0.1 left."""
    for rollup in db.log.rollups:
        parameters = {"rollup": rollup.name, "first": first, "tz": db.timezone}
        connection.execute(text(_FORGET_EMPTY.format(target=rollup.name, count=rollup.count)), parameters)


_COUNTED_TABLE = f"""
    select s.log_relation from rollup_state s
    where s.log = :log and {SAME_CLUSTER} and s.log_relation <> cast({{log}} as bigint)
"""
_DAYS_ON_RECORD = text(
    "select min(date), max(date) from rollup_days where rollup = any(cast(:rollups as text[])) and counted is not null"
)
_CREATE = """
    insert into rollup_state (log, timezone, system_identifier, snapshot, relation, written_by, log_relation, rollups)
    select :log, :timezone, system_identifier, pg_current_snapshot(),
           cast(cast('rollup_state' as regclass) as bigint), txid_current(), cast({log} as bigint),
           cast(:rollups as text[])
    from pg_control_system()
    on conflict (log) do nothing
"""
_SWITCHED = text(
    """
    update rollup_days set status = case when counted is null then 'pending' else 'stale' end
    where rollup = :rollup and status in ('built', 'overflow')
    """
)
_PENDING_AS_OTHERS = text(
    """
    insert into rollup_days (rollup, date, status)
    select distinct :rollup, date, 'pending' from rollup_days where rollup = any(cast(:others as text[]))
    on conflict (rollup, date) do nothing
    """
)
# In another zone, rows move to the neighbouring days, which have to be built too.
_NEIGHBOURS = text(
    """
    insert into rollup_days (rollup, date, status)
    select distinct d.rollup, d.date + step, 'pending'
    from rollup_days d, rollup_state s, unnest(array[-1, 1]) as step
    where d.rollup = any(cast(:rollups as text[])) and s.log = :log and s.timezone <> :timezone
      and d.date + step between :first and :last
    on conflict (rollup, date) do nothing
    """
)
_STALE = text(
    """
    update rollup_days set status = 'stale'
    where rollup = any(cast(:rollups as text[])) and status in ('built', 'frozen')
    """
)
_AFRESH = "update rollup_state set timezone = :timezone, snapshot = pg_current_snapshot(), {here} where log = :log"
_FORGET_EMPTY = """
    delete from rollup_days d
    where rollup = :rollup and status = 'built' and (deleted is null or deleted = '{{}}')
      and coalesce(cast(counted ->> '{count}' as numeric), 0) = 0
      and (date < :first or date > cast(clock_timestamp() at time zone :tz as date))
      and not exists (select from {target} t where t.date = d.date)
"""
