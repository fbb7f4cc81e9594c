"""Statistics that were in a target table before the project kept it: written by the program that it replaces.

Where the log rows of a day are there, a rebuild replaces its statistics (the replaced scheduler counted rows more than
once). Where they are gone, the statistics are kept as they are: the day is frozen, and audited from then on.
"""

from datetime import date

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import WHOLE_DAYS
from calc_analytics.database.sql import quote_literal
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.totals import totals_by_day
from calc_analytics.rollup.windows import has_a_day, local_date


def record_days(connection: Connection, db: Database) -> None:
    """Puts the days of every target's rows on record, once: when the log's state is made.

    Cost: the targets and, if one has rows, a scan of the log.
    """
    connection.execute(WHOLE_DAYS)
    logged: set[date] | None = None
    for rollup in db.log.rollups:
        stored = totals_by_day(connection, rollup)
        if stored and logged is None:
            logged = _logged_days(connection, db)
        for day, totals in stored.items():
            if day in (logged or set()):
                ledger.record_predecessors_day(connection, rollup, day)
            else:
                ledger.freeze(connection, db, rollup, day, totals.measures)


def _logged_days(connection: Connection, db: Database) -> set[date]:
    day = local_date(db.log.event_time, quote_literal(db.timezone))
    statement = f"select distinct {day} as date from {db.log.name} where {has_a_day(day)}"
    return {row.date for row in connection.execute(text(statement))}
