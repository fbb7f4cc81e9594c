"""One state per log, and double entry: what was counted and deleted per rollup and day.

The statistics of each built day are taken for counted as they are; the next comparison with the log shows whether they
were. Deletions that version 0.1 recorded automatically ('found'), without a decision, are not taken over: those days
differ until a person decides.

Version 0.1 may still be running. It reads the column `rollup` of the state row, which is a function now that stops it
with a message; the revision's name stops its `migrate`.
"""

from alembic import op
from sqlalchemy import text

from calc_analytics.database.migrations.cluster import STILL_HERE

revision = "0004_needs_calc_analytics_0.2"
down_revision = "0003"

MEASURES = (
    "total_calculations",
    "cache_hits",
    "total_response_time_ms",
    "source_web",
    "source_api",
    "source_external",
)


def upgrade() -> None:
    connection = op.get_bind()
    if not connection.execute(text(_HAS_OLD_SHAPE)).scalar():
        return
    connection.execute(text("set local row_security = off"))
    # Its rows are found by index, one day after the other, before any writer has to wait.
    connection.execute(text("set local enable_seqscan = off"))
    connection.execute(text(_PREDECESSORS_DAYS))
    connection.execute(text("set local enable_seqscan to default"))
    connection.execute(text("lock table rollup_state, rollup_days in access exclusive mode"))
    for statement in STATEMENTS:
        connection.execute(text(statement))


_HAS_OLD_SHAPE = """
    select exists (
        select from pg_attribute
        where attrelid = to_regclass('rollup_state') and attname = 'rollup' and not attisdropped
    )
"""
# Statistics of days that version 0.1 never built were in the table before it. Where log rows are left, a rebuild
# replaces them; where none is, they are kept.
_PREDECESSORS_DAYS = """
    insert into rollup_days (rollup, date, status, timezone)
    select 'calculation_stats_daily', d.date, case when found.is_there then 'pending' else 'kept' end,
           case when found.is_there then null else s.timezone end
    from (select distinct date from calculation_stats_daily) d cross join rollup_state s cross join lateral (
        select exists (
            select from calculation_logs l
            where date_bin('1 hour', l.created_at, timestamptz '2000-01-01 00:00:00+00')
                      >= cast(d.date - 1 as timestamp) at time zone 'UTC'
              and date_bin('1 hour', l.created_at, timestamptz '2000-01-01 00:00:00+00')
                      < cast(d.date + 2 as timestamp) at time zone 'UTC'
              and cast(l.created_at at time zone s.timezone as date) = d.date
        ) as is_there
    ) found
    where s.rollup = 'calculation_stats_daily'
      and not exists (select from rollup_days k where k.rollup = s.rollup and k.date = d.date)
    on conflict (rollup, date) do nothing
"""
_TOTALS = ", ".join(f"'{name}', sum({name})" for name in MEASURES)
_HASH = (
    "cast(hashint8extended(0, hash_record_extended(row(cast(t.publisher_id as INTEGER), cast(t.date as DATE), "
    + ", ".join(f"cast(t.{name} as {'BIGINT' if name == 'total_response_time_ms' else 'INTEGER'})" for name in MEASURES)
    + "), 0)) as numeric)"
)
STATEMENTS = (
    "alter table rollup_state rename column rollup to log",
    "alter table rollup_state add column rollups text[]",
    "alter table rollup_state add column audited_at timestamptz",
    f"update rollup_state s set rollups = array[log], log = 'calculation_logs', {STILL_HERE}",
    "alter table rollup_state alter column rollups set not null",
    """
    create or replace function rollup(rollup_state) returns text language plpgsql as $$
    begin
        raise exception 'this database was upgraded for calc_analytics 0.2, and this is 0.1: stop it and install 0.2';
    end $$
    """,
    "alter table rollup_days rename column sealed_at to pruned_at",
    "alter table rollup_days rename column sealed_by to pruned_by",
    "alter table rollup_days rename column missing to deleted",
    """
    alter table rollup_days add column counted jsonb, add column checksum numeric, add column finding text,
        add column audited_at timestamptz, add column audit_difference bigint
    """,
    "update rollup_days set status = 'frozen', deleted = null where status = 'kept'",
    """
    update rollup_days set deleted = null, pruned_at = null, pruned_by = null, finding = 'logs_missing',
        difference = greatest(1, cast(deleted ->> 'total_calculations' as bigint))
    where pruned_by = 'found'
    """,
    f"""
    update rollup_days d
    set counted = coalesce(s.totals, jsonb_build_object({", ".join(f"'{name}', 0" for name in MEASURES)})),
        deleted = case when d.status = 'frozen' or (d.status = 'stale' and d.built_at is null) then null
                  else coalesce(d.deleted, '{{}}') end,
        verified_at = null, verified_seconds = null,
        difference = case when d.finding is not null then d.difference end,
        checksum = case when d.deleted is not null or d.status = 'frozen' then coalesce(s.hash, 0) end
    from rollup_days known left join (
        select date, jsonb_build_object({_TOTALS}) as totals, sum({_HASH}) as hash
        from calculation_stats_daily t group by date
    ) s using (date)
    where d.rollup = 'calculation_stats_daily' and known.rollup = d.rollup and known.date = d.date
      and d.status in ('built', 'stale', 'frozen', 'overflow')
    """,
    """
    update rollup_days d set method = 'predecessor'
    where status = 'pending' and exists (select from calculation_stats_daily t where t.date = d.date)
    """,
)
