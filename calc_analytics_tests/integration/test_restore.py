"""Copies of the database: a restored one is refused until it is re-based; a physical copy and an upgraded one go on."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from calc_analytics.database.create import ensure_database
from calc_analytics.database.engine import engine_for
from calc_analytics.database.errors import DatabaseError
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.ledger import ClusterChanged, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.clusters import BINARIES, NEWEST, OLDER, Cluster
from calc_analytics_tests.logs import (
    FORMS,
    Statistics,
    all_stored,
    copy_rows,
    disagreements,
    live,
    oracles,
    row,
    utc,
    write,
)

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
def databases() -> Iterator[Callable[..., Database]]:
    """The clusters' databases, whose connections are closed after the test."""
    made: list[Database] = []

    def make(of: Cluster, name: str = NAME) -> Database:
        made.append(Database(engine_for(of.url(name)), LOG, "UTC"))
        return made[-1]

    yield make
    for each in made:
        each.engine.dispose()


def write_rows(db: Database, count: int, day: int = 1, month: int = 3) -> None:
    with psycopg.connect(db.engine.url.set(drivername="postgresql").render_as_string()) as writer:
        write(writer, [row(utc(2026, month, day, 12), publisher=n % 3) for n in range(count)])


def live_for_a_while(db: Database) -> None:
    """Days built, rows counted, a day pruned, rows not counted yet."""
    ensure_database(db.engine.url)
    install(db)
    rebuild(db, [PRUNED, DAY, NEXT])
    write_rows(db, 6, month=2)
    for n in range(30):
        write_rows(db, 10, 1 + n % 2)
        refresh(db)
    prune(db, DAY)
    write_rows(db, 7)


def with_pruned(db: Database, before: dict[str, Statistics] | None = None) -> dict[str, Statistics]:
    """What every target should hold: pandas's statistics, and of the pruned day those that there were."""
    kept = before or all_stored(db)
    return {
        relation: {**each, **{key: sums for key, sums in kept[relation].items() if key[-1] == PRUNED}}
        for relation, each in oracles(db).items()
    }


def all_live(db: Database) -> dict[str, Statistics]:
    """The contents of every live view."""
    return {relation: live(db, relation) for relation in FORMS}


def test_a_restored_database_refuses_everything_until_it_is_rebased(cluster, databases):
    old, new = cluster("a").create().start(), cluster("b").create().start()
    source, copy = databases(old), databases(new)
    live_for_a_while(source)
    old.copy_database(NAME, new)
    write_rows(copy, 5)
    before = all_stored(copy)
    for operation in (
        lambda: refresh(copy),
        lambda: rebuild(copy, [DAY]),
        lambda: verify(copy, [DAY]),
        lambda: prune(copy, NEXT),
        lambda: audit(copy),
    ):
        with pytest.raises(ClusterChanged, match="calc-analytics rebase"):
            operation()
    for relation in FORMS:
        with pytest.raises(DBAPIError, match="restored into another cluster, run calc-analytics rebase"):
            live(copy, relation)
    assert all_stored(copy) == before

    rebase(copy)
    assert waiting_days(copy) == [PRUNED, DAY, NEXT]
    assert rebuild(copy, waiting_days(copy)).refused == []
    write_rows(copy, 4)
    refresh(copy)
    assert verify(copy, [PRUNED, DAY, NEXT]).difference == 0
    assert all_stored(copy) == all_live(copy) == with_pruned(copy, before)
    assert disagreements(copy) == []


def test_a_restore_into_the_same_cluster_goes_on(cluster, databases):
    """Its transaction ids go on too, and what was not visible then is what was not counted."""
    only = cluster("a").create().start()
    source = databases(only)
    live_for_a_while(source)
    source.engine.dispose()
    with engine_for(only.url()).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"create database {NAME}_copy template {NAME}"))
    copy = databases(only, f"{NAME}_copy")
    write_rows(copy, 4)
    assert refresh(copy).rows == 11
    assert verify(copy, [PRUNED, DAY, NEXT]).difference == 0


def test_an_upgraded_cluster_goes_on(cluster, databases):
    old = cluster("a", OLDER).create().start()
    source = databases(old)
    live_for_a_while(source)
    source.engine.dispose()
    old.stop()
    new = Cluster(old.folder, NEWEST, "upgraded").create()
    result = new.run("pg_upgrade", "-b", str(OLDER), "-B", str(NEWEST), "-d", str(old.data), "-D", str(new.data),
                   "-U", "postgres", "--no-sync", check=False)  # fmt: skip
    assert result.returncode == 0, result.stdout
    new.start()
    try:
        upgraded = databases(new)
        assert all_live(upgraded) == with_pruned(upgraded)
        write_rows(upgraded, 4)
        assert refresh(upgraded).rows == 11
        assert verify(upgraded, [PRUNED, DAY, NEXT]).difference == 0
        assert all_stored(upgraded) == with_pruned(upgraded)
        rebuild(upgraded, [DAY, NEXT])
        write_rows(upgraded, 1)
        assert refresh(upgraded).rows == 1
        upgraded.engine.dispose()
    finally:
        new.stop()


def test_a_standby_may_be_read_and_goes_on_after_its_promotion(cluster, databases):
    primary, standby = cluster("a").create().start(), cluster("b")
    source = databases(primary)
    live_for_a_while(source)
    with psycopg.connect(source.engine.url.set(drivername="postgresql").render_as_string()) as slow:
        copy_rows(slow, [row(NOON)] * 3)
        refresh(source)
        write_rows(source, 2)
        standby.run("pg_basebackup", "-h", str(primary.folder), "-U", "postgres", "-D", str(standby.data), "-R",
                    "-X", "stream", "-c", "fast", "--no-sync")  # fmt: skip
        standby.configure(f"unix_socket_directories = '{standby.folder}'\n")
        standby.start()
        copy = databases(standby)
        assert verify(copy, [PRUNED, DAY, NEXT]).difference == 0
        assert all_live(copy) == with_pruned(copy)
        with pytest.raises(DatabaseError, match="read-only") as refused:
            refresh(copy)
        assert not refused.value.transient
        standby.run("pg_ctl", "-D", str(standby.data), "-w", "promote")
    write_rows(copy, 4)
    assert refresh(copy).rows == 6
    assert verify(copy, [PRUNED, DAY, NEXT]).difference == 0
    assert all_stored(copy) == with_pruned(copy)
