"""Rebuild and verify: repeatable, complete, refuses to destroy; and what tampering looks like."""

import threading
from dataclasses import replace
from datetime import date, timedelta
from types import SimpleNamespace

import pytest

from calc_analytics.rollup import patrol as patrol_module
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import built_days, waiting_days
from calc_analytics.rollup.patrol import Patrol, oldest_proof
from calc_analytics.rollup.predecessor import record_days
from calc_analytics.rollup.rebuild import CHUNK_DAYS, rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import HOURS, LATENCY, LOCALITIES, LOG, STATS
from calc_analytics_tests.logs import FORMS, all_stored, assert_exact, execute, row, stored, utc, write

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)


@pytest.fixture
def counted(db, connect) -> Database:
    """Two built days, ten rows each."""
    write(connect(), [row(NOON, publisher=n % 2) for n in range(10)] + [row(NOON + timedelta(days=1))] * 10)
    rebuild(db, [DAY, NEXT])
    return db


def test_twice_changes_nothing(counted):
    before = stored(counted)
    report = rebuild(counted, [DAY, NEXT, DAY])
    assert report.rows_by_day == {DAY: 10, NEXT: 10}
    assert [(day.rollup, day.rows) for day in report.rebuilt if day.day == DAY] == [(name, 10) for name in LOG.names]
    assert stored(counted) == before
    assert_exact(counted)


def test_a_publisher_that_vanished_disappears(counted):
    execute(counted, "insert into calculation_stats_daily values (77, '2026-03-01', 0, 0, 0, 0, 0, 0)")
    execute(counted, "insert into calculation_latency_daily values (77, '2026-03-01', 1, 5, 0)")
    rebuild(counted, [DAY])
    assert_exact(counted)


def test_a_day_that_lost_logs_is_left_alone_and_the_others_are_rebuilt(counted):
    before = all_stored(counted)
    execute(counted, "delete from calculation_logs where id in (select id from calculation_logs order by id limit 4)")
    execute(counted, "update calculation_stats_daily set cache_hits = 5 where date = '2026-03-02'")
    report = rebuild(counted, [DAY, NEXT])
    assert [each.rollup for each in report.failed] == LOG.names
    for refused in report.failed:
        assert (refused.day, refused.reason, refused.log_rows, refused.counted_rows) == (DAY, "differs", 6, 10)
        assert f"{DAY} of {refused.rollup} was not rebuilt: 6 log rows but 10 counted" in str(refused)
        assert "--keep" in str(refused)
        assert "--allow-shrink" in str(refused)
    assert report.days == [NEXT]
    assert all_stored(counted) == before


def test_a_late_row_for_a_day_that_lost_its_logs_still_adds(counted, connect):
    execute(counted, "delete from calculation_logs where created_at < '2026-03-02'")
    write(connect(), [row(NOON)])
    refresh(counted)
    for relation in FORMS:
        assert sum(sums[0] for key, sums in stored(counted, relation).items() if key[-1] == DAY) == 11


def test_shrinking_can_be_allowed(counted):
    execute(counted, "delete from calculation_logs where created_at < '2026-03-02'")
    report = rebuild(counted, [DAY], decision=Decision.ALLOW_SHRINK)
    assert (report.refused, report.rows) == ([], 0)
    assert [(day.rows_before, day.rows) for day in report.rebuilt] == [(10, 0)] * len(LOG.names)
    assert_exact(counted)


def test_a_predecessors_doubled_statistics_are_replaced(db, owner, connect):
    write(connect(), [row(NOON)] * 10)
    execute(db, "update calculation_logs set xact_id = null")
    execute(db, "insert into calculation_stats_daily values (1, '2026-03-01', 40, 0, 400, 40, 0, 0)")
    with owner.begin() as connection:
        record_days(connection, Database(owner, LOG, "UTC"))
    rebuild(db, [DAY])
    assert_exact(db)


def test_a_late_row_does_not_replace_statistics_whose_logs_were_deleted_before_this_project(db, owner, connect):
    execute(db, "insert into calculation_stats_daily values (1, '2026-03-01', 40, 0, 400, 40, 0, 0)")
    execute(db, "delete from rollup_state")
    install(replace(db, engine=owner))
    write(connect(), [row(NOON)])
    (unbuilt,) = refresh(db).unbuilt
    assert (unbuilt.rollup, unbuilt.rows) == (STATS.name, 1)
    (frozen,) = rebuild(db, [DAY]).refused
    assert (frozen.rollup, frozen.reason) == (STATS.name, "frozen")
    assert (frozen.log_rows, frozen.counted_rows) == (1, 40)
    assert sum(measures[0] for measures in stored(db).values()) == 40
    assert waiting_days(db) == [], "a refused day is not asked for again"


def test_a_predecessors_statistics_without_any_logs_are_kept(db):
    execute(db, "insert into calculation_stats_daily values (1, '2026-03-01', 40, 0, 400, 40, 0, 0)")
    report = rebuild(db, [DAY])
    assert [(each.rollup, each.log_rows, each.counted_rows) for each in report.refused] == [(STATS.name, 0, 40)]
    assert sum(measures[0] for measures in stored(db).values()) == 40


def test_many_days_are_done_in_chunks_that_are_reported(db, connect):
    days = [DAY + timedelta(days=n) for n in range(2 * CHUNK_DAYS + 1)]
    write(connect(), [row(NOON + timedelta(days=n)) for n in range(len(days))])
    chunks: list[int] = []
    report = rebuild(db, days, progress=lambda chunk: chunks.append(len(chunk.days)))
    assert chunks == [CHUNK_DAYS, CHUNK_DAYS, 1]
    assert report.rows == len(days)
    assert_exact(db)


def test_an_empty_day_is_built_and_empty(db):
    report = rebuild(db, [DAY])
    assert [(day.rollup, day.rows, day.keys) for day in report.rebuilt] == [(name, 0, 0) for name in LOG.names]
    assert built_days(db) == [DAY]


def test_chosen_rollups_are_rebuilt_and_the_others_left(counted):
    execute(counted, "update calculation_stats_daily set cache_hits = 5")
    execute(counted, "update calculation_stats_hourly set cache_hits = 5")
    report = rebuild(counted, [DAY], [HOURS.name])
    assert [day.rollup for day in report.rebuilt] == [HOURS.name]
    assert {sums[1] for sums in stored(counted).values()} == {5}
    hits = {(key[-1], sums[1]) for key, sums in stored(counted, HOURS.name).items()}
    assert hits == {(DAY, 0), (NEXT, 5)}


# What each rollup differs by; ten rows of 10 ms, all from the web, are in each of its days.
LOST = {STATS.name: 120, LOCALITIES.name: 110, HOURS.name: 120, LATENCY.name: 10}
ADDED = {STATS.name: 2, LOCALITIES.name: 1, HOURS.name: 2, LATENCY.name: 1}


@pytest.mark.parametrize(
    ("tampering", "differences"),
    [
        (
            "update calculation_stats_daily set total_calculations = total_calculations + 3 where date = '2026-03-02'",
            {STATS.name: 3},
        ),
        ("delete from calculation_stats_daily where date = '2026-03-02'", {STATS.name: 120}),
        ("delete from calculation_latency_daily where date = '2026-03-02'", {LATENCY.name: 10}),
        ("insert into calculation_stats_daily values (77, '2026-03-02', 5, 4, 3, 2, 1, 0)", {STATS.name: 15}),
        ("delete from calculation_logs where created_at >= '2026-03-02'", LOST),
        (
            "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at, xact_id) "
            "values (1, 1, '2026-01-01', 2, '2026-03-02 12:00Z', null)",
            ADDED,
        ),
    ],
)
def test_verify_finds_what_was_tampered_with(counted, tampering: str, differences: dict[str, int]):
    execute(counted, tampering)
    report = verify(counted, [DAY, NEXT])
    assert {proof.rollup: proof.difference for proof in report.different} == differences
    assert {proof.day for proof in report.different} == {NEXT}
    assert different_days(counted) == {NEXT: sorted(differences)}


def test_verify_distinguishes_days_that_were_never_built_from_different_ones(counted, connect):
    writer = connect()
    write(writer, [row(NOON + timedelta(days=9))])
    writer.execute("update calculation_logs set xact_id = null where created_at > '2026-03-05'")
    writer.commit()
    report = verify(counted, [DAY, NEXT, date(2026, 3, 10), date(2026, 3, 11)])
    assert [(proof.rollup, proof.day) for proof in report.never_built] == [(n, date(2026, 3, 10)) for n in LOG.names]
    assert report.difference == 0


def test_a_proof_is_good_for_an_hour_and_renewed_afterwards(counted):
    verify(counted, [NEXT, DAY])
    assert oldest_proof(counted) is None
    execute(
        counted, "update rollup_days set verified_at = verified_at - interval '61 minutes' where date = '2026-03-01'"
    )
    assert oldest_proof(counted) == DAY
    execute(counted, "update calculation_stats_daily set cache_hits = cache_hits + 1 where date = '2026-03-01'")
    Patrol(counted, threading.Event()).step()
    assert different_days(counted) == {DAY: [STATS.name]}
    assert oldest_proof(counted) is None


def test_after_a_proof_that_takes_long_the_patrol_pauses_a_hundred_times_as_long(counted, monkeypatch):
    proven: list[date] = []
    now = [1_000.0]

    def prove_slowly(db: Database, days: list[date]) -> None:
        proven.extend(days)
        now[0] += 2

    monkeypatch.setattr(patrol_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(patrol_module, "verify", prove_slowly)
    patrol = Patrol(counted, threading.Event())
    patrol.step()
    assert len(proven) == 1
    now[0] += 199
    patrol.step()
    assert len(proven) == 1
    now[0] += 2
    patrol.step()
    assert len(proven) == 2
