"""What verifications and audits found, recorded with each day; and which day is to be compared next."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log, Rollup
from calc_analytics.rollup.ledger.state import still_here
from calc_analytics.rollup.reports import DayProof

# SQL: changes when the day is rebuilt, pruned or decided upon, and not when a refresh adds to it.
VERSION = "concat_ws(' ', status, timezone, built_at, deleted, pruned_at, pruned_by)"
# SQL: the log was found different, and the day is not added to: rows that came since could be as many as were missing.
UNDECIDED = "coalesce(status <> 'built' and difference <> 0 and finding like 'logs!_%' escape '!', false)"

# CTE: the record of the day :day of :rollup, for a comparison.
KNOWN_CTE = f"""known as (
        select *, {VERSION} as version, cast(xmin as text) as written_by,
               exists (select from jsonb_each_text(deleted) where cast(value as numeric) <> 0) as is_pruned
        from rollup_days where rollup = :rollup and date = :day
    )"""


@dataclass(frozen=True)
class ComparedRecord:
    """A day's record as a comparison saw it: its version, the transaction that wrote it, its target's checksum."""

    version: str
    written_by: str
    checksum: Any


def record_verified(
    connection: Connection, db: Database, rollup: Rollup, proof: DayProof, seen: ComparedRecord, with_checksum: bool
) -> bool:
    """Records what a comparison found, unless the day was rebuilt, pruned or decided upon meanwhile; whether it did.

    Rows that a refresh added meanwhile change nothing about it. A proven day before yesterday (or, `with_checksum`,
    any) gets a checksum: should its log rows be deleted later, each key stays provable. Keeping one costs a refresh a
    little, so today and yesterday have none.
    """
    parameters = {
        "rollup": rollup.name,
        "day": proof.day,
        "seconds": proof.seconds,
        "difference": proof.difference,
        "finding": proof.finding,
        "version": seen.version,
        "written_by": seen.written_by,
        "checksum": seen.checksum if proof.is_proven else None,
        "tz": db.timezone,
        "with_checksum": with_checksum,
    }
    return connection.execute(_VERIFIED, parameters).rowcount > 0


def audited_cte(days: Sequence[date] | None) -> str:
    """CTE: the records of :rollup, of all days or of :days, for an audit."""
    also = "" if days is None else "and date = any(cast(:days as date[]))"
    return f"""known as materialized (
        select date, status, counted, checksum, coalesce(method = 'unrecorded', false) as is_lost,
               counted is null and method is distinct from 'predecessor' as is_uncounted,
               checksum is not null and (status = 'frozen' or coalesce(deleted, '{{}}') <> '{{}}') as is_hashed
        from rollup_days where rollup = :rollup {also}
    )"""


def record_audited(
    connection: Connection, rollup: Rollup, days: Sequence[date] | None, different: Mapping[date, int]
) -> None:
    """Records the audit of these days (None: all) that have statistics; `different` holds those that differ.

    Only verdicts that change are written, and of days that are named, when they were audited. A day that is not on
    record and has statistics is recorded as pending with nothing counted, so that it is seen and rebuilt.
    """
    parameters = {
        "rollup": rollup.name,
        "all": days is None,
        "days": list(days or []),
        "different": list(different),
        "differences": list(different.values()),
    }
    connection.execute(_UNKNOWN_STATISTICS, parameters)
    connection.execute(_AUDITED, parameters)


def record_lost_days(connection: Connection, log: Log) -> None:
    """Days that a rollup has no record of, though another counted them whole: the record was deleted.

    They are recorded with nothing counted, and differ until they are recounted or a person decides.
    """
    for rollup in log.rollups:
        for other in log.rollups:
            connection.execute(text(_LOST.format(count=other.count)), {"rollup": rollup.name, "other": other.name})


def record_audit_of_all(connection: Connection, log: Log) -> None:
    """Records when all days were audited."""
    statement = f"update rollup_state s set audited_at = clock_timestamp(), {still_here(log)} where log = :log"
    connection.execute(text(statement), {"log": log.name})


def audit_differences(connection: Connection, rollup: Rollup, days: Sequence[date]) -> dict[date, int | None]:
    """What the last audit found on these days."""
    statement = text("select date, audit_difference from rollup_days where rollup = :rollup and date = any(:days)")
    rows = connection.execute(statement, {"rollup": rollup.name, "days": list(days)})
    return {row.date: row.audit_difference for row in rows}


def oldest_proof(
    connection: Connection, log: Log, seconds: float, again_seconds: float | None, without: Collection[date]
) -> date | None:
    """The day with statistics whose proof is oldest in some rollup, if it is older than that many seconds.

    With `again_seconds` a day that differed, or whose archive did, comes first, if that was longer ago than these.
    """
    parameters = {
        "log": log.name,
        "rollups": log.names,
        "seconds": seconds,
        "again": again_seconds or 0.0,
        "different": again_seconds is not None,
        "without": list(without),
    }
    day: date | None = connection.execute(_OLDEST, parameters).scalar()
    return day


def is_audit_due(connection: Connection, log: Log, seconds: float) -> bool:
    """Whether no process has audited all days for that many seconds."""
    return bool(connection.execute(_AUDIT_DUE, {"log": log.name, "seconds": seconds}).scalar())


_VERIFIED = text(
    f"""
    update rollup_days set verified_at = clock_timestamp(), verified_seconds = :seconds, difference = :difference,
        finding = :finding,
        audit_difference = case
            when :difference = 0 and method is distinct from 'unrecorded' then 0 else audit_difference end,
        checksum = case
            when cast(:checksum as numeric) is not null and (deleted = '{{}}' or checksum is null)
                 and cast(xmin as text) = :written_by
                 and (:with_checksum or date < cast(clock_timestamp() at time zone :tz as date) - 1)
            then cast(:checksum as numeric) else checksum end
    where rollup = :rollup and date = :day and {VERSION} = :version
      and not {UNDECIDED}
    """
)
_UNKNOWN_STATISTICS = text(
    """
    insert into rollup_days (rollup, date, status, counted, audit_difference, audited_at)
    select :rollup, date, 'pending', '{}', difference, clock_timestamp()
    from unnest(cast(:different as date[]), cast(:differences as bigint[])) as d (date, difference)
    on conflict (rollup, date) do update
    set counted = '{}', audit_difference = excluded.audit_difference, audited_at = excluded.audited_at
    where rollup_days.counted is null and rollup_days.method is distinct from 'predecessor'
    """
)
_LOST = """
    insert into rollup_days (rollup, date, status, method, counted, audit_difference, audited_at)
    select :rollup, date, 'pending', 'unrecorded', '{{}}', cast(counted ->> '{count}' as bigint), clock_timestamp()
    from rollup_days
    where rollup = :other and status = 'built' and deleted is not null and cast(counted ->> '{count}' as bigint) > 0
    on conflict (rollup, date) do nothing
"""
_AUDITED = text(
    """
    update rollup_days d set audit_difference = a.difference, audited_at = clock_timestamp()
    from (
        select k.date, coalesce(f.difference, 0) as difference
        from rollup_days k
        left join unnest(cast(:different as date[]), cast(:differences as bigint[])) as f (date, difference)
            using (date)
        where k.rollup = :rollup and k.counted is not null
          and (:all or k.date = any(cast(:days as date[])))
          and (not :all or k.audit_difference is distinct from coalesce(f.difference, 0))
    ) a
    where d.rollup = :rollup and d.date = a.date
    """
)
_OLDEST = text(
    """
    select date from (
        select d.date, d.verified_at,
               coalesce(d.difference, 0) <> 0 or coalesce(a.difference, 0) <> 0 or a.erased_at is not null
                   as is_different
        from rollup_days d left join rollup_archive a on a.log = :log and a.date = d.date
        where d.rollup = any(cast(:rollups as text[])) and d.counted is not null
          and (d.status = 'built' or (d.status = 'frozen' and d.deleted is not null))
          and d.date <> all(cast(:without as date[]))
    ) known
    where verified_at is null or verified_at < clock_timestamp() - make_interval(secs => :seconds)
       or (:different and is_different and verified_at < clock_timestamp() - make_interval(secs => :again))
    order by :different and is_different desc, verified_at nulls first, date desc limit 1
    """
)
_AUDIT_DUE = text(
    """
    select coalesce(audited_at < clock_timestamp() - make_interval(secs => :seconds), true)
    from rollup_state where log = :log
    """
)
