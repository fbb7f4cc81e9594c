"""Log rows that were moved, corrected, merged or duplicated: `verify` names day and keys, and the command of the
runbook's table (*Log rows were corrected*) brings the statistics to the right value."""

import random
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone

import pytest
from click.testing import CliRunner, Result

from calc_analytics.cli.main import main
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.reports import DayProof
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import HOURS, LATENCY, LOCALITIES, LOG, STATS
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import FORMS, Row, Statistics, execute, oracles, random_rows, row, stored, utc, write

TODAY = datetime.now(timezone.utc).date()
PRUNED, CLOSED, NEXT = date(2026, 2, 1), date(2026, 3, 1), date(2026, 3, 2)
DAYS = [PRUNED, CLOSED, NEXT, TODAY]
BATCH = [row(utc(2026, 3, 1, 9), publisher=2, response_time_ms=50, cache_hit=True)] * 5
LATE_BATCH = [row(utc(2026, 2, 1, 9), publisher=2, response_time_ms=50, cache_hit=True)] * 5
Words = Callable[..., Result]


@pytest.fixture
def counted(db: Database, connect) -> Database:
    """Four built days of three publishers; the first is pruned, and has late rows."""
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    rng, writer = random.Random(7), connect()
    for day in DAYS:
        begin = utc(day.year, day.month, day.day)
        rows = random_rows(rng, 60, begin, begin + timedelta(days=1), publishers=3)
        write(writer, [*rows, row(begin + timedelta(hours=1), publisher=1)])
    rebuild(db, DAYS)
    assert set(prune(db, CLOSED).rows_by_day) == {PRUNED}
    write(writer, [row(utc(2026, 2, 1, 12), publisher=n % 3 + 1, response_time_ms=n) for n in range(9)])
    refresh(db)
    assert red(db) == {}
    return db


@pytest.fixture
def calc(database, counted: Database) -> Words:
    """Runs `calc-analytics` with these words."""
    return lambda *words: CliRunner().invoke(main, words)


def red(db: Database) -> dict[date, list[str]]:
    """What differs once everything was compared, as it is on record."""
    audit(db)
    verify(db, DAYS)
    return different_days(db)


def found(db: Database) -> dict[tuple[str, date], DayProof]:
    """What verify reports."""
    return {(proof.rollup, proof.day): proof for proof in verify(db, DAYS).different}


def of_day(statistics: Statistics, day: date) -> Statistics:
    return {key: values for key, values in statistics.items() if key[-1] == day}


def assert_right(db: Database, *days: date) -> None:
    """These days are what pandas says of the log, in every table, and nothing differs."""
    logs = oracles(db)
    for name in FORMS:
        for day in days:
            assert of_day(stored(db, name), day) == of_day(logs[name], day), (name, day)
    assert red(db) == {}


def change_pruned(db: Database, change: Callable[[], None]) -> dict[str, Statistics]:
    """Changes the log, and returns what the statistics of the pruned day must be then: less what the log rows were,
    plus what they are."""
    before = oracles(db)
    change()
    after = oracles(db)
    return {
        name: _added(of_day(stored(db, name), PRUNED), of_day(before[name], PRUNED), of_day(after[name], PRUNED))
        for name in FORMS
    }


def _added(held: Statistics, less: Statistics, plus: Statistics) -> Statistics:
    sums: Statistics = {}
    for part, sign in ((held, 1), (less, -1), (plus, 1)):
        for key, values in part.items():
            old = sums.get(key, (0,) * len(values))
            sums[key] = tuple(a + sign * b for a, b in zip(old, values, strict=True))
    return {key: values for key, values in sums.items() if values[0]}


def correct_by_hand(db: Database, expected: dict[str, Statistics]) -> None:
    """What a person does with SQL who knows what was changed: the pruned day's statistics get these values."""
    for name, (keys, measures) in FORMS.items():
        execute(db, f"delete from {name} where date = '{PRUNED}'")
        for key, values in expected[name].items():
            columns = ", ".join([*keys, "date", *measures])
            execute(db, f"insert into {name} ({columns}) values ({', '.join(map(_literal, [*key, *values]))})")


def _literal(value: object) -> str:
    return str(value) if isinstance(value, int) else f"'{value}'"


def assert_kept_once(calc: Words, db: Database, expected: dict[str, Statistics]) -> None:
    """One `--keep` makes the pruned day green with these values, and the journal notes it."""
    assert calc("rollup", "--day", str(PRUNED), "--keep").exit_code == 0
    assert {name: of_day(stored(db, name), PRUNED) for name in FORMS} == expected
    assert red(db) == {}
    assert "keep" in calc("history", "--day", str(PRUNED)).output
    rebuild(db, DAYS, decision=Decision.AUTOMATIC)
    assert red(db) == {}


# -- Days whose log rows are all there ---------------------------------------------------------------------------------

CORRECTIONS = {
    "publishers merged": ("publisher_id = 1 where publisher_id = 2", STATS, ["publisher_id 2: ", "publisher_id 1: "]),
    "response times": (
        "response_time_ms = response_time_ms / 2 where publisher_id = 2",
        STATS,
        ["publisher_id 2: total_response_time_ms "],
    ),
    "sources": ("source = 3 where source = 1 and publisher_id = 3", STATS, ["publisher_id 3: source_web "]),
    "histogram": ("source = 3 where source = 1 and publisher_id = 3", LATENCY, ["publisher_id 3, source 1, response"]),
    "localities": ("locality_id = 77 where publisher_id = 3", LOCALITIES, ["publisher_id 3, locality_id 77: "]),
    "another hour": (
        "created_at = date_trunc('day', created_at, 'UTC') + interval '5 hours' where publisher_id = 2",
        HOURS,
        ["publisher_id 2, hour "],
    ),
}


@pytest.mark.parametrize("day", [CLOSED, TODAY], ids=["closed", "open"])
@pytest.mark.parametrize(("change", "rollup", "named"), CORRECTIONS.values(), ids=list(CORRECTIONS))
def test_corrected_rows_are_named_and_recounted(
    calc: Words, counted: Database, day: date, change: str, rollup: Rollup, named: list[str]
):
    execute(counted, f"update calculation_logs set {change} and (created_at at time zone 'UTC')::date = '{day}'")
    proofs = found(counted)
    assert {of for _, of in proofs} == {day}
    message = calc("verify", "--day", str(day)).output
    assert f"Recount with 'calc-analytics rollup --day {day}'" in message
    for name in named:
        assert name in proofs[rollup.name, day].describe()
    assert calc("rollup", "--day", str(day)).exit_code == 0
    assert_right(counted, CLOSED, NEXT, TODAY)


def test_many_keys_are_named_as_a_few_and_a_number(counted: Database):
    execute(counted, "update calculation_logs set locality_id = 5000 + id where created_at >= '2026-03-01Z'")
    message = found(counted)[LOCALITIES.name, CLOSED].describe()
    assert message.count("in the log") == 3
    assert re.search(r"; and [\d,]+ more\)\. Recount", message)


def test_rows_moved_to_another_day(calc: Words, counted: Database):
    of_closed = "publisher_id = 2 and created_at >= '2026-03-01Z' and created_at < '2026-03-02Z'"
    execute(counted, f"update calculation_logs set created_at = created_at + interval '1 day' where {of_closed}")
    proofs = found(counted)
    assert {(day, proof.finding) for (_, day), proof in proofs.items()} == {
        (CLOSED, "logs_missing"),
        (NEXT, "logs_added"),
    }
    for day in (CLOSED, NEXT):
        assert "publisher_id 2: " in proofs[STATS.name, day].describe()
    assert calc("rollup", "--day", str(NEXT)).exit_code == 0
    assert calc("rollup", "--day", str(CLOSED), "--allow-shrink").exit_code == 0
    assert_right(counted, CLOSED, NEXT, TODAY)


def test_a_batch_that_was_written_twice_and_deleted_once(calc: Words, counted: Database, connect):
    writer = connect()
    write(writer, BATCH)
    refresh(counted)
    write(writer, BATCH)
    refresh(counted)
    execute(counted, f"delete from calculation_logs where id in (select id from calculation_logs {_last(BATCH)})")
    proof = found(counted)[STATS.name, CLOSED]
    assert proof.finding == "logs_missing"
    assert "publisher_id 2: " in proof.describe()
    assert calc("rollup", "--day", str(CLOSED), "--allow-shrink").exit_code == 0
    assert_right(counted, CLOSED, NEXT, TODAY)


def _last(batch: list[Row]) -> str:
    return f"order by id desc limit {len(batch)}"


def test_a_batch_that_was_deleted_before_it_was_counted_leaves_no_trace(counted: Database, connect):
    write(connect(), BATCH)
    execute(counted, f"delete from calculation_logs where id in (select id from calculation_logs {_last(BATCH)})")
    refresh(counted)
    assert_right(counted, CLOSED, NEXT, TODAY)


# -- Days of which log rows were deleted -------------------------------------------------------------------------------

OF_PRUNED = "created_at >= '2026-02-01Z' and created_at < '2026-02-02Z'"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("publisher_id = 1 where publisher_id = 2", "publisher_id 1: 6 in the log"),
        ("response_time_ms = response_time_ms + 100 where publisher_id = 2", "publisher_id 2: 3 in the log"),
        ("source = 3 where publisher_id = 2", "publisher_id 2: 3 in the log"),
        ("locality_id = 77 where publisher_id = 2", None),
        ("created_at = created_at + interval '1 hour' where publisher_id = 2", None),
        ("publisher_id = 77 where publisher_id = 2", "publisher_id 77: 3 in the log, 0 stored"),
    ],
    ids=["publishers merged", "response times", "sources", "localities", "another hour", "a new publisher"],
)
def test_corrected_rows_of_a_pruned_day_stay_red_until_the_statistics_are_corrected_too(
    calc: Words, counted: Database, change: str, key: str | None
):
    expected = change_pruned(counted, lambda: execute(counted, f"update calculation_logs set {change} and {OF_PRUNED}"))
    proofs = found(counted)
    assert {day for _, day in proofs} == {PRUNED}
    assert {proof.finding for proof in proofs.values()} == {"logs_changed"}
    if key is not None:
        assert key in proofs[STATS.name, PRUNED].describe()
    assert "change the statistics in the same way and accept them with" in calc("verify").output
    for _ in range(2):
        rebuild(counted, [PRUNED], decision=Decision.AUTOMATIC)
        assert set(red(counted)) == {PRUNED}
    correct_by_hand(counted, expected)
    assert set(red(counted)) == {PRUNED}, "not accepted yet"
    assert_kept_once(calc, counted, expected)


def test_publishers_merged_in_log_and_statistics_of_all_days_take_one_command(calc: Words, counted: Database):
    for rollup in LOG.rollups:
        keys, measures = ", ".join(rollup.keys[1:]), ", ".join(rollup.measure_names)
        columns = ", ".join(filter(None, ["publisher_id", "date", keys, measures]))
        others = ", ".join(filter(None, ["1", "date", keys, measures]))
        sums = ", ".join(f"{name} = t.{name} + excluded.{name}" for name in rollup.measure_names)
        unique = ", ".join(filter(None, ["publisher_id", "date", keys]))
        execute(counted, f"insert into {rollup.name} as t ({columns}) select {others} from {rollup.name} "
                         f"where publisher_id = 2 on conflict ({unique}) do update set {sums}")  # fmt: skip
        execute(counted, f"delete from {rollup.name} where publisher_id = 2")
    execute(counted, "update calculation_logs set publisher_id = 1 where publisher_id = 2")
    expected = {name: of_day(stored(counted, name), PRUNED) for name in FORMS}
    assert red(counted) == dict.fromkeys([PRUNED, CLOSED, NEXT], sorted(LOG.names))
    assert calc("rollup", "--from", str(PRUNED), "--to", str(NEXT), "--keep").exit_code == 0
    assert {name: of_day(stored(counted, name), PRUNED) for name in FORMS} == expected
    assert_right(counted, CLOSED, NEXT, TODAY)


def test_a_batch_written_twice_into_a_pruned_day_and_deleted_once(calc: Words, counted: Database, connect):
    writer = connect()
    write(writer, LATE_BATCH)
    refresh(counted)
    write(writer, LATE_BATCH)
    refresh(counted)
    delete = f"delete from calculation_logs where id in (select id from calculation_logs {_last(LATE_BATCH)})"
    expected = change_pruned(counted, lambda: execute(counted, delete))
    assert {proof.finding for proof in found(counted).values()} == {"logs_missing"}
    correct_by_hand(counted, expected)
    assert set(red(counted)) == {PRUNED}
    assert_kept_once(calc, counted, expected)


def test_rows_moved_out_of_a_pruned_day(calc: Words, counted: Database):
    move = f"update calculation_logs set created_at = '2026-03-01 10:00Z' where publisher_id = 2 and {OF_PRUNED}"
    expected = change_pruned(counted, lambda: execute(counted, move))
    assert {(day, proof.finding) for (_, day), proof in found(counted).items()} == {
        (PRUNED, "logs_missing"),
        (CLOSED, "logs_added"),
    }
    assert calc("rollup", "--day", str(CLOSED)).exit_code == 0
    correct_by_hand(counted, expected)
    assert_kept_once(calc, counted, expected)
    assert_right(counted, CLOSED, NEXT, TODAY)


def test_rows_moved_into_a_pruned_day(calc: Words, counted: Database):
    move = "update calculation_logs set created_at = '2026-02-01 10:00Z' where publisher_id = 2 and created_at >= "
    expected = change_pruned(counted, lambda: execute(counted, f"{move}'2026-03-01Z' and created_at < '2026-03-02Z'"))
    assert {(day, proof.finding) for (_, day), proof in found(counted).items()} == {
        (PRUNED, "logs_added"),
        (CLOSED, "logs_missing"),
    }
    assert calc("rollup", "--day", str(CLOSED), "--allow-shrink").exit_code == 0
    correct_by_hand(counted, expected)
    assert_kept_once(calc, counted, expected)
    assert_right(counted, CLOSED, NEXT, TODAY)


def test_a_publisher_that_was_deleted_by_hand_on_a_pruned_day(calc: Words, counted: Database):
    execute(counted, "delete from calculation_logs where publisher_id = 2")
    for rollup in LOG.rollups:
        execute(counted, f"delete from {rollup.name} where publisher_id = 2")
    expected = {name: of_day(stored(counted, name), PRUNED) for name in FORMS}
    assert set(red(counted)) == set(DAYS)
    for day in (CLOSED, NEXT, TODAY):
        assert calc("rollup", "--day", str(day), "--allow-shrink").exit_code == 0
    assert calc("rollup", "--day", str(PRUNED), "--keep").exit_code == 0
    assert set(red(counted)) == {PRUNED}, "the statistics are not accepted with the loss of log rows"
    assert_kept_once(calc, counted, expected)
    assert_right(counted, CLOSED, NEXT, TODAY)
