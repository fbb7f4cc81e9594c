"""The totals of days: what a target, or a table with the same columns, holds of each."""

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.rollup.declaration import Rollup


class DayTotals(NamedTuple):
    """The rows of a day, and the sum of each measure over them."""

    keys: int
    measures: dict[str, int]


def no_totals(rollup: Rollup) -> DayTotals:
    """Those of a day without rows."""
    return DayTotals(0, dict.fromkeys(rollup.measure_names, 0))


def totals_by_day(
    connection: Connection, rollup: Rollup, days: Sequence[date] | None = None, table: str | None = None
) -> dict[date, DayTotals]:
    """The totals of those of these days (None: all) that have rows in the target, or in the other `table`."""
    chosen = "" if days is None else "where date = any(:days)"
    sums = rollup.each_measure("sum({name}) as {name}")
    statement = (
        f"select date, count(*) as keys, {sums} from {table or rollup.name} {chosen} group by date order by date"
    )
    rows = connection.execute(text(statement), {} if days is None else {"days": list(days)}).mappings()
    return {
        row["date"]: DayTotals(row["keys"], {name: int(row[name]) for name in rollup.measure_names}) for row in rows
    }


def keys_hash(connection: Connection, rollup: Rollup, day: date, table: str | None = None) -> int:
    """The sum of `Rollup.keys_hash` over the day's rows in the target, or in the other `table`."""
    return keys_hashes(connection, rollup, [day], table).get(day, 0)


def keys_hashes(
    connection: Connection, rollup: Rollup, days: Sequence[date], table: str | None = None
) -> dict[date, int]:
    """The same for those of these days that have rows. One scan."""
    statement = (
        f"select date, sum({rollup.keys_hash('{name}')}) as hash from {table or rollup.name} "
        "where date = any(:days) group by date"
    )
    return {row.date: int(row.hash) for row in connection.execute(text(statement), {"days": list(days)})}
