"""Days with log rows that are not on record: no refresh counts them, and no rebuild was requested.

Such rows come with a partition that is attached, or are written past the default of `xact_id`. Cost: one look at the
index for each gap between the days on record, and one for each day that is found; no row of a day on record is read
but those that share a range of pages with a gap.
"""

import threading
import time
from dataclasses import dataclass, replace
from datetime import date

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from calc_analytics.database import log_tree
from calc_analytics.database.adopt import hour
from calc_analytics.database.engine import transaction
from calc_analytics.database.errors import sqlstate
from calc_analytics.database.sql import quote_literal
from calc_analytics.days import FIRST, LAST
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.snapshot import STORED_VISIBLE, stored_cte
from calc_analytics.rollup.windows import day_begin, local_date, midnight

# A search is due after a minute, or later where it would take more than this share of the time.
SEARCH_SECONDS, SEARCH_SHARE = 60.0, 0.01
QUERY_CANCELED = "57014"


def find_days(connection: Connection, db: Database) -> list[date]:
    """The days that are not on record for every rollup and have rows that are visible in the stored snapshot.

    Raises what `ledger.read` raises.
    """
    ledger.read(connection, db)
    parameters = {"rollups": db.log.names, "number": len(db.log.names)}
    return list(connection.execute(text(search_sql(db)), parameters).scalars())


def record_days(db: Database) -> list[date]:
    """Finds such days and records them as pending, so that they are rebuilt; returns them. Raises as `find_days`."""
    with transaction(db.engine) as connection:
        found = find_days(connection, db)
        if found:
            ledger.lock(connection, db)
            ledger.record_pending(connection, db.log, found)
    return found


@dataclass(frozen=True)
class SearchReport:
    """The days that a search found. Not `is_complete`: it was stopped at its time limit, and there may be others."""

    days: list[date]
    is_complete: bool = True


class Search:
    """Searches when that is due: after a minute, and immediately when a table was attached, detached or exchanged.

    May be shared by threads. With `limit_seconds` a search that takes longer is canceled, and tried again later.
    """

    def __init__(self, limit_seconds: float | None = None) -> None:
        self.limit_seconds = limit_seconds
        self._lock = threading.Lock()
        self._tables: list[int] = []
        self._due_at = 0.0
        self._found = SearchReport([])

    def days(self, db: Database) -> list[date]:
        """The days of `report`."""
        return self.report(db).days

    def report(self, db: Database) -> SearchReport:
        """Those of the days found by the last search that are still not on record. Raises as `find_days`.

        A search that is stopped ends the caller's transaction, if it is a part of one.
        """
        with self._lock, transaction(db.engine) as connection:
            tables = log_tree.identities(connection, db.log.name)
            if tables != self._tables or time.monotonic() >= self._due_at:
                started = time.monotonic()
                found = self._search(connection, db)
                took = time.monotonic() - started
                pause = max(took / SEARCH_SHARE, 0.0 if found is None else SEARCH_SECONDS)
                self._found = replace(self._found, is_complete=False) if found is None else SearchReport(found)
                self._tables, self._due_at = tables, started + took + pause
            elif self._found.days:
                known = ledger.days_on_record(connection, db.log)
                self._found = replace(self._found, days=[day for day in self._found.days if day not in known])
            return self._found

    def _search(self, connection: Connection, db: Database) -> list[date] | None:
        """The days; None if the search exceeded its time limit."""
        if self.limit_seconds is None:
            return find_days(connection, db)
        connection.execute(text(f"set local statement_timeout = '{round(self.limit_seconds * 1000)}ms'"))
        try:
            return find_days(connection, db)
        except DBAPIError as error:
            if sqlstate(error) != QUERY_CANCELED:
                raise
            return None


def search_sql(db: Database) -> str:
    """SQL: the days, found one by one: a row of a gap is looked up; its day divides the gap into two.

    Looking for one row at a time is what makes it cheap: a gap may hold months of rows.
    """
    zone, time_ = quote_literal(db.timezone), f"l.{db.log.event_time}"
    day, begin, end = local_date(time_, zone), day_begin("g.first", zone), midnight("(g.last + 1)", zone)
    look = f"""(
            select {day} from {db.log.name} l
            where {hour(time_)} >= {hour(begin)} and {hour(time_)} < {end}
              and {day} between g.first and g.last and {STORED_VISIBLE}
            limit 1
        )"""
    return f"""
    with recursive {stored_cte(db.log)},
    edges as (
        select date, lead(date) over (order by date) as next
        from ({ledger.ON_RECORD} union all select date '{FIRST}' - 1 union all select date '{LAST}' + 1) known
    ),
    search (first, last, day) as (
        select g.first, g.last, {look}
        from (select date + 1 as first, next - 1 as last from edges where next > date + 1) g
        union all
        select g.first, g.last, {look}
        from search s cross join lateral (values (s.first, s.day - 1), (s.day + 1, s.last)) g (first, last)
        where s.day is not null and g.first <= g.last
    )
    select day from search where day is not null order by day
    """
