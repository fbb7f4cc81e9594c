"""A Spark cluster with two executors counts archived rows as PostgreSQL counts log rows, or says in one line why not.

The cluster's time zone has half hours and summer time, and is neither that of the days nor UTC. Processes are stopped
before a query and killed in its middle, so that it cannot end before.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy.engine import URL

from benchmarks.cluster import TOKEN, Cluster, executor_id
from benchmarks.cluster import cluster as new_cluster
from benchmarks.running import eventually
from calc_analytics.addresses import ArchiveUrl
from calc_analytics.archive.place import Archive
from calc_analytics.config import Settings, project_root
from calc_analytics.engines import EngineFailed
from calc_analytics.engines.archived import ArchivedDays
from calc_analytics.engines.duckdb import DuckDB
from calc_analytics.engines.query import result_schema
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.widen import widen
from calc_analytics.rollups import LOG, STATS
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.integration.test_archive_rebuild import (
    all_stored,
    archive_three_days,
    damage_statistics,
    require_proven,
)
from calc_analytics_tests.integration.test_engines import (
    DAYS,
    ROLLUPS,
    counted_by_postgres,
    files_of_days,
    odd_rows,
)
from calc_analytics_tests.logs import write

pytestmark = pytest.mark.spark
ZONE = "America/St_Johns"
# Queries are short and machines busy: a compiler that thinks less is faster.
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
MINUTE = 60
DAY, NEXT, LAST = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)
# Characters that have a meaning in Hadoop's patterns and addresses.
ODD_NAME = "a [b]{c,d}*?%41#e\\f"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster; tests that end its server come last. In CI its absence is a failure."""
    missing = [] if shutil.which("java") else ["java"]
    missing += [] if find_spec("pyspark") else ["pyspark"]
    if missing and "CI" not in os.environ:
        pytest.skip(f"no {' and no '.join(missing)} on this machine: see docs/testing.md")
    settings = {"spark.sql.session.timeZone": ZONE}
    settings |= {f"spark.{each}.extraJavaOptions": JVM for each in ("driver", "executor")}
    with new_cluster(**settings) as started:
        yield started


def spark(folder: Path, remote: str) -> Any:
    from calc_analytics.engines.spark import Spark

    return Spark(LOG, ArchiveUrl("file", str(folder)), remote)


def rows_of(engine: Any, rollup: Rollup, files: dict[date, list[str]]) -> list[tuple[Any, ...]]:
    found = engine.reduce(rollup, files)
    assert found.schema == result_schema(rollup, LOG)
    return sorted(tuple(each.values()) for each in found.to_pylist())


class InThread(threading.Thread):
    """Work in a thread, and what became of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work, self.result, self.error = work, None, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._work()
        except Exception as error:
            self.error = error

    def within_a_minute(self) -> "InThread":
        self.join(MINUTE)
        assert not self.is_alive()
        return self


def running_tasks(cluster: Cluster) -> set[str]:
    """Tasks that run now or in a second: a query that its client gave up goes on, and an executor has one task.

    The server's log has a line for the start of each, and another for its end, whatever that was.
    """
    found = set()
    for _ in range(2):
        lines = re.findall(r"TaskSetManager: (Starting )?.*\(TID (\d+)\)", cluster.log)
        found |= {task for is_start, task in lines if is_start} - {task for is_start, task in lines if not is_start}
        time.sleep(1)
    return found


def in_mid_query(cluster: Cluster, stopped: list[psutil.Process], work: Callable[[], Any]) -> InThread:
    """Stops these executors, begins the work, and returns when each of them has a task of it, which cannot end."""
    eventually(lambda: not running_tasks(cluster), "the end of every earlier task")
    begin, ids = len(cluster.log), {executor_id(each) for each in stopped}
    for each in stopped:
        each.suspend()
    thread = InThread(work)

    def busy() -> set[str]:
        assert thread.is_alive(), thread.error
        return set(re.findall(r"Starting task .*executor (\d+),", cluster.log[begin:])) & ids

    eventually(lambda: busy() == ids, "a task on each of these executors")
    return thread


@pytest.fixture
def odd(db, owner, connect, tmp_path: Path) -> tuple[Any, Path, dict[date, list[str]]]:
    """Rows with values at every limit, and their files, in a folder with an odd name."""
    widen(replace(db, engine=owner), "response_time_ms", "bigint")
    db, folder = replace(db, timezone="Europe/Berlin"), tmp_path / ODD_NAME
    folder.mkdir()
    write(connect(), odd_rows(random.Random(15), 3000))
    return db, folder, files_of_days(db, DAYS, folder)


@pytest.fixture
def place(db, connect, tmp_path: Path) -> Archive:
    """Three archived days of random rows, the first two pruned."""
    return archive_three_days(db, connect, tmp_path / "archive")


def counted_by_spark(place: Archive, remote: str) -> ArchivedDays:
    return ArchivedDays(place, Settings(archive_url=place.db.archive_url, spark_remote=remote))


def plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def run(command: list[str], place: Archive, remote: str, url: URL, **further: str) -> Any:
    """The command in a process of its own, with the settings of that archive and that cluster."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    settings = {"DATABASE_URL": plain(url.set(username=ROLE)), "SPARK_REMOTE": remote, **further}
    settings["ARCHIVE_URL"] = place.store.address.path
    return subprocess.run(
        command, env={**kept, **settings}, cwd=project_root(), capture_output=True, text=True, timeout=2 * MINUTE
    )


def refused(place: Archive, remote: str) -> set[str]:
    """The reasons why a rebuild of the pruned days was refused, each of which is one line without the token."""
    report = rebuild(place.db, [DAY, NEXT], archived=counted_by_spark(place, remote))
    assert report.rebuilt == []
    assert {(each.rollup, each.day) for each in report.refused} == {(n, day) for n in LOG.names for day in (DAY, NEXT)}
    reasons = {each.detail for each in report.refused}
    for reason in reasons:
        assert "\n" not in reason
        assert TOKEN not in reason
    return reasons


def test_spark_counts_exactly_what_postgresql_and_duckdb_count(cluster: Cluster, odd):
    db, folder, files = odd
    engine, duckdb = spark(folder, cluster.remote), DuckDB(LOG, ArchiveUrl("file", str(folder)))
    with engine._session() as session:
        assert session.conf.get("spark.sql.session.timeZone") == ZONE
    for rollup in ROLLUPS:
        counted = rows_of(engine, rollup, files)
        assert counted == counted_by_postgres(db, rollup, sorted(DAYS)), rollup.aggregates
        assert counted == rows_of(duckdb, rollup, files), rollup.aggregates
    assert re.fullmatch(r"Spark 4\.\d+\.\d+", engine.name)


def test_a_file_that_is_missing_or_damaged_is_named(cluster: Cluster, odd):
    _, folder, files = odd
    engine, day = spark(folder, cluster.remote), DAYS[0]
    with pytest.raises(
        EngineFailed, match=rf"^Spark at sc://localhost:{cluster.port} could .*date={day}/other.parquet"
    ):
        engine.reduce(STATS, {**files, day: [f"date={day}/other.parquet"]})
    (folder / files[day][0]).write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    failed = rf"^Spark at sc://localhost:{cluster.port} could not count .*date={day}"
    with pytest.raises(EngineFailed, match=f"{failed}/other.parquet"):
        engine.reduce(STATS, {**files, day: [f"date={day}/other.parquet"]})
    (folder / files[day][0]).write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(EngineFailed, match=f"{failed}/rows.parquet"):
        engine.reduce(STATS, files)


def test_an_executor_that_is_killed_in_mid_query_changes_nothing(cluster: Cluster, odd):
    db, folder, files = odd
    engine, victim = spark(folder, cluster.remote), cluster.executors[0]
    lost = f"Lost executor {executor_id(victim)}"
    work = in_mid_query(cluster, [victim], lambda: rows_of(engine, STATS, files))
    victim.kill()
    work.join(180)
    assert (work.error, work.result) == (None, counted_by_postgres(db, STATS, sorted(DAYS)))
    assert lost in cluster.log


def test_a_rebuild_counts_pruned_days_on_the_cluster(cluster: Cluster, place: Archive):
    before = all_stored(place.db)
    damage_statistics(place.db)
    report = rebuild(place.db, [DAY, NEXT], archived=counted_by_spark(place, cluster.remote))
    assert {(day.source, day.engine.split()[0]) for day in report.rebuilt} == {("archive", "Spark")}
    assert all_stored(place.db) == before
    require_proven(place.db)


def test_a_dagster_run_of_its_own_process_counts_on_the_cluster_and_says_so(
    cluster: Cluster, place: Archive, url: URL, empty_url: URL
):
    before = all_stored(place.db)
    damage_statistics(place.db)
    target = ("-m", "calc_analytics.definitions", "--select", ",".join(LOG.names), "--partition", str(DAY))
    command = [sys.executable, "-m", "dagster", "asset", "materialize", *target]
    done = run(command, place, cluster.remote, url, DAGSTER_POSTGRES_URL=plain(empty_url))
    assert done.returncode == 0, done.stderr
    assert re.search(r"rebuilt 1 day \(2026-03-01\), .*, from archive by Spark 4\.", done.stderr)
    assert TOKEN not in done.stdout + done.stderr
    assert all_stored(place.db) == before


def test_a_wrong_token_is_refused_at_once_and_not_shown(cluster: Cluster, place: Archive):
    begun = time.monotonic()
    (reason,) = refused(place, cluster.remote.replace(TOKEN, "another"))
    assert reason.startswith(f"Spark at sc://localhost:{cluster.port} cannot be reached: Invalid authentication token.")
    assert "another" not in reason
    assert time.monotonic() - begun < 10


def test_a_server_that_stands_still_in_mid_query_is_given_up_within_a_minute(cluster: Cluster, place: Archive):
    before, executors = all_stored(place.db), cluster.executors
    work = in_mid_query(cluster, executors, lambda: refused(place, cluster.remote))
    cluster.process.send_signal(signal.SIGSTOP)
    try:
        work.within_a_minute()
    finally:
        cluster.process.send_signal(signal.SIGCONT)
        for each in executors:
            each.resume()
    assert work.error is None
    assert len(work.result) == 1
    assert all_stored(place.db) == before


def test_a_server_that_is_killed_in_mid_query_is_one_line_and_nothing_is_written(cluster: Cluster, place: Archive):
    before = all_stored(place.db)
    work = in_mid_query(cluster, cluster.executors, lambda: refused(place, cluster.remote))
    cluster.kill()
    work.within_a_minute()
    assert work.error is None
    assert re.fullmatch(
        rf"Spark at sc://localhost:{cluster.port} cannot be reached: .*\. Start its Connect server, or correct "
        r"SPARK_REMOTE, and repeat\. Nothing was changed",
        *work.result,
    )
    assert all_stored(place.db) == before


def test_a_server_that_is_down_is_one_line_within_a_minute(cluster: Cluster, place: Archive, url: URL):
    cluster.kill()
    command = [sys.executable, "-m", "calc_analytics.cli", "rollup", "--day", str(DAY)]
    begun = time.monotonic()
    done = run(command, place, cluster.remote, url)
    lines = done.stderr.splitlines()
    assert time.monotonic() - begun < MINUTE
    assert (done.returncode, done.stdout.split(",")[0]) == (1, "0 days rebuilt")
    assert TOKEN not in done.stdout + done.stderr
    assert len(lines) == 1, done.stderr
    assert f"Spark at sc://localhost:{cluster.port} cannot be reached" in lines[0]
    assert "Connection refused" in lines[0]
