"""API servers that record exactly which of their batches were committed, also when the database is killed meanwhile.

    python -m calc_analytics_tests.acceptance.writers CONNINFO NUMBER SEED JOURNAL

Each batch is one COPY in one transaction and carries a marker of its own as `locality_id`. The journal gets a line of
JSON per batch, `{"marker", "rows", "how"}`. Where the connection died with the outcome of a commit unknown, the table
is asked as soon as it answers: all rows are there, or none. SIGTERM ends the writer after the batch it is in.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg

from calc_analytics_tests.logs import Row, copy_rows, row

WRITERS = 3
MARKERS_PER_WRITER = 1_000_000
# Some rows belong to days gone by, and some to days that no row belonged to before: those wait for a run.
LATE_SHARE, LATE_DAYS = 0.1, 30
OPEN_SECONDS = 0.15
PATIENCE_SECONDS = 120
LOST = (psycopg.OperationalError, psycopg.InterfaceError)


class Writers:
    """The writer processes and their journals."""

    def __init__(self, conninfo: str, folder: Path, seed: int) -> None:
        self.journals = [folder / f"writer-{number}.json" for number in range(1, WRITERS + 1)]
        command = [sys.executable, "-m", "calc_analytics_tests.acceptance.writers", conninfo]
        self.processes = [
            subprocess.Popen([*command, str(number), str(seed), str(journal)])
            for number, journal in enumerate(self.journals, 1)
        ]

    def assert_alive(self) -> None:
        """None has given up: a batch that was committed in part would end its writer."""
        assert [process.poll() for process in self.processes] == [None] * WRITERS

    def finish(self) -> None:
        """Ends each after the batch it is in."""
        for process in self.processes:
            process.terminate()
        assert [process.wait(PATIENCE_SECONDS) for process in self.processes] == [0] * WRITERS

    def entries(self) -> list[dict[str, Any]]:
        """What all of them remember."""
        return [json.loads(line) for journal in self.journals for line in journal.read_text().splitlines()]

    def committed(self) -> dict[int, int]:
        """Rows by marker of every batch that is in the logs."""
        return {entry["marker"]: entry["rows"] for entry in self.entries() if entry["rows"]}


@contextmanager
def writing(conninfo: str, folder: Path, seed: int) -> Iterator[Writers]:
    """Writers that write until they are finished, or until the end of the block."""
    writers = Writers(conninfo, folder, seed)
    try:
        yield writers
    finally:
        for process in writers.processes:
            process.kill()
            process.wait()


class Writer:
    """One of them: a connection that is opened again whenever it died, and a journal."""

    def __init__(self, conninfo: str, number: int, seed: int, journal: str) -> None:
        self.conninfo, self.number, self.rng = conninfo, number, random.Random(seed * 100 + number)
        self.journal = open(journal, "a", buffering=1)  # noqa: SIM115 (open until the process ends)
        self.stopping = False
        self.connection: psycopg.Connection | None = None

    def run(self) -> None:
        """Writes until SIGTERM."""
        signal.signal(signal.SIGTERM, self._stop)
        batch = 0
        while not self.stopping:
            batch += 1
            self._batch(self.number * MARKERS_PER_WRITER + batch)

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True

    def _batch(self, marker: int) -> None:
        rows = self._rows(marker)
        try:
            connection = self._connected()
            copy_rows(connection, rows)
            # The transaction stays open for a moment: here a SIGSTOP finds it.
            time.sleep(self.rng.uniform(0, OPEN_SECONDS))
            connection.commit()
            self._remember(marker, len(rows), "committed")
        except LOST:
            self._remember(marker, self._found(marker, len(rows)), "asked")

    def _found(self, marker: int, written: int) -> int:
        """How many rows of the batch the table holds, asked until it answers."""
        while True:
            with suppress(*LOST):
                connection = self._connected()
                statement = "select count(*) from calculation_logs where locality_id = %s"
                (count,) = connection.execute(statement, [marker]).fetchone() or (0,)
                connection.commit()
                assert count in (0, written), f"batch {marker}: {count} of {written} rows"
                return count

    def _connected(self) -> psycopg.Connection:
        while self.connection is None or self.connection.broken or self.connection.closed:
            try:
                self.connection = psycopg.connect(
                    self.conninfo, application_name=f"writer {self.number}", connect_timeout=5
                )
            except psycopg.OperationalError:
                time.sleep(0.1)
        return self.connection

    def _remember(self, marker: int, rows: int, how: str) -> None:
        self.journal.write(json.dumps({"marker": marker, "rows": rows, "how": how}) + "\n")

    def _rows(self, marker: int) -> list[Row]:
        now = datetime.now(timezone.utc)
        late = timedelta(days=self.rng.randint(1, LATE_DAYS) if self.rng.random() < LATE_SHARE else 0)
        return [
            row(
                now - late,
                publisher=self.rng.randint(1, 20),
                locality_id=marker,
                cache_hit=self.rng.random() < 0.6,
                response_time_ms=self.rng.choice([None, 3, 40, 32_767]),
                source=self.rng.choice([1, 2, 3]),
            )
            for _ in range(self.rng.randint(1, 40))
        ]


if __name__ == "__main__":
    Writer(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]).run()
