-- What an API and its pages ask of the statistics, as a query file for sqlc (https://sqlc.dev); any driver runs them, too.
-- docs/reading.md says what each column means. sqlc needs a connection to a migrated database (`database: uri:` in its
-- configuration) to know the types of functions.

-- name: PublisherUsage :one
select today, this_month, last_month, all_time, cache_hit_ratio, average_response_time_ms, p95_response_time_ms,
       counted_at, complete
from publisher_usage
where publisher_id = $1;

-- name: PlatformUsage :one
select today, this_month, last_month, all_time, cache_hit_ratio, average_response_time_ms, p95_response_time_ms,
       counted_at, complete
from platform_usage;

-- name: PublisherTrend :many
select date, calculations, cache_hit_ratio, average_response_time_ms, source_web, source_api, source_external, complete
from publisher_trend($1, 7);

-- name: PlatformTrend :many
select date, calculations, cache_hit_ratio, average_response_time_ms, source_web, source_api, source_external, complete
from platform_trend(7);

-- name: PublisherDays :many
select date, calculations, cache_hit_ratio, average_response_time_ms, complete
from publisher_days($1, $2, $3);

-- name: PublisherTotals :one
select calculations, cache_hits, cache_hit_ratio, average_response_time_ms, source_web, source_api, source_external,
       counted_at, complete
from publisher_totals($1, $2, $3);

-- name: PlatformTotals :one
select calculations, cache_hits, cache_hit_ratio, average_response_time_ms, source_web, source_api, source_external,
       counted_at, complete
from platform_totals($1, $2);

-- name: PublisherTopLocalities :many
select rank, locality_id, calculations, share, cache_hit_ratio, complete
from publisher_top_localities($1, $2, $3, 5);

-- name: PlatformTopLocalities :many
select rank, locality_id, calculations, share, cache_hit_ratio, complete
from platform_top_localities($1, $2, 5);

-- name: PublisherRanking :many
select rank, publisher_id, calculations, share, cache_hit_ratio, complete
from platform_top_publishers($1, $2, 100);

-- name: PublisherPercentiles :one
select measured, p50_ms, p90_ms, p95_ms, p99_ms, complete
from publisher_percentiles($1, $2, $3);

-- name: PublisherPercentilesOfSources :one
select measured, p50_ms, p90_ms, p95_ms, p99_ms, complete
from publisher_percentiles($1, $2, $3, array[2, 3]);

-- name: PlatformPercentiles :one
select measured, p50_ms, p90_ms, p95_ms, p99_ms, complete
from platform_percentiles($1, $2);

-- name: PercentilesOfSomePublishers :one
select measured, p50_ms, p90_ms, p95_ms, p99_ms, complete
from platform_percentiles($1, $2, publishers => coalesce($3, array[]::bigint[]));

-- name: PublisherPercentilesByDay :many
select date, measured, p50_ms, p95_ms, complete
from publisher_percentiles_by_day($1, $2, $3);

-- name: PublisherHours :many
select weekday, hour, calculations, complete
from publisher_hours($1, $2, $3);

-- name: PublisherDaysOfAll :many
select publisher_id, date, calculations, cache_hits, cache_hit_ratio, average_response_time_ms, source_web, source_api,
       source_external, measured, complete
from platform_publisher_days($1, $2)
order by publisher_id, date;

-- name: PublisherTodayLive :one
select coalesce(sum(total_calculations), 0)::bigint as today
from calculation_stats_daily_live
where publisher_id = $1 and date = (select today from rollup_reading());
