"""Rebuild and verify: repeatable, complete, refuses to destroy; and what tampering looks like."""

from datetime import date, timedelta

import pytest

from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.rebuild import CHUNK_DAYS, rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import built_days, keep_proven, record, verify, waiting_days
from calc_analytics_tests.logs import execute, oracle, row, stored, utc, write

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)


@pytest.fixture
def counted(engine, connect):
    """Two built days, ten rows each."""
    write(connect(), [row(NOON, publisher=n % 2) for n in range(10)] + [row(NOON + timedelta(days=1))] * 10)
    rebuild(engine, ROLLUP, "UTC", [DAY, NEXT])
    return engine


def test_twice_changes_nothing(counted):
    before = stored(counted)
    report = rebuild(counted, ROLLUP, "UTC", [DAY, NEXT, DAY])
    assert [day.rows for day in report.rebuilt] == [10, 10]
    assert stored(counted) == before == oracle(counted)


def test_a_publisher_that_vanished_disappears(counted):
    execute(counted, "insert into calculation_stats_daily values (77, '2026-03-01', 0, 0, 0, 0, 0, 0)")
    rebuild(counted, ROLLUP, "UTC", [DAY])
    assert (77, DAY) not in stored(counted)


def test_a_day_that_lost_logs_is_left_alone_and_the_others_are_rebuilt(counted):
    before = stored(counted)
    execute(counted, "delete from calculation_logs where id in (select id from calculation_logs order by id limit 4)")
    execute(counted, "update calculation_stats_daily set cache_hits = 5 where date = '2026-03-02'")
    report = rebuild(counted, ROLLUP, "UTC", [DAY, NEXT])
    (shrunk,) = report.shrunk
    assert (shrunk.day, shrunk.raw_rows, shrunk.counted_rows) == (DAY, 6, 10)
    assert "6 raw rows" in str(shrunk)
    assert "10 already counted" in str(shrunk)
    assert "--allow-shrink" in str(shrunk)
    assert [day.day for day in report.rebuilt] == [NEXT]
    assert stored(counted) == before


def test_a_late_row_for_a_day_that_lost_its_logs_still_adds(counted, connect):
    execute(counted, "delete from calculation_logs where created_at < '2026-03-02'")
    write(connect(), [row(NOON)])
    refresh(counted, ROLLUP, "UTC")
    assert sum(m[0] for (_, day), m in stored(counted).items() if day == DAY) == 11


def test_shrinking_can_be_allowed(counted):
    execute(counted, "delete from calculation_logs where created_at < '2026-03-02'")
    report = rebuild(counted, ROLLUP, "UTC", [DAY], allow_shrink=True)
    assert (report.shrunk, report.rows) == ([], 0)
    assert stored(counted) == oracle(counted)


def test_a_predecessors_doubled_statistics_are_replaced(engine, connect):
    write(connect(), [row(NOON)] * 10)
    execute(engine, "update calculation_logs set xact_id = null")
    execute(engine, "insert into calculation_stats_daily values (1, '2026-03-01', 40, 0, 400, 40, 0, 0)")
    rebuild(engine, ROLLUP, "UTC", [DAY])
    assert stored(engine) == oracle(engine)


def test_a_late_row_does_not_replace_statistics_whose_logs_were_deleted_before_this_project(engine, connect):
    execute(engine, "insert into calculation_stats_daily values (1, '2026-03-01', 40, 0, 400, 40, 0, 0)")
    write(connect(), [row(NOON)])
    refresh(engine, ROLLUP, "UTC")
    assert waiting_days(engine, ROLLUP) == [DAY]
    (shrunk,) = rebuild(engine, ROLLUP, "UTC", [DAY]).shrunk
    assert (shrunk.raw_rows, shrunk.counted_rows) == (1, 40)
    assert sum(measures[0] for measures in stored(engine).values()) == 40
    assert waiting_days(engine, ROLLUP) == [], "a refused day is not asked for again"


def test_a_predecessors_statistics_without_any_logs_are_kept(engine):
    execute(engine, "insert into calculation_stats_daily values (1, '2026-03-01', 40, 0, 400, 40, 0, 0)")
    report = rebuild(engine, ROLLUP, "UTC", [DAY])
    assert [day.raw_rows for day in report.shrunk] == [0]
    assert sum(measures[0] for measures in stored(engine).values()) == 40


def test_many_days_are_done_in_chunks_that_are_reported(engine, connect):
    days = [DAY + timedelta(days=n) for n in range(2 * CHUNK_DAYS + 1)]
    write(connect(), [row(NOON + timedelta(days=n)) for n in range(len(days))])
    chunks: list[int] = []
    report = rebuild(engine, ROLLUP, "UTC", days, progress=lambda chunk: chunks.append(len(chunk.rebuilt)))
    assert chunks == [CHUNK_DAYS, CHUNK_DAYS, 1]
    assert report.rows == len(days)
    assert stored(engine) == oracle(engine)


def test_an_empty_day_is_built_and_empty(engine):
    report = rebuild(engine, ROLLUP, "UTC", [DAY])
    assert [(day.rows, day.keys) for day in report.rebuilt] == [(0, 0)]
    assert built_days(engine, ROLLUP) == [DAY]


@pytest.mark.parametrize(
    ("tampering", "difference"),
    [
        ("update calculation_stats_daily set total_calculations = total_calculations + 3 where date = '2026-03-02'", 3),
        ("delete from calculation_stats_daily where date = '2026-03-02'", 10 + 100 + 10),
        ("insert into calculation_stats_daily values (77, '2026-03-02', 5, 4, 3, 2, 1, 0)", 15),
        ("delete from calculation_logs where created_at >= '2026-03-02'", 10 + 100 + 10),
        (
            "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at, xact_id) "
            "values (1, 1, '2026-01-01', 2, '2026-03-02 12:00Z', null)",
            2,
        ),
    ],
)
def test_verify_finds_what_was_tampered_with(counted, tampering: str, difference: int):
    execute(counted, tampering)
    report = verify(counted, ROLLUP, "UTC", [DAY, NEXT])
    assert report.difference == difference
    assert [day.day for day in report.different] == [NEXT]


def test_verify_tells_days_that_were_never_built_from_different_ones(counted, connect):
    writer = connect()
    write(writer, [row(NOON + timedelta(days=9))])
    writer.execute("update calculation_logs set xact_id = null where created_at > '2026-03-05'")
    writer.commit()
    report = verify(counted, ROLLUP, "UTC", [DAY, NEXT, date(2026, 3, 10), date(2026, 3, 11)])
    assert [day.day for day in report.never_built] == [date(2026, 3, 10)]
    assert report.difference == 0


def test_a_proof_is_kept_for_a_minute_and_renewed_afterwards(counted):
    first = keep_proven(counted, ROLLUP, "UTC", [DAY])
    execute(counted, "update calculation_stats_daily set cache_hits = cache_hits + 1 where date = '2026-03-01'")
    assert keep_proven(counted, ROLLUP, "UTC", [DAY]) == first
    assert first[DAY].difference == 0
    execute(counted, "update rollup_days set verified_at = verified_at - interval '61 seconds'")
    assert keep_proven(counted, ROLLUP, "UTC", [DAY])[DAY].difference == 2


def test_a_proof_that_takes_long_is_renewed_after_a_hundred_times_as_long(counted):
    record(counted, ROLLUP, verify(counted, ROLLUP, "UTC", [DAY]))
    execute(counted, "update rollup_days set verified_at = verified_at - interval '61 seconds', verified_seconds = 2")
    execute(counted, "update calculation_stats_daily set cache_hits = cache_hits + 1 where date = '2026-03-01'")
    assert keep_proven(counted, ROLLUP, "UTC", [DAY])[DAY].difference == 0
