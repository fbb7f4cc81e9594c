"""What is held of the keys: rows per table and day. Nothing is changed here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database import relations
from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.sql import quote_literal
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log, Rollup
from calc_analytics.rollup.erasure.keys import Keys, day_name, describe_keys, matches, parameters
from calc_analytics.rollup.windows import has_a_day, local_date

RowsByDay = dict[date | None, int]


class NothingToErase(CalcAnalyticsError):
    """No table has a row of the keys: most likely a typing error."""


class CannotErase(CalcAnalyticsError):
    """A table would keep a part of the keys that could not be removed afterwards. Nothing was changed."""


@dataclass(frozen=True)
class Holdings:
    """Rows of the keys by table and day: log rows, and rows of statistics. Log rows without a day have none."""

    keys: Keys
    tables: dict[str, RowsByDay]

    @property
    def days(self) -> list[date | None]:
        """The days of all tables, oldest first; last None, if there are rows without a day."""
        found = {day for rows in self.tables.values() for day in rows}
        return [*sorted(day for day in found if day is not None), *([None] if None in found else [])]

    def rows(self, table: str) -> int:
        """All rows of a table."""
        return sum(self.tables.get(table, {}).values())

    def without(self, days: Sequence[date | None]) -> "Holdings":
        """The same, but for these days."""
        tables = {name: {day: n for day, n in rows.items() if day not in days} for name, rows in self.tables.items()}
        return Holdings(self.keys, {name: rows for name, rows in tables.items() if rows})

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        tables = {
            name: {"rows": self.rows(name), "days": {day_name(day): n for day, n in rows.items()}}
            for name, rows in self.tables.items()
        }
        return {"dry_run": True, "keys": dict(self.keys), "tables": tables, "days": [day_name(d) for d in self.days]}


def holdings(db: Database, keys: Keys, also: Sequence[Rollup] = ()) -> Holdings:
    """Counts the keys' rows. Cost: a scan of the log. `also`: rollups that are not kept, whose tables are there.

    Raises `CannotErase` if one of these, or a table that no declaration is of, would keep a part of the keys.
    """
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        connection.execute(WHOLE_DAYS)
        present = [rollup for rollup in also if relations.exists(connection, rollup.name)]
        _require_all_known(connection, db, keys, present)
        rows = {db.log.name: _rows_of_log(connection, db, keys)}
        for rollup in [*db.log.rollups, *present]:
            if columns := rollup.keys_of(keys):
                rows[rollup.name] = _rows_of_target(connection, rollup, keys, columns)
    return Holdings(keys, {name: of_days for name, of_days in rows.items() if of_days})


def _require_all_known(connection: Connection, db: Database, keys: Keys, off: Sequence[Rollup]) -> None:
    for rollup in off:
        if rollup.keys_of(keys) is None and relations.has_rows(connection, rollup.name):
            raise CannotErase(
                f"{rollup.name} is switched off and sums over {describe_keys(keys)}, so it could not be corrected: "
                "empty the table, or switch it on (ROLLUPS and 'calc-analytics migrate'). Nothing was erased"
            )
    for name in ledger.unknown_rollups(connection, [*db.log.rollups, *off]):
        if relations.has_rows(connection, name):
            raise CannotErase(
                f"{name} has statistics and is not declared in this version, so nothing of it could be erased: drop "
                "the table, or use the version that declares it. Nothing was erased"
            )


def _rows_of_log(connection: Connection, db: Database, keys: Keys) -> RowsByDay:
    day = local_date(db.log.event_time, quote_literal(db.timezone))
    statement = f"""
        select case when {has_a_day("day")} then day end as date, count(*) as rows
        from (select {day} as day from {db.log.name} where {matches(keys)}) each_row group by 1 order by 1
    """
    return {row.date: row.rows for row in connection.execute(text(statement), parameters(keys))}


def _rows_of_target(connection: Connection, rollup: Rollup, keys: Keys, columns: Mapping[str, str]) -> RowsByDay:
    statement = (
        f"select date, count(*) as rows from {rollup.name} where {matches(keys, columns)} group by date order by date"
    )
    return {row.date: row.rows for row in connection.execute(text(statement), parameters(keys))}


def summing(log: Log, keys: Keys) -> list[Rollup]:
    """The rollups that hold the keys' part in sums with others'."""
    return [rollup for rollup in log.rollups if rollup.keys_of(keys) is None]
