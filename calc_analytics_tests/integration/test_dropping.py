"""Prune drops a partition all of whose rows are counted (and archived); every other one keeps it, whatever comes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timezone
from functools import partial
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.engine import URL

from calc_analytics.archive import checking
from calc_analytics.archive.writing import archive
from calc_analytics.cli.main import main
from calc_analytics.database import log_partitions
from calc_analytics.database.engine import engine_for
from calc_analytics.database.log_partitions import between_ids
from calc_analytics.rollup import dropping, journal
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.ledger import built_days, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.archives import archive_in, counted_in
from calc_analytics_tests.conftest import ROLE, least_privilege, own_database
from calc_analytics_tests.crowd import Crowd
from calc_analytics_tests.logs import FORMS, all_stored, disagreements, live, row, stored, utc, write
from calc_analytics_tests.partitioned import LOGS, count_days, month, partitions, run, scalar, write_days

JANUARY, FEBRUARY, MARCH = (f"calculation_logs_2026_0{n}" for n in (1, 2, 3))
DAYS = [date(2026, month, day) for month in (1, 2, 3) for day in (1, 2, 28)]
LIMIT = date(2026, 3, 1)


@pytest.fixture(scope="module")
def months(server_url: URL, template: str, maintenance: Callable[[str], None]) -> Iterator[str]:
    """A database with three months of counted rows, to be cloned."""
    with own_database(server_url, maintenance) as url:
        engine = engine_for(url)
        run(engine, LOGS, month(1), month(2), month(3))
        db = Database(engine, LOG, "UTC")
        install(db)
        with engine.begin() as connection:
            connection.execute(text(least_privilege(ROLE)))
        count_days(db, DAYS)
        engine.dispose()
        yield str(url.database)


@pytest.fixture
def url(server_url: URL, months: str, maintenance: Callable[[str], None]) -> Iterator[URL]:
    """A clone of it."""
    with own_database(server_url, maintenance, months) as url:
        yield url


@pytest.fixture
def db(url: URL) -> Iterator[Database]:
    """That database, as the role that owns its tables."""
    engine = engine_for(url)
    yield Database(engine, LOG, "UTC")
    engine.dispose()


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that are in use are given up after a second."""
    monkeypatch.setattr(log_partitions, "ATTEMPTS", 3)
    monkeypatch.setattr(log_partitions, "PAUSE_SECONDS", 0.05)


def assert_books_balance(db: Database) -> None:
    """Every day is proven, the rollups agree, and the live views are the statistics."""
    refresh(db)
    assert not waiting_days(db)
    report = verify(db, built_days(db))
    assert [str(proof) for proof in report.different] == []
    assert disagreements(db) == []
    assert {name: live(db, name) for name in FORMS} == all_stored(db)


def insert(place: Database | psycopg.Connection, at: str, table: str = "calculation_logs") -> None:
    """A row of that instant; in a connection's open transaction."""
    columns = "publisher_id, locality_id, date_calculated, source, created_at"
    statement = f"insert into {table} ({columns}) values (1, 1, '2030-01-01', 1, '{at}')"
    if isinstance(place, Database):
        run(place, statement)
    else:
        place.execute(statement.encode())


def total(db: Database) -> int:
    return sum(measures[0] for measures in stored(db).values())


def test_months_before_the_limit_are_dropped_and_their_statistics_stay(db: Database):
    before = all_stored(db)
    report = prune(db, LIMIT)
    assert report.dropped == {JANUARY: 30, FEBRUARY: 30}
    assert report.rows_by_day == dict.fromkeys(DAYS[:6], 10)
    assert (report.kept, report.busy) == ({}, [])
    assert partitions(db) == [MARCH]
    assert all_stored(db) == before
    assert_books_balance(db)
    assert [proof.deleted_rows for proof in verify(db, DAYS[:1]).days] == [10] * 4
    assert prune(db, LIMIT).as_dict()["dropped_partitions"] == {}


def test_the_journal_has_the_days_and_the_name(db: Database):
    prune(db, LIMIT)
    entries = [entry for entry in journal.history(db) if entry.operation == "prune"]
    assert [(entry.rows, entry.detail) for entry in reversed(entries)] == [
        (30, f"emptied partition {JANUARY}"),
        (0, f"dropped partition {JANUARY} (30 rows)"),
        (30, f"emptied partition {FEBRUARY}"),
        (0, f"dropped partition {FEBRUARY} (30 rows)"),
    ]
    assert entries[-1].days == {str(day): 10 for day in DAYS[:3]}


def test_a_partition_across_the_limit_loses_its_old_rows_one_by_one(db: Database):
    report = prune(db, date(2026, 2, 2))
    assert (report.dropped, report.rows) == ({JANUARY: 30}, 40)
    assert scalar(db, f"select count(*) from {FEBRUARY}") == 20
    assert_books_balance(db)


def test_with_only_partitions_it_keeps_them(db: Database):
    report = prune(db, date(2026, 2, 2), only_partitions=True)
    assert (report.dropped, report.rows) == ({JANUARY: 30}, 30)
    assert scalar(db, f"select count(*) from {FEBRUARY}") == 30


def test_rows_that_are_not_counted_yet_are_counted_first(db: Database):
    write_days(db, [date(2026, 1, 15)], 7)
    write_days(db, DAYS[:1], 3)
    report = prune(db, LIMIT)
    assert report.dropped == {JANUARY: 40, FEBRUARY: 30}
    assert total(db) == 100
    assert_books_balance(db)


@pytest.mark.long
def test_rows_that_no_refresh_counts_keep_their_partition(db: Database):
    run(db, f"update {JANUARY} set xact_id = null, created_at = '2026-01-20Z' where created_at < '2026-01-01 03:00Z'")
    report = prune(db, LIMIT)
    assert JANUARY not in report.dropped
    assert JANUARY in report.kept
    assert scalar(db, f"select count(*) from {JANUARY} where created_at > '2026-01-19Z'") > 0


@pytest.mark.long
def test_a_day_that_differs_keeps_its_partition_and_its_rows(db: Database):
    run(db, "update calculation_stats_daily set cache_hits = cache_hits + 1 where date = '2026-01-02'")
    report = prune(db, LIMIT)
    assert report.dropped == {FEBRUARY: 30}
    assert report.kept == {JANUARY: "2026-01-02 is not proven"}
    assert (report.different, scalar(db, f"select count(*) from {JANUARY}")) == ([date(2026, 1, 2)], 10)


WRITES = {
    "insert": "insert into {0} (publisher_id, locality_id, date_calculated, source, created_at) "
    "values (1, 1, '2030-01-01', 1, '2026-01-01 05:00Z')",
    "update of nothing": "update {0} set publisher_id = publisher_id where created_at < '2026-01-01 12:00Z'",
    "correction": "update {0} set publisher_id = 9 where created_at < '2026-01-01 12:00Z'",
    "deletion": "delete from {0} where id = (select min(id) from {0})",
    "exchange": "with gone as (delete from {0} where id = (select min(id) from {0}) returning *) "
    "insert into {0} overriding system value select * from gone",
}


@pytest.mark.long
@pytest.mark.parametrize("moment", ["oldest_running", "_totals_sql", "keep_writers_out"])
@pytest.mark.parametrize("change", WRITES)
def test_rows_that_are_written_while_a_partition_is_added_up(
    db: Database, monkeypatch: pytest.MonkeyPatch, moment: str, change: str
):
    """The writer waits for nothing. Its rows are counted, and the partition is dropped. Days that differ stay red."""
    original, calls = getattr(dropping, moment), [0]
    wanted = 6 if moment == "_totals_sql" else 1  # between two rollups of a day in the middle

    def act(*given):
        found = original(*given) if moment == "oldest_running" else None
        calls[0] += 1
        if calls[0] == wanted:
            run(db, WRITES[change].format(JANUARY))
        return found or original(*given)

    monkeypatch.setattr(dropping, moment, act)
    report = prune(db, date(2026, 2, 1), only_partitions=True)
    if change in ("correction", "deletion"):
        # Deleted before it was read, after the proof: then the others are gone too, and the day is red.
        is_gone = change == "deletion" and moment == "oldest_running"
        assert (JANUARY in report.dropped, report.kept == {JANUARY: "2026-01-01 is not proven"}) == (
            is_gone,
            not is_gone,
        )
        assert {proof.day for proof in verify(db, DAYS).different} == {DAYS[0]}
    else:
        assert (report.dropped, report.kept) == ({JANUARY: 31 if change == "insert" else 30}, {})
        assert_books_balance(db)


HALF, ALL = 2**31, 2**32


@pytest.mark.parametrize("first", [1000, HALF - 5, ALL - 5, 3 * ALL + 7])
@pytest.mark.parametrize(
    ("distance", "is_between"), [(-1, False), (0, True), (9, True), (10, False), (-HALF, False), (-HALF - 99, False)]
)
def test_ids_of_transactions_are_compared_across_their_limits(
    db: Database, first: int, distance: int, is_between: bool
):
    """Of versions that are a half of all ids away, too, and where the first id is just before the last of 32 bits."""
    version, end = (first + distance) % ALL, first + 10
    assert scalar(db, f"select {between_ids(f'cast({version} as bigint)', str(first), str(end))}") is is_between


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_no_transaction_is_not_one_of_them(db: Database, frozen: int):
    assert scalar(db, f"select {between_ids(str(frozen), str(ALL - 5), str(ALL + 5))}") is False


@pytest.mark.long
def test_a_partition_that_is_written_to_again_and_again_is_left(db: Database, monkeypatch: pytest.MonkeyPatch):
    lock = dropping.keep_writers_out

    def write_first(connection, partition):
        run(db, WRITES["insert"].format(JANUARY))
        return lock(connection, partition)

    monkeypatch.setattr(dropping, "keep_writers_out", write_first)
    report = prune(db, date(2026, 2, 1))
    assert (report.dropped, report.busy) == ({}, [JANUARY])
    assert report.kept == {JANUARY: "its rows were written to while they were added up"}
    assert scalar(db, f"select count(*) from {JANUARY}") == 33
    assert_books_balance(db)


@pytest.mark.long
def test_late_rows_of_an_emptied_month_stay_and_are_counted(db: Database, connect, monkeypatch: pytest.MonkeyPatch):
    drop = dropping.drop_empty

    def arrive(engine, partition, note):
        write(connect(), [row(utc(2026, 1, 1, 5))] * 2)
        return drop(engine, partition, note)

    monkeypatch.setattr(dropping, "drop_empty", arrive)
    report = prune(db, date(2026, 2, 1))
    assert (report.dropped, report.kept) == ({JANUARY: 30}, {JANUARY: "rows have come to it"})
    assert_books_balance(db)
    assert total(db) == 92
    monkeypatch.undo()
    assert prune(db, date(2026, 2, 1)).dropped == {JANUARY: 2}
    assert JANUARY not in partitions(db)
    assert_books_balance(db)


@pytest.mark.long
def test_an_open_writer_keeps_its_partition_and_is_named(db: Database, connect):
    writer = connect()
    writer.execute("set application_name = 'the API'")
    write(writer, [])
    insert(writer, "2026-01-05Z", JANUARY)
    report = prune(db, LIMIT)
    assert (report.dropped, report.busy) == ({FEBRUARY: 30}, [JANUARY, FEBRUARY])
    assert report.kept[JANUARY] == (f"it is in use by process {writer.info.backend_pid} (the API, idle in transaction)")
    assert scalar(db, f"select count(*) from {JANUARY}") == 30
    writer.commit()
    assert prune(db, LIMIT).dropped == {JANUARY: 31, FEBRUARY: 0}
    assert_books_balance(db)


def test_a_writer_of_another_month_waits_for_nothing_and_delays_the_drop_alone(db: Database, connect):
    writer, other = connect(), connect()
    insert(writer, "2026-03-05Z")
    report = prune(db, date(2026, 2, 1))
    assert (report.dropped, report.busy) == ({JANUARY: 30}, [JANUARY])
    assert "in use by process" in report.kept[JANUARY]
    assert (scalar(db, f"select count(*) from {JANUARY}"), partitions(db)) == (0, [JANUARY, FEBRUARY, MARCH])
    started = time.monotonic()
    write(other, [row(utc(2026, 3, 6))])
    assert time.monotonic() - started < 0.5
    assert_books_balance(db)
    writer.commit()
    report = prune(db, date(2026, 2, 1))
    assert (report.dropped, report.busy, partitions(db)) == ({JANUARY: 0}, [], [FEBRUARY, MARCH])
    assert_books_balance(db)


@pytest.mark.long
def test_a_reader_of_the_month_keeps_it(db: Database, connect):
    reader = connect()
    reader.execute(f"select count(*) from {JANUARY}")
    report = prune(db, date(2026, 2, 1))
    assert (report.rows, report.busy) == (0, [JANUARY])
    assert scalar(db, f"select count(*) from {JANUARY}") == 30
    reader.commit()
    assert prune(db, date(2026, 2, 1)).dropped == {JANUARY: 30}


def test_a_role_that_does_not_own_it_deletes(db: Database, url: URL):
    run(db, f"grant delete on calculation_logs to {ROLE}")
    engine = engine_for(url.set(username=ROLE))
    report = prune(Database(engine, LOG, "UTC"), date(2026, 2, 1))
    engine.dispose()
    assert (report.rows, report.dropped) == (30, {})
    assert report.kept == {JANUARY: f"the role '{ROLE}' does not own it"}
    assert JANUARY in partitions(db)
    assert_books_balance(db)


KEPT: dict[str, tuple[list[str], str]] = {
    "a foreign key refers to it": (
        ["create table notes (id bigint, at timestamptz, foreign key (id, at) references calculation_logs)"],
        "a foreign key refers to it",
    ),
    "a view reads it": (
        [f"create view old_logs as select * from {JANUARY}"],
        "a view reads it",
    ),
    "a row trigger of the log": (
        [
            "create function keep() returns trigger language plpgsql as 'begin return old; end'",
            "create trigger keep before delete on calculation_logs for each row execute function keep()",
        ],
        "a trigger is called for each deleted row",
    ),
    "a statement trigger of the log": (
        [
            "create function keep() returns trigger language plpgsql as 'begin return null; end'",
            "create trigger keep after delete on calculation_logs for each statement execute function keep()",
        ],
        "a trigger is called for each deleted row",
    ),
    "sub-partitions": (
        [
            f"drop table {JANUARY}",
            month(1, more="partition by hash (id)"),
            f"create table january_0 partition of {JANUARY} for values with (modulus 2, remainder 0)",
            f"create table january_1 partition of {JANUARY} for values with (modulus 2, remainder 1)",
            "insert into calculation_logs select * from january",
        ],
        "it has partitions of its own, or is a foreign table",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("case", KEPT)
def test_what_dropping_would_leave_out_is_deleted_row_by_row(db: Database, case: str):
    statements, reason = KEPT[case]
    run(db, f"create table january as select * from {JANUARY}", *statements)
    before = set(partitions(db))
    report = prune(db, date(2026, 2, 1))
    assert report.rows == 30
    assert (report.dropped, report.kept) == ({}, {JANUARY: reason})
    assert set(partitions(db)) == before
    assert_books_balance(db)


@pytest.mark.long
@pytest.mark.parametrize(
    ("by", "tables"),
    [
        ("hash (id, created_at)", ["for values with (modulus 1, remainder 0)"]),
        ("list (publisher_id)", ["for values in (0, 1)", "default"]),
        ("range (publisher_id)", ["for values from (minvalue) to (maxvalue)"]),
        ("range (created_at, publisher_id)", ["for values from (minvalue, minvalue) to ('2027-01-01Z', 0)"]),
        (
            "range (date_bin('1 day', created_at, timestamptz '2000-01-01Z'))",
            ["for values from (minvalue) to ('2027-01-01Z')"],
        ),
        ("range (created_at)", ["default"]),
    ],
)
def test_partitions_by_other_keys_are_never_dropped(empty_url: URL, by: str, tables: list[str]):
    engine = engine_for(empty_url)
    db = Database(engine, LOG, "UTC")
    run(db, LOGS.replace(", primary key (id, created_at)", "").replace("range (created_at)", by))
    for number, how in enumerate(tables):
        run(db, f"create table part_{number} partition of calculation_logs {how}")
    install(db)
    write_days(db, DAYS)
    refresh(db)
    rebuild(db, waiting_days(db))
    report = prune(db, date(2026, 4, 1))
    assert (report.rows, report.dropped, len(partitions(db))) == (90, {}, len(tables))
    assert_books_balance(db)
    engine.dispose()


@pytest.mark.long
def test_the_default_partition_is_never_dropped(db: Database):
    run(db, "create table logs_other partition of calculation_logs default")
    write_days(db, [date(2025, 12, 31)])
    refresh(db)
    report = prune(db, LIMIT)
    assert (report.dropped, report.rows) == ({JANUARY: 30, FEBRUARY: 30}, 70)
    assert partitions(db) == [MARCH, "logs_other"]
    assert_books_balance(db)


@pytest.mark.long
@pytest.mark.parametrize(("zone", "limit"), [("America/New_York", date(2026, 1, 31)), ("Asia/Tokyo", date(2026, 2, 1))])
def test_a_month_that_ends_within_a_day_of_the_reporting_zone_waits_for_that_day(db: Database, zone: str, limit: date):
    """The day is in two partitions; its rows in the dropped one are accounted, the others stay."""
    rebase(replace(db, timezone=zone))
    db = replace(db, timezone=zone)
    for at in ("2026-01-31 23:30Z", "2026-02-01 00:30Z"):
        insert(db, at)
    refresh(db)
    rebuild(db, waiting_days(db))
    assert JANUARY not in prune(db, limit, only_partitions=True).dropped
    report = prune(db, date(2026, 2, 2), only_partitions=True)
    assert report.dropped == {JANUARY: 31}
    assert_books_balance(db)


@pytest.mark.long
def test_names_of_any_kind(db: Database):
    run(db, f'alter table {JANUARY} rename to "Logs: of ""January"", 2026"')
    assert list(prune(db, date(2026, 2, 1)).dropped.values()) == [30]
    assert_books_balance(db)


def test_only_archived_rows_are_dropped(db: Database, tmp_path: Path):
    place = archive_in(db, tmp_path)
    prove = partial(checking.prove_day, place)
    archive(place, DAYS[:2])
    report = prune(place.db, LIMIT, prove_archived=prove)
    assert (report.dropped, report.rows) == ({}, 20)
    assert report.kept[JANUARY] == "1 day of it is not archived: 2026-01-28"
    archive(place, DAYS)
    report = prune(place.db, LIMIT, prove_archived=prove)
    assert report.dropped == {JANUARY: 10, FEBRUARY: 30}
    assert_books_balance(place.db)
    assert checking.check(place).problems == []


@pytest.mark.long
def test_rows_that_came_after_the_archive_keep_the_partition(db: Database, tmp_path: Path, monkeypatch):
    """Committed and counted after the days were proven, before the lock."""
    place = archive_in(db, tmp_path)
    archive(place, DAYS)
    lock = dropping.keep_writers_out

    def arrive(connection, partition):
        if partition.name == JANUARY:
            write_days(db, DAYS[:1], 1)
        return lock(connection, partition)

    monkeypatch.setattr(dropping, "keep_writers_out", arrive)
    report = prune(place.db, LIMIT, prove_archived=partial(checking.prove_day, place))
    assert FEBRUARY in report.dropped
    assert report.kept[JANUARY] == "1 day of it is not archived: 2026-01-01"
    assert scalar(db, f"select count(*) from {JANUARY}") == 11
    assert_books_balance(place.db)


def test_the_command_names_the_partitions(db: Database, url: URL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    kept = (datetime.now(timezone.utc).date() - LIMIT).days
    words = ["prune", "--older-than", str(kept), "--only-partitions"]
    refused = CliRunner().invoke(main, words, input="n\n")
    assert f"and drop {JANUARY}, {FEBRUARY} with theirs for good?" in refused.output
    assert len(partitions(db)) == 3
    result = CliRunner().invoke(main, [*words, "--yes"])
    assert result.exit_code == 0, result.output
    assert f"  dropped partition {JANUARY} (30 rows)\n" in result.output
    assert "60 rows of 6 days deleted, 60 of them with 2 partitions in " in result.output


class Killed(Exception):
    """In the place of kill -9."""


def kill(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("at", ["note_rows", "drop_empty"])
def test_what_ends_before_its_commit_has_not_happened(db: Database, monkeypatch: pytest.MonkeyPatch, at: str):
    """The rows are noted and gone, or neither; then the empty partition is dropped, or is left to the next prune."""
    with monkeypatch.context() as patch:
        patch.setattr(journal if at == "note_rows" else dropping, at, kill)
        with pytest.raises(Killed):
            prune(db, LIMIT)
    assert len(partitions(db)) == 3
    assert scalar(db, "select count(*) from calculation_logs") == (90 if at == "note_rows" else 60)
    assert_books_balance(db)
    assert list(prune(db, LIMIT).dropped) == [JANUARY, FEBRUARY]
    assert partitions(db) == [MARCH]
    assert_books_balance(db)


@pytest.mark.long
@pytest.mark.parametrize("times", [1, 100])
def test_a_day_that_is_found_to_differ_meanwhile_is_proven_again(
    db: Database, monkeypatch: pytest.MonkeyPatch, times: int
):
    lock, left = dropping.keep_writers_out, [times]

    def spoil(connection, partition):
        if partition.name == JANUARY and left[0]:
            left[0] -= 1
            run(db, "update rollup_days set difference = 5 where date = '2026-01-02'")
        return lock(connection, partition)

    monkeypatch.setattr(dropping, "keep_writers_out", spoil)
    report = prune(db, LIMIT, only_partitions=True)
    assert (JANUARY in report.dropped) == (times == 1)
    assert report.kept.get(JANUARY) == (None if times == 1 else dropping.NOT_PROVEN)
    assert_books_balance(db)


# -- Kills, and everything at once -------------------------------------------------------------------------------------

PRUNE = """
import sys
from datetime import date
from sqlalchemy.engine import make_url
from calc_analytics.database.engine import engine_for
from calc_analytics.database.log_partitions import between_ids
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.retention import prune
from calc_analytics.rollups import LOG
print("ready", flush=True)
sys.stdin.readline()
prune(Database(engine_for(make_url(sys.argv[1])), LOG, "UTC"), date(2026, 3, 1))
"""


@pytest.mark.long
def test_a_kill_at_any_moment_leaves_all_or_nothing(db: Database, url: URL):
    before, rng = all_stored(db), random.Random(5)
    for _ in range(12):
        command = [sys.executable, "-c", PRUNE, url.render_as_string(hide_password=False)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.write(b"\n")
        process.stdin.flush()
        time.sleep(rng.uniform(0.05, 0.9))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        there = scalar(db, "select count(*) from calculation_logs")
        assert there in (30, 60, 90)
        assert all_stored(db) == before
        assert verify(db, DAYS).difference == 0
    prune(db, LIMIT)
    assert partitions(db) == [MARCH]
    assert_books_balance(db)


@pytest.mark.long
def test_dropping_while_everything_else_runs_never_differs(db: Database, connect, monkeypatch: pytest.MonkeyPatch):
    """Partitions are added and dropped, in turn, while rows are written to them, counted, rebuilt and proven."""
    monkeypatch.setattr(log_partitions, "ATTEMPTS", 4)
    writer, errors, written = connect(), [0], [0]
    # On a busy machine a partition is busy more often than not: the others take longer pauses each round.
    pause = [1.0]

    def writing() -> None:
        at = utc(2026, random.choice((1, 2, 3)), random.randint(1, 28), random.randint(0, 23))
        try:
            write(writer, [row(at, publisher=written[0] % 5)] * 7)
            written[0] += 7
        except psycopg.errors.CheckViolation:  # no partition for the row
            writer.rollback()
            errors[0] += 1
        time.sleep(0.05 * pause[0])

    def proving() -> None:
        report = verify(db, DAYS)
        assert not report.different, report.different
        time.sleep(0.1 * pause[0])

    def counting() -> None:
        refresh(db)
        time.sleep(0.02 * pause[0])

    def building() -> None:
        rebuild(db, DAYS[:4])
        time.sleep(0.2 * pause[0])

    rows, dropped, rounds = 0, 0, 0
    with Crowd(writing, proving, counting, building):
        while rounds < 5 or not dropped:
            report = prune(db, LIMIT)
            rows, dropped = rows + report.rows, dropped + len(set(report.dropped) - set(report.kept))
            for number in (1, 2):
                if f"calculation_logs_2026_0{number}" not in partitions(db):
                    run(db, month(number))
            rounds, pause[0] = rounds + 1, min(pause[0] * (1 if dropped else 2), 20)
            assert rounds < 80
    refresh(db)
    rebuild(db, waiting_days(db))
    assert_books_balance(db)
    assert total(db) == 90 + written[0]
    assert scalar(db, "select count(*) from calculation_logs") == 90 + written[0] - rows


@pytest.mark.long
def test_two_prunes_at_once_take_turns(db: Database):
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(prune(db, LIMIT))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.rows for report in reports) == 60
    assert partitions(db) == [MARCH]
    assert_books_balance(db)


def test_days_of_a_dropped_partition_are_rebuilt_from_the_archive(db: Database, tmp_path: Path):
    place = archive_in(db, tmp_path / "archive")
    archive(place)
    prune(place.db, LIMIT, prove_archived=partial(checking.prove_day, place))
    assert "calculation_logs_2026_01" not in str(partitions(db))
    before = all_stored(db)
    for name in FORMS:
        run(db.engine, f"delete from {name} where date < '{LIMIT}'")
    report = rebuild(place.db, DAYS, archived=counted_in(place))
    assert report.refused == []
    assert {each.day for each in report.rebuilt if each.source == "archive"} == {day for day in DAYS if day < LIMIT}
    assert all_stored(db) == before
    assert_books_balance(db)
