"""The state row: locked by every operation that changes statistics, so that they take turns.

It holds the snapshot, the time zone the days are built in, and the identifier of the cluster that issued the
transaction ids. Both of the latter are compared at every use: after a restore into another cluster, or with
another ROLLUP_TIMEZONE, the stored snapshot and days would be meaningless, so the operation refuses.
"""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.days import FIRST, LAST
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.snapshot import SAME_CLUSTER, Snapshot


class NotInstalled(CalcAnalyticsError):
    """There is no state row: the migrations have not run on this database."""


class ClusterChanged(CalcAnalyticsError):
    """The database was restored into another cluster, whose transaction ids mean something else."""


class TimezoneChanged(CalcAnalyticsError):
    """ROLLUP_TIMEZONE is not the zone in which the stored days were built."""


@dataclass(frozen=True)
class State:
    """The state row: days are built in `timezone`, from the logs visible in `snapshot`."""

    timezone: str
    snapshot: Snapshot


def exists(connection: Connection, rollup: Rollup) -> bool:
    """Whether there is a state row at all."""
    statement = text("select exists (select from rollup_state where rollup = :rollup)")
    return bool(connection.execute(statement, {"rollup": rollup.name}).scalar())


def read(connection: Connection, rollup: Rollup, timezone: str) -> State:
    """The state without a lock. Raises `NotInstalled`, `ClusterChanged` or `TimezoneChanged`."""
    return _read(connection, rollup, timezone, "")


def lock(connection: Connection, rollup: Rollup, timezone: str) -> State:
    """The state, locked until the transaction ends: whoever else refreshes or rebuilds waits here."""
    return _read(connection, rollup, timezone, "for no key update of s")


def store_snapshot(connection: Connection, rollup: Rollup, snapshot: Snapshot) -> None:
    """Moves the state to `snapshot`; belongs in the transaction that changed the statistics."""
    connection.execute(_STORE, {"rollup": rollup.name, "snapshot": snapshot.text})


def create_if_missing(connection: Connection, rollup: Rollup, timezone: str) -> None:
    """The state a rollup starts with: nothing built, counting from this moment's snapshot."""
    connection.execute(_CREATE, {"rollup": rollup.name, "timezone": timezone})


def wait_for_turn(connection: Connection, rollup: Rollup) -> None:
    """Locks the state row whatever it says; before any lock on the logs, as every other operation does."""
    connection.execute(text("select from rollup_state where rollup = :rollup for update"), {"rollup": rollup.name})


def mark_stale(connection: Connection, rollup: Rollup) -> None:
    """Every built day is to be rebuilt; its statistics stay until then."""
    connection.execute(_STALE, {"rollup": rollup.name})


def start_afresh(connection: Connection, rollup: Rollup, timezone: str) -> None:
    """Takes this cluster's snapshot and marks every built day stale; its statistics stay until it is rebuilt."""
    create_if_missing(connection, rollup, timezone)
    for statement in (_NEIGHBOURS, _STALE, _AFRESH):
        connection.execute(statement, {"rollup": rollup.name, "timezone": timezone, "first": FIRST, "last": LAST})


def _read(connection: Connection, rollup: Rollup, timezone: str, locking: str) -> State:
    row = connection.execute(text(_READ + locking), {"rollup": rollup.name}).one_or_none()
    if row is None:
        raise NotInstalled(f"no state for {rollup.name}: run 'calc-analytics migrate' first")
    if not row.same_cluster:
        raise ClusterChanged(
            "this database was restored into another PostgreSQL cluster, so the stored snapshot says nothing about "
            "its rows: run 'calc-analytics rebase' to count afresh from here"
        )
    if row.timezone != timezone:
        raise TimezoneChanged(
            f"the stored days were built in {row.timezone}, but ROLLUP_TIMEZONE is {timezone}: set it back, or run "
            "'calc-analytics rebase' to rebuild the days in the new zone"
        )
    return State(row.timezone, Snapshot.parse(row.snapshot))


_READ = f"""
    select s.timezone, cast(s.snapshot as text) as snapshot, {SAME_CLUSTER} as same_cluster
    from rollup_state s
    where s.rollup = :rollup
"""
# Where the row was written, for SAME_CLUSTER.
_HERE = """
    system_identifier = (select system_identifier from pg_control_system()),
    relation = cast(tableoid as bigint), written_by = txid_current()
"""
_STORE = text(
    f"""
    update rollup_state set snapshot = cast(:snapshot as pg_snapshot), refreshed_at = clock_timestamp(), {_HERE}
    where rollup = :rollup
    """
)
# In another zone, rows move to the days beside: those are to be built too.
_NEIGHBOURS = text(
    """
    insert into rollup_days (rollup, date, status)
    select distinct d.rollup, d.date + step, 'pending'
    from rollup_days d join rollup_state s using (rollup), unnest(array[-1, 1]) as step
    where d.rollup = :rollup and s.timezone <> :timezone and d.date + step between :first and :last
    on conflict (rollup, date) do nothing
    """
)
_STALE = text("update rollup_days set status = 'stale' where rollup = :rollup and status in ('built', 'kept')")
_AFRESH = text(
    f"update rollup_state set timezone = :timezone, snapshot = pg_current_snapshot(), {_HERE} where rollup = :rollup"
)
_CREATE = text(
    """
    insert into rollup_state (rollup, timezone, system_identifier, snapshot, relation, written_by)
    select :rollup, :timezone, system_identifier, pg_current_snapshot(),
           cast(cast('rollup_state' as regclass) as bigint), txid_current()
    from pg_control_system()
    on conflict (rollup) do nothing
    """
)
