"""Figures of days that no total gives: the 95th percentile of the response times, and the number of localities; and
the localities with most calculations."""

from collections.abc import Iterator
from datetime import date
from typing import Any

from sqlalchemy import text

from calc_analytics.database.engine import transaction
from calc_analytics.rollup.database import Database
from calc_analytics.rollups import LATENCY, LOCALITIES

# Runs and ticks wait no longer for what is shown beside the numbers.
LIMIT = text("set local statement_timeout = '15s'")
Figures = dict[str, int | float]


def day_figures(db: Database, first: date, last: date) -> dict[date, Figures]:
    """`p95_response_time_ms` (milliseconds, four digits) and `localities` of each day from first to last.

    A figure is left out for days that are not built in the rollup it needs. Cost: these days' rows of both rollups.
    Database errors are raised within a minute.
    """
    found: dict[date, Figures] = {}
    for day, name, value in _read(db, first, last):
        found.setdefault(day, {})[name] = value
    return found


def _read(db: Database, first: date, last: date) -> Iterator[tuple[date, str, int | float]]:
    days = {"first": first, "last": last, "rollup": LOCALITIES.name}
    with transaction(db.engine) as connection:
        connection.execute(LIMIT)
        if LATENCY.name in db.log.names:
            for row in connection.execute(_P95, days):
                yield row.date, "p95_response_time_ms", float(f"{row.p95_ms:.4g}")
        if LOCALITIES.name in db.log.names:
            # As a condition PostgreSQL would evaluate `complete` for each row of the rollup, not for each day.
            for row in connection.execute(_COUNTED_LOCALITIES, days):
                if row.complete:
                    yield row.date, "localities", row.localities


def top_localities(db: Database, day: date, n: int = 10) -> list[dict[str, Any]]:
    """The day's localities with most calculations of all publishers: rank, locality_id, calculations, share and cache
    hits, as plain values."""
    with transaction(db.engine) as connection:
        connection.execute(LIMIT)
        return [dict(row) for row in connection.execute(_TOP_LOCALITIES, {"day": day, "n": n}).mappings()]


_TOP_LOCALITIES = text(
    """
    select rank, locality_id, calculations, share, cache_hits, cache_hit_ratio
    from platform_top_localities(:day, :day, :n) order by rank
    """
)
_P95 = text("select date, p95_ms from platform_percentiles_by_day(:first, :last) where complete and p95_ms is not null")
_COUNTED_LOCALITIES = text(
    f"""
    select date, count(*) as localities, rollup_days_complete(:rollup, date, date) as complete from (
        select date, locality_id from {LOCALITIES.name}
        where date between :first and :last and total_calculations > 0 group by date, locality_id
    ) each_locality
    group by date
    """
)
