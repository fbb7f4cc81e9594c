"""Erasing one publisher: nothing of it is left, the others keep their numbers, and the books balance at each commit."""

import json
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import Column, Date, Integer, MetaData, SmallInteger, Table, func, text
from sqlalchemy.engine import URL, Engine

from calc_analytics.cli.main import main
from calc_analytics.database.engine import engine_for
from calc_analytics.database.tables import calculation_logs
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.erasure import CannotErase, NothingToErase, erase, holdings, quiet
from calc_analytics.rollup.erasure.quiet import StillWriting
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.journal import history
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import days_by_status, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LATENCY, LOG, STATS
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.crowd import Crowd
from calc_analytics_tests.integration.test_migrations import PARTITIONED
from calc_analytics_tests.logs import (
    FORMS,
    assert_exact,
    copy_rows,
    disagreements,
    execute,
    live,
    oracle,
    random_rows,
    row,
    stored,
    utc,
    write,
)

PRUNED, DAY, NEXT = date(2026, 2, 1), date(2026, 3, 1), date(2026, 3, 2)
DAYS = [PRUNED, DAY, NEXT]
ERASED = 2
SEVEN = {"publisher_id": ERASED}
logs = calculation_logs.c


@pytest.fixture
def counted(db: Database, connect) -> Database:
    """Three built days of four publishers; the first is pruned, and has late rows of all four."""
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    rng, writer = random.Random(5), connect()
    for day in DAYS:
        begin = utc(day.year, day.month, day.day)
        write(writer, random_rows(rng, 120, begin, begin + timedelta(days=1), publishers=4))
    rebuild(db, DAYS)
    assert set(prune(db, DAY).rows_by_day) == {PRUNED}
    write(writer, random_rows(rng, 24, utc(2026, 2, 1), utc(2026, 2, 2), publishers=4))
    refresh(db)
    assert red(db) == {}
    return db


def red(db: Database) -> dict[date, list[str]]:
    """What differs once everything was compared, as it is on record."""
    audit(db)
    verify(db, DAYS)
    return different_days(db)


def statistics(db: Database, without: int | None = None) -> dict:
    """All tables; without one publisher."""
    return {name: {key: values for key, values in stored(db, name).items() if key[0] != without} for name in FORMS}


def assert_erased(db: Database, expected: dict) -> None:
    """Nothing of the publisher is anywhere, and everything else is what it was and proven."""
    assert holdings(db, SEVEN).tables == {}
    assert statistics(db) == {name: live(db, name) for name in FORMS} == expected
    assert (red(db), [each for each in disagreements(db) if each.date in DAYS]) == ({}, [])
    for day in (DAY, NEXT):
        of_day = {key: values for key, values in stored(db).items() if key[-1] == day}
        assert of_day == {key: values for key, values in oracle(db).items() if key[-1] == day}


def test_nothing_of_the_publisher_is_left_and_the_others_keep_their_numbers(counted: Database, connect):
    expected = statistics(counted, without=ERASED)
    write(connect(), [row(utc(2026, 3, 1, 12), publisher=ERASED)] * 3)  # not counted yet
    report = erase(counted, SEVEN)
    assert (report.left, report.arrived, report.open_writers) == ([], 0, [])
    assert_erased(counted, expected)
    deleted = {proof.rollup: proof.deleted_rows for proof in verify(counted, [PRUNED]).days}
    of_others = sum(values[0] for key, values in expected["calculation_stats_daily"].items() if key[-1] == PRUNED)
    left = sum(values[0] for key, values in oracle(counted).items() if key[-1] == PRUNED)
    assert set(deleted.values()) == {of_others - left}
    rebuild(counted, [DAY, NEXT])
    assert_erased(counted, expected)


def test_the_books_balance_at_each_commit(counted: Database):
    expected, batches = statistics(counted, without=ERASED), list[int]()

    def compare(rows: int) -> None:
        batches.append(rows)
        assert (red(counted), disagreements(counted)) == ({}, [])

    report = erase(counted, SEVEN, batch_rows=7, progress=compare)
    assert max(batches) == 7
    assert sum(batches) == report.rows("calculation_logs") > 50
    assert_erased(counted, expected)


def test_the_receipt_holds_the_key_and_counts_and_nothing_else(counted: Database):
    held = holdings(counted, SEVEN)
    erase(counted, SEVEN, batch_rows=20)
    (receipt,) = [entry for entry in history(counted) if entry.operation == "erase"]
    assert receipt.detail == f"publisher_id {ERASED}"
    assert receipt.rows == held.rows("calculation_logs")
    assert receipt.days == {
        str(day): {name: rows[day] for name, rows in held.tables.items() if day in rows} for day in DAYS
    }


PROGRAM = """
import sys, time
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.erasure import erase
from calc_analytics.rollups import LOG
from sqlalchemy.engine import make_url

def show(rows):
    print(rows, flush=True)
    time.sleep(0.02)

erase(Database(engine_for(make_url(sys.argv[1])), LOG, "UTC"), {"publisher_id": 2}, batch_rows=5, progress=show)
"""


def test_killed_in_the_middle_it_is_simply_run_again(counted: Database):
    expected = statistics(counted, without=ERASED)
    url = counted.engine.url.render_as_string(hide_password=False)
    for batches in (2, 5, 5):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(batches):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (red(counted), disagreements(counted)) == ({}, [])
        assert {name: statistics(counted, without=ERASED)[name] for name in FORMS} == expected
    assert not erase(counted, SEVEN).problems
    assert_erased(counted, expected)
    receipts = [entry for entry in history(counted) if entry.operation == "erase"]
    assert len(receipts) == 4


def test_two_at_once_during_writes_refreshes_rebuilds_prunes_and_proofs(counted: Database, url: URL, connect):
    own = replace(counted, engine=engine_for(url.set(username=ROLE)))
    rng, writer, written = random.Random(3), connect(), [0]
    before = {key: values for key, values in stored(counted).items() if key[0] not in (ERASED, 3)}

    def writing() -> None:
        day = rng.choice(DAYS)
        write(writer, [row(utc(day.year, day.month, day.day, 12), publisher=1)] * 3)
        written[0] += 3
        time.sleep(0.01)

    def proving() -> None:
        different = verify(counted, DAYS).different
        assert not different, [proof.describe() for proof in different]

    works = [
        writing,
        proving,
        lambda: refresh(counted),
        lambda: rebuild(counted, DAYS),
        lambda: prune(counted, NEXT, batch_rows=20),
        lambda: _erase_if_there(own, 3),
    ]
    with Crowd(*works):
        erase(own, SEVEN, batch_rows=5)
    _erase_if_there(own, 3)
    own.engine.dispose()
    refresh(counted)
    assert (red(counted), disagreements(counted)) == ({}, [])
    after = stored(counted)
    assert {key[0] for key in after} == {1, 4}
    assert {key: values for key, values in after.items() if key[0] == 4} == {
        key: values for key, values in before.items() if key[0] == 4
    }
    counts = [sum(values[0] for key, values in each.items() if key[0] == 1) for each in (after, before)]
    assert counts[0] - counts[1] == written[0]


def _erase_if_there(db: Database, publisher: int) -> None:
    with suppress(NothingToErase):
        erase(db, {"publisher_id": publisher}, batch_rows=5)
    time.sleep(0.05)


# -- A publisher that still writes -------------------------------------------------------------------------------------


def test_it_refuses_while_rows_of_the_last_minutes_are_there(counted: Database, connect):
    before, now = statistics(counted), datetime.now(timezone.utc)
    write(connect(), [row(now, publisher=ERASED)] * 2)
    with pytest.raises(StillWriting, match=r"2 log rows of publisher_id 2 were written in the last 15 minutes"):
        erase(counted, SEVEN)
    assert statistics(counted) == before
    assert not erase(counted, SEVEN, even_if_writing=True).problems
    assert holdings(counted, SEVEN).tables == {}


def test_others_that_write_and_rows_of_the_future_are_no_obstacle(counted: Database, connect):
    write(connect(), [row(datetime.now(timezone.utc), publisher=1), row(utc(2040, 1, 1), publisher=ERASED)])
    assert not erase(counted, SEVEN).problems
    assert holdings(counted, SEVEN).tables == {}


def test_it_waits_for_open_transactions_and_refuses_if_one_stays_open(counted: Database, connect, monkeypatch):
    monkeypatch.setattr(quiet, "WAIT_SECONDS", 0.3)
    before, idle = statistics(counted), connect()
    copy_rows(idle, [row(utc(2026, 3, 1, 12), publisher=ERASED)] * 4)
    pid = idle.info.backend_pid
    with pytest.raises(
        StillWriting, match=rf"process {pid}\) has written log rows, which may be those of publisher_id 2"
    ):
        erase(counted, SEVEN)
    assert statistics(counted) == before
    assert not erase(counted, SEVEN, even_if_writing=True).problems
    idle.commit()
    assert refresh(counted).rows == 4, "rows that come later are counted as new"
    assert red(counted) == {}
    assert not erase(counted, SEVEN).problems
    assert holdings(counted, SEVEN).tables == {}


def test_rows_that_come_meanwhile_are_reported(counted: Database, connect):
    writer, expected = connect(), statistics(counted, without=ERASED)

    def write_late(rows: int) -> None:
        write(writer, [row(utc(2026, 2, 1, 12), publisher=ERASED)])
        refresh(counted)

    report = erase(counted, SEVEN, batch_rows=50, progress=write_late)
    assert report.arrived > 0
    assert f"{report.arrived} log rows of publisher_id 2 arrived while this ran" in report.problems[0]
    assert red(counted) == {}
    assert not erase(counted, SEVEN).problems
    assert_erased(counted, expected)


# -- Days that cannot be erased, or not now ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "change"),
    [
        (
            DAY,
            "update calculation_stats_daily set total_calculations = total_calculations + 1000 where publisher_id = 1",
        ),
        (DAY, "update calculation_stats_daily set cache_hits = cache_hits + 3 where publisher_id = 2"),
        (
            PRUNED,
            "update calculation_stats_daily set total_calculations = total_calculations + 5 where publisher_id = 2",
        ),
        (PRUNED, "update calculation_latency_daily set publisher_id = 9 where publisher_id = 2 and source = 1"),
        (PRUNED, "delete from calculation_stats_hourly where publisher_id = 2"),
    ],
    ids=["another's", "its own", "its own, pruned", "moved to another, pruned", "deleted, pruned"],
)
def test_a_day_whose_statistics_were_changed_is_left_and_stays_red(counted: Database, day: date, change: str):
    execute(counted, f"{change} and date = '{day}'")
    before, differences = red(counted), {(p.rollup, p.day): p.difference for p in verify(counted, DAYS).different}
    assert set(before) == {day}
    report = erase(counted, SEVEN)
    assert [str(each) for each in report.left] == [
        f"{day} was not erased, because it differs from its log or from what was counted: run 'calc-analytics verify "
        f"--day {day}', follow its advice, and erase again"
    ]
    assert red(counted) == before
    assert {(p.rollup, p.day): p.difference for p in verify(counted, DAYS).different} == differences
    assert set(holdings(counted, SEVEN).days) <= {day}


def test_a_day_that_lost_log_rows_is_left_until_a_person_decides(counted: Database):
    execute(counted, "delete from calculation_logs where publisher_id = 2 and created_at >= '2026-03-01Z'")
    expected = statistics(counted, without=ERASED)
    report = erase(counted, SEVEN)
    assert [each.day for each in report.left] == [DAY, NEXT]
    rebuild(counted, [DAY, NEXT], decision=Decision.KEEP)
    assert not erase(counted, SEVEN).problems
    assert_erased(counted, expected)


def test_a_change_between_the_proof_and_a_batch_stays_red(counted: Database):
    changes = iter(["update calculation_stats_daily set cache_hits = cache_hits + 3 "
                    f"where publisher_id = 1 and date = '{PRUNED}'"])  # fmt: skip

    def change(rows: int) -> None:
        for statement in changes:
            execute(counted, statement)

    erase(counted, SEVEN, batch_rows=2, progress=change)
    assert red(counted) == {PRUNED: [STATS.name]}
    assert [proof.difference for proof in verify(counted, [PRUNED]).different] == [3]


def test_a_day_that_waits_for_a_rebuild_is_left_until_it_was_rebuilt(counted: Database, owner: Engine):
    expected = statistics(counted, without=ERASED)
    rebase(Database(owner, LOG, "UTC"))
    report = erase(counted, SEVEN)
    assert [(each.day, each.reason) for each in report.left] == [(day, "waits") for day in DAYS]
    rebuild(counted, waiting_days(counted))
    assert not erase(counted, SEVEN).problems
    assert_erased(counted, expected)


def test_days_that_were_never_built_and_rows_without_a_day(counted: Database, connect):
    writer, expected = connect(), statistics(counted, without=ERASED)
    write(writer, [row(utc(2026, 3, 9, 12), publisher=n % 2 + 1) for n in range(10)])
    execute(counted, "update calculation_logs set xact_id = null where created_at >= '2026-03-09Z'")
    execute(counted, "update calculation_logs set created_at = 'infinity' "
                     "where id in (select max(id) from calculation_logs where publisher_id = 2)")  # fmt: skip
    report = erase(counted, SEVEN)
    assert (report.problems, report.erased["no day"]) == ([], {"calculation_logs": 1})
    assert_erased(counted, expected)


def test_a_frozen_days_statistics_of_others_stay_and_are_audited(counted: Database, owner: Engine):
    old = date(2025, 6, 1)
    for publisher in (1, ERASED):
        execute(counted, f"insert into {STATS.name} values ({publisher}, '{old}', 9, 1, 50, 9, 0, 0)")
    execute(counted, f"insert into rollup_days (rollup, date, status, method) "
                     f"values ('{STATS.name}', '{old}', 'pending', 'predecessor')")  # fmt: skip
    rebuild(counted, [old])
    assert old in days_by_status(counted, ["frozen"])
    expected = statistics(counted, without=ERASED)
    assert not erase(counted, SEVEN).problems
    assert_erased(counted, expected)
    execute(counted, f"update {STATS.name} set cache_hits = 2 where date = '{old}'")
    assert set(red(counted)) == {old}


# -- Other rollups -----------------------------------------------------------------------------------------------------

TOTALS = Rollup(
    target=Table(
        "calculation_totals_daily",
        MetaData(),
        Column("source", SmallInteger, primary_key=True, autoincrement=False),
        Column("date", Date, primary_key=True),
        Column("calculations", Integer, nullable=False),
        Column("cache_hits", Integer, nullable=False),
    ),
    key_expressions={"source": logs.source},
    aggregates={"calculations": func.count(), "cache_hits": func.count().filter(logs.cache_hit)},
    description="Calculations per source, of all publishers.",
)


@pytest.fixture
def summing(counted: Database, owner: Engine) -> Database:
    """The same with a rollup that sums over publishers."""
    with owner.begin() as connection:
        TOTALS.target.create(connection)
    install(replace(counted, engine=owner, log=replace(LOG, rollups=(*LOG.rollups, TOTALS))))
    db = replace(counted, log=replace(LOG, rollups=(*LOG.rollups, TOTALS)))
    rebuild(db, DAYS)
    return db


def totals(db: Database) -> dict:
    with db.engine.begin() as connection:
        rows = connection.execute(text(f"select source, date, calculations, cache_hits from {TOTALS.name}")).all()
    return {tuple(each[:2]): tuple(each[2:]) for each in rows}


def totals_of_log(db: Database, without: int = 0) -> dict:
    statement = f"""
        select source, (created_at at time zone 'UTC')::date, count(*), count(*) filter (where cache_hit)
        from calculation_logs where publisher_id <> {without} group by 1, 2
    """
    with db.engine.begin() as connection:
        return {tuple(each[:2]): tuple(each[2:]) for each in connection.execute(text(statement))}


def test_a_rollup_without_the_publisher_is_lowered_by_its_log_rows(summing: Database, connect):
    write(connect(), [row(utc(2026, 3, 1, 12), publisher=ERASED, source=77)] * 6)
    refresh(summing)
    expected = {key: values for key, values in totals_of_log(summing, without=ERASED).items() if key[1] in (DAY, NEXT)}
    report = erase(summing, SEVEN, batch_rows=5)
    assert report.problems == []
    assert {key: values for key, values in totals(summing).items() if key[1] in (DAY, NEXT)} == expected
    assert red(summing) == {}


def test_where_its_part_is_not_known_the_day_is_left_as_it_is(summing: Database):
    assert set(prune(summing, NEXT).rows_by_day) == {DAY}
    before = totals(summing)
    report = erase(summing, SEVEN)
    assert [(each.day, each.reason, each.rollup) for each in report.left] == [(DAY, "unknown", TOTALS.name)]
    assert "so this publisher's share is unknown" in report.problems[0]
    assert {key: v for key, v in totals(summing).items() if key[1] == DAY} == {
        key: v for key, v in before.items() if key[1] == DAY
    }
    assert red(summing) == {}
    assert holdings(summing, SEVEN).days == [DAY]
    rebuild(summing, [DAY], [TOTALS.name], decision=Decision.ALLOW_SHRINK)
    assert not erase(summing, SEVEN).problems
    assert (holdings(summing, SEVEN).tables, red(summing)) == ({}, {})


def test_a_rollup_that_is_switched_off_is_erased_too(counted: Database, owner: Engine, connect):
    fewer = LOG.only([name for name in LOG.names if name != LATENCY.name])
    install(Database(owner, fewer, "UTC"))
    off = replace(counted, log=fewer)
    late = [row(utc(2026, 3, 1, 12), publisher=n % 2 + 1, response_time_ms=300) for n in range(10)]
    write(connect(), late)
    refresh(off)
    report = erase(off, SEVEN, also=[LATENCY])
    assert report.rows(LATENCY.name) > 0
    assert ERASED not in {key[0] for key in stored(counted, LATENCY.name)}
    install(Database(owner, LOG, "UTC"))
    for _ in range(2):
        rebuild(counted, waiting_days(counted), decision=Decision.AUTOMATIC)
    assert red(counted) == {}
    built = days_by_status(counted, ["built"])
    assert LATENCY.name in built[DAY]
    for day in (DAY, NEXT):
        of_day = {key: values for key, values in stored(counted, LATENCY.name).items() if key[-1] == day}
        expected = oracle(counted, relation=LATENCY.name)
        assert of_day == {key: values for key, values in expected.items() if key[-1] == day}


def test_a_table_that_could_not_be_corrected_is_refused_before_anything_is_changed(summing: Database, owner: Engine):
    install(Database(owner, LOG, "UTC"))
    off, before = replace(summing, log=LOG), statistics(summing)
    with pytest.raises(CannotErase, match=f"{TOTALS.name} is switched off and sums over publisher_id 2"):
        erase(off, SEVEN, also=[TOTALS])
    with pytest.raises(CannotErase, match=f"{TOTALS.name} has statistics and is not declared"):
        erase(off, SEVEN)
    assert statistics(summing) == before


@pytest.mark.parametrize("begin", [date(2026, 3, 7), date(2026, 10, 31)], ids=["clocks forward", "clocks back"])
def test_a_partitioned_log_on_days_on_which_clocks_change(empty_url: URL, begin: date):
    """Around midnights that happen twice or not at all."""
    engine = engine_for(empty_url)
    days = [begin + timedelta(days=n) for n in range(3)]
    with engine.begin() as connection:
        connection.execute(text(PARTITIONED[0]))
        for first, last in ((date(2026, 1, 1), days[1]), (days[1], date(2027, 1, 1))):
            connection.execute(text(f'create table "logs {first}" partition of calculation_logs '
                                    f"for values from ('{first}Z') to ('{last}Z')"))  # fmt: skip
    db = Database(engine, LOG, "America/Havana")
    install(db)
    rng, first = random.Random(4), utc(begin.year, begin.month, begin.day, 5)
    with psycopg.connect(empty_url.set(drivername="postgresql").render_as_string(False)) as writer:
        write(writer, random_rows(rng, 200, first, first + timedelta(days=3), publishers=4))
    rebuild(db, days)
    assert days[0] in prune(db, days[1]).rows_by_day
    expected = statistics(db, without=ERASED)
    assert not erase(db, SEVEN, batch_rows=5).problems
    audit(db)
    assert (statistics(db), holdings(db, SEVEN).tables, verify(db, days).difference) == (expected, {}, 0)
    assert different_days(db) == {}
    engine.dispose()


# -- The command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def calc(database, counted: Database):
    """Runs `calc-analytics` with these words on that database."""
    return lambda *words: CliRunner().invoke(main, words)


def test_a_dry_run_counts_rows_per_table_and_day_and_changes_nothing(calc, counted: Database):
    before, held = statistics(counted), holdings(counted, SEVEN)
    result = calc("erase", "--publisher", str(ERASED), "--dry-run")
    assert result.exit_code == 0, result.output
    for name in held.tables:
        assert f"{name:<34}{held.rows(name):>12,} rows" in result.output
    for day in DAYS:
        assert f"{day}  " in result.output
    assert "3 days would be erased; nothing was changed" in result.output
    receipt = json.loads(calc("erase", "--publisher", str(ERASED), "--dry-run", "--json").output)
    assert receipt["tables"]["calculation_logs"]["rows"] == held.rows("calculation_logs")
    assert receipt["tables"][STATS.name]["days"] == {str(day): 1 for day in DAYS}
    assert (statistics(counted), [e for e in history(counted) if e.operation == "erase"]) == (before, [])


def test_the_command_erases_and_history_shows_the_receipt(calc, counted: Database):
    expected, held = statistics(counted, without=ERASED), holdings(counted, SEVEN)
    result = calc("erase", "--publisher", str(ERASED), "--yes")
    assert result.exit_code == 0, result.output
    rows = held.rows("calculation_logs")
    assert f"publisher_id 2: {rows} log rows and the statistics of 3 days erased" in result.output
    assert calc("verify").exit_code == 0
    assert_erased(counted, expected)
    shown = " ".join(calc("history").output.split())
    assert "erase 2026-02-01 to 2026-03-02" in shown
    assert f"erased publisher_id 2: {rows} of calculation_logs, 3 of {STATS.name}" in shown
    assert "erased publisher_id 2" in calc("history", "--day", str(DAY)).output
    again = calc("erase", "--publisher", str(ERASED), "--yes")
    assert (again.exit_code, again.stderr) == (
        1,
        "error: publisher_id 2 has no log rows and no statistics: nothing was erased\n",
    )


def test_an_unknown_publisher_is_one_line(calc):
    for words in (["--dry-run"], ["--yes"], ["--json"]):
        result = calc("erase", "--publisher", "5000000000", *words)
        assert result.exit_code == 1
        assert result.stderr == "error: publisher_id 5000000000 has no log rows and no statistics: nothing was erased\n"


def test_a_day_that_was_left_is_a_line_and_exit_code_1(calc, counted: Database):
    execute(counted, f"update {STATS.name} set cache_hits = cache_hits + 1 where date = '{DAY}'")
    result = calc("erase", "--publisher", str(ERASED), "--yes", "--json")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"error: {DAY} was not erased, because it differs")
    assert json.loads(result.stdout)["left_days"][0]["day"] == str(DAY)
    assert f"{DAY} was not erased" in calc("erase", "--publisher", str(ERASED), "--dry-run").output


def test_without_the_right_to_delete_it_is_one_line_and_nothing_changes(calc, counted: Database):
    execute(counted, f"revoke delete on calculation_logs from {ROLE}")
    before = statistics(counted)
    result = calc("erase", "--publisher", str(ERASED), "--yes")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "permission denied for table calculation_logs: grant it to the role" in result.stderr
    assert (statistics(counted), red(counted)) == (before, {})


def test_a_database_without_the_publisher_stays_exact(db: Database, connect):
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    write(connect(), random_rows(random.Random(1), 50, utc(2026, 3, 1), utc(2026, 3, 2), publishers=1))
    refresh(db)
    with pytest.raises(NothingToErase):
        erase(db, SEVEN)
    assert_exact(db)
