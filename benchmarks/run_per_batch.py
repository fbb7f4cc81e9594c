"""The ordinary way in Dagster, a sensor that requests a run per batch, compared with this project's sensor.

    python -m benchmarks.run_per_batch

The run does the whole-day SQL. This module is also the code location that `dagster dev` loads for it.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import psycopg
from dagster import (
    DefaultSensorStatus,
    Definitions,
    RunRequest,
    SensorEvaluationContext,
    SkipReason,
    asset,
    define_asset_job,
    in_process_executor,
    sensor,
)
from sqlalchemy.engine import Engine

from benchmarks.common import parse_size, plain, show
from benchmarks.running import ProjectCopy, Running, eventually, fresh_copy, run_up
from benchmarks.streaming import RATE, WRITERS, Commits, settle, spent, total, watch
from calc_analytics.config import project_root, with_driver
from calc_analytics.database.engine import engine_for
from calc_analytics.processes.simulate import Traffic, simulate
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollups import STATS

SECONDS = 90
TODAY = f"""
    insert into calculation_stats_daily ({STATS.columns})
    select publisher_id, (created_at at time zone 'UTC')::date, {STATS.measure_selects}
    from calculation_logs where created_at >= current_date group by 1, 2
    on conflict (publisher_id, date) do update set {STATS.each_measure("{name} = excluded.{name}")}
"""


@asset
def whole_day() -> None:
    """Today's statistics, all of them, again."""
    with psycopg.connect(os.environ["BENCHMARK_URL"]) as connection:
        connection.execute(TODAY)


job = define_asset_job("whole_day_job", selection=[whole_day])


@sensor(job=job, minimum_interval_seconds=5, default_status=DefaultSensorStatus.RUNNING)
def new_rows(context: SensorEvaluationContext) -> RunRequest | SkipReason:
    """A run if the newest row is not the one seen last."""
    with psycopg.connect(os.environ["BENCHMARK_URL"]) as connection:
        (newest,) = connection.execute("select coalesce(max(id), 0) from calculation_logs").fetchone() or (0,)
    if str(newest) == context.cursor:
        return SkipReason("nothing new")
    context.update_cursor(str(newest))
    return RunRequest()


defs = Definitions(assets=[whole_day], jobs=[job], sensors=[new_rows], executor=in_process_executor)


def main() -> None:
    """Prints latencies and CPU of both."""
    length = parse_size(__doc__, "--seconds", SECONDS, "how long each measurement takes")
    rows = []
    with fresh_copy() as copy, run_up(copy, Running) as up:
        settle(up)
        rows.append(("this project", *measure(up.engine(), up.descendants, length)))
    with fresh_copy() as copy, dagster_dev(copy) as (engine, processes):
        rows.append(("a run per batch", *measure(engine, processes, length)))
    title = f"Commit to calculation_stats_daily, {WRITERS} writers, {RATE:,} rows/s, {length} s"
    show(title, ("", "p50", "p95", "max", "CPU of Dagster and PostgreSQL, writers' inserts included"), rows)


def measure(engine: Engine, processes: Callable[[], list[psutil.Process]], length: int) -> tuple[str, str, str, str]:
    """Latencies while writers write, and CPU per second."""
    with plain(engine) as reader:
        base = total(reader)
        commits, seen, over = Commits(), [(0.0, base)], threading.Event()
        watcher = threading.Thread(target=watch, args=(reader, seen, over))
        watcher.start()
        before, started = spent(everything(processes)), time.monotonic()
        report = simulate(engine.url, Traffic(RATE, WRITERS, late_share=0), seconds=length, progress=commits.add)
        eventually(lambda: seen[-1][1] >= base + report.rows, "every row counted", 120)
        used = (spent(everything(processes)) - before) / (time.monotonic() - started)
        over.set()
        watcher.join()
    waits = sorted(commits.waits(base, seen))
    p95 = waits[int(len(waits) * 0.95)]
    return f"{statistics.median(waits):.2f} s", f"{p95:.2f} s", f"{waits[-1]:.2f} s", f"{used:.0%} of a core"


def everything(processes: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """These and the server's own."""
    found = processes()
    return [*found, *(child for p in found if p.ppid() == 1 for child in p.children())]


@contextmanager
def dagster_dev(copy: ProjectCopy) -> Iterator[tuple[Engine, Callable[[], list[psutil.Process]]]]:
    """The baseline running on a migrated embedded server: its engine and its processes."""
    assert copy.start("calc_analytics.cli", "migrate").wait(120) == 0
    url = f"postgresql://postgres@/calc_analytics?host={copy.pid_file.parent}"
    environment = {
        "DAGSTER_HOME": str(copy.folder),
        "PYTHONPATH": f"{copy.folder}:{project_root()}",
        "BENCHMARK_URL": url,
    }
    command = ("dagster", "dev", "-m", "benchmarks.run_per_batch", "--port", str(free_port()))
    process = copy.start(*command, **environment)
    drain = threading.Thread(target=lambda: [None for _ in process.stdout or ()], daemon=True)
    drain.start()
    engine = engine_for(with_driver(url, "psycopg"))
    eventually(copy.pid_file.exists, "the server")
    eventually(lambda: runs_tick(engine), "the sensor's first run", 120)

    def processes() -> list[psutil.Process]:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True), *copy.postmasters()]

    try:
        yield engine, processes
    finally:
        engine.dispose()
        leftovers = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        for left in psutil.wait_procs(leftovers, timeout=20)[1]:
            left.kill()
        process.wait()


def runs_tick(engine: Engine) -> bool:
    """Writes a row and returns whether a run has counted any."""
    try:
        with plain(engine) as connection:
            columns = "publisher_id, locality_id, date_calculated, source"
            connection.execute(f"insert into calculation_logs ({columns}) values (1, 1, now(), 1)")
            return total(connection) > 0
    except psycopg.OperationalError:
        return False


if __name__ == "__main__":
    main()
