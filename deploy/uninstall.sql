-- Removes from the API's database everything that `calc-analytics migrate` and least_privilege.sql added to it. The API's tables
-- (`calculation_logs`, `calculation_stats_daily`) and their rows stay. Stop all processes of calc_analytics first. Run it as the
-- owner of the API's tables; safe to repeat:
--
--     psql -d DATABASE -v ON_ERROR_STOP=1 -f deploy/uninstall.sql
--
-- One transaction. Writers wait for an instant only: if a lock is not free within five seconds, nothing is changed, and you can
-- run it again. If one of your own views uses an object that would be dropped, PostgreSQL names it, and nothing is changed.
begin;
set local lock_timeout = '5s';

-- The live views, before the column that they read.
drop view if exists calculation_stats_daily_live, calculation_locality_stats_daily_live, calculation_stats_hourly_live,
                    calculation_latency_daily_live;

-- The column, with the index on it; in tables that inherit from the log table, too.
do $$
declare name text;
begin
    for name in
        with recursive tree as (
            select to_regclass('calculation_logs')::oid as oid
            union select i.inhrelid from pg_inherits i join tree on i.inhparent = tree.oid
        )
        select cast(cast(oid as regclass) as text) from tree where oid is not null
    loop
        execute format('alter table %s drop column if exists xact_id', name);
    end loop;
end $$;
drop function if exists calculation_logs_summarize();
drop index if exists calculation_stats_daily_date_idx;

-- The statistics that are the project's own, the state, the ledger, the journal, and the record of migrations.
drop table if exists calculation_locality_stats_daily, calculation_stats_hourly, calculation_latency_daily;
drop table if exists rollup_state, rollup_days, rollup_journal, calc_analytics_version;

-- What the role may do here. The role itself belongs to the whole server: `drop role rollup_writer` removes it.
do $$
begin
    if exists (select from pg_roles where rolname = 'rollup_writer') then
        drop owned by rollup_writer;
        execute format('alter role rollup_writer in database %I reset all', current_database());
    end if;
end $$;
commit;
