"""The functions of the contract and the two views over them, as declarations: `__init__.py` installs them.

Names, columns and types are promises (docs/reading.md). Functions run with the caller's rights. In the queries,
[names] in brackets stand for tables and functions with their schemas, so a search_path changes no answer.
"""

from collections.abc import Iterator

from calc_analytics.database.contract.function import Function, both
from calc_analytics.database.tables import (
    calculation_latency_daily,
    calculation_locality_stats_daily,
    calculation_logs,
    calculation_stats_daily,
    calculation_stats_hourly,
)

STATS, LOCALITIES = calculation_stats_daily.name, calculation_locality_stats_daily.name
HOURS, LATENCY = calculation_stats_hourly.name, calculation_latency_daily.name
P95_DAYS = 30
_MEASURES = {
    "calculations": "bigint",
    "cache_hits": "bigint",
    "cache_hit_ratio": "double precision",
    "average_response_time_ms": "double precision",
    "source_web": "bigint",
    "source_api": "bigint",
    "source_external": "bigint",
}
_PERCENTILES = {"p50_ms": "0.5", "p90_ms": "0.9", "p95_ms": "0.95", "p99_ms": "0.99"}
_QUALITY = {"counted_at": "timestamptz", "complete": "boolean"}
_PERIOD = {"first_day": "date", "last_day": "date"}


def _middle() -> str:
    """SQL: the middle of the response times that one bucket of the histogram holds; at most 0.8 % from each of them."""
    widths = [(2**bits, 2 ** (bits - 7)) for bits in range(8, 32)]
    cases = " ".join(f"when :bucket < {limit} then :bucket + {(width - 1) / 2}" for limit, width in widths)
    beyond = (2**24 - 1) / 2
    return f"select cast(case when :bucket < 128 then :bucket {cases} else :bucket + {beyond} end as double precision)"


def _percentile(fraction: str) -> str:
    """SQL: the percentile as PostgreSQL's percentile_cont and numpy define it: between two ranks, in proportion."""
    position = f"{fraction} * (max(measured) - 1)"
    low = f"min(ms) filter (where upto > floor({fraction} * (measured - 1)))"
    high = f"min(ms) filter (where upto > ceil({fraction} * (measured - 1)))"
    share = f"cast({position} - floor({position}) as double precision)"
    return f"{low} + ({high} - {low}) * {share}"


_ALL_PERCENTILES = ", ".join(_percentile(fraction) for fraction in _PERCENTILES.values())


def _ratio(part: str, whole: str) -> str:
    return f"cast({part} as double precision) / nullif({whole}, 0)"


def _days(function: str, *arguments: str) -> str:
    """SQL: the days that the function names, computed once for the query."""
    return f"cast((select [{function}]({', '.join(arguments)})) as date[])"


_READING = Function(
    "rollup_reading",
    {},
    {"today": "date", "counted_at": "timestamptz", "timezone": "text", "rollups": "text[]"},
    f"""
    select cast(now() at time zone timezone as date), refreshed_at, timezone, rollups
    from [rollup_state] where log = '{calculation_logs.name}'
    """,
    "today in the reporting time zone, and up to when log rows are counted",
    rows=1,
)
# A day that an audit or a comparison with the log found to differ is not built either, until that is resolved.
_SOUND = "d.status = 'built' and coalesce(d.difference, 0) = 0 and coalesce(d.audit_difference, 0) = 0"
_UNBUILT = Function(
    "rollup_days_unbuilt",
    {"rollup_name": "text", **_PERIOD},
    "date[]",
    f"""
    select case when :rollup_name = any (r.rollups) and not ([hides]) then array(
        select d.date from [rollup_days] d
        where d.date between :first_day and :last_day and d.rollup = any (r.rollups)
        group by d.date having not coalesce(bool_or(d.rollup = :rollup_name and {_SOUND}), false)
    ) end
    from [rollup_reading]() r
    """,
    "days with log rows that are not built there, or differ; null if the rollup is not kept or row security hides rows",
)
# Rows without a response time are counted in the histogram alone: without them an average would be over too many rows.
_UNTIMED = Function(
    "rollup_days_untimed",
    _PERIOD,
    "date[]",
    f"""
    select case when '{LATENCY}' = any (r.rollups) and not ([hides]) then array(
        select d.date from [rollup_days] d
        where d.date between :first_day and :last_day and d.rollup = any (r.rollups)
        group by d.date having coalesce(
            max(d.counted ->> 'total_calculations') filter (where d.rollup = '{STATS}' and {_SOUND})
            <> max(d.counted ->> 'calculations') filter (where d.rollup = '{LATENCY}' and {_SOUND}), true)
    ) end
    from [rollup_reading]() r
    """,
    "days whose average response time is not known: the histogram is not built, or lacks calculations",
)
_COMPLETE = Function(
    "rollup_days_complete",
    {"rollup_name": "text", **_PERIOD},
    "boolean",
    """
    select coalesce(
        :first_day <= :last_day and cardinality([rollup_days_unbuilt](:rollup_name, :first_day, :last_day)) = 0, false)
    """,
    "whether every day from first_day to last_day that has log rows is built in that rollup",
)
_MIDDLE = Function(
    "response_time_middle",
    {"bucket": "bigint"},
    "double precision",
    _middle(),
    "the middle of a bucket of response times, in milliseconds: exact below 128, within 0.8 % above",
)
# Rows without a response time are in one bucket each per publisher, day and source, which has an index of its own.
_UNMEASURED = f"select date, calculations from [{LATENCY}] t where [of] and response_time_ms = -1"
# A Monday before every day.
_MONDAY = "date '0001-01-01'"
_EVER = ("'-infinity'", "'infinity'")
_UNBUILT_OF_PERIOD = _days("rollup_days_unbuilt", f"'{STATS}'", ":first_day", ":last_day")
_UNTIMED_OF_PERIOD = _days("rollup_days_untimed", ":first_day", ":last_day")
_UNTIMED_EVER = _days("rollup_days_untimed", *_EVER)
_OF_DAYS = "date between :first_day and :last_day"


def _functions() -> Iterator[Function]:
    yield from (_READING, _UNBUILT, _UNTIMED, _COMPLETE, _MIDDLE)
    yield from both(
        "days",
        _PERIOD,
        {"date": "date", **_MEASURES, **_QUALITY},
        f"""
    with counted as (
        select date, cast(sum(total_calculations) as bigint) as calculations,
               cast(sum(cache_hits) as bigint) as cache_hits, sum(total_response_time_ms) as total_ms,
               cast(sum(source_web) as bigint) as source_web, cast(sum(source_api) as bigint) as source_api,
               cast(sum(source_external) as bigint) as source_external
        from [{STATS}] t where [of] and {_OF_DAYS} group by date
    ), unmeasured as (
        select date, sum(calculations) as calculations
        from ({_UNMEASURED} and {_OF_DAYS}) rows group by date
    )
    select d.date, coalesce(c.calculations, 0), coalesce(c.cache_hits, 0),
           {_ratio("c.cache_hits", "c.calculations")},
           case when d.date <> all ({_UNTIMED_OF_PERIOD})
               then {_ratio("c.total_ms", "c.calculations - coalesce(u.calculations, 0)")} end,
           coalesce(c.source_web, 0), coalesce(c.source_api, 0), coalesce(c.source_external, 0),
           r.counted_at, coalesce(d.date <> all ({_UNBUILT_OF_PERIOD}), false)
    from (select :first_day + n as date from generate_series(0, :last_day - :first_day) as s (n)) d
    left join [rollup_reading]() r on true left join counted c using (date) left join unmeasured u using (date)
    order by d.date
        """,
        "a row for each day from first_day to last_day, days without calculations included, of [whose]",
        rows=30,
    )
    yield from both(
        "trend",
        {"days": "integer default 7"},
        {"date": "date", **_MEASURES, **_QUALITY},
        """
    select d.* from [rollup_reading]() r cross join lateral [_days](r.today - (:days - 1), r.today) d
        """,
        "a row for each of the last days, today and days without calculations included, of [whose]",
        rows=7,
    )
    yield from both(
        "totals",
        _PERIOD,
        {**_MEASURES, **_QUALITY},
        f"""
    with counted as (
        select cast(coalesce(sum(total_calculations), 0) as bigint) as calculations,
               cast(coalesce(sum(cache_hits), 0) as bigint) as cache_hits,
               sum(total_response_time_ms) filter (where date <> all ({_UNTIMED_OF_PERIOD})) as total_ms,
               sum(total_calculations) filter (where date <> all ({_UNTIMED_OF_PERIOD})) as timed,
               cast(coalesce(sum(source_web), 0) as bigint) as source_web,
               cast(coalesce(sum(source_api), 0) as bigint) as source_api,
               cast(coalesce(sum(source_external), 0) as bigint) as source_external
        from [{STATS}] t where [of] and {_OF_DAYS}
    ), unmeasured as (
        select coalesce(sum(calculations), 0) as calculations
        from ({_UNMEASURED} and {_OF_DAYS} and date <> all ({_UNTIMED_OF_PERIOD})) rows
    )
    select c.calculations, c.cache_hits, {_ratio("c.cache_hits", "c.calculations")},
           {_ratio("c.total_ms", "c.timed - u.calculations")},
           c.source_web, c.source_api, c.source_external,
           r.counted_at, [rollup_days_complete]('{STATS}', :first_day, :last_day)
    from counted c cross join unmeasured u left join [rollup_reading]() r on true
        """,
        "one row for all days from first_day to last_day, of [whose]",
        rows=1,
    )
    yield from both(
        "top_localities",
        {**_PERIOD, "n": "integer default 5"},
        _ranking("locality_id"),
        _top(LOCALITIES, "locality_id"),
        "the localities with most calculations from first_day to last_day, of [whose]",
        rows=5,
    )
    yield Function(
        "platform_top_publishers",
        {**_PERIOD, "n": "integer default 5"},
        _ranking("publisher_id"),
        _top(STATS, "publisher_id").replace("[of]", "true"),
        "the publishers with most calculations from first_day to last_day",
        rows=5,
    )
    yield Function(
        "platform_publisher_days",
        _PERIOD,
        {"publisher_id": "bigint", "date": "date", **_MEASURES, "measured": "bigint", **_QUALITY},
        f"""
    with days as materialized (
        select :first_day + n as date, coalesce(:first_day + n <> all ({_UNBUILT_OF_PERIOD}), false) as complete,
               coalesce(:first_day + n <> all ({_UNTIMED_OF_PERIOD}), false) as is_measured
        from generate_series(0, :last_day - :first_day) as s (n)
    ), unmeasured as (
        select publisher_id, date, sum(calculations) as calculations
        from [{LATENCY}] t where response_time_ms = -1 and {_OF_DAYS} group by publisher_id, date
    ), counted as (
        select s.publisher_id, s.date, s.total_calculations, s.cache_hits, s.total_response_time_ms, s.source_web,
               s.source_api, s.source_external, s.total_calculations - coalesce(u.calculations, 0) as measured
        from [{STATS}] s left join unmeasured u using (publisher_id, date)
        where s.date between :first_day and :last_day and s.total_calculations <> 0
    )
    select cast(c.publisher_id as bigint), c.date, cast(c.total_calculations as bigint), cast(c.cache_hits as bigint),
           {_ratio("c.cache_hits", "c.total_calculations")},
           case when d.is_measured then {_ratio("c.total_response_time_ms", "c.measured")} end,
           cast(c.source_web as bigint), cast(c.source_api as bigint), cast(c.source_external as bigint),
           case when d.is_measured then cast(c.measured as bigint) end, r.counted_at, d.complete
    from counted c join days d using (date) left join [rollup_reading]() r on true
        """,
        "a row for each publisher and day with calculations from first_day to last_day",
        rows=10_000,
    )
    columns = {"measured": "bigint", **dict.fromkeys(_PERCENTILES, "double precision"), **_QUALITY}
    of_sources, whole = {"sources": "integer[] default null"}, _percentiles_query()
    yield Function(
        "publisher_percentiles",
        {"publisher": "bigint", **_PERIOD, **of_sources},
        columns,
        whole.replace("[of]", "publisher_id = :publisher"),
        "percentiles of one publisher's response times from first_day to last_day, in milliseconds; of some sources",
        rows=1,
    )
    yield Function(
        "platform_percentiles",
        {**_PERIOD, **of_sources, "publishers": "bigint[] default null"},
        columns,
        whole.replace("[of]", "(:publishers is null or publisher_id = any (:publishers))"),
        "percentiles of response times from first_day to last_day, in milliseconds; of some sources and publishers",
        rows=1,
    )
    yield from both(
        "percentiles_by_day",
        _PERIOD,
        {"date": "date", **columns},
        _percentiles_by(
            "date",
            """select :first_day + n as span, :first_day + n as begins, :first_day + n as ends
               from generate_series(0, :last_day - :first_day) as s (n)""",
            "d.begins",
        ),
        "percentiles of the measured response times of each day from first_day to last_day, of [whose]",
        rows=30,
    )
    yield from both(
        "percentiles_by_week",
        _PERIOD,
        {"begins": "date", "ends": "date", **columns},
        _percentiles_by(
            f"(date - {_MONDAY}) / 7",
            f"""select n as span, greatest({_MONDAY} + 7 * n, :first_day) as begins,
                       least({_MONDAY} + 7 * n + 6, :last_day) as ends
                from generate_series((:first_day - {_MONDAY}) / 7, (:last_day - {_MONDAY}) / 7) as s (n)""",
            "d.begins, d.ends",
            f"""
    union all
    select null, null, coalesce(f.measured, 0), {", ".join(f"f.{name}" for name in _PERCENTILES)},
           r.counted_at, [rollup_days_complete]('{LATENCY}', :first_day, :last_day)
    from (select) whole left join found f on f.span is null left join [rollup_reading]() r on true""",
        ),
        "the same of each week from Monday to Sunday, as far as it is in the period, and a last row with null days of "
        "the whole period, of [whose]",
        rows=30,
    )
    yield from both(
        "hours",
        _PERIOD,
        {"weekday": "integer", "hour": "integer", "calculations": "bigint", **_QUALITY},
        f"""
    with by_hour as (
        select hour at time zone (select timezone from [rollup_reading]()) as local,
               sum(total_calculations) as calculations
        from [{HOURS}] t where [of] and {_OF_DAYS} group by hour
    ), counted as (
        select cast(extract(isodow from local) as integer) as weekday,
               cast(extract(hour from local) as integer) as hour, cast(sum(calculations) as bigint) as calculations
        from by_hour group by 1, 2
    )
    select w.weekday, h.hour, coalesce(c.calculations, 0),
           r.counted_at, [rollup_days_complete]('{HOURS}', :first_day, :last_day)
    from generate_series(1, 7) as w (weekday) cross join generate_series(0, 23) as h (hour)
    left join counted c using (weekday, hour) left join [rollup_reading]() r on true
    order by w.weekday, h.hour
        """,
        "calculations by weekday (1: Monday) and hour of the reporting time zone, of [whose]",
        rows=168,
    )
    yield from _usage()


def _percentiles_by(span: str, spans: str, names: str, total: str = "") -> str:
    """The percentiles of each span of days: `span` is that of a row, `spans` selects all, as span, begins and ends.

    `total` is a last row, of the whole period, which costs no second reading of the histogram.
    """
    buckets = f"""
        select {span} as span, response_time_ms as bucket, sum(calculations) as calculations
        from [{LATENCY}] t where [of] and {_OF_DAYS} and response_time_ms >= 0
        group by 1, response_time_ms"""
    whole = """
        union all select null, bucket, sum(calculations) from of_spans group by bucket"""
    return f"""
    with of_spans as ({buckets}
    ), buckets as (
        select span, bucket, calculations from of_spans{whole if total else ""}
    ), ranked as (
        select span, [response_time_middle](bucket) as ms,
               sum(calculations) over (partition by span order by bucket) as upto,
               sum(calculations) over (partition by span) as measured
        from buckets
    ), found (span, measured, {", ".join(_PERCENTILES)}) as (
        select span, cast(max(measured) as bigint), {_ALL_PERCENTILES} from ranked group by span
    )
    select {names}, coalesce(f.measured, 0), {", ".join(f"f.{name}" for name in _PERCENTILES)},
           r.counted_at, [rollup_days_complete]('{LATENCY}', d.begins, d.ends)
    from ({spans}) d left join [rollup_reading]() r on true left join found f using (span)
    {total}
    order by 1
    """


def _percentiles_query() -> str:
    return f"""
    with buckets as (
        select response_time_ms as bucket, sum(calculations) as calculations
        from [{LATENCY}] t
        where [of] and {_OF_DAYS} and response_time_ms >= 0 and (:sources is null or source = any (:sources))
        group by response_time_ms
    ), ranked as (
        select [response_time_middle](bucket) as ms, sum(calculations) over (order by bucket) as upto,
               sum(calculations) over () as measured
        from buckets
    ), found as (select cast(coalesce(max(measured), 0) as bigint) as measured, {_ALL_PERCENTILES} from ranked)
    select found.*, r.counted_at, [rollup_days_complete]('{LATENCY}', :first_day, :last_day)
    from found left join [rollup_reading]() r on true
    """


def _ranking(key: str) -> dict[str, str]:
    """The columns of what `_top` selects."""
    return {
        "rank": "bigint",
        key: "bigint",
        "calculations": "bigint",
        "share": "double precision",
        "cache_hits": "bigint",
        "cache_hit_ratio": "double precision",
        **_QUALITY,
    }


def _top(rollup: str, key: str) -> str:
    return f"""
    with counted as (
        select {key}, sum(total_calculations) as calculations, sum(cache_hits) as cache_hits
        from [{rollup}] t where [of] and {_OF_DAYS} group by {key} having sum(total_calculations) > 0
    ), ranked as (
        select row_number() over (order by calculations desc, {key}) as rank, counted.*,
               sum(calculations) over () as total
        from counted
    )
    select f.rank, cast(f.{key} as bigint), cast(f.calculations as bigint), {_ratio("f.calculations", "f.total")},
           cast(f.cache_hits as bigint), {_ratio("f.cache_hits", "f.calculations")},
           r.counted_at, [rollup_days_complete]('{rollup}', :first_day, :last_day)
    from ranked f left join [rollup_reading]() r on true
    where f.rank <= :n order by f.rank
    """


_USAGE = {
    "today": "bigint",
    "this_month": "bigint",
    "last_month": "bigint",
    "all_time": "bigint",
    "cache_hit_ratio": "double precision",
    "average_response_time_ms": "double precision",
    "p95_response_time_ms": "double precision",
    "first_date": "date",
    "last_date": "date",
    **_QUALITY,
}
USAGE_COMMENTS = {
    "publisher_id": "whose calculations",
    "today": "calculations of today, in the reporting time zone",
    "this_month": "calculations since the first of this month",
    "last_month": "calculations of the calendar month before",
    "all_time": "all calculations, also those whose log rows were pruned",
    "cache_hit_ratio": "cache hits per calculation over all time, 0 to 1; null: no calculations",
    "average_response_time_ms": "milliseconds, over all rows with a response time, of days whose histogram is built; "
    "null: there is none",
    "p95_response_time_ms": f"milliseconds, over the last {P95_DAYS} days; null: no row with a response time",
    "first_date": "first day with a calculation",
    "last_date": "last day with a calculation",
    "counted_at": "log rows that were committed by then are counted",
    "complete": "whether every day that has log rows is built, and for the percentile those of the last 30 days",
}


def _usage() -> Iterator[Function]:
    """What the two views select: the same figures, per publisher and over all."""
    month = "cast(date_trunc('month', cast(r.today as timestamp)) as date)"
    last = f"cast({month} - interval '1 month' as date)"
    counted = f"""
        cast(coalesce(sum(total_calculations) filter (where date = r.today), 0) as bigint) as today,
        cast(coalesce(sum(total_calculations) filter (where date between {month} and r.today), 0) as bigint)
            as this_month,
        cast(coalesce(sum(total_calculations) filter (where date >= {last} and date < {month}), 0) as bigint)
            as last_month,
        cast(coalesce(sum(total_calculations), 0) as bigint) as all_time,
        sum(cache_hits) as cache_hits,
        sum(total_response_time_ms) filter (where date <> all ({_UNTIMED_EVER})) as total_ms,
        sum(total_calculations) filter (where date <> all ({_UNTIMED_EVER})) as timed,
        min(date) filter (where total_calculations > 0) as first_date,
        max(date) filter (where total_calculations > 0) as last_date"""
    figures = f"""
        u.today, u.this_month, u.last_month, u.all_time, {_ratio("u.cache_hits", "u.all_time")},
        {_ratio("u.total_ms", "u.timed - coalesce(m.calculations, 0)")}, p.p95_ms,
        u.first_date, u.last_date, r.counted_at, [rollup_days_complete]('{STATS}', {", ".join(_EVER)})
            and ('{LATENCY}' <> all (r.rollups) or p.complete)"""
    yield Function(
        "publisher_usage_rows",
        {},
        {"publisher_id": "[publisher_type]", **_USAGE},
        f"""
    select u.publisher_id, {figures}
    from (
        select s.publisher_id, {counted}
        from [{STATS}] s left join [rollup_reading]() r on true
        group by s.publisher_id having sum(total_calculations) > 0
    ) u
    left join lateral (
        select sum(calculations) as calculations from [{LATENCY}] l
        where l.publisher_id = u.publisher_id and l.response_time_ms = -1 and l.date <> all ({_UNTIMED_EVER})
    ) m on true
    left join [rollup_reading]() r on true
    left join lateral [publisher_percentiles](u.publisher_id, r.today - {P95_DAYS - 1}, r.today) p on true
        """,
        "what the view publisher_usage shows",
        rows=1000,
    )
    yield Function(
        "platform_usage_rows",
        {},
        _USAGE,
        f"""
    select {figures}
    from (select {counted} from [{STATS}] s left join [rollup_reading]() r on true) u
    cross join (
        select sum(calculations) as calculations from [{LATENCY}] t
        where response_time_ms = -1 and date <> all ({_UNTIMED_EVER})
    ) m
    left join [rollup_reading]() r on true
    left join lateral [platform_percentiles](r.today - {P95_DAYS - 1}, r.today) p on true
        """,
        "what the view platform_usage shows",
        rows=1,
    )


FUNCTIONS = tuple(_functions())
VIEWS = {
    "publisher_usage": "calculations of each publisher: today, by month and of all time; one row per publisher",
    "platform_usage": "calculations of all publishers: today, by month and of all time; one row",
}
