"""Prunes a month of rows: as one partition, and row by row; and how long writers of another month wait meanwhile.

python -m benchmarks.drop_partition
"""

import threading
import time
from datetime import date

from benchmarks.common import DAY, execute, parse_size, plain, project_database, show
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.ledger import built_days, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify

ROWS = 3_000_000
FIRST, END = date(2026, 1, 1), date(2026, 2, 1)
COLUMNS = "publisher_id, locality_id, date_calculated, cache_hit, response_time_ms, source, created_at"


def main() -> None:
    """Prints a table."""
    rows = parse_size(__doc__, "--rows", ROWS, "log rows of the month")
    measured = [measure(rows, is_partitioned) for is_partitioned in (True, False)]
    show(f"A month of {rows:,} rows", ("", "seconds", "rows/s", "longest wait of a writer"), measured)


def measure(rows: int, is_partitioned: bool) -> tuple[str, ...]:
    """A row of the table, on a database of its own; the days' proofs are part of the time."""
    with project_database() as db:
        if is_partitioned:
            partition(db)
        fill(db, rows)
        refresh(db)
        rebuild(db, waiting_days(db))
        with Writer(db) as writer:
            report = prune(db, END)
        assert report.rows == rows
        assert bool(report.dropped) == is_partitioned
        refresh(db)
        assert verify(db, built_days(db)).difference == 0
        how = "as a partition" if is_partitioned else "row by row"
        return how, f"{report.seconds:.1f}", f"{rows / report.seconds:,.0f}", f"{writer.longest * 1000:.0f} ms"


def partition(db: Database) -> None:
    """An empty log table with two partitions."""
    for statement in (
        "create table parted (like calculation_logs including defaults) partition by range (created_at)",
        f"create table month_1 partition of parted for values from ('{FIRST}Z') to ('{END}Z')",
        f"create table later partition of parted for values from ('{END}Z') to (maxvalue)",
        "alter table calculation_logs rename to unused",
        "alter table parted rename to calculation_logs",
        "delete from rollup_state",
    ):
        execute(db.engine, statement)
    install(db)


def fill(db: Database, rows: int) -> None:
    """Rows in the order of time, of 200 publishers with 50 localities each."""
    at = f"timestamptz '{FIRST}Z' + i * (interval '{(END - FIRST).days} days' / {rows + rows // 100})"
    values = f"i * 7 % 200, i * 3 % 50, '2030-01-01', i % 3 > 0, i * 11 % 120, 1 + i % 3, {at}"
    execute(db.engine, f"insert into calculation_logs ({COLUMNS}) select {values} from generate_series(1, {rows}) i")
    execute(db.engine, "vacuum analyze calculation_logs")


class Writer:
    """Writes rows of today, one transaction after the other; `longest` is the time of the slowest, in seconds."""

    def __init__(self, db: Database) -> None:
        self.connection, self.over, self.longest = plain(db.engine), threading.Event(), 0.0
        self.thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        while not self.over.is_set():
            started = time.perf_counter()
            self.connection.execute(f"insert into calculation_logs ({COLUMNS}) "
                                    f"values (1, 1, '2030-01-01', true, 5, 1, '{DAY}Z')".encode())  # fmt: skip
            self.longest = max(self.longest, time.perf_counter() - started)
            self.over.wait(0.005)

    def __enter__(self) -> "Writer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.connection.close()


if __name__ == "__main__":
    main()
