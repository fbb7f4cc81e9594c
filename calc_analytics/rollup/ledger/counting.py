"""What a refresh and a rebuild record: rows that were added to days, and days that were recounted or set aside."""

from collections.abc import Mapping, Sequence
from datetime import date

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.sql import quote_literal, sum_json
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log, Rollup
from calc_analytics.rollup.ledger.entries import Totals, checksum_sql, to_json


def seen_cte(log: Log) -> str:
    """CTE: what is known of each day in `days`, for each rollup; status is null for a day never seen."""
    names = ", ".join(f"({quote_literal(name)})" for name in log.names)
    return f"""seen as materialized (
        select r.rollup, d.date, b.status, b.checksum is not null as has_checksum
        from days d cross join (values {names}) r (rollup)
        left join rollup_days b on b.rollup = r.rollup and b.date = d.date
    )"""


def recorded_cte(db: Database) -> str:
    """CTE: records every day in `judged`, adds `amounts` to what is counted of built ones, and `hashes` to checksums.

    A checksum that a verification added while this statement ran lacks its rows: it is dropped, and made again later.
    """
    return f"""recorded as (
        insert into rollup_days as r (rollup, date, status, timezone, method, built_at, built_by, refreshed_at, counted,
                                      deleted, checksum)
        select j.rollup, j.date, j.status, {quote_literal(db.timezone)}, case j.status when 'built' then 'refresh' end,
               case j.status when 'built' then clock_timestamp() end,
               case j.status when 'built' then current_setting('application_name') end, clock_timestamp(),
               case when j.status = 'built' then a.totals when j.is_foreign then '{{}}' end,
               case j.status when 'built' then cast('{{}}' as jsonb) end,
               h.hash
        from judged j join amounts a using (rollup, date) left join hashes h using (rollup, date)
        on conflict (rollup, date) do update
        set refreshed_at = excluded.refreshed_at,
            counted = case when r.status = 'built' then {sum_json("r.counted", "excluded.counted")} else r.counted end,
            checksum = case when r.status = 'built' then r.checksum + excluded.checksum else r.checksum end
    )"""


def record_rebuilt(
    connection: Connection,
    db: Database,
    rollup: Rollup,
    totals: Mapping[date, dict[str, int]],
    deleted: Mapping[date, Totals] | None = None,
) -> None:
    """These days are recounted: they are built, and have these totals, of which `deleted` is not in the log.

    Days before yesterday get a checksum immediately: no other program can have changed them yet. So do days of which
    something is deleted.
    """
    if not totals:
        return
    parameters = {
        "rollup": rollup.name,
        "tz": db.timezone,
        "days": list(totals),
        "counted": [to_json(counted) for counted in totals.values()],
        "deleted": [to_json((deleted or {}).get(day, {})) for day in totals],
    }
    connection.execute(text(_REBUILT.format(target=rollup.name, hash=rollup.hash_of("t"))), parameters)


def record_added(connection: Connection, rollup: Rollup, day: date, counted: Totals) -> None:
    """Rows were added to the day, which is built again and has these totals now; what was deleted stays so."""
    parameters = {"rollup": rollup.name, "day": day, "counted": to_json(counted)}
    connection.execute(text(_ADDED.format(hash=checksum_sql(rollup, ":day"))), parameters)


def set_aside(connection: Connection, rollup: Rollup, days: Sequence[date]) -> set[date]:
    """These days have a value that does not fit its column: they are not added to until that is resolved.

    Returns those that were not set aside before.
    """
    return set(connection.execute(_SET_ASIDE, {"rollup": rollup.name, "days": list(days)}).scalars())


def count_again(connection: Connection, rollup: Rollup) -> None:
    """Days that were set aside wait for a rebuild: a column is wider now."""
    connection.execute(_COUNT_AGAIN, {"rollup": rollup.name})


def mark(connection: Connection, rollup: Rollup, days: Sequence[date], status: str) -> None:
    """Gives these days that status; days that are not on record stay so."""
    statement = text("update rollup_days set status = :status where rollup = :rollup and date = any(:days)")
    connection.execute(statement, {"rollup": rollup.name, "days": list(days), "status": status})


# A recount resets the proofs.
PROVEN_AFRESH = (
    "verified_at = null, verified_seconds = null, difference = null, finding = null, "
    "audited_at = null, audit_difference = null"
)
_REBUILT = f"""
    with rebuilt as materialized (
        select * from unnest(cast(:days as date[]), cast(:counted as jsonb[]), cast(:deleted as jsonb[]))
            as d (date, counted, deleted)
    ),
    checked as materialized (
        select *, date < cast(clock_timestamp() at time zone :tz as date) - 1 or deleted <> '{{{{}}}}' as is_checked
        from rebuilt
    ),
    hashes as (
        select date, sum({{hash}}) as hash from {{target}} t
        where date = any(array(select date from checked where is_checked)) group by date
    )
    insert into rollup_days as r (rollup, date, status, timezone, method, built_at, built_by, refreshed_at, counted,
                                  deleted, checksum)
    select :rollup, date, 'built', :tz, 'rebuild', clock_timestamp(), current_setting('application_name'),
           clock_timestamp(), counted, deleted, case when is_checked then coalesce(hash, 0) end
    from checked left join hashes using (date)
    on conflict (rollup, date) do update
    set status = excluded.status, timezone = excluded.timezone, method = excluded.method, built_at = excluded.built_at,
        built_by = excluded.built_by, refreshed_at = excluded.refreshed_at, counted = excluded.counted,
        deleted = excluded.deleted, checksum = excluded.checksum, {PROVEN_AFRESH},
        pruned_at = case when excluded.deleted <> '{{{{}}}}' then coalesce(r.pruned_at, clock_timestamp()) end,
        pruned_by = case when excluded.deleted <> '{{{{}}}}' then coalesce(r.pruned_by, 'prune') end
"""
_ADDED = f"""
    update rollup_days set status = 'built', counted = cast(:counted as jsonb), checksum = {{hash}},
        refreshed_at = clock_timestamp(), {PROVEN_AFRESH}
    where rollup = :rollup and date = :day
"""
_COUNT_AGAIN = text(
    """
    update rollup_days set status = case when counted is null then 'pending' else 'stale' end
    where rollup = :rollup and status = 'overflow'
    """
)
_SET_ASIDE = text(
    """
    insert into rollup_days as r (rollup, date, status)
    select :rollup, date, 'overflow' from unnest(cast(:days as date[])) as d (date)
    on conflict (rollup, date) do update set status = 'overflow' where r.status in ('built', 'pending', 'stale')
    returning date
    """
)
