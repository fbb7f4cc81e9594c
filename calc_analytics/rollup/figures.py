"""Figures about the log and the statistics for people: size, top keys, violations of checks. Nothing is changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from sqlalchemy import text

from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.sql import quote_literal
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Check, Ratio, Rollup, to_sql
from calc_analytics.rollup.status import lag
from calc_analytics.rollup.totals import totals_by_day
from calc_analytics.rollup.windows import has_a_day, has_no_day, local_date, of_day, windows

# How many keys are named that violate a check, or have the largest counts.
EXAMPLES = 10


class NoSuchDays(CalcAnalyticsError):
    """Days outside of the partitions that have neither log rows nor statistics."""


@dataclass(frozen=True)
class LogFigures:
    """The log table: rows as PostgreSQL estimates them, rows not yet counted and how long the oldest of those has
    waited at most (`status.lag`), and rows that no day can count, because they lie at infinity or beyond the years 1
    to 9999."""

    estimated_rows: int
    uncounted_rows: int
    lag_seconds: float
    rows_without_a_day: int


@dataclass(frozen=True)
class Violations:
    """The target rows of a day that violate a check: how many, the keys of the first ten, by value (of the column
    that explains it) the log rows that do, and by how many log rows it is violated, if the check defines that."""

    rows: int
    examples: list[dict[str, Any]]
    explained: dict[str, int] = field(default_factory=dict)
    amount: int = 0


def log_figures(db: Database) -> LogFigures:
    """How big the log table is and how far behind the statistics are. Cost: the uncounted rows."""
    statement = text("select greatest(reltuples, 0) from pg_class where oid = to_regclass(:name)")
    with transaction(db.engine) as connection:
        estimated = connection.execute(statement, {"name": db.log.name}).scalar()
    waiting = lag(db)
    return LogFigures(int(estimated or 0), waiting.rows, waiting.seconds, rows_without_a_day(db))


def has_logs(db: Database) -> bool:
    """Whether there is any log row."""
    with transaction(db.engine) as connection:
        return bool(connection.execute(text(f"select exists (select from {db.log.name})")).scalar_one())


def rows_without_a_day(db: Database) -> int:
    """Log rows whose event time no day holds. Cost: the index, and the ranges of pages that have such a row."""
    with transaction(db.engine) as connection:
        condition = has_no_day(db.log.event_time, quote_literal(db.timezone))
        return int(connection.execute(text(f"select count(*) from {db.log.name} where {condition}")).scalar_one())


def require_real_days(db: Database, days: Sequence[date], first: date, last: date) -> None:
    """Raises `NoSuchDays` if one of the days lies outside of first to last and has no log rows and no statistics."""
    outside = [day for day in days if not first <= day <= last]
    if not outside:
        return
    unreal = sorted(set(outside) - _days_with_rows(db, first, last))
    if unreal:
        known = f"{first} (ROLLUP_START_DATE) to {last} (today)"
        raise NoSuchDays(
            f"{unreal[0]} to {unreal[-1]}: {len(unreal):,} days outside of {known}, without log rows and without "
            f"statistics. Nothing was done. Give days from {first} on."
            if len(unreal) > 1
            else f"{unreal[0]} lies outside of {known} and has neither log rows nor statistics. Nothing was done."
        )


def _days_with_rows(db: Database, first: date, last: date) -> set[date]:
    """The days outside of first to last that have log rows, or statistics that are on record."""
    log, zone = db.log, quote_literal(db.timezone)
    day = local_date(log.event_time, zone)
    statements = [
        f"select distinct {day} as date from {log.name} where ({log.event_time} < cast(:first as date) + 1 "
        f"or {log.event_time} >= cast(:last as date)) and {has_a_day(day)}",
        *(f"select distinct date from {rollup.name} where date < :first or date > :last" for rollup in log.rollups),
    ]
    with transaction(db.engine) as connection:
        connection.execute(WHOLE_DAYS)
        statement = text(" union ".join(statements))
        return {row.date for row in connection.execute(statement, {"first": first, "last": last})}


def day_totals(db: Database, rollup: Rollup, days: Sequence[date]) -> dict[date, dict[str, int]]:
    """The stored measures of each of these days, summed over keys, and the number of keys as 'keys'."""
    with transaction(db.engine) as connection:
        found = totals_by_day(connection, rollup, days)
    return {day: {"keys": keys, **measures} for day, (keys, measures) in found.items()}


def day_ratios(db: Database, rollup: Rollup, totals: Mapping[date, Mapping[str, int]]) -> dict[date, dict[str, float]]:
    """The rollup's ratios for the days of these totals; one is left out where what it is per is zero or not counted.
    Four significant digits.

    A ratio per rows of another rollup is read in one statement, for days that are built in both rollups.
    """
    found: dict[date, dict[str, float]] = {day: {} for day in totals}
    for ratio in rollup.ratios:
        if isinstance(ratio.per, str):
            pairs = {day: (each[ratio.measure], each[ratio.per]) for day, each in totals.items()}
        else:
            pairs = _amounts_per_other(db, rollup, ratio, to_sql(ratio.per), list(totals))
        for day, (amount, per) in pairs.items():
            if per:
                found[day][ratio.name] = float(f"{amount / per:.4g}")
    return found


def _amounts_per_other(
    db: Database, rollup: Rollup, ratio: Ratio, per: str, days: Sequence[date]
) -> dict[date, tuple[int, int]]:
    """Per day, the measure and what it is divided by."""
    if ratio.other not in db.log.names:
        return {}
    statement = f"""
        select date, own.amount, other.per
        from (select date, sum({ratio.measure}) as amount from {rollup.name} where date = any(:days) group by date) own
        join (select date, {per} as per from {ratio.other} where date = any(:days) group by date) other
            using (date)
        where 2 = (select count(*) from rollup_days d
                   where d.date = own.date and d.status = 'built' and d.rollup in (:rollup, :other))
    """
    parameters = {"days": list(days), "rollup": rollup.name, "other": ratio.other}
    with transaction(db.engine) as connection:
        rows = connection.execute(text(statement), parameters)
        return {row.date: (int(row.amount), int(row.per or 0)) for row in rows}


def top_keys(db: Database, rollup: Rollup, days: Sequence[date]) -> list[dict[str, Any]]:
    """The ten rows of each of these days with the largest counts, as dictionaries of date, keys and measures."""
    order = f"{rollup.count} desc, {rollup.key_columns}"
    statement = f"""
        select date, {rollup.key_columns}, {", ".join(rollup.measure_names)}
        from (
            select {rollup.columns}, row_number() over (partition by date order by {order}) as place
            from {rollup.name} where date = any(:days)
        ) placed
        where place <= {EXAMPLES} order by date, place
    """
    with transaction(db.engine) as connection:
        rows = connection.execute(text(statement), {"days": list(days)})
        return [dict(row) for row in rows.mappings()]


def violations(db: Database, rollup: Rollup, check: Check, days: Sequence[date]) -> dict[date, Violations]:
    """What violates a declared check on each of these days; days without a violation are left out.

    Cost: the target's rows of these days and, where the check can be explained, the log rows of the days found.
    """
    amount = "0" if check.amount is None else f"abs({to_sql(check.amount)})"
    statement = f"""
        select date, count(*) as rows, sum({amount}) as amount,
               (array_agg(to_jsonb(row_of_target) order by {rollup.key_columns}))[1:{EXAMPLES}] as examples
        from (select {rollup.columns} from {rollup.name} where date = any(:days) and {to_sql(check.violation)})
             row_of_target
        group by date
    """
    with transaction(db.engine) as connection:
        connection.execute(WHOLE_DAYS)
        rows = connection.execute(text(statement), {"days": list(days)}).all()
        explained = _explain(connection, db, check, [row.date for row in rows])
    return {
        row.date: Violations(row.rows, list(row.examples), explained.get(row.date, {}), int(row.amount)) for row in rows
    }


def _explain(connection: Any, db: Database, check: Check, days: Sequence[date]) -> dict[date, dict[str, int]]:
    """Per day, the log rows that explain a violation, by the value of the column that does."""
    if check.explained_by is None or check.explained_in is None:
        return {}
    found: dict[date, dict[str, int]] = {}
    for span in windows(connection, list(days), db.timezone):
        statement = f"""
            select cast({to_sql(check.explained_in)} as text) as value, count(*) as rows from {db.log.name}
            where {of_day(db.log.event_time, span)} and {to_sql(check.explained_by)} group by 1 order by 2 desc limit 20
        """
        rows = connection.execute(text(statement), {**span.parameters(), "tz": db.timezone})
        found[span.day] = {row.value: row.rows for row in rows}
    return found
