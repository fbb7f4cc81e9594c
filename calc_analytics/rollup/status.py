"""What is fresh, what lags and what is proven: figures for the health report, `status` and `/metrics`.

Nothing is changed. `ledger_report` and `log_report` read all that the health report needs, in one transaction each:
the first touches the ledger only, the second the log as well. Cost: the uncounted rows, up to a million of them, and
the rows of the ledger.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import transaction
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup import foreign, ledger, overflow
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.snapshot import Snapshot, between, rows_between

# Lag is counted up to this many rows.
LAG_ROWS_LIMIT = 1_000_000
UNSEEN, UNRECORDED = "unseen", "unrecorded"
# What a day can be, the worst first. A day of several rollups is the first of these that one of them is.
STATES = ("differs", "overflow", UNSEEN, UNRECORDED, "pending", "stale", "frozen", "pruned", "built")
# The statuses that the ledger records; the other states follow from its other columns, or from missing records.
STATUSES = tuple(state for state in STATES if state not in ("differs", UNSEEN, UNRECORDED, "pruned"))
# For this many days failed runs are reported, and `rebuilt` shows whether their days were rebuilt since.
RECENT_DAYS = 7


@dataclass(frozen=True)
class LastRefresh:
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
    """One day of one rollup on record: how it was built, when rows were last added, when it was last proven, what it
    holds. `rows` were counted, `deleted_rows` of those deleted from the log since; `word` is one of STATES."""

    rollup: str
    day: date
    status: str
    word: str
    method: str | None
    built_at: datetime | None
    built_by: str | None
    counted_at: datetime | None
    verified_at: datetime | None
    difference: int | None
    finding: str | None
    audited_at: datetime | None
    audit_difference: int | None
    pruned_at: datetime | None
    pruned_by: str | None
    rows: int = 0
    deleted_rows: int = 0
    keys: int = 0


@dataclass(frozen=True)
class Days:
    """All days on record of one rollup, or of all: how many by status and by state (one of STATES); pruned; different
    from what was counted or from the log when last compared; when a day was last rebuilt and last compared; and the
    age of the oldest proof.

    `oldest_proof_at` is the instant since which some built day has not been proven (None: no day is built).
    """

    by_status: dict[str, int] = field(default_factory=dict)
    by_state: dict[str, int] = field(default_factory=dict)
    pruned: int = 0
    different: int = 0
    difference: int = 0
    rebuilt_at: datetime | None = None
    verified_at: datetime | None = None
    audited_at: datetime | None = None
    oldest_proof_at: datetime | None = None
    unproven: int = 0
    """Built days that were never compared with the log since they were built."""

    @property
    def waiting(self) -> int:
        """Days that need a rebuild before they can be exact."""
        return self.by_status.get("pending", 0) + self.by_status.get("stale", 0)


@dataclass(frozen=True)
class ProofAges:
    """How old the proofs are. Instants are None where there is nothing yet: no refresh, no audit, no built day.

    `noted_since` is when the journal begins: what was built before, by version 0.1, could not be proven earlier.
    `recent_at` is when today or yesterday was last audited, None where neither is on record with statistics.
    `round_seconds` is how long comparing every day with the log took, when each was last compared.
    """

    refreshed_at: datetime | None
    noted_since: datetime | None
    audited_at: datetime | None
    oldest_proof_at: datetime | None
    recent_at: datetime | None
    days: int
    round_seconds: float


@dataclass(frozen=True)
class LedgerReport:
    """The contents of the ledger, at one moment.

    `error` is why no operation may use the state (then `refreshed` and `proofs` are None). `different`, `overflowing`
    and `waiting` are days with their rollups, oldest first; `reasons` are the values that overflow. `rebuilt` holds the
    days that were built in every rollup lately, and since when all of them are; `unbalanced` those whose archived rows
    do not add up to what was counted.
    """

    error: CalcAnalyticsError | None
    refreshed: LastRefresh | None
    proofs: ProofAges | None
    days: dict[str, Days]
    different: dict[date, list[str]]
    overflowing: dict[date, list[str]]
    waiting: dict[date, list[str]]
    reasons: list[overflow.Misfit]
    rebuilt: dict[date, datetime]
    unbalanced: list[date] = field(default_factory=list)

    def require_usable(self) -> None:
        """Raises the error that every operation would raise."""
        if self.error is not None:
            raise self.error


@dataclass(frozen=True)
class LogReport:
    """The state of the log: the rows that are not counted yet, and the error if there are rows of another cluster."""

    lag: Lag
    error: foreign.ForeignRows | None


def ledger_report(db: Database) -> LedgerReport:
    """Reads the state row and the ledger, in one transaction."""
    with transaction(db.engine) as connection:
        error, refreshed, proofs = _state(connection, db)
        notable = connection.execute(text(_NOTABLE), {"rollups": db.log.names}).all()
        overflowing = ledger.rollups_by_day(row for row in notable if row.status == "overflow")
        return LedgerReport(
            error=error,
            refreshed=refreshed,
            proofs=proofs,
            days=_days(connection, db),
            different=ledger.rollups_by_day(row for row in notable if row.differs),
            overflowing=overflowing,
            waiting=ledger.rollups_by_day(row for row in notable if row.status in ledger.WAITING),
            reasons=overflow.known(connection, db.log) if overflowing else [],
            rebuilt=_rebuilt(connection, db),
            unbalanced=_unbalanced_days(connection, db),
        )


def _state(
    connection: Connection, db: Database
) -> tuple[CalcAnalyticsError | None, LastRefresh | None, ProofAges | None]:
    """When rows were last counted and proven; or why the state cannot be used."""
    try:
        ledger.read(connection, db)
    except CalcAnalyticsError as error:
        return error, None, None
    parameters = {"log": db.log.name, "rollups": db.log.names, "tz": db.timezone}
    row = dict(connection.execute(text(_PROOF_AGES), parameters).mappings().one())
    return None, LastRefresh(row["refreshed_at"], row.pop("now")), ProofAges(**row)


def _rebuilt(connection: Connection, db: Database) -> dict[date, datetime]:
    rows = connection.execute(text(_REBUILT), {"rollups": db.log.names, "days": RECENT_DAYS})
    return {row.date: row.since for row in rows}


def _unbalanced_days(connection: Connection, db: Database) -> list[date]:
    """None without ARCHIVE_URL: the archive may have been given up."""
    return ledger.unbalanced_days(connection, db.log) if db.archive_url is not None else []


def log_report(db: Database) -> LogReport:
    """Reads what concerns the log, in one transaction; raises what `ledger.read` raises."""
    with transaction(db.engine) as connection:
        lag, error = _lag(connection, db), None
        try:
            foreign.require_none(connection, db.log)
        except foreign.ForeignRows as found:
            error = found
        return LogReport(lag, error)


def refreshed(db: Database) -> LastRefresh:
    """When rows were last counted; raises what `ledger.read` raises if counting could not go on."""
    statement = "select refreshed_at, clock_timestamp() as now from rollup_state where log = :log"
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        row = connection.execute(text(statement), {"log": db.log.name}).one()
    return LastRefresh(row.refreshed_at, row.now)


def lag(db: Database) -> Lag:
    """What is not counted yet; raises what `ledger.read` raises.

    A row has waited since it was written and, at most, since the last refresh: late rows are written long after
    their `created_at`, and where nothing is written nothing is refreshed.
    """
    with transaction(db.engine) as connection:
        return _lag(connection, db)


def _lag(connection: Connection, db: Database) -> Lag:
    time_ = db.log.event_time
    statement = f"""
        select n.rows, greatest(0, least(
            extract(epoch from clock_timestamp() - n.oldest),
            extract(epoch from clock_timestamp() - s.refreshed_at))) as seconds
        from rollup_state s, (
            select count(*) as rows, min({time_}) filter (where isfinite({time_})) as oldest
            from (select {time_} from {rows_between(db.log, time_)} l limit {LAG_ROWS_LIMIT}) uncounted
        ) n
        where s.log = :log
    """
    before = ledger.read(connection, db)
    span = between(before.snapshot, Snapshot.now(connection))
    row = connection.execute(text(statement), {"log": db.log.name, **span}).one()
    return Lag(row.rows, float(row.seconds or 0.0) if row.rows else 0.0)


def _days(connection: Connection, db: Database) -> dict[str, Days]:
    rows = connection.execute(text(_DAYS), {"rollups": db.log.names, "log": db.log.name}).all()
    return {name: together(_of_state(row) for row in rows if row.rollup == name) for name in db.log.names}


def together(days: Iterable[Days]) -> Days:
    """Several figures in one, of all rollups for example: sums of days, the newest instants, the oldest proof."""
    each = list(days)
    return Days(
        by_status=_sums(STATUSES, [one.by_status for one in each]),
        by_state=_sums(STATES, [one.by_state for one in each]),
        pruned=sum(one.pruned for one in each),
        different=sum(one.different for one in each),
        difference=sum(one.difference for one in each),
        rebuilt_at=max((one.rebuilt_at for one in each if one.rebuilt_at), default=None),
        verified_at=max((one.verified_at for one in each if one.verified_at), default=None),
        audited_at=max((one.audited_at for one in each if one.audited_at), default=None),
        oldest_proof_at=min((one.oldest_proof_at for one in each if one.oldest_proof_at), default=None),
        unproven=sum(one.unproven for one in each),
    )


def _sums(names: Iterable[str], counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sums of those counts by name, in the order of `names`; without those that are zero."""
    sums = {name: sum(each.get(name, 0) for each in counts) for name in names}
    return {name: value for name, value in sums.items() if value}


def _of_state(row: Any) -> Days:
    """The days of one rollup that have one status and state: a row of _DAYS."""
    figures = {name: value for name, value in row._mapping.items() if name not in ("rollup", "status", "word", "days")}
    figures["difference"] = int(row.difference)
    return Days(**figures, by_status={row.status: row.days}, by_state={row.word: row.days})


def different_days(db: Database) -> dict[date, list[str]]:
    """The days that differ from what was counted or from the log, when last compared, and in which rollups: in all of
    them, where it is the archive that differs."""
    statement = text(
        f"select date, rollup from rollup_days where rollup = any(cast(:rollups as text[])) and {DIFFERS} order by 1, 2"
    )
    with transaction(db.engine) as connection:
        found = ledger.rollups_by_day(connection.execute(statement, {"rollups": db.log.names}))
        return {**found, **{day: list(db.log.names) for day in _unbalanced_days(connection, db)}}


def recent_days(db: Database, limit: int) -> list[DayStatus]:
    """The last `limit` days on record in any rollup, newest first, a row for each, with what their statistics hold."""
    found: list[DayStatus] = []
    with transaction(db.engine) as connection:
        for rollup in db.log.rollups:
            statement = f"""
                with recent as (
                    select * from rollup_days where rollup = :rollup order by date desc limit :limit
                ),
                held as (
                    select date, count(*) as keys from {rollup.name}
                    where date = any(array(select date from recent)) group by date
                )
                select r.*, {WORD} as word, coalesce(held.keys, 0) as keys from recent r left join held using (date)
            """
            rows = connection.execute(text(statement), {"rollup": rollup.name, "limit": limit}).mappings()
            found += [_day(row, rollup.count) for row in rows]
    order = {name: n for n, name in enumerate(db.log.names)}
    newest = sorted({each.day for each in found}, reverse=True)[:limit]
    return sorted(
        (each for each in found if each.day in newest), key=lambda each: (-each.day.toordinal(), order[each.rollup])
    )


def _day(row: Any, count: str) -> DayStatus:
    same = (
        "rollup", "status", "word", "method", "built_at", "built_by", "verified_at", "difference", "finding",
        "audited_at", "audit_difference", "pruned_at", "pruned_by",
    )  # fmt: skip
    return DayStatus(
        day=row["date"],
        counted_at=row["refreshed_at"],
        rows=int((row["counted"] or {}).get(count, 0)),
        deleted_rows=int((row["deleted"] or {}).get(count, 0)),
        keys=row["keys"],
        **{name: row[name] for name in same},
    )


# SQL, of a row of rollup_days: whether it differed when last compared or audited; whether it is built, and some of its
# log rows were deleted since; and its state.
DIFFERS = "(coalesce(difference, 0) <> 0 or coalesce(audit_difference, 0) <> 0)"
PRUNED = "(status = 'built' and exists (select from jsonb_each_text(deleted) where cast(value as numeric) <> 0))"
WORD = f"case when {DIFFERS} then 'differs' when {PRUNED} then 'pruned' else status end"
_DAYS = f"""
    select rollup, status, {WORD} as word, count(*) as days, count(*) filter (where {PRUNED}) as pruned,
           count(*) filter (where {DIFFERS}) as different,
           coalesce(sum(greatest(difference, audit_difference)), 0) as difference,
           max(built_at) filter (where method = 'rebuild') as rebuilt_at, max(verified_at) as verified_at,
           (select audited_at from rollup_state where log = :log) as audited_at,
           min(coalesce(verified_at, built_at)) filter (where status = 'built') as oldest_proof_at,
           count(*) filter (where status = 'built' and verified_at is null) as unproven
    from rollup_days where rollup = any(cast(:rollups as text[])) group by rollup, status, word
"""
_NOTABLE = f"""
    select date, rollup, status, {DIFFERS} as differs from rollup_days
    where rollup = any(cast(:rollups as text[]))
      and ({DIFFERS} or status in ('overflow', 'pending', 'stale'))
    order by date, array_position(cast(:rollups as text[]), rollup)
"""
_PROOF_AGES = """
    select s.refreshed_at, clock_timestamp() as now, s.audited_at, d.*,
           coalesce((select at from rollup_journal where log = s.log order by id limit 1), (
               select min(built_at) from rollup_days where rollup = any(cast(:rollups as text[]))
           )) as noted_since
    from rollup_state s, (
        select min(coalesce(verified_at, built_at)) filter (where status = 'built') as oldest_proof_at,
               max(audited_at) filter (
                   where counted is not null and date >= cast(clock_timestamp() at time zone :tz as date) - 1
               ) as recent_at,
               count(*) as days, coalesce(sum(verified_seconds) filter (where status = 'built'), 0) as round_seconds
        from rollup_days where rollup = any(cast(:rollups as text[]))
    ) d
    where s.log = :log
"""
_REBUILT = """
    select date, min(built_at) as since from rollup_days
    where rollup = any(cast(:rollups as text[])) and status = 'built'
    group by date
    having count(*) = cardinality(cast(:rollups as text[])) and min(built_at) > now() - make_interval(days => :days)
"""
