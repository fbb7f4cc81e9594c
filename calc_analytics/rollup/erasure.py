"""What an erasure concerns, and what it did: rows per table and day. Nothing is changed here.

The keys are columns of the log with a value each, such as `publisher_id`. A rollup that has all of them among its keys
holds rows of theirs; any other holds their part in sums with others'.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import WHOLE_DAYS, transaction
from calc_analytics.database.sql import quote_identifier, quote_literal
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.plurals import number
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log, Rollup
from calc_analytics.rollup.windows import has_a_day, local_date

Keys = Mapping[str, int]
RowsByDay = dict[date | None, int]


class NothingToErase(CalcAnalyticsError):
    """No table has a row of the keys: most likely a typing error."""


class CannotErase(CalcAnalyticsError):
    """A table would keep a part of the keys that nobody could take out afterwards. Nothing was changed."""


def in_words(keys: Keys) -> str:
    """'publisher_id 7'."""
    return ", ".join(f"{name} {value}" for name, value in keys.items())


def matches(keys: Keys, columns: Mapping[str, str] | None = None) -> str:
    """SQL: the row is one of the keys'; parameters of `parameters`. `columns`: other names of the columns, if any."""
    return " and ".join(f"{(columns or {}).get(name, name)} = :key_{name}" for name in keys)


def parameters(keys: Keys) -> dict[str, int]:
    """The parameters of `matches`."""
    return {f"key_{name}": value for name, value in keys.items()}


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


def day_name(day: date | None) -> str:
    """The day for people and for the journal."""
    return "no day" if day is None else str(day)


@dataclass(frozen=True)
class LeftDay:
    """A day of which nothing (more) was erased, and why.

    - differs: it differs from its log or from what was counted, which erasing must not hide
    - waits: `rollup` is to be rebuilt first
    - overflow: a value of `rollup` does not fit its column
    - unknown: `rollup` lacks the keys, and log rows that it counted were deleted: their part is not known
    """

    day: date
    reason: str
    rollup: str = ""

    def __str__(self) -> str:
        command = f"calc-analytics rollup --day {self.day}"
        match self.reason:
            case "differs":
                return (
                    f"{self.day} was not erased, because it differs from its log or from what was counted: run "
                    f"'calc-analytics verify --day {self.day}', do what it says, and erase again"
                )
            case "waits":
                return (
                    f"{self.day} was not erased, because {self.rollup} waits for a rebuild: run '{command}', and erase "
                    "again"
                )
            case "overflow":
                return (
                    f"{self.day} was not erased, because a value of {self.rollup} does not fit its column: run "
                    f"'{command}' to see which, and erase again when it is resolved"
                )
            case _:
                return (
                    f"{self.day} was not erased, because {self.rollup} sums over what is to be erased, of which log "
                    "rows were deleted, so that its part is not known. "
                    f"'{command} --rollup {self.rollup} --allow-shrink' recounts that day from what is left; then "
                    "erase again"
                )


@dataclass(frozen=True)
class EraseReport:
    """What was erased, by day and table; the days that were left; and what came meanwhile."""

    keys: Keys
    erased: dict[str, dict[str, int]]
    left: list[LeftDay] = field(default_factory=list)
    arrived: int = 0
    """Log rows of the keys that were written while the others were erased, and are still there."""
    open_writers: list[str] = field(default_factory=list)
    """Open transactions that have written log rows, which may be the keys'."""
    seconds: float = 0.0

    def rows(self, table: str) -> int:
        """Rows that were erased from a table."""
        return sum(tables.get(table, 0) for tables in self.erased.values())

    @property
    def tables(self) -> list[str]:
        """The tables of which something was erased."""
        return list(dict.fromkeys(name for tables in self.erased.values() for name in tables))

    @property
    def problems(self) -> list[str]:
        """What keeps the erasure from being complete, a line each."""
        return [*map(str, self.left), *self._of_writers()]

    def _of_writers(self) -> Iterator[str]:
        who = in_words(self.keys)
        if self.arrived:
            yield f"{number(self.arrived, 'log row')} of {who} came meanwhile: stop its writers, and erase again"
        for writer in self.open_writers:
            yield f"{writer} has written log rows, which may be those of {who}: when it has ended, erase again"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "dry_run": False,
            "keys": dict(self.keys),
            "tables": {name: {"rows": self.rows(name)} for name in self.tables},
            "days": self.erased,
            "left_days": [{"day": str(each.day), "reason": each.reason, "message": str(each)} for each in self.left],
            "arrived_rows": self.arrived,
            "problems": self.problems,
            "seconds": round(self.seconds, 4),
        }


def holdings(db: Database, keys: Keys, also: Sequence[Rollup] = ()) -> Holdings:
    """Counts the keys' rows. Cost: a scan of the log. `also`: rollups that are not kept, whose tables are there.

    Raises `CannotErase` if one of these, or a table that no declaration is of, would keep a part of the keys.
    """
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        connection.execute(WHOLE_DAYS)
        present = [rollup for rollup in also if _exists(connection, rollup.name)]
        _require_all_known(connection, db, keys, present)
        rows = {db.log.name: _rows_of_log(connection, db, keys)}
        for rollup in [*db.log.rollups, *present]:
            if columns := rollup.keys_of(keys):
                rows[rollup.name] = _rows_of_target(connection, rollup, keys, columns)
    return Holdings(keys, {name: of_days for name, of_days in rows.items() if of_days})


def _require_all_known(connection: Connection, db: Database, keys: Keys, off: Sequence[Rollup]) -> None:
    for rollup in off:
        if rollup.keys_of(keys) is None and _has_rows(connection, rollup.name):
            raise CannotErase(
                f"{rollup.name} is switched off and sums over {in_words(keys)}, so it could not be corrected: empty "
                "the table, or switch it on (ROLLUPS and 'calc-analytics migrate'). Nothing was erased"
            )
    for name in ledger.unknown_rollups(connection, [*db.log.rollups, *off]):
        if _has_rows(connection, name):
            raise CannotErase(
                f"{name} has statistics and is not declared in this version, so nothing of it could be erased: drop "
                "the table, or use the version that declares it. Nothing was erased"
            )


def _exists(connection: Connection, name: str) -> bool:
    return bool(connection.execute(text("select to_regclass(:name) is not null"), {"name": name}).scalar())


def _has_rows(connection: Connection, name: str) -> bool:
    return bool(connection.execute(text(f"select exists (select from {quote_identifier(name)})")).scalar())


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
