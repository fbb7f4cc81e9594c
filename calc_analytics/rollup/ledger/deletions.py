"""Log rows that the project deletes, as recorded: by prune, which keeps statistics, and by erase, which does not."""

from datetime import date
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.sql import quote_literal, sum_json
from calc_analytics.rollup.declaration import KEYS_HASH, Log, Rollup
from calc_analytics.rollup.ledger.entries import Totals, to_json
from calc_analytics.rollup.snapshot import log_oid, same_log

PRUNE_LOCK = 724_410_050


def keep_out_prune(connection: Connection, log: Log) -> None:
    """Until the transaction ends no `prune` of the log deletes: a rebuild counts and judges the same rows."""
    _advise(connection, log, "pg_advisory_xact_lock_shared")


def keep_out_rebuilds(connection: Connection, log: Log) -> None:
    """Until the transaction ends no rebuild of the log counts. Taken before the state's lock, by both."""
    _advise(connection, log, "pg_advisory_xact_lock")


def _advise(connection: Connection, log: Log, function: str) -> None:
    connection.execute(text(f"select {function}({PRUNE_LOCK}, hashtext(:log))"), {"log": log.name})


def prunable_days(connection: Connection, log: Log, before: date) -> dict[date, int]:
    """Days before that one, built in every rollup, whose counted log rows are there, and how many."""
    parameters = {"rollups": log.names, "number": len(log.names), "first": log.names[0], "before": before}
    rows = connection.execute(text(_PRUNABLE.format(count=log.rollups[0].count)), parameters)
    return {row.date: int(row.rows) for row in rows}


def is_prunable_sql(log: Log) -> str:
    """SQL: log rows of the day :day may be deleted; parameters :rollups, and their :number.

    The day must be built in every rollup, differ in none, and have checksums; the log must be the table that was
    counted.
    """
    return f"""(select {same_log(log_oid(log))} from rollup_state s where s.log = {quote_literal(log.name)})
          and (select count(*) from rollup_days where rollup = any(cast(:rollups as text[])) and date = :day
               and status = 'built' and checksum is not null
               and coalesce(difference, 0) = 0 and coalesce(audit_difference, 0) = 0) = :number"""


def deleted_cte(rollup: Rollup, name: str, totals: str, rows: str) -> str:
    """CTE `name`: adds the JSON in `totals` (a column of the CTE `rows`) to what is recorded as deleted of the day.

    Deletions that were noted without a hash of their keys (by version 0.1) stay so.
    """
    known = f"case when d.deleted = '{{}}' or d.deleted ? '{KEYS_HASH}' then {totals} else {totals} - '{KEYS_HASH}' end"
    return f"""{name} as (
        update rollup_days d set deleted = {sum_json("d.deleted", known)},
            pruned_at = coalesce(pruned_at, clock_timestamp()), pruned_by = coalesce(pruned_by, 'prune')
        from {rows} where d.rollup = {quote_literal(rollup.name)} and d.date = :day and {rows}.rows > 0
    )"""


def totals_with_keys(rollup: Rollup) -> str:
    """SQL: the sums of each measure and the hash of the keys, over rows of the rollup's shape: what `deleted` holds."""
    return f"""{rollup.totals_json()}
               || jsonb_build_object('{KEYS_HASH}', sum({rollup.keys_hash("{name}")}))"""


def record_deleted(connection: Connection, rollup: Rollup, day: date, totals: str) -> None:
    """Adds these totals (of `totals_with_keys`) of at least one row to what is recorded as deleted of the day."""
    given = "given as (select cast(:totals as jsonb) as totals, 1 as rows)"
    statement = f"with {given}, {deleted_cte(rollup, 'noted', 'given.totals', 'given')} select from given"
    connection.execute(text(statement), {"totals": totals, "day": day})


def take_out(
    connection: Connection, rollup: Rollup, day: date, counted: Totals, deleted: Totals, hash_change: Any
) -> None:
    """The day's statistics were lowered by `counted`, of which the log rows of `deleted` were gone before.

    What differed before differs by as much afterwards.
    """
    parameters = {
        "rollup": rollup.name,
        "day": day,
        "counted": _negative(counted),
        "deleted": _negative(deleted),
        "hash": hash_change,
    }
    connection.execute(_TAKE_OUT, parameters)


def _negative(totals: Totals) -> str | None:
    return to_json({name: -value for name, value in totals.items()} if any(totals.values()) else {})


_PRUNABLE = """
    select date, cast(sum(rows) filter (where rollup = :first) as bigint) as rows
    from (
        select rollup, date, status, cast(coalesce(counted ->> '{count}', '0') as numeric)
               - cast(coalesce(deleted ->> '{count}', '0') as numeric) as rows
        from rollup_days where rollup = any(cast(:rollups as text[])) and date < :before
    ) d
    group by date
    having count(*) filter (where status = 'built') = :number and sum(rows) filter (where rollup = :first) > 0
    order by date
"""
_KNOWN_DELETED = (
    f"case when deleted ? '{KEYS_HASH}' then cast(:deleted as jsonb) else cast(:deleted as jsonb) - '{KEYS_HASH}' end"
)
_TAKE_OUT = text(
    f"""
    update rollup_days
    set counted = {sum_json("counted", "cast(:counted as jsonb)")},
        deleted = case when deleted is not null then {sum_json("deleted", _KNOWN_DELETED)} end,
        checksum = checksum + cast(:hash as numeric)
    where rollup = :rollup and date = :day and counted is not null
    """
)
