"""The log table's BRIN index: kept up to the table's end, because a range that is not in it is read by every refresh.

PostgreSQL does the same by itself (autosummarize, VACUUM), but about once a minute, which is many rows under load.
"""

from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import DatabaseTrouble, persistently, transaction
from calc_analytics.rollup.declaration import Rollup

# About as many as one of its ranges holds.
SUMMARIZE_ROWS = 5_000
# VACUUM holds the table; the function, the index, or the right to call it is missing (a rebase drops the index for
# a moment: XX000); a standby: the refresh is right without.
_HARMLESS = ("55P03", "42883", "42P01", "XX000", "42501", "25006")


def summarize(engine: Engine, rollup: Rollup) -> bool:
    """Brings the index up to the table's end; False if that must wait. Blocks no writer."""
    try:
        persistently(lambda: _summarize(engine, rollup))
    except DatabaseTrouble as trouble:
        if trouble.sqlstate in _HARMLESS:
            return False
        raise
    return True


def _summarize(engine: Engine, rollup: Rollup) -> None:
    with transaction(engine) as connection:
        connection.execute(text(f"select {rollup.source}_summarize()"))
