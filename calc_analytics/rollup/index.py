"""The log table's BRIN index: kept up to the table's end, because a range that is not in it is read by every refresh.

PostgreSQL does the same by itself (autosummarize, VACUUM), but about once a minute, which is many rows under load.
"""

import threading
from contextlib import suppress

from sqlalchemy import text

from calc_analytics.database.engine import transaction
from calc_analytics.database.errors import DatabaseError
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.database import Database

# About as many as one of its ranges holds.
SUMMARIZE_ROWS = 5_000
# VACUUM holds the table; the function, the index, or the right to call it is missing (a rebase drops the index for
# a moment: XX000); a standby: the refresh is right without.
_HARMLESS = ("55P03", "42883", "42P01", "XX000", "42501", "25006")


def summarize(db: Database) -> bool:
    """Brings the index up to the table's end; False if that must wait. Blocks no writer.

    One attempt: the next one comes soon, and a refresh is right without.
    """
    try:
        with transaction(db.engine) as connection:
            connection.execute(text(f"select {db.log.name}_summarize()"))
    except DatabaseError as trouble:
        if trouble.sqlstate in _HARMLESS:
            return False
        raise
    return True


class IndexKeeper:
    """Summarizes in a thread of its own, so that a refresh never waits for a VACUUM that holds the table."""

    def __init__(self, db: Database) -> None:
        self.db, self.rows = db, SUMMARIZE_ROWS
        self._thread: threading.Thread | None = None

    def counted(self, rows: int) -> None:
        """Takes note of rows that were counted; begins to summarize when that is due and not under way."""
        self.rows += rows
        if self.rows >= SUMMARIZE_ROWS and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._summarize, name="index-keeper", daemon=True)
            self._thread.start()

    def _summarize(self) -> None:
        rows = self.rows
        # Any error will be met, and reported, by the next refresh as well.
        with suppress(CalcAnalyticsError):
            if summarize(self.db):
                self.rows -= rows
