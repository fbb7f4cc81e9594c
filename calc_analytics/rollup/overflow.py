"""Values that do not fit a column of the target: on which days, in which column, and what they are.

The limits are those of the table as it is now: it may have wider columns than were declared, or narrower keys than the
log. A day with such a value is set aside (status 'overflow') and the others go on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.relations import BITS, integer_types
from calc_analytics.rollup import journal
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log, Rollup
from calc_analytics.rollup.windows import Window, of_day


@dataclass(frozen=True)
class Misfit:
    """The first value found of a day that a column of the rollup's table, of that type, cannot hold."""

    rollup: str
    day: date
    column: str
    type: str
    value: int
    keys: dict[str, Any]
    """The keys of the row to which it belongs."""

    def __str__(self) -> str:
        unfit = f"does not fit its column ({self.rollup}.{self.column} is {self.type})"
        if self.column in self.keys:
            return f"{self.column} is {self.value:,} and {unfit}"
        key = ", ".join(f"{name} {value}" for name, value in self.keys.items())
        return f"{self.column} would be {self.value:,} for {key}, and {unfit}"

    @property
    def advice(self) -> str:
        """What to do about it."""
        return (
            f"Widen it with 'calc-analytics widen {self.column}', or look for log rows of that day that do not belong "
            "there."
        )

    def as_dict(self) -> dict[str, Any]:
        """What the journal keeps of it."""
        return {"column": self.column, "type": self.type, "value": self.value, "keys": _plain(self.keys)}


def misfits(
    connection: Connection, rollup: Rollup, rows: str, parameters: Mapping[str, Any], are_added: bool = False
) -> list[Misfit]:
    """One for each day of `rows`, a query of the rollup's keys, `date` and measures, that has a value that does not
    fit. `are_added`: they would be added to what the target holds."""
    types = integer_types(connection, rollup.name)
    held = "cast(coalesce(t.{name}, 0) as numeric) + d.{name}" if are_added else "d.{name}"
    values = {name: f"d.{name}" for name in rollup.keys if name in types}
    values.update({name: held.format(name=name) for name in rollup.measure_names if name in types})
    too_large = " or ".join(_overflows_sql(value, types[name]) for name, value in values.items())
    keys = ", ".join(f"d.{name}" for name in rollup.keys)
    sums = ", ".join(f"{values[name]} as {name}" for name in rollup.measure_names if name in values)
    joined = f"left join {rollup.name} t using ({rollup.key_columns}, date)" if are_added else ""
    statement = (
        f"select distinct on (d.date) d.date, {keys}, {sums} from ({rows}) d {joined} where {too_large} order by 1"
    )
    found = connection.execute(text(statement), dict(parameters)).mappings().all()
    return [_misfit(rollup, types, row) for row in found]


def _overflows_sql(value: str, type_: str) -> str:
    return f"{value} not between -{2 ** BITS[type_]} and {2 ** BITS[type_] - 1}"


def _misfit(rollup: Rollup, types: Mapping[str, str], row: Any) -> Misfit:
    column = next(name for name in types if name in row and not _fits(int(row[name]), types[name]))
    keys = {name: row[name] for name in rollup.keys}
    return Misfit(rollup.name, row["date"], column, types[column], int(row[column]), keys)


def _fits(value: int, type_: str) -> bool:
    return -(2 ** BITS[type_]) <= value < 2 ** BITS[type_]


def in_log(connection: Connection, db: Database, rollup: Rollup, span: Window) -> Misfit | None:
    """The first value of that day's log rows that does not fit the rollup's table; None if all fit."""
    rows = f"""
        select {rollup.key_selects}, cast(:day as date) as date, {rollup.measure_selects}
        from {db.log.name} where {of_day(db.log.event_time, span)} group by {rollup.group_by}
    """
    return next(iter(misfits(connection, rollup, rows, {**span.parameters(), "tz": db.timezone})), None)


def note(connection: Connection, db: Database, found: Iterable[Misfit]) -> None:
    """Notes in the journal that the days were set aside, and why."""
    days: dict[date, dict[str, Any]] = {}
    for each in found:
        days.setdefault(each.day, {})[each.rollup] = each.as_dict()
    journal.note(connection, db.log, "overflow", days=days)


def known(connection: Connection, log: Log) -> list[Misfit]:
    """The days that are set aside now and have a reason in the journal: one for each rollup."""
    rows = connection.execute(text(_KNOWN), {"log": log.name, "rollups": log.names}).all()
    return [Misfit(row.rollup, row.date, **row.why) for row in rows if row.why]


def _plain(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, int) else str(value) for name, value in keys.items()}


_KNOWN = """
    select d.rollup, d.date, (
        select jsonb_build_object('column', why -> 'column', 'type', why -> 'type', 'value', why -> 'value',
                                  'keys', why -> 'keys')
        from rollup_journal j cross join lateral (select j.days -> cast(d.date as text) -> d.rollup as why) each_why
        where j.log = :log and j.operation in ('overflow', 'refuse') and not j.summed
          and jsonb_exists(j.days, cast(d.date as text)) and why -> 'column' is not null
        order by j.id desc limit 1
    ) as why
    from rollup_days d
    where d.rollup = any(cast(:rollups as text[])) and d.status = 'overflow'
    order by d.date, d.rollup
"""
