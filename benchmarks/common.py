"""What the benchmarks share: a server of their own, rows, clocks, and a table. Linux: CPU times are read from /proc."""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine, make_url

from calc_analytics.config import with_driver
from calc_analytics.database import embedded
from calc_analytics.database.engine import engine_for
from calc_analytics.days import today
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log
from calc_analytics.rollup.install import install
from calc_analytics.rollups import LOG, STATS

DAY = today("UTC")
MAIN_ONLY = LOG.only([STATS.name])
COLUMNS = "publisher_id, locality_id, date_calculated, cache_hit, response_time_ms, zman_count, source, created_at"
# The replaced scheduler's way, made idempotent: the whole day, every time.
WHOLE_DAY = f"""
    insert into {{target}} ({STATS.columns})
    select publisher_id, (created_at at time zone 'UTC')::date, {STATS.measure_selects}
    from calculation_logs where created_at >= '{DAY} 00:00Z' and created_at < '{DAY} 24:00Z' group by 1, 2
    on conflict (publisher_id, date) do update
    set {STATS.each_measure("{name} = excluded.{name}")}
"""
BARE = f"""
    select publisher_id, {STATS.measure_selects} from calculation_logs
    where created_at >= '{DAY} 00:00Z' and created_at < '{DAY} 24:00Z' group by 1
"""


@contextmanager
def server() -> Iterator[URL]:
    """A new embedded PostgreSQL with its defaults, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    started = embedded.start(folder / "pg")
    try:
        uri = started.get_uri(database="postgres").replace("postgres:@", "postgres@")
        yield with_driver(make_url(uri), "psycopg")
    finally:
        started.stop()
        shutil.rmtree(folder)


@contextmanager
def project_database(log: Log = LOG) -> Iterator[Database]:
    """A migrated database of a new server, with the log's rollups."""
    with server() as url:
        execute(engine_for(url), "create database benchmark")
        db = Database(engine_for(url.set(database="benchmark")), log, "UTC")
        install(db)
        yield db
        db.engine.dispose()


def parse_size(description: str | None, name: str, default: int, meaning: str) -> int:
    """The value of the benchmark's one option, for example `--rows`; `--help` prints the module's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(name, type=int, default=default, help=f"{meaning} (default: {default:,})", dest="size")
    return int(parser.parse_args().size)


def execute(engine: Engine, statement: str) -> None:
    """One statement in a transaction of its own."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement))


def plain(engine: Engine) -> psycopg.Connection:
    """A connection as any user has it: none of the project's settings, committing each statement."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(url, autocommit=True)


def fill(engine: Engine, day: date, rows: int, first: int = 0, rows_per_transaction: int = 1_000) -> None:
    """Rows `first` to `rows` of a day, in the order of time; 200 publishers, skewed, with 50 localities each."""
    with plain(engine) as connection:
        for begin in range(first, rows, rows_per_transaction):
            connection.execute(
                f"""
                insert into calculation_logs ({COLUMNS})
                select 1 + floor(200 * random() ^ 3)::int, 281184 + floor(50 * random() ^ 2)::int, '2030-01-01',
                       random() < 0.6, floor(random() ^ 3 * 400)::int, 30, 1 + floor(random() * 3)::int,
                       timestamptz '{day} 00:00Z' + n * (interval '24 hours' / {rows})
                from generate_series({begin}, {min(begin + rows_per_transaction, rows) - 1}) n
                """
            )


def copy_rows(connection: psycopg.Connection, count: int) -> None:
    """A COPY of that many rows of the last seconds, as the API writes them."""
    now = datetime.now(timezone.utc)
    rng = random.Random(count)
    with connection.cursor().copy(f"copy calculation_logs ({COLUMNS}) from stdin") as copy:
        for n in range(count):
            publisher, locality = 1 + int(200 * rng.random() ** 3), 281_184 + int(50 * rng.random() ** 2)
            hit, took = "t" if n % 5 < 3 else "f", int(rng.random() ** 3 * 400)
            at = (now - timedelta(microseconds=rng.randrange(1_000_000))).isoformat()
            copy.write(f"{publisher}\t{locality}\t2030-01-01\t{hit}\t{took}\t30\t{1 + n % 3}\t{at}\n")


def cpu_seconds(pid: int, thread: int | None = None) -> float:
    """CPU time of a process's main thread, or of one of its threads (a PostgreSQL backend has one)."""
    path = f"/proc/{pid}/schedstat" if thread is None else f"/proc/{pid}/task/{thread}/schedstat"
    return int(Path(path).read_text().split()[0]) / 1e9


def seconds(work: Callable[[], Any]) -> float:
    """How long it took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], float], times: int) -> float:
    """The median of what `work` returned, which is a time."""
    return statistics.median(work() for _ in range(times))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table that can be pasted into README.md."""
    cells = [[str(cell) for cell in row] for row in rows]
    print(f"\n{title}\n")
    for line in (list(columns), ["---"] * len(columns), *cells):
        print("| " + " | ".join(line) + " |")
