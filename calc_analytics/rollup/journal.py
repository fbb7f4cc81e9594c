"""The journal: which operation did what, when, to which days, by whom. Written in the operation's own transaction.

Refreshes are summed up per minute and, after 30 days, per day; everything else has a row of its own. `calc-analytics
history` reads it, and so do the counters of `/metrics` and the figures of freshness.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import transaction
from calc_analytics.database.sql import quote_literal, sum_json
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log

# Ages are noted in buckets, this many to a doubling: within 9 % of the truth.
BUCKETS_PER_DOUBLING = 8
MINUTES_KEPT_DAYS = 30
BY = "concat(current_setting('application_name'), ' as ', current_user)"


@dataclass(frozen=True)
class JournalEntry:
    """One operation, or the refreshes of a minute (or, later, of a day)."""

    at: datetime
    operation: str
    by: str
    operations: int
    rows: int
    seconds: float
    failed: bool
    days: dict[str, Any]
    detail: str | None
    oldest_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "at": self.at.isoformat()}


@dataclass(frozen=True)
class Freshness:
    """The ages at which a minute's rows were counted, in seconds: median, 95th percentile, oldest."""

    minute: datetime
    rows: int
    p50: float
    p95: float
    oldest: float


def refreshed_cte(log: Log, sample: int | None) -> str:
    """CTE: adds this refresh to its minute. Rows of days that are built nowhere are not counted, so not noted.

    One in `sample` rows is looked at for its age (None: none is, except for the oldest).
    """
    ages, added_ages = "ages as materialized (select cast(null as jsonb) as histogram)", "j.ages"
    if sample is not None:
        age = "greatest(cast(extract(epoch from clock_timestamp() - instant) as float), 0.001)"
        bucket = f"cast(floor({BUCKETS_PER_DOUBLING} / ln(2.0) * ln({age})) as integer)"
        ages = f"""ages as materialized (
        select coalesce(jsonb_object_agg(bucket, rows), '{{}}') as histogram
        from (
            select {bucket} as bucket, count(*) * {sample} as rows
            from parts_0 cross join lateral unnest(rollup_sample) as instant
            where date in (select date from taken) group by 1
        ) sampled
    )"""
        added_ages = sum_json("j.ages", "excluded.ages")
    return f"""
    taken as materialized (
        select d.date, d.rows from days d
        where exists (select from judged j where j.date = d.date and j.status = 'built')
    ),
    {ages},
    noted as (
        insert into rollup_journal as j (log, at, operation, by, summed, rows, seconds, days, ages, oldest_seconds)
        select {quote_literal(log.name)}, date_trunc('minute', clock_timestamp()), 'refresh', {BY}, true, t.rows,
               extract(epoch from clock_timestamp() - transaction_timestamp()), t.days,
               coalesce(ages.histogram, '{{}}'),
               (select extract(epoch from clock_timestamp() - min(rollup_oldest)) from parts_0
                where date in (select date from taken))
        from (select sum(rows) as rows, jsonb_object_agg(date, rows) as days from taken) t, ages
        where t.rows > 0
        on conflict (log, operation, failed, at, by) where summed do update
        set operations = j.operations + 1, rows = j.rows + excluded.rows, seconds = j.seconds + excluded.seconds,
            days = {sum_json("j.days", "excluded.days")}, ages = {added_ages},
            oldest_seconds = greatest(j.oldest_seconds, excluded.oldest_seconds)
    )"""


def note(
    connection: Connection,
    log: Log,
    operation: str,
    *,
    days: Mapping[date, Mapping[str, Any]] | None = None,
    rows: int = 0,
    seconds: float = 0.0,
    detail: str | None = None,
) -> None:
    """Notes one operation, in the caller's transaction. `days`: for each day and rollup, what was done to it."""
    parameters = {
        "log": log.name,
        "operation": operation,
        "rows": rows,
        "seconds": seconds,
        "days": json.dumps({str(day): dict(done) for day, done in (days or {}).items()}),
        "detail": detail,
    }
    connection.execute(_NOTE, parameters)


def last_outcomes(connection: Connection, log: Log, days: Sequence[date]) -> dict[tuple[str, str], Any]:
    """What the last rebuild or refusal of these days noted of each day and rollup. Cost: one scan of the journal."""
    rows = connection.execute(_LAST_OUTCOMES, {"log": log.name, "days": [str(day) for day in days]})
    return {(row.day, row.rollup): row.done for row in rows}


def note_proof(
    connection: Connection,
    log: Log,
    operation: str,
    different: Mapping[date, Mapping[str, Any]],
    seconds: float,
) -> None:
    """Notes a verification or an audit: a new difference in an entry of its own, all others summed up per hour."""
    if different:
        note(connection, log, operation, days=different, seconds=seconds)
    else:
        parameters = {"log": log.name, "operation": operation, "seconds": seconds}
        connection.execute(_NOTE_PROOF, parameters)


def note_summed(connection: Connection, log: Log, operation: str, day: date, rows: int, seconds: float) -> None:
    """Adds rows of a day to this minute's entry of the operation."""
    parameters = {"log": log.name, "operation": operation, "day": str(day), "rows": rows, "seconds": seconds}
    connection.execute(_NOTE_SUMMED, parameters)


def note_rows(
    connection: Connection, log: Log, operation: str, rows_by_day: Mapping[date, int], seconds: float, detail: str
) -> None:
    """Notes one operation on log rows of several days, in an entry of its own."""
    parameters = {
        "log": log.name,
        "operation": operation,
        "rows": sum(rows_by_day.values()),
        "seconds": seconds,
        "days": json.dumps({str(day): rows for day, rows in rows_by_day.items()}),
        "detail": detail,
    }
    connection.execute(_NOTE, parameters)


def note_erased(
    connection: Connection,
    log: Log,
    receipt: int | None,
    keys: str,
    day: str,
    erased: Mapping[str, int],
    seconds: float,
) -> int:
    """Adds rows that were erased from each table to the receipt of an erasure; returns its number.

    It holds the keys, and counts per day. Without a receipt, or if its transaction was rolled back, one is begun.
    """
    parameters = {
        "log": log.name,
        "receipt": receipt,
        "keys": keys,
        "day": day,
        "erased": json.dumps(dict(erased)),
        "rows": erased.get(log.name, 0),
        "seconds": seconds,
    }
    added = connection.execute(_ADD_ERASED, parameters).scalar()
    return int(added if added is not None else connection.execute(_NOTE_ERASED, parameters).scalar_one())


def note_failure(db: Database, operation: str, reason: str) -> None:
    """Notes that an operation ended in an error; it was rolled back, so this is a transaction of its own.

    Failures of an hour are summed up in one entry, with the latest reason.
    """
    parameters = {"log": db.log.name, "operation": operation, "detail": reason[:500]}
    with transaction(db.engine) as connection:
        connection.execute(_NOTE_FAILURE, parameters)


def history(db: Database, day: date | None = None, rollup: str | None = None, limit: int = 1000) -> list[JournalEntry]:
    """The newest entries, newest first: of all days or of one, of all rollups or of one (refreshes add to all)."""
    parameters = {"log": db.log.name, "day": None if day is None else str(day), "rollup": rollup, "limit": limit}
    with transaction(db.engine) as connection:
        rows = connection.execute(_HISTORY, parameters).mappings()
        return [JournalEntry(**row) for row in rows]


def rebuild_seconds(db: Database, built: Sequence[tuple[date, str, datetime]]) -> dict[tuple[date, str], float]:
    """How long the rebuild of each of these days took: day, rollup and when it was built, to seconds.

    An entry holds the seconds of all its days, which share them evenly. Days that no rebuild built are left out.
    """
    if not built:
        return {}
    since = min(at for _, _, at in built)
    with transaction(db.engine) as connection:
        entries = connection.execute(_REBUILDS, {"log": db.log.name, "since": since}).all()
    found: dict[tuple[date, str], float] = {}
    for entry in entries:
        for day, rollup, at in built:
            if at <= entry.at and rollup in entry.days.get(str(day), {}):
                found.setdefault((day, rollup), entry.seconds / len(entry.days))
    return found


def freshness(db: Database, since: datetime) -> list[Freshness]:
    """For each minute since then with counted rows, the ages at which they were counted; oldest minute first."""
    with transaction(db.engine) as connection:
        rows = connection.execute(_FRESHNESS, {"log": db.log.name, "since": since}).all()
    return [_freshness(row) for row in rows]


def _freshness(row: Any) -> Freshness:
    """A row of _FRESHNESS: each process that counted in that minute has a histogram."""
    ages: Counter[str] = Counter()
    for each in row.histograms:
        ages.update(each)
    p50, p95 = (_quantile(ages, share, row.oldest) for share in (0.5, 0.95))
    return Freshness(row.minute, int(row.rows), p50, p95, row.oldest)


def totals(db: Database) -> list[dict[str, Any]]:
    """What the journal adds up to, for counters: per operation how many, failures, rows, seconds and days.

    Days are those of entries of their own; of refreshes and others that are summed up they are not counted. Cost: one
    scan of the journal, tens of milliseconds for a month of refreshes.
    """
    with transaction(db.engine) as connection:
        return [dict(row) for row in connection.execute(_TOTALS, {"log": db.log.name}).mappings()]


def compact(db: Database, minutes_kept_days: int = MINUTES_KEPT_DAYS) -> int:
    """Sums up per day what was summed up per minute or hour and is old; returns how many entries that replaced.

    The sums stay what they were, so counters never fall. One transaction, safe to repeat.
    """
    with transaction(db.engine) as connection:
        return int(connection.execute(_COMPACT, {"log": db.log.name, "kept": minutes_kept_days}).scalar_one())


def _quantile(histogram: Mapping[str, int], share: float, oldest: float) -> float:
    """The age below which this share of the rows lies, by their buckets; of no sample the oldest is known alone."""
    wanted, seen = share * sum(histogram.values()), 0
    for bucket in sorted(map(int, histogram)):
        seen += histogram[str(bucket)]
        if seen >= wanted:
            return float(min(2 ** ((bucket + 0.5) / BUCKETS_PER_DOUBLING), oldest))
    return oldest


_NOTE = text(
    f"""
    insert into rollup_journal (log, at, operation, by, rows, seconds, days, detail)
    values (:log, clock_timestamp(), :operation, {BY}, :rows, :seconds, cast(:days as jsonb), :detail)
    """
)
# Noted in the transaction that built the days, a moment later.
_REBUILDS = text(
    """
    select at, days, seconds from rollup_journal
    where log = :log and operation = 'rebuild' and not failed and at >= :since order by at
    """
)
_NOTE_PROOF = text(
    f"""
    insert into rollup_journal as j (log, at, operation, by, summed, seconds)
    values (:log, date_trunc('hour', clock_timestamp()), :operation, {BY}, true, :seconds)
    on conflict (log, operation, failed, at, by) where summed do update
    set operations = j.operations + 1, seconds = j.seconds + excluded.seconds
    """
)
_NOTE_FAILURE = text(
    f"""
    insert into rollup_journal as j (log, at, operation, by, summed, failed, detail)
    values (:log, date_trunc('hour', clock_timestamp()), :operation, {BY}, true, true, :detail)
    on conflict (log, operation, failed, at, by) where summed do update
    set operations = j.operations + 1, detail = excluded.detail
    """
)
_NOTE_SUMMED = text(
    f"""
    insert into rollup_journal as j (log, at, operation, by, summed, rows, seconds, days)
    values (:log, date_trunc('minute', clock_timestamp()), :operation, {BY}, true, :rows, :seconds,
            jsonb_build_object(cast(:day as text), cast(:rows as bigint)))
    on conflict (log, operation, failed, at, by) where summed do update
    set operations = j.operations + 1, rows = j.rows + excluded.rows, seconds = j.seconds + excluded.seconds,
        days = {sum_json("j.days", "excluded.days")}
    """
)
_NOTE_ERASED = text(
    f"""
    insert into rollup_journal (log, at, operation, by, rows, seconds, days, detail)
    values (:log, clock_timestamp(), 'erase', {BY}, :rows, :seconds,
            jsonb_build_object(cast(:day as text), cast(:erased as jsonb)), :keys)
    returning id
    """
)
_OF_DAY = sum_json("days -> cast(:day as text)", "cast(:erased as jsonb)")
_ADD_ERASED = text(
    f"""
    update rollup_journal set rows = rows + :rows, seconds = seconds + :seconds, operations = operations + 1,
        days = days || jsonb_build_object(cast(:day as text), {_OF_DAY})
    where id = cast(:receipt as bigint)
    returning id
    """
)
_HISTORY = text(
    """
    select at, operation, by, operations, rows, seconds, failed, days, detail, oldest_seconds
    from rollup_journal
    where log = :log and (cast(:day as text) is null or days ? cast(:day as text))
      and (cast(:rollup as text) is null or summed or exists (
          select from jsonb_each(days) as d (day, done)
          where jsonb_typeof(done) = 'object' and done ? cast(:rollup as text)
            and (cast(:day as text) is null or d.day = :day)))
    order by at desc, id desc limit :limit
    """
)
_LAST_OUTCOMES = text(
    """
    select distinct on (d.day, r.rollup) d.day, r.rollup, r.done
    from rollup_journal j cross join jsonb_each(days) as d (day, of_day)
    cross join jsonb_each(of_day) as r (rollup, done)
    where log = :log and operation in ('rebuild', 'refuse') and d.day = any(cast(:days as text[]))
    order by d.day, r.rollup, at desc, id desc
    """
)
_FRESHNESS = text(
    """
    select at as minute, sum(rows) as rows, max(oldest_seconds) as oldest, jsonb_agg(ages) as histograms
    from rollup_journal
    where log = :log and operation = 'refresh' and not failed and summed and at >= :since and ages is not null
    group by at having max(oldest_seconds) is not null order by at
    """
)
# To the microsecond, so that a sum does not depend on the order: a counter never falls by a rounding error.
_SECONDS = "sum(round(cast(seconds as numeric), 6))"
_TOTALS = text(
    f"""
    select operation, failed, sum(operations) as operations, sum(rows) as rows, {_SECONDS} as seconds,
           sum(days) as days
    from (
        select operation, failed, operations, rows, seconds,
               case when summed then 0 else (select count(*) from jsonb_object_keys(days)) end as days
        from rollup_journal where log = :log offset 0
    ) each_entry
    group by operation, failed
    """
)
_COMPACT = text(
    f"""
    with old as (
        delete from rollup_journal
        where log = :log and summed and at < date_trunc('day', clock_timestamp()) - make_interval(days => :kept)
          and (ages is not null or at <> date_trunc('day', at))
        returning date_trunc('day', at) as at, operation, failed, by, operations, rows, seconds, days, oldest_seconds,
                  detail
    ),
    summed as (
        select at, operation, failed, by, sum(operations) as operations, sum(rows) as rows, {_SECONDS} as seconds,
               max(oldest_seconds) as oldest_seconds, max(detail) as detail
        from old group by at, operation, failed, by
    ),
    days as (
        select at, operation, failed, by, jsonb_object_agg(key, rows) as days
        from (
            select at, operation, failed, by, key, sum(cast(value as numeric)) as rows
            from old cross join jsonb_each_text(days) group by at, operation, failed, by, key
        ) each_day group by at, operation, failed, by
    ),
    noted as (
        insert into rollup_journal as j
            (log, at, operation, failed, by, summed, operations, rows, seconds, days, oldest_seconds, detail)
        select :log, at, operation, failed, by, true, operations, rows, seconds, coalesce(days.days, '{{}}'),
               oldest_seconds, detail
        from summed left join days using (at, operation, failed, by)
        on conflict (log, operation, failed, at, by) where summed do update
        set operations = j.operations + excluded.operations, rows = j.rows + excluded.rows,
            seconds = j.seconds + excluded.seconds, ages = null
    )
    select count(*) from old
    """
)
