"""A copy of a cluster has its system identifier; what another cluster feeds into it later has other transaction ids."""

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from calc_analytics.database.create import ensure_database
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.follow import Follower
from calc_analytics.rollup.foreign import ForeignRows
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.ledger import ClusterChanged, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.clusters import Cluster
from calc_analytics_tests.logs import FORMS, all_stored, assert_exact, live, row, stored, utc, write

DAY = date(2026, 3, 1)
NOON = utc(2026, 3, 1, 12)
NAME = "calc"
WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Cluster, Cluster]]:
    """Two clusters with the same system identifier, as after a copy of the files; logical replication is possible."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    for name in ("a", "b"):
        (folder / name).mkdir()
    original, copy = Cluster(folder / "a"), Cluster(folder / "b")
    original.create().configure("wal_level = logical\nmax_wal_senders = 10\n")
    shutil.copytree(original.data, copy.data)
    for path in [copy.data, *copy.data.rglob("*")] if copy.user else []:
        shutil.chown(path, copy.user)
    copy.configure(f"unix_socket_directories = '{copy.folder}'\n")
    original.start()
    copy.start()
    yield original, copy
    original.stop("immediate")
    copy.stop("immediate")
    shutil.rmtree(folder)


@pytest.fixture
def databases(pair: tuple[Cluster, Cluster]) -> Iterator[tuple[Database, Database]]:
    """A migrated database of the original with counted rows, and where the copy's will be."""
    made = [Database(engine_for(cluster.url(NAME)), LOG, "UTC") for cluster in pair]
    ensure_database(made[0].engine.url)
    install(made[0])
    rebuild(made[0], [DAY])
    write_rows(made[0], 50)
    refresh(made[0])
    yield made[0], made[1]
    for db, cluster in zip(made, pair, strict=True):
        db.engine.dispose()
        with psycopg.connect(plain(cluster.url()), autocommit=True) as connection:
            connection.execute(f"drop database if exists {NAME} with (force)")


def plain(url) -> str:
    return url.set(drivername="postgresql").render_as_string()


def write_rows(db: Database, count: int, at=NOON) -> None:
    with psycopg.connect(plain(db.engine.url)) as writer:
        write(writer, [row(at, publisher=n % 3) for n in range(count)])


def use_ids(place: Cluster, count: int) -> None:
    """So many transactions of others."""
    with psycopg.connect(plain(place.url()), autocommit=True) as connection:
        connection.execute(f"do $$ begin for i in 1..{count} loop perform txid_current(); commit; end loop; end $$")


def next_id(place: Cluster) -> int:
    with psycopg.connect(plain(place.url()), autocommit=True) as connection:
        return int(connection.execute("select pg_snapshot_xmax(pg_current_snapshot())::text").fetchone()[0])


OPERATIONS: list[Callable[[Database], object]] = [
    refresh,
    lambda db: rebuild(db, [DAY]),
    lambda db: verify(db, [DAY]),
    lambda db: prune(db, date(2026, 3, 2)),
    audit,
]


def assert_refused(db: Database) -> None:
    for operation in OPERATIONS:
        with pytest.raises(ClusterChanged, match="calc-analytics rebase"):
            operation(db)
    for relation in FORMS:
        with pytest.raises(DBAPIError, match="run calc-analytics rebase"):
            live(db, relation)


def start_afresh(db: Database) -> None:
    rebase(db)
    rebuild(db, waiting_days(db))
    write_rows(db, 5)
    refresh(db)
    assert_exact(db)
    assert verify(db, [DAY]).difference == 0


def test_a_dump_from_a_cluster_that_is_ahead_is_refused_for_good(pair, databases):
    """Also when the copy's ids have passed those that were counted elsewhere: rows were written with them meanwhile."""
    original, copy = pair
    source, restored = databases
    use_ids(original, next_id(copy) - next_id(original) + 300 if next_id(copy) > next_id(original) else 300)
    write_rows(source, 10)
    refresh(source)
    write_rows(source, 7)
    original.copy_database(NAME, copy)
    assert next_id(copy) < next_id(original)
    write_rows(restored, 4)
    before = all_stored(restored)
    assert_refused(restored)
    use_ids(copy, next_id(original) - next_id(copy) + 10)
    assert_refused(restored)
    # What writes to the state row hides nothing.
    install(Database(restored.engine, LOG.only(LOG.names[:2]), "UTC"))
    install(restored)
    assert_refused(restored)
    execute_plain(restored, "update calc_analytics_version set version_num = '0004_needs_calc_analytics_0.2'")
    execute_plain(restored, "update rollup_state set log_relation = null")
    install(restored)
    assert_refused(restored)
    assert all_stored(restored) == before
    start_afresh(restored)


def execute_plain(db: Database, statement: str) -> None:
    with psycopg.connect(plain(db.engine.url), autocommit=True) as connection:
        connection.execute(statement)


def test_a_dump_into_a_cluster_that_was_further_is_exact(pair, databases):
    """As into another database of the same cluster: no id that was counted will be given out again."""
    original, copy = pair
    source, restored = databases
    use_ids(copy, max(0, next_id(original) - next_id(copy)) + 200)
    write_rows(source, 10)
    original.copy_database(NAME, copy)
    write_rows(restored, 4)
    assert refresh(restored).rows == 14
    assert_exact(restored)
    assert verify(restored, [DAY]).difference == 0
    rebuild(restored, [DAY])
    write_rows(restored, 4)
    assert refresh(restored).rows == 4
    assert_exact(restored)


def test_a_dump_into_another_database_of_the_same_cluster_is_exact(pair, databases):
    original, _ = pair
    source, _ = databases
    write_rows(source, 10)
    ensure_database(original.url("calc_2"))
    dump = original.run("pg_dump", "-h", str(original.folder), "-U", "postgres", NAME).stdout
    (original.folder / "dump.sql").write_text(dump)
    original.run("psql", "-q", "-h", str(original.folder), "-U", "postgres", "-d", "calc_2", "-f", "dump.sql")
    restored = Database(engine_for(original.url("calc_2")), LOG, "UTC")
    write_rows(restored, 4)
    assert refresh(restored).rows == 14
    assert_exact(restored)
    with psycopg.connect(plain(restored.engine.url), autocommit=True) as connection:
        connection.execute("alter table calculation_logs rename to logs_before")
        connection.execute("create table calculation_logs (like logs_before including all)")
    with pytest.raises(Exception, match="calc-analytics migrate"):
        refresh(restored)
    restored.engine.dispose()
    with psycopg.connect(plain(original.url()), autocommit=True) as connection:
        connection.execute("drop database calc_2 with (force)")


@pytest.mark.parametrize("is_ahead", [True, False], ids=["the original is ahead", "the copy is ahead"])
def test_a_database_that_was_fed_by_logical_replication_is_exact_or_refused(pair, databases, is_ahead: bool):
    """All tables, the state's too: as an upgrade by replication does."""
    original, copy = pair
    source, replica = databases
    ahead, behind = (original, copy) if is_ahead else (copy, original)
    original.copy_database(NAME, copy)
    execute_plain(replica, "truncate " + ", ".join(["calculation_logs", *LOG.names, *STATE]))
    use_ids(ahead, max(0, next_id(behind) - next_id(ahead)) + 400)
    execute_plain(source, "create publication everything for all tables")
    with subscribed(original, source, replica, "everything"):
        write_rows(source, 20)
        refresh(source)
        write_rows(source, 8)
        until(lambda: everything(replica) == everything(source))
        if is_ahead:
            assert_refused(replica)
    for sequence in ("calculation_logs_id_seq", "rollup_journal_id_seq"):  # which replication leaves alone
        execute_plain(replica, f"select setval('{sequence}', 100000)")
    write_rows(replica, 3)
    if is_ahead:
        use_ids(copy, next_id(original) - next_id(copy) + 10)
        assert_refused(replica)
        start_afresh(replica)
    else:
        assert refresh(replica).rows == 11
        assert_exact(replica)
        assert verify(replica, [DAY]).difference == 0


STATE = ("rollup_state", "rollup_days", "rollup_journal", "calc_analytics_version")


def everything(db: Database) -> list[object]:
    """What replication should have brought: logs, statistics and state."""
    statement = text("select cast(snapshot as text), (select count(*) from rollup_days) from rollup_state")
    with db.engine.begin() as connection:
        state = connection.execute(statement).all()
    return [count(db), state, *(stored(db, relation) for relation in FORMS)]


def count(db: Database) -> int:
    with db.engine.begin() as connection:
        return int(connection.execute(text("select count(*) from calculation_logs")).scalar_one())


@contextmanager
def subscribed(original: Cluster, source: Database, replica: Database, publication: str) -> Iterator[None]:
    """While it lasts, the replica gets what the source has, and what is written to it.

    The slot is made first: in clusters with the same identifier PostgreSQL would take the other one for itself.
    """
    execute_plain(source, f"select pg_create_logical_replication_slot('{publication}', 'pgoutput')")
    execute_plain(
        replica,
        f"create subscription {publication} connection 'host={original.folder} dbname={NAME} user=postgres' "
        f"publication {publication} with (create_slot = false, slot_name = '{publication}')",
    )
    try:
        yield
    finally:
        execute_plain(replica, f"alter subscription {publication} disable")
        execute_plain(replica, f"alter subscription {publication} set (slot_name = none)")
        execute_plain(replica, f"drop subscription {publication}")
        until(lambda: is_unused(source, publication))
        execute_plain(source, f"select pg_drop_replication_slot('{publication}')")


def is_unused(db: Database, slot: str) -> bool:
    with db.engine.begin() as connection:
        statement = text("select not active from pg_replication_slots where slot_name = :slot")
        return bool(connection.execute(statement, {"slot": slot}).scalar_one())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_log_rows_that_bring_ids_of_another_cluster_are_reported_until_they_get_new_ones(pair, databases):
    original, copy = pair
    source, replica = databases
    ensure_database(copy.url(NAME))
    install(replica)
    rebuild(replica, [DAY])
    use_ids(original, max(0, next_id(copy) - next_id(original)) + 400)
    write_rows(source, 20)
    rows = original.run("pg_dump", "-h", str(original.folder), "-U", "postgres", "--data-only", "-t", LOG.name, NAME)
    (copy.folder / "rows.sql").write_text(rows.stdout)
    copy.run("psql", "-q", "-h", str(copy.folder), "-U", "postgres", "-d", NAME, "-f", "rows.sql")
    write_rows(replica, 6)
    with pytest.raises(ForeignRows, match="are not counted"):
        refresh(replica)
    assert total(replica) == 6
    for operation in (OPERATIONS[1], OPERATIONS[2], lambda db: Follower(db, 0.05, threading.Event()).follow(3, 0)):
        with pytest.raises(ForeignRows) as refused:
            operation(replica)
    execute_plain(replica, re.findall("them with '(.*)'", str(refused.value))[0])
    assert refresh(replica).rows == 20
    # The other fifty came with ids that had been used here: as if they had been there before.
    assert {proof.finding for proof in verify(replica, [DAY]).days} == {"logs_added"}
    rebuild(replica, [DAY])
    assert_exact(replica)
    assert verify(replica, [DAY]).difference == 0


def total(db: Database) -> int:
    return sum(values[0] for values in stored(db).values())


def test_log_rows_that_are_replicated_without_their_ids_are_counted_as_they_arrive(pair, databases):
    original, copy = pair
    source, replica = databases
    ensure_database(copy.url(NAME))
    install(replica)
    rebuild(replica, [DAY])
    use_ids(original, max(0, next_id(copy) - next_id(original)) + 400)
    columns = ", ".join(column.name for column in LOG.table.columns)
    execute_plain(source, f"create publication log_rows for table {LOG.name} ({columns})")
    with subscribed(original, source, replica, "log_rows"):
        write_rows(source, 20)
        until(lambda: count(replica) == count(source))
        assert refresh(replica).rows == 70
        write_rows(source, 5)
        until(lambda: count(replica) == count(source))
        assert refresh(replica).rows == 5
        assert_exact(replica)
        assert verify(replica, [DAY]).difference == 0


def test_ids_that_were_set_back_are_refused(pair, databases):
    """As after pg_resetwal; the state row is the cluster's own."""
    source, _ = databases
    ahead = next_id(pair[0]) + 10_000
    execute_plain(source, f"update rollup_state set snapshot = '{ahead}:{ahead}:', written_by = txid_current()")
    assert_refused(source)
