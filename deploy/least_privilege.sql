-- Creates a role that may read the logs and write the statistics, and nothing else. Use it in DATABASE_URL for everything
-- except `migrate`, `rebase` and `widen`. Run this after `calc-analytics migrate`, as the owner of the API's tables; safe to
-- repeat. uninstall.sql takes it back:
--
--     psql -d DATABASE -f deploy/least_privilege.sql
--     psql -d DATABASE -c '\password rollup_writer'

do $$
declare name text;
begin
    if not exists (select from pg_roles where rolname = 'rollup_writer') then
        create role rollup_writer login;
    end if;
    execute format('grant connect, temporary on database %I to rollup_writer', current_database());
    foreach name in array current_schemas(false) loop
        execute format('grant usage on schema %I to rollup_writer', name);
    end loop;
end $$;
-- Gives the role your search_path, so that it finds the same tables. Needs CREATEROLE or an administrator.
do $$
declare statement text := format('alter role rollup_writer in database %I set search_path = %s', current_database(),
                                 (select string_agg(quote_ident(s), ', ') from unnest(current_schemas(false)) s));
begin
    if current_setting('search_path') <> '"$user", public' then
        execute statement;
    end if;
exception when insufficient_privilege then
    raise warning 'rollup_writer does not find the tables yet; an administrator must run: %', statement;
end $$;

-- The API's log table: read only.
grant select on calculation_logs to rollup_writer;
-- The statistics of every rollup that is kept, and their live views. `migrate` gives those of a new rollup the same grants.
do $$
declare name text;
begin
    for name in select unnest(rollups) from rollup_state loop
        execute format('grant select, insert, update, delete on %I to rollup_writer', name);
        execute format('grant select on %I to rollup_writer', name || '_live');
    end loop;
end $$;
-- What readers ask (docs/reading.md): reports do, too.
grant select on publisher_usage, platform_usage to rollup_writer;
do $$
declare called text;
begin
    for called in
        select cast(cast(p.oid as regprocedure) as text)
        from pg_proc p join pg_class state on state.oid = to_regclass('rollup_state')
        where p.pronamespace = state.relnamespace and obj_description(p.oid, 'pg_proc') like 'calc\_analytics: %'
    loop
        execute format('grant execute on function %s to rollup_writer', called);
    end loop;
end $$;
-- The summary, which is replaced as a whole.
grant select, insert, delete on publisher_usage_summary to rollup_writer;
-- The state, the ledger and the journal, which change in the same transactions.
grant select, update on rollup_state to rollup_writer;
grant select, insert, update on rollup_days to rollup_writer;
grant select, insert, update, delete on rollup_journal to rollup_writer;
grant usage on sequence rollup_journal_id_seq to rollup_writer;
grant select, insert, update on rollup_archive to rollup_writer;
-- The record of migrations, by which uninstall.sql sees that this script was run, too.
grant select on calc_analytics_version to rollup_writer;
-- Extends the log table's index to the end of the table, with the owner's rights; the function takes no argument.
grant execute on function calculation_logs_summarize() to rollup_writer;

-- Only if this role runs `calc-analytics prune` or `calc-analytics erase`, which delete log rows:
-- grant delete on calculation_logs to rollup_writer;

-- Only if row-level security is enabled on one of these tables and a policy would hide rows from this role (needs a superuser):
-- alter role rollup_writer bypassrls;

-- Only if `calc-analytics status` and the metrics should show the age of other roles' open transactions:
-- grant pg_read_all_stats to rollup_writer;
