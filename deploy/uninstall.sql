-- Removes from the API's database everything that `calc-analytics migrate`, least_privilege.sql and reader.sql added to it. The API's tables
-- (`calculation_logs`, `calculation_stats_daily`) and their rows stay, and so does what another program has under a name of the
-- project's. Stop all processes of calc_analytics first. Run it as the owner of the API's tables; safe to repeat:
--
--     psql -d DATABASE -v ON_ERROR_STOP=1 -f deploy/uninstall.sql
--
-- One transaction. Writers wait for an instant only: if a lock is not free within five seconds, nothing is changed, and you can
-- run it again. If one of your own views uses an object that would be dropped, PostgreSQL names it, and nothing is changed.
begin;
set local lock_timeout = '5s';

-- The views and functions for readers: those beside the state whose comment has the project's mark; views first.
do $$
declare dropped text;
begin
    for dropped in
        with home as (select relnamespace as oid from pg_class where oid = to_regclass('rollup_state'))
        select format('view %s', cast(c.oid as regclass)) from pg_class c join home on home.oid = c.relnamespace
        where c.relkind = 'v' and obj_description(c.oid, 'pg_class') like 'calc\_analytics: %'
        union all
        select format('function %s', cast(p.oid as regprocedure)) from pg_proc p join home on home.oid = p.pronamespace
        where obj_description(p.oid, 'pg_proc') like 'calc\_analytics: %'
        order by 1 desc
    loop
        execute format('drop %s', dropped);
    end loop;
end $$;

-- The live views, before the column that they read. The project's own read the state.
do $$
declare name text;
begin
    for name in
        select distinct cast(cast(r.ev_class as regclass) as text)
        from pg_rewrite r join pg_depend d on d.classid = cast('pg_rewrite' as regclass) and d.objid = r.oid
        where d.refobjid = to_regclass('rollup_state') and r.ev_class in (
            to_regclass('calculation_stats_daily_live'), to_regclass('calculation_locality_stats_daily_live'),
            to_regclass('calculation_stats_hourly_live'), to_regclass('calculation_latency_daily_live'))
    loop
        execute format('drop view %s', name);
    end loop;
end $$;

-- What a database has since its first migration. Without one, an object of such a name is another program's.
do $$
declare name text;
begin
    if to_regclass('calc_analytics_version') is null then
        return;
    end if;
    -- The column, with the index on it; in tables that inherit from the log table, too.
    for name in
        with recursive tree as (
            select to_regclass('calculation_logs')::oid as oid
            union select i.inhrelid from pg_inherits i join tree on i.inhparent = tree.oid
        )
        select cast(cast(oid as regclass) as text) from tree where oid is not null
    loop
        execute format('alter table %s drop column if exists xact_id', name);
    end loop;
    drop function if exists calculation_logs_summarize();
    drop index if exists calculation_stats_daily_date_idx;
    -- The statistics and the summary. A rollup that is not kept may have another program's table in its place.
    for name in
        select cast(cast(c.oid as regclass) as text)
        from (values
            ('calculation_locality_stats_daily', 'Calculations per publisher, locality and day.'),
            ('calculation_stats_hourly', 'Calculations per publisher and UTC hour.'),
            ('calculation_latency_daily',
             'Calculations per publisher, source and response time: a histogram, exact below 128 ms.'),
            ('publisher_usage_summary', 'calc\_analytics: %')
        ) as t (name, mark) join pg_class c on c.oid = to_regclass(t.name)
        where obj_description(c.oid, 'pg_class') like t.mark
           or exists (select from rollup_state s where to_jsonb(s) -> 'rollups' ? t.name)
    loop
        execute format('drop table %s', name);
    end loop;
    -- The state, with the function by which an upgrade stopped version 0.1; the ledger and the journal.
    drop function if exists rollup(rollup_state);
    drop table if exists rollup_state, rollup_days, rollup_journal, rollup_archive;
end $$;

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

-- What the roles may do with what stays, if their script was run: it lets them read the record of migrations. Their other
-- rights stay, and with those the use of the schema. Roles belong to the server: `drop role rollup_writer, reader` removes them.
do $$
declare role record;
declare name text;
declare statement text;
begin
    for role in
        select r.oid, r.rolname as name
        from pg_class c cross join lateral aclexplode(c.relacl) a join pg_roles r on r.oid = a.grantee
        where c.oid = to_regclass('calc_analytics_version') and a.grantee <> c.relowner and a.privilege_type = 'SELECT'
          and r.rolname in ('rollup_writer', 'reader')
    loop
        execute format('revoke select on calculation_stats_daily from %I', role.name);
        execute format('revoke select on calc_analytics_version from %I', role.name);
        if role.name = 'rollup_writer' then
            execute format('revoke all on calculation_logs, calculation_stats_daily from %I', role.name);
            execute format('revoke connect, temporary on database %I from %I', current_database(), role.name);
        end if;
        for name in
            select s.name from unnest(current_schemas(false)) as s (name)
            where not exists (
                select from pg_shdepend d cross join lateral pg_identify_object(d.classid, d.objid, d.objsubid) o
                where d.refclassid = cast('pg_authid' as regclass) and d.refobjid = role.oid
                  and d.dbid = (select oid from pg_database where datname = current_database())
                  and o.schema = quote_ident(s.name))
        loop
            execute format('revoke usage on schema %I from %I', name, role.name);
        end loop;
        -- The search_path that least_privilege.sql set. Needs CREATEROLE or an administrator.
        if role.name = 'rollup_writer' and exists (
            select from pg_db_role_setting
            where setrole = role.oid and setdatabase = (select oid from pg_database where datname = current_database())
              and 'search_path=' || (select string_agg(quote_ident(s), ', ') from unnest(current_schemas(false)) s)
                  = any (setconfig)
        ) then
            statement := format('alter role %I in database %I reset search_path', role.name, current_database());
            begin
                execute statement;
            exception when insufficient_privilege then
                raise warning 'a setting of rollup_writer stays; an administrator must run: %', statement;
            end;
        end if;
    end loop;
end $$;

-- The record of migrations.
drop table if exists calc_analytics_version;
commit;
