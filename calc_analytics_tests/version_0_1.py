"""A database as version 0.1 left it, and version 0.1 as it goes on refreshing (see `data/make_version_0_1.py`)."""

import gzip
import re
import threading
from datetime import date
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DBAPIError

DATA = Path(__file__).parent / "data"
NAME = "calculation_stats_daily"
NEVER_ON_RECORD, KEPT = date(2024, 1, 1), date(2024, 1, 2)
"""Days of a predecessor without log rows; a late row of the second was refused by a rebuild."""
PRUNED_WHOLE, PENDING = date(2026, 2, 26), date(2026, 2, 27)
PRUNED_WITH_LATE_ROWS, FOUND, LAUNDERED = date(2026, 3, 1), date(2026, 3, 3), date(2026, 3, 5)
"""Sealed: by `prune`; by a rebuild that found log rows deleted by others; by one that found 1,000 too many counted."""
BUILT = [date(2026, 3, 2), date(2026, 3, 4), date(2026, 3, 6)]
OVERFLOW = date(2026, 3, 7)
EMPTY = [date(1900, 1, 1), date(2030, 1, 1)]
START = date(2024, 1, 1)

# What 0.1's `state.start_afresh` writes, without its marking days stale: the dump's rows have no `xact_id`, so all are
# older than this snapshot, which makes the state row what version 0.1 would have on this server.
_AFRESH = """
    update rollup_state set snapshot = pg_current_snapshot(),
        system_identifier = (select system_identifier from pg_control_system()),
        relation = cast(tableoid as bigint), written_by = txid_current()
    where rollup = 'calculation_stats_daily'
"""


def load(engine: Engine, writer: str, reader: str, dump: str = "version_0_1") -> None:
    """Fills an empty database; the dump's two roles get these names and must exist."""
    plain = gzip.decompress((DATA / f"{dump}.sql.gz").read_bytes()).decode()
    plain = plain.replace("rollup_writer", writer).replace("stats_reader", reader)
    with engine.begin() as connection:
        connection.exec_driver_sql("set local check_function_bodies = off")
        driver: Any = connection.connection.driver_connection
        driver.execute(plain)
        connection.exec_driver_sql(_AFRESH)


def statements() -> dict[str, str]:
    """What version 0.1 sends in a refresh: lock, snapshot, refresh, store."""
    sent = (DATA / "refresh_0_1.sql").read_text()
    return dict(re.findall(r"^-- (\w+)\n(.*?);\n(?=-- \w+\n|\Z)", sent, flags=re.S | re.M))


def refresh_once(engine: Engine) -> int:
    """One refresh by version 0.1; returns the log rows it counted. One transaction."""
    sent = {name: text(statement) for name, statement in statements().items()}
    with engine.begin() as connection:
        state = connection.execute(sent["lock"], {"rollup": NAME}).one()
        assert state.same_cluster
        now = connection.execute(sent["snapshot"]).scalar_one()
        (xmin, xmax, xip), (_, to_xmax, to_xip) = _parsed(state.snapshot), _parsed(now)
        parameters = {
            "rollup": NAME, "tz": state.timezone, "s1_xmin": xmin, "s1_xmax": xmax, "s1_xip": xip,
            "from_xmax": xmax, "to_xmax": to_xmax, "to_xip": to_xip, "ended": [xid for xid in xip if xid not in to_xip],
        }  # fmt: skip
        days = connection.execute(sent["refresh"], parameters).all()
        connection.execute(sent["store"], {"rollup": NAME, "snapshot": now})
    return sum(int(day.total_calculations) for day in days if day.status == "built")


def _parsed(snapshot: str) -> tuple[int, int, list[int]]:
    xmin, xmax, xip = snapshot.split(":")
    return int(xmin), int(xmax), [int(xid) for xid in xip.split(",") if xid]


class OldRefresher(threading.Thread):
    """Version 0.1, which refreshes without a pause until PostgreSQL refuses; `error` is PostgreSQL's message."""

    def __init__(self, url: URL) -> None:
        super().__init__(daemon=True)
        self.engine = sqlalchemy.create_engine(url, isolation_level="READ COMMITTED")
        self.rows, self.refreshes = 0, 0
        self.error: DBAPIError | None = None
        self.stopping = threading.Event()

    def run(self) -> None:
        """Ends at the first error that trying again does not help."""
        try:
            while not self.stopping.wait(0.005):
                self.rows += refresh_once(self.engine)
                self.refreshes += 1
        except DBAPIError as error:
            self.error = error
        finally:
            self.engine.dispose()
