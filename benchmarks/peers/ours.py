"""This project, with one table of statistics (as the others have) and with all four."""

import threading

from benchmarks.peers.peer import Peer
from benchmarks.peers.rows import TODAY, YESTERDAY
from benchmarks.peers.server import Server
from calc_analytics.database.engine import engine_for
from calc_analytics.database.log_index import summarize
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.unseen import record_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG, STATS

# Alembic runs once per process at a time.
ONE_AT_A_TIME = threading.Lock()


class Ours(Peer):
    """Migrated as `calc-analytics migrate` does, its days built as the sensor's first run does."""

    key, name = "ours", "**calc_analytics**, one table"
    target = STATS.name
    adds_to_log = True
    log: Log = LOG.only([STATS.name])

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.db = Database(engine_for(server.url(self.key)), self.log, "UTC")

    def install(self) -> None:
        """Adopts the log and builds the days that it has."""
        with ONE_AT_A_TIME:
            install(self.db)
        record_days(self.db)
        rebuild(self.db, ledger.waiting_days(self.db))

    def refresh(self) -> None:
        """As the sensor's thread does; of its refreshes one in a second also notes the ages of rows."""
        refresh(self.db, sampled=False)

    def maintain(self) -> None:
        """The thread brings the index to the table's end every 5,000 rows, in the background."""
        summarize(self.db.engine)

    def report(self) -> str:
        """What `calc-analytics verify` finds."""
        proofs = verify(self.db, [YESTERDAY, TODAY]).days
        return ", ".join(sorted({proof.finding for proof in proofs if proof.difference}))

    def close(self) -> None:
        """Ends its connections."""
        super().close()
        self.db.engine.dispose()


class OursAll(Ours):
    """The four tables of the product, which stand at the same snapshot."""

    key, name = "ours_all", "**calc_analytics**, all four tables"
    adds_to_log = False  # more than `Ours`
    log = LOG
