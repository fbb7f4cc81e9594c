"""The table `publisher_usage_summary`: one row per publisher, computed from the rollups with pandas and replaced whole.

Its columns have the meaning of the view `publisher_usage`, which computes the percentiles of one publisher after the
other. Here all of them are computed at once.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import transaction
from calc_analytics.database.tables import publisher_usage_summary
from calc_analytics.rollup.database import Database
from calc_analytics.rollups import LATENCY, LOCALITIES, STATS

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# What 'the last 30 days' means, today included.
DAYS = 30
NAME = publisher_usage_summary.name
SOURCES = ("source_web", "source_api", "source_external")


@dataclass(frozen=True)
class Summary:
    """The table as it was written, best rank first, and figures of all publishers together.

    `figures`: calculations (all time), publishers, localities, cache_hit_ratio (0 to 1), and milliseconds; those that
    are not known are left out.
    """

    table: "DataFrame"
    figures: dict[str, int | float]
    counted_at: datetime | None
    seconds: float


def refresh_summary(db: Database) -> Summary:
    """Replaces the table in one transaction; safe to repeat, also several at once.

    The lock keeps out other refreshes, and an erasure (which deletes the publisher's row last), so a row that was
    erased is not written again. Readers do not wait.
    """
    started = time.perf_counter()
    with transaction(db.engine) as connection:
        connection.execute(text(f"lock table {NAME} in share row exclusive mode"))
        connection.execute(_MEMORY)
        recent = [each.name for each in (LOCALITIES, LATENCY) if each.name in db.log.names]
        reading = connection.execute(_READING, {"stats": STATS.name, "recent": recent, "days": DAYS}).one()
        raw = _read(connection, db, reading.today)
        table = _table(raw, reading)
        connection.execute(publisher_usage_summary.delete())
        if len(table):
            connection.execute(publisher_usage_summary.insert(), _records(table))
    return Summary(table, _figures(raw), reading.counted_at, time.perf_counter() - started)


def _read(connection: Connection, db: Database, today: date) -> "DataFrame":
    """A row per publisher: sums, its response times and localities of the last 30 days with their counts, as lists.

    One statement, so all of it is of one commit. Rollups that are not kept have no lists.
    """
    import pandas

    rows = connection.execute(text(_rows_sql(db.log.names)), _days(today))
    return pandas.DataFrame(rows.all(), columns=list(rows.keys())).astype(
        {"total_ms": "float64", "measured": "float64"}
    )


def _days(today: date) -> dict[str, date]:
    """The first and last days of the sums. `month_to`, `last_month_to`: the months have as many days up to these, which
    are whole days of both; none on the first of a month."""
    month = today.replace(day=1)
    last_month = (month - timedelta(days=1)).replace(day=1)
    whole_days = min(today.day - 1, (month - last_month).days)
    return {
        "today": today,
        "month": month,
        "month_to": month + timedelta(days=whole_days - 1),
        "last_month": last_month,
        "last_month_to": last_month + timedelta(days=whole_days - 1),
        "since": today - timedelta(days=DAYS - 1),
    }


def _rows_sql(kept: Sequence[str]) -> str:
    latency = _LATENCY if LATENCY.name in kept else _NO_LATENCY
    localities = _LOCALITIES if LOCALITIES.name in kept else _NO_LOCALITIES
    return f"""
        with untimed as materialized ({_UNTIMED}), stats as ({_STATS}), {latency}, {localities}
        select * from stats left join measured using (publisher_id) left join histogram using (publisher_id)
        left join places using (publisher_id)
    """


def _table(raw: "DataFrame", reading: Any) -> "DataFrame":
    """The columns of the table, best rank first."""
    columns, order = publisher_usage_summary.columns, ["last_30_days", "all_time", "publisher_id"]
    ranked = raw.sort_values(order, ascending=[False, False, True])
    table = ranked.set_index("publisher_id", drop=False)
    buckets, places = _explode(table, "ms", "ms_counts"), _explode(table, "locality_id", "locality_counts")
    # Lists are ordered by count: the first is the largest.
    counts = places.groupby(level=0)["locality_counts"]
    table = table.assign(
        rank=range(1, len(table) + 1),
        month_change=_ratio(table["this_month_to_date"], table["last_month_to_date"]) - 1,
        cache_hit_ratio=_ratio(table["cache_hits"], table["all_time"]),
        average_response_time_ms=_ratio(table["total_ms"], table["measured"]),
        p50_response_time_ms=_percentile(buckets, 0.5),
        p95_response_time_ms=_percentile(buckets, 0.95),
        localities=table["locality_id"].map(len, na_action="ignore"),
        top_locality_id=places.groupby(level=0)["locality_id"].first().astype("Int64"),
        top_locality_share=counts.first() / counts.sum(),
        counted_at=reading.counted_at,
        complete=reading.complete,
    )
    # Nullable: as floats, identifiers would lose digits.
    table = table.astype({each.name: "Int64" for each in columns if isinstance(each.type, BigInteger)})
    return table[columns.keys()].reset_index(drop=True)


def _explode(table: "DataFrame", *columns: str) -> "DataFrame":
    """A row per element of these lists; publishers without a list have none."""
    return table[list(columns)].dropna().explode(list(columns)).astype("float64" if columns[0] == "ms" else "int64")


def _ratio(part: "Series", whole: "Series") -> "Series":
    """The quotient; not a number where the whole is zero or not known."""
    return part.astype("float64") / whole.astype("float64").where(whole != 0)


def _percentile(buckets: "DataFrame", fraction: float) -> "Series":
    """The percentile of each index value, between two ranks in proportion, as `publisher_percentiles` defines it.

    `buckets`: response times `ms`, ascending, with their `ms_counts`.
    """
    counts = buckets["ms_counts"].groupby(level=0)
    upto, position = counts.cumsum(), fraction * (counts.transform("sum") - 1)
    low = buckets["ms"][upto > position // 1].groupby(level=0).first()
    high = buckets["ms"][upto > -(-position // 1)].groupby(level=0).first()
    return low + (high - low) * (position % 1).groupby(level=0).first()


def _records(table: "DataFrame") -> list[dict[str, Any]]:
    """Plain values for the database; what is not a number is null."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _figures(raw: "DataFrame") -> dict[str, int | float]:
    """The figures of all publishers together."""
    buckets = _explode(raw, "ms", "ms_counts").groupby("ms")["ms_counts"].sum().reset_index()
    buckets.index = [0] * len(buckets)
    calculations, measured = raw["all_time"].sum(), raw["measured"].sum()
    ratios = {
        "cache_hit_ratio": raw["cache_hits"].sum() / calculations if calculations else None,
        "average_response_time_ms": raw["total_ms"].sum() / measured if measured else None,
        "p95_response_time_ms": _percentile(buckets, 0.95).iloc[0] if len(buckets) else None,
    }
    return {
        "calculations": int(calculations),
        "calculations_today": int(raw["today"].sum()),
        "publishers": len(raw),
        "localities": int(_explode(raw, "locality_id", "locality_counts")["locality_id"].nunique()),
        **{name: float(f"{value:.4g}") for name, value in ratios.items() if value is not None},
    }


# A year has more pages with a row without a response time than a bitmap of the default size can name.
_MEMORY = text("set local work_mem = '64MB'")
_READING = text(
    """
    select today, counted_at, rollup_days_complete(:stats, '-infinity', 'infinity') and not exists (
        select from unnest(cast(:recent as text[])) as r (name)
        where not rollup_days_complete(name, today - cast(:days as integer) + 1, today)
    ) as complete
    from rollup_reading()
    """
)
# Their rows without a response time are not known, so the average leaves them out.
_UNTIMED = "select unnest(rollup_days_untimed('-infinity', 'infinity')) as date"
_IS_TIMED = "date not in (select date from untimed)"
_BETWEEN = "cast(coalesce(sum(total_calculations) filter (where date between {} and {}), 0) as bigint)"
_STATS = f"""
    select publisher_id, {_BETWEEN.format(":today", ":today")} as today,
           {_BETWEEN.format(":month", ":today")} as this_month,
           {_BETWEEN.format(":last_month", "cast(:month as date) - 1")} as last_month,
           {_BETWEEN.format(":month", ":month_to")} as this_month_to_date,
           {_BETWEEN.format(":last_month", ":last_month_to")} as last_month_to_date,
           {_BETWEEN.format(":since", ":today")} as last_30_days,
           cast(sum(total_calculations) as bigint) as all_time, cast(sum(cache_hits) as bigint) as cache_hits,
           cast(sum(total_calculations) filter (where {_IS_TIMED}) as bigint) as timed,
           cast(sum(total_response_time_ms) filter (where {_IS_TIMED}) as double precision) as total_ms,
           {", ".join(f"cast(sum({name}) as bigint) as {name}" for name in SOURCES)},
           min(date) filter (where total_calculations > 0) as first_date,
           max(date) filter (where total_calculations > 0) as last_date
    from {STATS.name} group by publisher_id having sum(total_calculations) > 0
"""
_LATENCY = f"""
    unmeasured as (
        select publisher_id, cast(sum(calculations) as bigint) as unmeasured
        from {LATENCY.name} where response_time_ms = -1 and {_IS_TIMED} group by publisher_id
    ), measured as (
        select publisher_id, timed - coalesce(unmeasured, 0) as measured from stats left join unmeasured
            using (publisher_id)
    ), buckets as (
        select publisher_id, response_time_ms as bucket, cast(sum(calculations) as bigint) as calculations
        from {LATENCY.name} where date between :since and :today and response_time_ms >= 0
        group by publisher_id, response_time_ms
    ), histogram as (
        select publisher_id, array_agg(response_time_middle(bucket) order by bucket) as ms,
               array_agg(calculations order by bucket) as ms_counts
        from buckets group by publisher_id
    )
"""
_NO_LATENCY = """
    measured as (select publisher_id, cast(null as bigint) as measured from stats),
    histogram as (
        select publisher_id, cast(null as double precision[]) as ms, cast(null as bigint[]) as ms_counts from stats
    )
"""
_LOCALITIES = f"""
    by_locality as (
        select publisher_id, locality_id, cast(sum(total_calculations) as bigint) as calculations
        from {LOCALITIES.name} where date between :since and :today
        group by publisher_id, locality_id having sum(total_calculations) > 0
    ), places as (
        select publisher_id, array_agg(locality_id order by calculations desc, locality_id) as locality_id,
               array_agg(calculations order by calculations desc, locality_id) as locality_counts
        from by_locality group by publisher_id
    )
"""
_NO_LOCALITIES = """
    places as (
        select publisher_id, cast(null as bigint[]) as locality_id, cast(null as bigint[]) as locality_counts from stats
    )
"""
