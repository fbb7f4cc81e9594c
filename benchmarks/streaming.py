"""From commit to statistic through the real daemon: seconds, proofs meanwhile, CPU, event rows.

python -m benchmarks.streaming            # about twelve minutes; --seconds 30 for a quick look
"""

import statistics
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import psutil
import psycopg
from sqlalchemy import text
from sqlalchemy.engine import Engine

from benchmarks.common import cpu_seconds, parse_size, plain, project_database, show
from benchmarks.running import Running, eventually, fresh_copy, run_up
from calc_analytics.config import with_driver
from calc_analytics.database.engine import engine_for
from calc_analytics.days import today
from calc_analytics.processes.simulate import Traffic, simulate
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.follow import Follower
from calc_analytics.rollup.ledger import built_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG

RATE, FAST_RATE, WRITERS = 1_000, 4_000, 4
DEBOUNCE_SECONDS = 0.2
# Dagster's processes go on importing and compiling for a while after the start.
AFTER_START_SECONDS = 90
TOTAL = "select coalesce(sum(total_calculations), 0) from calculation_stats_daily"
OPEN = (
    "insert into calculation_logs (publisher_id, locality_id, date_calculated, source) values (1, 1, '2030-01-01', 1)"
)


def main() -> None:
    """Prints the tables."""
    length = parse_size(__doc__, "--seconds", 120, "how long each measurement takes")
    latencies, costs = [], []
    with fresh_copy() as copy, run_up(copy, Running) as up:
        settle(up)
        costs += idle(up, length)
        events = event_rows(up)
        latencies.append((f"{RATE:,} rows/s", *streamed(up, length)))
        costs.append((f"event-log rows per hour, {RATE:,} rows/s", hourly(up, events, length)))
        latencies.append((f"{RATE:,} rows/s, VACUUM holds the log table", *streamed(up, length, held=vacuumed)))
        latencies.append((f"{RATE:,} rows/s, a writer's transaction held open", *streamed(up, length, held=held_open)))
        latencies.append((f"{FAST_RATE:,} rows/s", *streamed(up, length, rate=FAST_RATE)))
    costs.append((f"refreshing at {RATE:,} rows/s, client and server", f"{refresh_cpu(length):.2%} of a core"))
    columns = ("", "p50", "p95", "max", "proofs meanwhile", "greatest difference", "rows")
    show(
        f"Commit to calculation_stats_daily, all four tables, default settings, {WRITERS} writers, {length} s",
        columns,
        latencies,
    )
    show("What it costs", ("", "measured"), costs)


def settle(up: Running) -> None:
    """Until today is built, the first runs have ended, and what the start costs is over."""
    engine = up.engine()
    eventually(lambda: today("UTC") in built_days(Database(engine, LOG, "UTC")), "today built")
    runs = "query { runsOrError { ... on Runs { results { status } } } }"
    ended = ("SUCCESS", "FAILURE")
    eventually(lambda: all(r["status"] in ended for r in up.graphql(runs)["runsOrError"]["results"]), "the runs' end")
    time.sleep(AFTER_START_SECONDS)


def streamed(
    up: Running, length: float, held: Callable[[Engine], AbstractContextManager[None]] | None = None, rate: int = RATE
) -> tuple[str, str, str, int, int, str]:
    """Latencies of every batch while writers write: p50, p95, max; and the proofs made meanwhile."""
    engine = up.engine()
    with plain(engine) as reader:
        base = total(reader)
        commits, seen, over = Commits(), [(0.0, base)], threading.Event()
        watcher = threading.Thread(target=watch, args=(reader, seen, over))
        prover = Prover(engine, over)
        watcher.start()
        prover.start()
        with held(engine) if held else nullcontext():
            traffic = Traffic(rate=rate, writers=WRITERS, late_share=0)
            report = simulate(engine.url, traffic, seconds=length, progress=commits.add)
            eventually(lambda: seen[-1][1] >= base + report.rows, "every row counted", 60)
        over.set()
        watcher.join()
        prover.join()
    waits = sorted(commits.waits(base, seen))
    p95 = waits[int(len(waits) * 0.95)]
    figures = (f"{statistics.median(waits):.2f} s", f"{p95:.2f} s", f"{waits[-1]:.2f} s")
    return (*figures, prover.proofs, prover.difference, f"{report.rows:,}")


class Commits:
    """When each batch was committed, and how many rows there were by then."""

    def __init__(self) -> None:
        self.lock, self.rows = threading.Lock(), 0
        self.made: list[tuple[float, int]] = []

    def add(self, rows: int) -> None:
        """A batch has just been committed."""
        with self.lock:
            self.rows += rows
            self.made.append((time.monotonic(), self.rows))

    def waits(self, base: int, seen: list[tuple[float, int]]) -> Iterator[float]:
        """Seconds from each commit to the first look at which the statistics held as many rows."""
        totals = [rows for _, rows in seen]
        for at, rows in self.made:
            yield max(seen[bisect_left(totals, base + rows)][0] - at, 0.0)


def watch(reader: psycopg.Connection, seen: list[tuple[float, int]], over: threading.Event) -> None:
    """Looks at the statistics every ten milliseconds."""
    while not over.wait(0.01):
        rows = total(reader)
        if rows > seen[-1][1]:
            seen.append((time.monotonic(), rows))


def total(reader: psycopg.Connection) -> int:
    """Rows counted in the statistics."""
    found = reader.execute(TOTAL).fetchone()
    return int(found[0]) if found else 0


class Prover(threading.Thread):
    """Asks for a proof every five seconds."""

    def __init__(self, engine: Engine, over: threading.Event) -> None:
        super().__init__()
        self.engine, self.over = engine, over
        self.proofs = self.difference = 0

    def run(self) -> None:
        """Until it is over."""
        while not self.over.wait(5):
            db = Database(self.engine, LOG, "UTC")
            report = verify(db, built_days(db))
            self.proofs, self.difference = self.proofs + 1, max(self.difference, report.difference)


@contextmanager
def held_open(engine: Engine) -> Iterator[None]:
    """A writer that has written and does not commit until the end, when it gives up."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as writer:
        writer.execute(OPEN)
        yield
        writer.rollback()


@contextmanager
def vacuumed(engine: Engine) -> Iterator[None]:
    """The lock of a VACUUM or ANALYZE on the log table, held until the end."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as holder:
        holder.execute("lock table calculation_logs in share update exclusive mode")
        yield
        holder.rollback()


def idle(up: Running, length: float) -> list[tuple[str, str]]:
    """CPU of Dagster's processes, of the project's own, and of PostgreSQL while nothing is written."""
    postgres = [p for p in psutil.process_iter() if "postgres" in p.name() and belongs(p, up)]
    ours = [p for p in up.descendants() if "postgres" not in p.name()]
    dagster = [p for p in ours if "calc_analytics.cli" not in p.cmdline()]
    groups = {
        "idle: webserver, daemon and code server together": dagster,
        "idle: HTTP service and `up` itself": [psutil.Process(up.process.pid), *(p for p in ours if p not in dagster)],
        "idle: PostgreSQL, Dagster's own storage included": postgres,
    }
    before = {name: spent(processes) for name, processes in groups.items()}
    time.sleep(length)
    return [(name, f"{(spent(processes) - before[name]) / length:.1%} of a core") for name, processes in groups.items()]


def belongs(process: psutil.Process, up: Running) -> bool:
    """Whether it is the project's own server or one of its lasting processes."""
    return any(each.pid in (process.pid, process.ppid()) for each in up.project.postmasters())


def spent(processes: list[psutil.Process]) -> float:
    """CPU seconds so far; those of backends that have ended are in their parent's account of children."""
    times = [process.cpu_times() for process in processes if process.is_running()]
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def event_rows(up: Running) -> int:
    """Rows of Dagster's event log."""
    url = with_driver(up.database_url, "psycopg").set(database="dagster")
    statement = "select count(*) from event_logs"
    engine = engine_for(url)
    with engine.connect() as connection:
        found = int(connection.execute(text(statement)).scalar_one())
    engine.dispose()
    return found


def hourly(up: Running, before: int, length: float) -> str:
    """Rows per hour since the count `before`."""
    return f"{(event_rows(up) - before) * 3600 / length:,.0f}"


def refresh_cpu(length: float) -> float:
    """CPU seconds per second of a follower and its connections, while another process writes."""
    with project_database() as db, fresh_copy() as writers:
        stopping = threading.Event()
        follower = Follower(db, DEBOUNCE_SECONDS, stopping)
        url = db.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        options = ("--rate", str(RATE), "--seconds", str(length + 10), "--late-share", "0")
        writing = writers.start("calc_analytics.cli", "simulate", *options, DATABASE_URL=url)
        follower.follow(8, length)
        before = time.process_time() + backends(db.engine)
        follower.follow(length, 1)
        used = time.process_time() + backends(db.engine) - before
        stopping.set()
        writing.wait()
        assert today("UTC") in built_days(db)
    return used / length


def backends(engine: Engine) -> float:
    """CPU seconds of this process's connections to PostgreSQL."""
    with engine.connect() as connection:
        statement = text("select pid from pg_stat_activity where application_name = 'calc_analytics'")
        return sum(cpu_seconds(pid) for pid in connection.execute(statement).scalars())


if __name__ == "__main__":
    main()
