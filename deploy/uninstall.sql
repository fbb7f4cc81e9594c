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
drop table if exists rollup_state, rollup_days, rollup_journal, rollup_archive, calc_analytics_version;

-- The project's comments on the API's tables. Comments with another text are the API's own and stay.
do $$
declare described record;
begin
    for described in
        select cast(cast(d.objoid as regclass) as text) as name, quote_ident(a.attname) as column
        from pg_description d left join pg_attribute a on a.attrelid = d.objoid and a.attnum = nullif(d.objsubid, 0)
        where d.classoid = cast('pg_class' as regclass)
          and d.objoid in (to_regclass('calculation_logs'), to_regclass('calculation_stats_daily'))
          and d.description in (
            'One row per calculation, written by the API in batches.',
            'whose zmanim were calculated',
            'the place that was asked about',
            'the date that was asked about, past or future',
            'whether the cache had the answer',
            'milliseconds, 0 to 32767; null: not measured',
            'times of day that were calculated',
            '1: web UI; 2: authenticated API; 3: external API (machine to machine); anything else is unknown',
            'when it was asked, by the clock of the API server',
            'Calculations per publisher and day.',
            'day of created_at in the reporting time zone',
            'calculations: log rows',
            'calculations that were answered from the cache',
            'sum of the response times in milliseconds; null counts as 0',
            'calculations of source 1: web UI',
            'calculations of source 2: authenticated API',
            'calculations of source 3: external API (machine to machine)')
    loop
        if described.column is null then
            execute format('comment on table %s is null', described.name);
        else
            execute format('comment on column %s.%s is null', described.name, described.column);
        end if;
    end loop;
end $$;

-- What the role may do here. The role itself belongs to the whole server: `drop role rollup_writer` removes it.
do $$
begin
    if exists (select from pg_roles where rolname = 'rollup_writer') then
        drop owned by rollup_writer;
        execute format('alter role rollup_writer in database %I reset all', current_database());
    end if;
end $$;
commit;
