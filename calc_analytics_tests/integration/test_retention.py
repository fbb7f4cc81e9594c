"""Retention: what is counted may be deleted, nothing else is; statistics stay, stay proven, and late rows still add.

No rebuild accepts deletions that were not announced: a person decides.
"""

import random
import time
from dataclasses import replace
from datetime import date, timedelta

import pytest
from sqlalchemy.engine import Engine

from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import rebase
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import built_days, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.crowd import Crowd
from calc_analytics_tests.logs import (
    FORMS,
    all_stored,
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

DAY, NEXT, LAST = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)
NOON = utc(2026, 3, 1, 12)


@pytest.fixture
def counted(db: Database, connect) -> Database:
    """Three built days of random rows, and the right to delete logs."""
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    write(connect(), random_rows(random.Random(3), 600, utc(2026, 3, 1), utc(2026, 3, 4)))
    rebuild(db, [DAY, NEXT, LAST])
    return db


def left(db: Database, day: date) -> int:
    """Log rows of a day that are still there."""
    return sum(measures[0] for (_, of), measures in oracle(db).items() if of == day)


def count(db: Database, day: date) -> int:
    """Calculations of a day in the statistics."""
    return sum(measures[0] for (_, of), measures in stored(db).items() if of == day)


def test_it_deletes_the_days_before_and_keeps_their_statistics(counted: Database):
    before = stored(counted)
    report = prune(counted, LAST, batch_rows=50)
    assert set(report.rows_by_day) == {DAY, NEXT}
    assert report.rows == count(counted, DAY) + count(counted, NEXT)
    assert [left(counted, day) for day in (DAY, NEXT)] == [0, 0]
    assert left(counted, LAST) == count(counted, LAST)
    assert stored(counted) == live(counted) == before


def test_batches_are_bounded_and_reported(counted: Database):
    batches: list[int] = []
    report = prune(counted, NEXT, batch_rows=50, progress=batches.append)
    assert max(batches) <= 50
    assert sum(batches) == report.rows
    assert len(batches) > 2


def test_a_pruned_day_stays_proven_by_its_totals(counted: Database):
    prune(counted, LAST)
    report = verify(counted, [DAY, NEXT, LAST])
    assert (report.difference, report.different) == (0, [])
    assert report.days[0].deleted_rows == count(counted, DAY)
    execute(counted, "update calculation_stats_daily set cache_hits = cache_hits + 1 where date = '2026-03-01'")
    assert [day.day for day in verify(counted, [DAY, NEXT, LAST]).different] == [DAY]


def test_rows_that_are_not_counted_yet_are_not_deleted(counted: Database, connect):
    late, later = connect(), connect()
    copy_rows(late, [row(NOON, publisher=77)] * 3)
    write(later, [row(NOON, publisher=88)] * 2)
    prune(counted, LAST)
    assert left(counted, DAY) == 2
    late.commit()
    assert refresh(counted).rows == 5
    assert verify(counted, [DAY]).difference == 0
    assert (stored(counted)[(77, DAY)][0], stored(counted)[(88, DAY)][0]) == (3, 2)


def test_days_that_are_not_built_keep_their_logs(db: Database, connect):
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    writer = connect()
    write(writer, [row(NOON)] * 3)
    execute(db, "update calculation_logs set xact_id = null")
    write(writer, [row(NOON)] * 2)
    refresh(db)
    report = prune(db, LAST)
    assert (report.rows, report.not_built) == (0, [DAY])
    assert left(db, DAY) == 5


def test_late_rows_of_a_pruned_day_add_and_may_be_pruned_in_turn(counted: Database, connect):
    before = count(counted, DAY)
    prune(counted, LAST)
    write(connect(), [row(NOON)] * 4)
    assert refresh(counted).rows == 4
    assert prune(counted, LAST).rows_by_day == {DAY: 4}
    assert (left(counted, DAY), count(counted, DAY)) == (0, before + 4)
    assert verify(counted, [DAY]).difference == 0
    assert prune(counted, LAST).rows == 0


def test_a_rebuild_of_a_pruned_day_leaves_it_and_names_both_counts(counted: Database, connect):
    prune(counted, NEXT)
    write(connect(), [row(NOON)] * 4)
    total = count(counted, DAY) + 4
    report = rebuild(counted, [DAY, NEXT])
    assert {(each.rollup, each.day) for each in report.refused} == {(name, DAY) for name in LOG.names}
    assert report.failed == []
    each = report.refused[0]
    assert (each.reason, each.log_rows, each.counted_rows, each.deleted_rows) == ("pruned", 4, total, total - 4)
    assert f"{total - 4:,} of its {total:,} counted log rows were deleted. Its statistics stay" in str(each)
    assert verify(counted, [DAY]).difference == 0
    rebuild(counted, [DAY], decision=Decision.ALLOW_SHRINK)
    assert count(counted, DAY) == 4
    assert verify(counted, [DAY]).days[0].deleted_rows == 0


def test_logs_deleted_by_others_are_reported_until_a_person_decides(counted: Database, connect):
    before = all_stored(counted)
    execute(counted, "delete from calculation_logs where created_at < '2026-03-02 08:00Z'")
    for decision in (Decision.AUTOMATIC, Decision.AUTOMATIC, Decision.NONE):
        different = verify(counted, [DAY, NEXT, LAST]).different
        assert {(proof.day, proof.finding) for proof in different} == {(DAY, "logs_missing"), (NEXT, "logs_missing")}
        failed = rebuild(counted, [DAY, NEXT, LAST], decision=decision).failed
        assert {(each.rollup, each.day) for each in failed} == {(name, day) for name in FORMS for day in (DAY, NEXT)}
        assert all_stored(counted) == before
    rebuild(counted, [DAY], decision=Decision.KEEP)
    rebuild(counted, [NEXT], decision=Decision.ALLOW_SHRINK)
    assert verify(counted, [DAY, NEXT, LAST]).difference == 0
    assert (left(counted, DAY), count(counted, NEXT)) == (0, left(counted, NEXT))
    assert disagreements(counted) == []
    write(connect(), [row(NOON)] * 2)
    refresh(counted)
    assert (
        count(counted, DAY) == sum(m[0] for (_, day), m in before["calculation_stats_daily"].items() if day == DAY) + 2
    )
    assert verify(counted, [DAY, NEXT, LAST]).difference == 0


def test_deletions_that_others_announced_are_noted_by_the_next_rebuild(counted: Database, connect):
    counted = replace(counted, logs_kept_days=30)
    before = stored(counted)
    execute(counted, "delete from calculation_logs where created_at < '2026-03-02 08:00Z'")
    report = rebuild(counted, [DAY, NEXT, LAST], decision=Decision.AUTOMATIC)
    assert {(each.day, each.reason) for each in report.kept} == {(DAY, "announced"), (NEXT, "announced")}
    assert (report.failed, verify(counted, [DAY, NEXT, LAST]).difference) == ([], 0)
    assert stored(counted) == before
    write(connect(), [row(NOON)] * 2)
    refresh(counted)
    execute(counted, "delete from calculation_logs where created_at < '2026-03-02 16:00Z'")
    assert verify(counted, [DAY, NEXT, LAST]).difference == 0
    assert count(counted, DAY) == sum(m[0] for (_, day), m in before.items() if day == DAY) + 2


def test_statistics_that_claim_less_than_the_logs_are_not_explained_by_deletion(counted: Database):
    counted = replace(counted, logs_kept_days=30)
    execute(counted, "delete from calculation_logs where id in (select min(id) from calculation_logs)")
    execute(counted, "update calculation_stats_daily set cache_hits = 0")
    rebuild(counted, [DAY, NEXT, LAST], decision=Decision.AUTOMATIC)
    assert len({proof.day for proof in verify(counted, [DAY, NEXT, LAST]).different}) == 1


def test_after_a_rebase_pruned_days_need_no_logs_to_be_exact(counted: Database, owner: Engine, connect):
    prune(counted, LAST)
    before = stored(counted)
    rebase(replace(counted, engine=owner))
    assert waiting_days(counted) == [DAY, NEXT, LAST]
    report = rebuild(counted, [DAY, NEXT, LAST])
    assert (report.failed, built_days(counted)) == ([], [DAY, NEXT, LAST])
    write(connect(), [row(NOON)])
    refresh(counted)
    assert verify(counted, [DAY, NEXT, LAST]).difference == 0
    assert sum(m[0] for m in stored(counted).values()) == sum(m[0] for m in before.values()) + 1


def test_a_late_row_not_counted_before_a_rebase_is_not_lost(counted: Database, owner: Engine, connect):
    prune(counted, NEXT)
    total = count(counted, DAY)
    write(connect(), [row(NOON)] * 3)
    rebase(replace(counted, engine=owner))
    for each in rebuild(counted, [DAY]).failed:
        assert (each.log_rows, each.counted_rows, each.deleted_rows) == (3, total, total)
    assert {proof.finding for proof in verify(counted, [DAY]).different} == {"logs_added"}
    assert count(counted, DAY) == total


@pytest.mark.long
def test_pruning_writing_refreshing_and_rebuilding_at_once_never_differ(counted: Database, connect):
    days = [DAY, NEXT, LAST]
    total = sum(m[0] for m in stored(counted).values())

    writer, written = connect(), []

    def writing() -> None:
        write(writer, [row(NOON + timedelta(days=len(written) % 3), publisher=len(written) % 5)] * 7)
        time.sleep(0.02)
        written.append(7)

    def proving() -> None:
        different = verify(counted, days).different
        assert not different, different

    works = [writing, proving, lambda: refresh(counted), lambda: rebuild(counted, days)]
    pruned = 0
    with Crowd(*works):
        for _ in range(25):
            pruned += prune(counted, LAST, batch_rows=100).rows
    refresh(counted)
    assert verify(counted, days).difference == 0
    assert sum(m[0] for m in stored(counted).values()) == total + sum(written)
    assert pruned > 25
