"""The rows of `rollup_days` as they are: of chosen days, and days by status. Nothing is changed here."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import transaction
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log, Rollup

# Days that have statistics for which the equations hold; the last two are not added to.
COUNTED = ("built", "stale", "frozen")
WAITING = ("pending", "stale")
Totals = Mapping[str, int]


@dataclass(frozen=True)
class Entry:
    """A row of the ledger. Totals are per measure; `counted` is None where the day was never counted whole.

    `deleted` may hold a hash of the deleted keys besides (`Rollup.keys_hash`).
    """

    rollup: str
    day: date
    status: str
    timezone: str | None
    counted: dict[str, int] | None
    deleted: dict[str, int] | None
    has_checksum: bool
    method: str | None
    log_finding: str | None
    """How the log differed from what was counted when last compared (logs_missing, …); None: it did not."""
    statistics_differ: bool
    """Whether an audit or a comparison found that the statistics are not what was counted."""
    is_different: bool
    """Whether the last comparison or the last audit found a difference."""

    @property
    def is_whole(self) -> bool:
        """Whether the day was counted whole here, and that is not undone."""
        is_counted = self.counted is not None and self.deleted is not None
        return is_counted and self.status in ("built", "stale", "overflow", "frozen")

    def is_whole_in(self, timezone: str) -> bool:
        """The same, as a day of that time zone."""
        return self.is_whole and self.timezone in (None, timezone)

    @property
    def has_deletions(self) -> bool:
        """Whether log rows were deleted after they were counted."""
        return any((self.deleted or {}).values())


def entries(connection: Connection, rollups: Iterable[Rollup], days: Sequence[date]) -> dict[tuple[str, date], Entry]:
    """The rows of these rollups and days that exist."""
    names = [rollup.name for rollup in rollups]
    rows = connection.execute(_ENTRIES, {"rollups": names, "days": list(days)}).all()
    return {(row.rollup, row.date): Entry(*row) for row in rows}


def days_by_status(db: Database, statuses: Sequence[str]) -> dict[date, list[str]]:
    """The days on record that have one of these statuses, oldest first, and for which rollups."""
    parameters = {"rollups": db.log.names, "statuses": list(statuses)}
    with transaction(db.engine) as connection:
        return rollups_by_day(connection.execute(_BY_STATUS, parameters))


def rollups_by_day(rows: Iterable[Any]) -> dict[date, list[str]]:
    """The rollups of each day, from rows with a date and a rollup, in their order."""
    found: dict[date, list[str]] = {}
    for row in rows:
        found.setdefault(row.date, []).append(row.rollup)
    return found


def built_days(db: Database) -> list[date]:
    """The days that are built in at least one rollup, oldest first."""
    return list(days_by_status(db, ["built"]))


def waiting_days(db: Database) -> list[date]:
    """Days that need a rebuild before they can be exact, in some rollup, oldest first."""
    return list(days_by_status(db, WAITING))


def days_built_by_others(db: Database, since: datetime | None, limit: int) -> list[tuple[date, str, datetime]]:
    """The first days built after `since` by another application than this engine's: day, rollup, when; oldest first.

    Days are built under the state's lock, so no build that commits later has an earlier time.
    """
    parameters = {"rollups": db.log.names, "since": since, "limit": limit}
    with transaction(db.engine) as connection:
        rows = connection.execute(_BUILT_BY_OTHERS, parameters).all()
    return [(row.date, row.rollup, row.built_at) for row in rows]


def days_on_record(connection: Connection, log: Log) -> set[date]:
    """The days that are on record for every rollup."""
    parameters = {"rollups": log.names, "number": len(log.names)}
    return set(connection.execute(text(ON_RECORD), parameters).scalars())


def unknown_rollups(connection: Connection, rollups: Iterable[Rollup]) -> list[str]:
    """Tables that have days on record, but are none of these rollups'."""
    names = connection.execute(_UNKNOWN_ROLLUPS, {"known": [rollup.name for rollup in rollups]})
    return list(names.scalars())


def is_intact(connection: Connection, rollup: Rollup, day: date, stored: Mapping[str, int]) -> bool:
    """Whether the day's statistics are what was counted, by their totals and, if there is one, their checksum."""
    statement = f"""
        select counted, checksum is null or checksum = {checksum_sql(rollup, ":day")} as is_same
        from rollup_days where rollup = :rollup and date = :day
    """
    row = connection.execute(text(statement), {"rollup": rollup.name, "day": day}).one()
    return bool(row.is_same) and all(int((row.counted or {}).get(name, 0)) == stored[name] for name in stored)


def checksum_sql(rollup: Rollup, day: str) -> str:
    """SQL: the checksum over the day's rows in the target, as they are."""
    return f"(select coalesce(sum({rollup.hash_of('t')}), 0) from {rollup.name} t where t.date = {day})"


def to_json(totals: Any) -> str | None:
    """The totals as a parameter of type jsonb; None stays null."""
    return None if totals is None else json.dumps(totals)


# The days on record for every rollup, or built in one: a record that is missing of such a day was lost, which an audit
# reports (`record_lost_days`). Parameters :rollups, and their :number.
ON_RECORD = """
    select date from rollup_days where rollup = any(cast(:rollups as text[]))
    group by date having count(*) = :number or bool_or(status = 'built')
"""
_ENTRIES = text(
    """
    select rollup, date, status, timezone, counted, deleted, checksum is not null,
           method, case when difference <> 0 and finding like 'logs!_%' escape '!' then finding end,
           coalesce(audit_difference <> 0, false)
               or coalesce(difference <> 0 and finding = 'statistics_changed', false),
           coalesce(difference, 0) <> 0 or coalesce(audit_difference, 0) <> 0
    from rollup_days where rollup = any(cast(:rollups as text[])) and date = any(cast(:days as date[]))
    """
)
_BY_STATUS = text(
    """
    select date, rollup from rollup_days
    where rollup = any(cast(:rollups as text[])) and status = any(cast(:statuses as text[]))
    order by date, array_position(cast(:rollups as text[]), rollup)
    """
)
_UNKNOWN_ROLLUPS = text(
    """
    select distinct rollup from rollup_days
    where rollup <> all(cast(:known as text[])) and to_regclass(quote_ident(rollup)) is not null order by rollup
    """
)

_BUILT_BY_OTHERS = text(
    """
    select date, rollup, built_at from rollup_days
    where rollup = any(cast(:rollups as text[])) and status = 'built'
      and built_by <> current_setting('application_name')
      and (cast(:since as timestamptz) is null or built_at > :since)
    order by built_at, date limit :limit
    """
)
