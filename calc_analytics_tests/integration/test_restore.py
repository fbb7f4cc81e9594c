"""Copies of the database: a restored one is refused until it is re-based; a physical copy and an upgraded one go on."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from calc_analytics.database.engine import DatabaseTrouble, engine_for, ensure_database
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.state import ClusterChanged
from calc_analytics.rollup.verify import verify, waiting_days
from calc_analytics_tests.clusters import BINARIES, NEWEST, OLDER, Cluster
from calc_analytics_tests.logs import copy_rows, live, oracle, row, stored, utc, write

PRUNED, DAY, NEXT = date(2026, 2, 1), date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)
NAME = "calc"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, which a socket's must be."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def cluster(folder: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters, which are stopped after the test."""
    made: list[Cluster] = []

    def make(name: str, bin_folder: Path = BINARIES) -> Cluster:
        (folder / name).mkdir()
        made.append(Cluster(folder / name, bin_folder))
        return made[-1]

    yield make
    for each in made:
        each.stop("immediate")


@pytest.fixture
def engines() -> Iterator[Callable[[Cluster], Engine]]:
    """Engines on the clusters' databases, disposed after the test."""
    made: list[Engine] = []

    def make(of: Cluster) -> Engine:
        made.append(engine_for(of.url(NAME)))
        return made[-1]

    yield make
    for each in made:
        each.dispose()


def write_rows(engine: Engine, count: int, day: int = 1, month: int = 3) -> None:
    with psycopg.connect(engine.url.set(drivername="postgresql").render_as_string()) as writer:
        write(writer, [row(utc(2026, month, day, 12), publisher=n % 3) for n in range(count)])


def live_for_a_while(engine: Engine) -> None:
    """Days built, rows counted, a day pruned, rows not counted yet."""
    ensure_database(engine.url)
    install(engine, "UTC")
    rebuild(engine, ROLLUP, "UTC", [PRUNED, DAY, NEXT])
    write_rows(engine, 6, month=2)
    for n in range(30):
        write_rows(engine, 10, 1 + n % 2)
        refresh(engine, ROLLUP, "UTC")
    prune(engine, ROLLUP, "UTC", DAY)
    write_rows(engine, 7)


def dump_and_restore(old: Cluster, new: Cluster) -> None:
    ensure_database(new.url(NAME))
    dump = old.run("pg_dump", "-h", str(old.folder), "-U", "postgres", NAME).stdout
    (new.folder / "dump.sql").write_text(dump)
    new.run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-h", str(new.folder), "-U", "postgres", "-d", NAME,
            "-f", "dump.sql")  # fmt: skip


def test_a_restored_database_refuses_everything_until_it_is_rebased(cluster, engines):
    old, new = cluster("a").create().start(), cluster("b").create().start()
    source, copy = engines(old), engines(new)
    live_for_a_while(source)
    dump_and_restore(old, new)
    write_rows(copy, 5)
    before = stored(copy)
    for operation in (
        lambda: refresh(copy, ROLLUP, "UTC"),
        lambda: rebuild(copy, ROLLUP, "UTC", [DAY]),
        lambda: verify(copy, ROLLUP, "UTC", [DAY]),
        lambda: prune(copy, ROLLUP, "UTC", NEXT),
    ):
        with pytest.raises(ClusterChanged, match="calc-analytics rebase"):
            operation()
    with pytest.raises(DBAPIError, match="restored into another cluster, run calc-analytics rebase"):
        live(copy)
    assert stored(copy) == before

    rebase(copy, "UTC")
    assert waiting_days(copy, ROLLUP) == [PRUNED, DAY, NEXT]
    assert rebuild(copy, ROLLUP, "UTC", waiting_days(copy, ROLLUP)).shrunk == []
    write_rows(copy, 4)
    refresh(copy, ROLLUP, "UTC")
    assert verify(copy, ROLLUP, "UTC", [PRUNED, DAY, NEXT]).difference == 0
    assert stored(copy) == live(copy)
    kept = {key: value for key, value in before.items() if key[1] == PRUNED}
    assert stored(copy) == {**oracle(copy), **kept}


def test_a_restore_into_the_same_cluster_goes_on(cluster, engines):
    """Its transaction ids go on too, and what was not visible then is what was not counted."""
    only = cluster("a").create().start()
    source = engines(only)
    live_for_a_while(source)
    source.dispose()
    with engine_for(only.url()).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"create database {NAME}_copy template {NAME}"))
    copy = engine_for(only.url(f"{NAME}_copy"))
    write_rows(copy, 4)
    assert refresh(copy, ROLLUP, "UTC").rows == 11
    assert verify(copy, ROLLUP, "UTC", [PRUNED, DAY, NEXT]).difference == 0
    copy.dispose()


def test_an_upgraded_cluster_goes_on(cluster, engines):
    old = cluster("a", OLDER).create().start()
    source = engines(old)
    live_for_a_while(source)
    source.dispose()
    old.stop()
    new = Cluster(old.folder, NEWEST, "upgraded").create()
    said = new.run("pg_upgrade", "-b", str(OLDER), "-B", str(NEWEST), "-d", str(old.data), "-D", str(new.data),
                   "-U", "postgres", "--no-sync", check=False)  # fmt: skip
    assert said.returncode == 0, said.stdout
    new.start()
    try:
        upgraded = engines(new)
        assert live(upgraded) == _with_pruned(upgraded)
        write_rows(upgraded, 4)
        assert refresh(upgraded, ROLLUP, "UTC").rows == 11
        assert verify(upgraded, ROLLUP, "UTC", [PRUNED, DAY, NEXT]).difference == 0
        assert stored(upgraded) == _with_pruned(upgraded)
        rebuild(upgraded, ROLLUP, "UTC", [DAY, NEXT])
        write_rows(upgraded, 1)
        assert refresh(upgraded, ROLLUP, "UTC").rows == 1
        upgraded.dispose()
    finally:
        new.stop()


def _with_pruned(engine: Engine):
    pruned = {key: value for key, value in stored(engine).items() if key[1] == PRUNED}
    return {**oracle(engine), **pruned}


def test_a_standby_may_be_read_and_goes_on_after_its_promotion(cluster, engines):
    primary, standby = cluster("a").create().start(), cluster("b")
    source = engines(primary)
    live_for_a_while(source)
    with psycopg.connect(source.url.set(drivername="postgresql").render_as_string()) as slow:
        copy_rows(slow, [row(NOON)] * 3)
        refresh(source, ROLLUP, "UTC")
        write_rows(source, 2)
        standby.run("pg_basebackup", "-h", str(primary.folder), "-U", "postgres", "-D", str(standby.data), "-R",
                    "-X", "stream", "-c", "fast", "--no-sync")  # fmt: skip
        standby.configure(f"unix_socket_directories = '{standby.folder}'\n")
        standby.start()
        copy = engines(standby)
        assert verify(copy, ROLLUP, "UTC", [PRUNED, DAY, NEXT]).difference == 0
        assert live(copy) == _with_pruned(copy)
        with pytest.raises(DatabaseTrouble, match="read-only") as refused:
            refresh(copy, ROLLUP, "UTC")
        assert not refused.value.transient
        standby.run("pg_ctl", "-D", str(standby.data), "-w", "promote")
    write_rows(copy, 4)
    assert refresh(copy, ROLLUP, "UTC").rows == 6
    assert verify(copy, ROLLUP, "UTC", [PRUNED, DAY, NEXT]).difference == 0
    assert stored(copy) == _with_pruned(copy)
