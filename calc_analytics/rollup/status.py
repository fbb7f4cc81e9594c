"""What is fresh, what lags, and who writes: figures for `status`, the health report and `/metrics`. Nothing is changed.

Cost: the uncounted rows, up to a million of them, and a row per day on record.
"""

from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import transaction
from calc_analytics.rollup import state
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.snapshot import Snapshot, between, rows_between
from calc_analytics.rollup.windows import has_a_day

# Beyond that many uncounted rows the exact number helps nobody.
LAG_ROWS_LIMIT = 1_000_000
WRITERS_LIMIT = 20


@dataclass(frozen=True)
class Refreshed:
    """When rows were last counted (None: never), by the server's clock, which shows `now`."""

    at: datetime | None
    now: datetime

    @property
    def seconds_ago(self) -> float | None:
        """How long ago that was."""
        return None if self.at is None else max((self.now - self.at).total_seconds(), 0.0)


@dataclass(frozen=True)
class Lag:
    """Rows committed and not counted (at most LAG_ROWS_LIMIT of them), and how long the oldest has waited at most."""

    rows: int
    seconds: float


@dataclass(frozen=True)
class DayStatus:
    """One day on record: how it was built, when rows were last added, when it was last proven, what it holds."""

    day: date
    status: str
    method: str | None
    built_at: datetime | None
    counted_at: datetime | None
    verified_at: datetime | None
    difference: int | None
    sealed_at: datetime | None
    sealed_by: str | None
    missing: dict[str, int] | None
    rows: int = 0
    keys: int = 0


@dataclass(frozen=True)
class Days:
    """All days on record: how many are built, pending, stale, kept; sealed; different from their logs when last
    compared; and when a day was last rebuilt and last compared."""

    by_status: dict[str, int] = field(default_factory=dict)
    sealed: int = 0
    different: int = 0
    difference: int = 0
    rebuilt_at: datetime | None = None
    verified_at: datetime | None = None

    @property
    def waiting(self) -> int:
        """Days that need a rebuild before they can be exact."""
        return self.by_status.get("pending", 0) + self.by_status.get("stale", 0)


@dataclass(frozen=True)
class Writer:
    """An open transaction that has written something. A prepared one has a name and no pid; `seconds` is None where
    the role may not see it (pg_read_all_stats shows it)."""

    pid: int | None
    name: str | None
    application: str | None
    user: str | None
    state: str | None
    seconds: float | None
    writes_logs: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Server:
    """The server that answered: its version, and whether it is read-only, as a standby is: nothing is counted."""

    version: str
    version_number: int
    read_only: bool


def server(engine: Engine) -> Server:
    """Who answers; the cheapest question there is."""
    statement = """
        select split_part(current_setting('server_version'), ' ', 1) as version,
               cast(current_setting('server_version_num') as int) as number,
               current_setting('transaction_read_only') = 'on' as read_only
    """
    with transaction(engine) as connection:
        row = connection.execute(text(statement)).one()
    return Server(row.version, row.number, row.read_only)


def refreshed(engine: Engine, rollup: Rollup, timezone: str) -> Refreshed:
    """When rows were last counted; raises what `state.read` raises if counting could not go on."""
    statement = "select refreshed_at, clock_timestamp() as now from rollup_state where rollup = :rollup"
    with transaction(engine) as connection:
        state.read(connection, rollup, timezone)
        row = connection.execute(text(statement), {"rollup": rollup.name}).one()
    return Refreshed(row.refreshed_at, row.now)


def lag(engine: Engine, rollup: Rollup, timezone: str) -> Lag:
    """What is not counted yet.

    A row has waited since it was written and, at most, since the last refresh: late rows are written long after
    their `created_at`, and where nobody writes nothing is refreshed.
    """
    statement = f"""
        select n.rows, greatest(0, least(
            extract(epoch from clock_timestamp() - n.oldest),
            extract(epoch from clock_timestamp() - s.refreshed_at))) as seconds
        from rollup_state s, (
            select count(*) as rows, min({rollup.event_time}) as oldest
            from (
                select {rollup.event_time} from {rows_between(rollup.source)} l
                where {has_a_day(rollup.event_time)} limit {LAG_ROWS_LIMIT}
            ) uncounted
        ) n
        where s.rollup = :rollup
    """
    with transaction(engine) as connection:
        before = state.read(connection, rollup, timezone)
        span = between(before.snapshot, Snapshot.now(connection))
        row = connection.execute(text(statement), {"rollup": rollup.name, **span}).one()
    return Lag(row.rows, float(row.seconds) if row.rows else 0.0)


def days(engine: Engine, rollup: Rollup) -> Days:
    """All days on record, summed up."""
    with transaction(engine) as connection:
        rows = connection.execute(text(_DAYS), {"rollup": rollup.name}).all()
    return Days(
        by_status={row.status: row.days for row in rows},
        sealed=sum(row.sealed for row in rows),
        different=sum(row.different for row in rows),
        difference=int(sum(row.difference for row in rows)),
        rebuilt_at=max((row.rebuilt_at for row in rows if row.rebuilt_at), default=None),
        verified_at=max((row.verified_at for row in rows if row.verified_at), default=None),
    )


def recent_days(engine: Engine, rollup: Rollup, limit: int) -> list[DayStatus]:
    """The last `limit` days on record, newest first, with what their statistics hold."""
    statement = f"""
        with recent as (
            select * from rollup_days where rollup = :rollup order by date desc limit :limit
        ),
        held as (
            select date, sum({rollup.count}) as rows, count(*) as keys
            from {rollup.target} where date = any(array(select date from recent)) group by date
        )
        select r.*, coalesce(held.rows, 0) as rows, coalesce(held.keys, 0) as keys
        from recent r left join held using (date) order by date desc
    """
    with transaction(engine) as connection:
        rows = connection.execute(text(statement), {"rollup": rollup.name, "limit": limit}).mappings()
        return [_day(row) for row in rows]


def writers(engine: Engine, rollup: Rollup) -> list[Writer]:
    """The open transactions of this database that have written, oldest first; they are what snapshots are about."""
    with transaction(engine) as connection:
        rows = connection.execute(text(_WRITERS), {"source": rollup.source, "limit": WRITERS_LIMIT}).mappings()
        return [Writer(**row) for row in rows]


def _day(row: Any) -> DayStatus:
    same = ("status", "method", "built_at", "verified_at", "difference", "sealed_at", "sealed_by", "missing")
    return DayStatus(
        day=row["date"],
        counted_at=row["refreshed_at"],
        rows=int(row["rows"]),
        keys=row["keys"],
        **{name: row[name] for name in same},
    )


_DAYS = """
    select status, count(*) as days, count(sealed_at) as sealed,
           count(*) filter (where status = 'built' and difference <> 0) as different,
           coalesce(sum(difference) filter (where status = 'built'), 0) as difference,
           max(built_at) filter (where method = 'rebuild') as rebuilt_at, max(verified_at) as verified_at
    from rollup_days where rollup = :rollup group by status
"""
# A transaction has an id from its first write on. Of other roles' transactions the age is hidden from those without
# pg_read_all_stats. A prepared one belongs to no process; of its locks, one is on its own id.
_WRITERS = """
    with logs as (
        select to_regclass(:source) as relid union select relid from pg_partition_tree(to_regclass(:source))
    ),
    writing as (
        select l.pid, l.virtualtransaction from pg_locks l join logs on l.relation = logs.relid
        where l.mode = 'RowExclusiveLock' and l.granted
          and l.database = (select oid from pg_database where datname = current_database())
    )
    select a.pid, null as name, nullif(a.application_name, '') as application, cast(a.usename as text) as user, a.state,
           cast(extract(epoch from clock_timestamp() - a.xact_start) as float) as seconds,
           exists (select from writing w where w.pid = a.pid) as writes_logs
    from pg_stat_activity a
    where a.datname = current_database() and a.backend_xid is not null and a.pid <> pg_backend_pid()
    union all
    select null, p.gid, null, cast(p.owner as text), 'prepared',
           cast(extract(epoch from clock_timestamp() - p.prepared) as float),
           exists (select from writing w join pg_locks own using (virtualtransaction)
                   where w.pid is null and own.pid is null and own.transactionid = p.transaction)
    from pg_prepared_xacts p
    where p.database = current_database()
    order by seconds desc nulls last limit :limit
"""
