-- lock
select s.timezone, cast(s.snapshot as text) as snapshot, (
        (cast(s.tableoid as bigint) = s.relation
            and cast(cast(s.xmin as text) as bigint) = s.written_by % 4294967296)
        or s.system_identifier = (select system_identifier from pg_control_system())
    ) as same_cluster
    from rollup_state s
    where s.rollup = :rollup
for no key update of s;
-- snapshot
select cast(pg_current_snapshot() as text);
-- refresh
with diff as materialized (
        select publisher_id, cast((l.created_at) at time zone :tz as date) as date, count(*) as total_calculations, count(*) filter (where cache_hit) as cache_hits, coalesce(sum(response_time_ms), 0) as total_response_time_ms, count(*) filter (where source = 1) as source_web, count(*) filter (where source = 2) as source_api, count(*) filter (where source = 3) as source_external
        from (
            select * from calculation_logs
            where xact_id >= :from_xmax and xact_id < :to_xmax and xact_id <> all(cast(:to_xip as bigint[]))
            union all
            select * from calculation_logs where xact_id = any(cast(:ended as bigint[]))
        ) l
        where created_at >= timestamptz '0001-01-03 00:00+00' and created_at < timestamptz '9999-12-30 00:00+00'
        group by publisher_id, 2
    ),
    -- What is known of each day in the diff: built, pending or stale; null if it was never seen.
    seen as (
        select d.date, b.status
        from (select distinct date from diff) d
        left join rollup_days b on b.rollup = :rollup and b.date = d.date
    ),
    -- A day begins here if it has no statistics and all of its rows are in this diff; others wait for a rebuild.
    judged as (
        select d.date, d.status as was, case
            when d.status is not null then d.status
            when exists (select from calculation_stats_daily t where t.date = d.date) then 'pending'
            when exists (
                select from calculation_logs l
                where (l.created_at >= (case when cast(((cast(d.date as timestamp) at time zone :tz) - interval '3 hours') at time zone :tz as date) >= d.date then (cast(d.date as timestamp) at time zone :tz) - interval '3 hours' when cast(((cast(d.date as timestamp) at time zone :tz) - interval '2 hours') at time zone :tz as date) >= d.date then (cast(d.date as timestamp) at time zone :tz) - interval '2 hours' when cast(((cast(d.date as timestamp) at time zone :tz) - interval '1 hour') at time zone :tz as date) >= d.date then (cast(d.date as timestamp) at time zone :tz) - interval '1 hour' when cast(((cast(d.date as timestamp) at time zone :tz) - interval '30 minutes') at time zone :tz as date) >= d.date then (cast(d.date as timestamp) at time zone :tz) - interval '30 minutes' else (cast(d.date as timestamp) at time zone :tz) end) and l.created_at < (cast((d.date + 1) as timestamp) at time zone :tz) and date_bin('1 hour', l.created_at, timestamptz '2000-01-01 00:00:00+00') >= date_bin('1 hour', (case when cast(((cast(d.date as timestamp) at time zone :tz) - interval '3 hours') at time zone :tz as date) >= d.date then (cast(d.date as timestamp) at time zone :tz) - interval '3 hours' when cast(((cast(d.date as timestamp) at time zone :tz) - interval '2 hours') at time zone :tz as date) >= d.date then (cast(d.date as timestamp) at time zone :tz) - interval '2 hours' when cast(((cast(d.date as timestamp) at time zone :tz) - interval '1 hour') at time zone :tz as date) >= d.date then (cast(d.date as timestamp) at time zone :tz) - interval '1 hour' when cast(((cast(d.date as timestamp) at time zone :tz) - interval '30 minutes') at time zone :tz as date) >= d.date then (cast(d.date as timestamp) at time zone :tz) - interval '30 minutes' else (cast(d.date as timestamp) at time zone :tz) end), timestamptz '2000-01-01 00:00:00+00') and date_bin('1 hour', l.created_at, timestamptz '2000-01-01 00:00:00+00') < (cast((d.date + 1) as timestamp) at time zone :tz)) and cast((l.created_at) at time zone :tz as date) = d.date
                  and (xact_id < :s1_xmin or (xact_id < :s1_xmax and xact_id <> all(cast(:s1_xip as bigint[])))) is not false
            ) then 'pending'
            else 'built' end as status
        from seen d
    ),
    -- Days that are built get the diff's measures added.
    added as (
        insert into calculation_stats_daily (publisher_id, date, total_calculations, cache_hits, total_response_time_ms, source_web, source_api, source_external)
        select publisher_id, date, total_calculations, cache_hits, total_response_time_ms, source_web, source_api, source_external from diff join judged using (date) where judged.status = 'built'
        on conflict (publisher_id, date) do update
        set total_calculations = calculation_stats_daily.total_calculations + excluded.total_calculations, cache_hits = calculation_stats_daily.cache_hits + excluded.cache_hits, total_response_time_ms = calculation_stats_daily.total_response_time_ms + excluded.total_response_time_ms, source_web = calculation_stats_daily.source_web + excluded.source_web, source_api = calculation_stats_daily.source_api + excluded.source_api, source_external = calculation_stats_daily.source_external + excluded.source_external
    ),
    -- Every day of the diff is on record, so that a pending one is not forgotten.
    recorded as (
        insert into rollup_days as r (rollup, date, status, timezone, method, built_at, built_by, refreshed_at)
        select :rollup, date, status, :tz, case status when 'built' then 'refresh' end,
               case status when 'built' then clock_timestamp() end,
               case status when 'built' then current_setting('application_name') end, clock_timestamp()
        from judged
        on conflict (rollup, date) do update set refreshed_at = excluded.refreshed_at
    )
    select date, judged.status, count(*) as keys, sum(total_calculations) as total_calculations, sum(cache_hits) as cache_hits, sum(total_response_time_ms) as total_response_time_ms, sum(source_web) as source_web, sum(source_api) as source_api, sum(source_external) as source_external
    from diff join judged using (date)
    group by date, judged.status
    order by date;
-- store
update rollup_state set snapshot = cast(:snapshot as pg_snapshot), refreshed_at = clock_timestamp(), 
    system_identifier = (select system_identifier from pg_control_system()),
    relation = cast(tableoid as bigint), written_by = txid_current()

    where rollup = :rollup;
