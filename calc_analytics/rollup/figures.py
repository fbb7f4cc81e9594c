"""Figures about logs and statistics for people: lag, top publishers, unknown sources. Nothing here changes data."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import transaction
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY, Rollup
from calc_analytics.rollup.status import lag
from calc_analytics.rollup.windows import has_no_day, of_day, windows

KNOWN_SOURCES = (1, 2, 3)


@dataclass(frozen=True)
class LogFigures:
    """The log table: rows as PostgreSQL estimates them, rows not yet counted and how long the oldest of those has
    waited at most (`status.lag`), and rows that no day can count, because they lie at infinity or beyond the years 1
    to 9999."""

    estimated_rows: int
    uncounted_rows: int
    lag_seconds: float
    rows_without_a_day: int


def log_figures(engine: Engine, rollup: Rollup, timezone: str) -> LogFigures:
    """How big the log table is and how far behind the statistics are. Cost: the uncounted rows."""
    statement = text("select greatest(reltuples, 0) from pg_class where oid = to_regclass(:source)")
    with transaction(engine) as connection:
        estimated = connection.execute(statement, {"source": rollup.source}).scalar()
    waiting = lag(engine, rollup, timezone)
    return LogFigures(int(estimated or 0), waiting.rows, waiting.seconds, rows_without_a_day(engine, rollup))


def has_logs(engine: Engine, rollup: Rollup) -> bool:
    """Whether there is any log row."""
    with transaction(engine) as connection:
        return bool(connection.execute(text(f"select exists (select from {rollup.source})")).scalar_one())


def rows_without_a_day(engine: Engine, rollup: Rollup) -> int:
    """Log rows whose event time no day holds. Cost: the index, and the ranges of pages that have such a row."""
    with transaction(engine) as connection:
        statement = f"select count(*) from {rollup.source} where {has_no_day(rollup.event_time)}"
        return int(connection.execute(text(statement)).scalar_one())


def day_totals(engine: Engine, rollup: Rollup, days: Sequence[date]) -> dict[date, dict[str, int]]:
    """The stored measures of each of these days, summed over keys, and the number of keys as 'keys'."""
    sums = rollup.each_measure("sum({name}) as {name}")
    statement = f"select date, count(*) as keys, {sums} from {rollup.target} where date = any(:days) group by date"
    with transaction(engine) as connection:
        rows = connection.execute(text(statement), {"days": list(days)}).mappings()
        return {row["date"]: {name: int(row[name]) for name in ("keys", *rollup.measure_names)} for row in rows}


def built_by_others(engine: Engine, rollup: Rollup, since: datetime | None, limit: int) -> list[tuple[date, datetime]]:
    """The first days built after `since` by another application than this engine's, and when; oldest build first.

    Days are built under the state's lock, so no build that commits later has an earlier time.
    """
    statement = """
        select date, built_at from rollup_days
        where rollup = :rollup and status = 'built' and built_by <> current_setting('application_name')
          and (cast(:since as timestamptz) is null or built_at > :since)
        order by built_at, date limit :limit
    """
    with transaction(engine) as connection:
        rows = connection.execute(text(statement), {"rollup": rollup.name, "since": since, "limit": limit})
        return [(row.date, row.built_at) for row in rows]


def top_keys(engine: Engine, rollup: Rollup, days: Sequence[date], limit: int = 10) -> list[dict[str, Any]]:
    """The rows of each of these days with the largest counts, as plain dictionaries of date, keys and measures."""
    order = f"{rollup.count} desc, {rollup.key_columns}"
    statement = f"""
        select date, {rollup.key_columns}, {", ".join(rollup.measure_names)}
        from (
            select *, row_number() over (partition by date order by {order}) as place
            from {rollup.target} where date = any(:days)
        ) placed
        where place <= :limit order by date, place
    """
    with transaction(engine) as connection:
        rows = connection.execute(text(statement), {"days": list(days), "limit": limit})
        return [dict(row) for row in rows.mappings()]


def unknown_sources(engine: Engine, days: Sequence[date]) -> dict[date, int]:
    """Per day, how many calculations have no known source; days without any are left out."""
    rollup = CALCULATION_STATS_DAILY
    missing = f"""
        select date, sum(total_calculations - source_web - source_api - source_external) as missing
        from {rollup.target} where date = any(:days) group by date
        having sum(total_calculations - source_web - source_api - source_external) <> 0
    """
    with transaction(engine) as connection:
        return {row.date: int(row.missing) for row in connection.execute(text(missing), {"days": list(days)})}


def unknown_codes(engine: Engine, timezone: str, days: Sequence[date]) -> dict[int, int]:
    """Log rows of these days per source code that nobody knows. Cost: those days' rows."""
    rollup, codes = CALCULATION_STATS_DAILY, dict[int, int]()
    with transaction(engine) as connection:
        for span in windows(connection, list(days), timezone):
            statement = f"""
                select source, count(*) as rows from {rollup.source}
                where {of_day(rollup.event_time, span)} and source <> all(:known) group by source
            """
            parameters = {**span.parameters(), "tz": timezone, "known": list(KNOWN_SOURCES)}
            for row in connection.execute(text(statement), parameters):
                codes[row.source] = codes.get(row.source, 0) + row.rows
    return codes


def cache_hits_above_total(engine: Engine, days: Sequence[date]) -> list[tuple[date, int]]:
    """(day, publisher) pairs that claim more cache hits than calculations; there should be none."""
    statement = f"""
        select date, publisher_id from {CALCULATION_STATS_DAILY.target}
        where date = any(:days) and (cache_hits > total_calculations or cache_hits < 0) order by 1, 2
    """
    with transaction(engine) as connection:
        return [(row.date, row.publisher_id) for row in connection.execute(text(statement), {"days": list(days)})]
