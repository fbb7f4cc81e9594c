-- Creates the role `reader`, which may read the statistics and use the contract of docs/reading.md, and nothing else: no log
-- rows, no writing. It has no login: grant it to the roles of your API and its tools. Run this after `calc-analytics migrate`,
-- as the owner of the API's tables; safe to repeat. uninstall.sql takes it back:
--
--     psql -d DATABASE -f deploy/reader.sql
--     psql -d DATABASE -c 'grant reader to my_api'

do $$
declare name text;
begin
    if not exists (select from pg_roles where rolname = 'reader') then
        create role reader nologin;
    end if;
    foreach name in array current_schemas(false) loop
        execute format('grant usage on schema %I to reader', name);
    end loop;
end $$;

-- The statistics of every rollup that is kept, and their live views. `migrate` gives those of a new rollup the same grants.
do $$
declare name text;
begin
    for name in select unnest(rollups) from rollup_state loop
        execute format('grant select on %I, %I to reader', name, name || '_live');
    end loop;
end $$;
-- The views and functions, which run with the reader's own rights.
grant select on publisher_usage, platform_usage, publisher_usage_summary to reader;
do $$
declare called text;
begin
    for called in
        select cast(cast(p.oid as regprocedure) as text)
        from pg_proc p join pg_class state on state.oid = to_regclass('rollup_state')
        where p.pronamespace = state.relnamespace and obj_description(p.oid, 'pg_proc') like 'calc\_analytics: %'
    loop
        execute format('grant execute on function %s to reader', called);
    end loop;
end $$;
-- The time zone of days, how fresh the statistics are, and which days are built.
grant select (log, timezone, refreshed_at, rollups) on rollup_state to reader;
grant select (rollup, date, status, counted, difference, audit_difference) on rollup_days to reader;
-- The record of migrations, by which uninstall.sql sees that this script was run.
grant select on calc_analytics_version to reader;
