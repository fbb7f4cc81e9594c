"""Audit: compares the statistics of all days with what was counted. Reads statistics only, not the log.

Finds what other programs wrote to a target table, on any day, pruned ones too. Days that may have lost log rows are
compared by their checksums as well, since their log can no longer prove each key. The result is recorded.
"""

import time
from collections.abc import Sequence
from datetime import date

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.retries import retry_transient
from calc_analytics.days import FIRST, LAST
from calc_analytics.rollup import journal, ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.reports import AuditDifference, AuditReport

# The greatest difference that the ledger's columns hold.
GREATEST = 2**63 - 1


def audit(db: Database, days: Sequence[date] | None = None) -> AuditReport:
    """Audits these days (None: all on record, and those that have statistics without being on record).

    One transaction, without a lock. Transient errors are retried.
    """
    return retry_transient(lambda: _audit(db, days))


def _audit(db: Database, days: Sequence[date] | None) -> AuditReport:
    started = time.perf_counter()
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        if days is None:
            connection.execute(WHOLE_DAYS)
        looked_at = {rollup: _compare(connection, rollup, days) for rollup in db.log.rollups}
        # Recorded under the lock, so that a rebuild in the meantime is not reported as a difference.
        ledger.lock(connection, db)
        found: list[AuditDifference] = []
        news: dict[date, dict[str, object]] = {}
        for rollup, (_, suspected) in looked_at.items():
            different = _compare(connection, rollup, [each.day for each in suspected])[1] if suspected else []
            known = ledger.audit_differences(connection, rollup, [each.day for each in different])
            ledger.record_audited(connection, rollup, days, {each.day: each.difference for each in different})
            found += different
            for each in different:
                if known.get(each.day) != each.difference:
                    news.setdefault(each.day, {})[each.rollup] = {"difference": each.difference}
        number, seconds = sum(number for number, _ in looked_at.values()), time.perf_counter() - started
        journal.note_proof(connection, db.log, "audit", news, seconds)
        if days is None:
            ledger.record_lost_days(connection, db.log)
            ledger.record_audit_of_all(connection, db.log)
    return AuditReport(number, found, time.perf_counter() - started)


def _compare(connection: Connection, rollup: Rollup, days: Sequence[date] | None) -> tuple[int, list[AuditDifference]]:
    """How many days were compared, and those that differ."""
    rows = connection.execute(text(audit_sql(rollup, days)), {"rollup": rollup.name, "days": list(days or [])}).all()
    return rows[0].audited, [AuditDifference(rollup.name, *row[:4]) for row in rows if row.difference]


def audit_sql(rollup: Rollup, days: Sequence[date] | None) -> str:
    """One row for each day that differs, with the number of audited days; one of nulls if none differs.

    A stored row of a day that is not on record, or was never counted, was written by another program; not so a
    predecessor's.
    """
    chosen = "" if days is None else f"where t.date = any(cast(:days as date[])) {_beyond(days)}"
    # Infinity and the years beyond a client's calendar are found on the last days that it can hold.
    day = f"greatest(least(t.date, date '{LAST}'), date '{FIRST}')"
    sums = rollup.each_measure("sum(t.{name}) as {name}")
    differences = " + ".join(
        f"abs(coalesce(s.{name}, 0) - coalesce(cast(k.counted ->> '{name}' as numeric), 0))"
        for name in rollup.measure_names
    )
    return f"""
    with {ledger.audited_cte(days)},
    stored as (
        select {day} as date, {sums}, sum(case when h.date is not null then {rollup.hash_of("t")} end) as checksum
        from {rollup.name} t left join (select date from known where is_hashed) h on h.date = t.date
        {chosen} group by 1
    ),
    compared as (
        select coalesce(k.date, s.date) as date, {differences} as difference,
               k.is_lost or (k.is_hashed and k.checksum <> coalesce(s.checksum, 0)) as hash_differs,
               coalesce(s.{rollup.count}, 0) as stored_rows,
               coalesce(cast(k.counted ->> '{rollup.count}' as numeric), 0) as counted_rows
        from known k full join stored s on s.date = k.date
        where k.counted is not null or (k.date is null and s.date is not null)
           or (k.is_uncounted and s.date is not null)
    )
    select d.date, cast(d.difference as bigint) as difference, cast(d.stored_rows as bigint) as stored_rows,
           cast(d.counted_rows as bigint) as counted_rows, n.audited
    from (select count(*) as audited from compared) n left join (
        select date, least(greatest(difference, case when hash_differs then 1 else 0 end), {GREATEST}) as difference,
               least(stored_rows, {GREATEST}) as stored_rows, counted_rows
        from compared where difference <> 0 or hash_differs
    ) d on true
    order by d.date
    """


def _beyond(days: Sequence[date]) -> str:
    """SQL: the dates that are found on one of these days, because no calendar holds them."""
    last, first = f" or t.date > date '{LAST}'", f" or t.date < date '{FIRST}'"
    return (last if LAST in days else "") + (first if FIRST in days else "")
