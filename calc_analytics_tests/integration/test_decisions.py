"""Losses and changes of the log that were found before a rebase, a switch or an overflow wait for a decision: no number
of late rows makes them good, and no operation settles them by itself."""

import random
from datetime import date
from typing import Any

import pytest
from sqlalchemy.engine import Engine

from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import built_days, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import HOURS, LATENCY, LOG, STATS
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import FORMS, assert_exact, disagreements, execute, random_rows, row, stored, utc, write

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)
TEN_LOST = (
    "delete from calculation_logs where id in "
    "(select id from calculation_logs where created_at < '2026-03-02Z' limit 10)"
)
AUTOMATIC = Decision.AUTOMATIC


@pytest.fixture
def counted(db: Database, connect) -> Database:
    """Two built days of 100 rows."""
    rng, writer = random.Random(8), connect()
    write(writer, random_rows(rng, 100, utc(2026, 3, 1), utc(2026, 3, 2)))
    write(writer, random_rows(rng, 100, utc(2026, 3, 2), utc(2026, 3, 3)))
    rebuild(db, [DAY, NEXT])
    return db


def totals(db: Database, day: date = DAY) -> set[int]:
    """Log rows of the day, according to each rollup."""
    return {sum(sums[0] for key, sums in stored(db, name).items() if key[-1] == day) for name in FORMS}


def red(db: Database) -> dict[date, list[str]]:
    """What differs once everything was compared, as it is on record."""
    audit(db)
    verify(db, [DAY, NEXT])
    return different_days(db)


@pytest.mark.parametrize("is_found_first", [True, False])
def test_a_loss_kept_after_a_rebase_is_kept_in_every_rollup(
    counted: Database, owner: Engine, connect, is_found_first: bool
):
    execute(counted, TEN_LOST)
    if is_found_first:
        assert red(counted) == {DAY: sorted(LOG.names)}
    rebase(Database(owner, LOG, "UTC"))
    rebuild(counted, waiting_days(counted), decision=AUTOMATIC)
    assert red(counted) == {DAY: sorted(LOG.names)}
    assert len(rebuild(counted, [DAY], decision=Decision.KEEP).kept) == len(LOG.names)
    assert (red(counted), totals(counted)) == ({}, {100})
    write(connect(), [row(NOON)] * 7)
    refresh(counted)
    assert (red(counted), totals(counted), disagreements(counted)) == ({}, {107}, [])


def test_a_loss_that_was_found_is_not_made_good_by_as_many_late_rows(counted: Database, owner: Engine, connect):
    execute(counted, TEN_LOST)
    assert red(counted) == {DAY: sorted(LOG.names)}
    rebase(Database(owner, LOG, "UTC"))
    write(connect(), [row(NOON)] * 10)
    for _ in range(3):
        rebuild(counted, [DAY, NEXT], decision=AUTOMATIC)
        assert red(counted) == {DAY: sorted(LOG.names)}
    rebuild(counted, [DAY], decision=Decision.NONE)
    assert red(counted) == {DAY: sorted(LOG.names)}
    rebuild(counted, [DAY], decision=Decision.ALLOW_SHRINK)
    assert (red(counted), totals(counted)) == ({}, {100})
    assert_exact(counted)


def test_it_is_not_made_good_in_another_zone_either(counted: Database, owner: Engine, connect):
    execute(counted, TEN_LOST)
    assert red(counted) == {DAY: sorted(LOG.names)}
    moved = Database(owner, LOG, "Asia/Jerusalem")
    rebase(moved)
    write(connect(), [row(NOON)] * 10)
    for _ in range(2):
        rebuild(moved, [DAY, NEXT], decision=AUTOMATIC)
        assert DAY in red(moved)


def test_late_rows_after_the_rebuild_do_not_turn_a_frozen_day_green(counted: Database, owner: Engine, connect):
    execute(counted, TEN_LOST)
    assert red(counted) == {DAY: sorted(LOG.names)}
    rebase(Database(owner, LOG, "UTC"))
    rebuild(counted, [DAY, NEXT], decision=AUTOMATIC)
    write(connect(), [row(NOON)] * 10)
    refresh(counted)
    assert red(counted) == {DAY: sorted(LOG.names)}
    rebuild(counted, [DAY], decision=AUTOMATIC)
    assert red(counted) == {DAY: sorted(LOG.names)}
    refused = rebuild(counted, [DAY], decision=Decision.KEEP).refused
    assert {each.reason for each in refused} == {"late"}, "keeping would lose the ten late rows"
    assert red(counted) == {DAY: sorted(LOG.names)}


def test_moved_rows_are_not_accepted_by_a_rebase(counted: Database, owner: Engine):
    move = "update calculation_logs set created_at = created_at + interval '1 day' where id in "
    execute(counted, move + "(select id from calculation_logs where created_at < '2026-03-02Z' limit 10)")
    assert red(counted) == {DAY: sorted(LOG.names), NEXT: sorted(LOG.names)}
    rebase(Database(owner, LOG, "UTC"))
    for _ in range(2):
        rebuild(counted, [DAY, NEXT], decision=AUTOMATIC)
        assert red(counted) == {DAY: sorted(LOG.names), NEXT: sorted(LOG.names)}
    rebuild(counted, [NEXT], decision=Decision.NONE)
    assert (red(counted), totals(counted, NEXT)) == ({DAY: sorted(LOG.names)}, {110})


def test_switching_a_rollup_off_and_on_accepts_nothing(counted: Database, owner: Engine):
    move = "update calculation_logs set created_at = created_at + interval '1 day' where id in "
    execute(counted, move + "(select id from calculation_logs where created_at < '2026-03-02Z' limit 10)")
    assert set(red(counted)) == {DAY, NEXT}
    install(Database(owner, LOG.only([name for name in LOG.names if name != LATENCY.name]), "UTC"))
    install(Database(owner, LOG, "UTC"))
    rebuild(counted, waiting_days(counted), decision=AUTOMATIC)
    assert red(counted) == {DAY: sorted(LOG.names), NEXT: sorted(LOG.names)}


def test_a_new_rollup_is_not_built_too_low_where_another_one_lost_rows(owner: Engine, connect):
    one = Database(owner, LOG.only([STATS.name]), "UTC")
    install(one)
    write(connect(), random_rows(random.Random(2), 100, utc(2026, 3, 1), utc(2026, 3, 2)))
    rebuild(one, [DAY])
    execute(one, TEN_LOST)
    rebase(one)
    rebuild(one, [DAY], decision=AUTOMATIC)
    every = Database(owner, LOG, "UTC")
    install(every)
    rebuild(every, waiting_days(every), decision=AUTOMATIC)
    assert STATS.name in red(every)[DAY]
    assert {name: sum(s[0] for s in stored(every, name).values()) for name in LOG.names if name != STATS.name} == (
        dict.fromkeys([name for name in LOG.names if name != STATS.name], 0)
    )


def test_statistics_written_into_a_day_that_was_never_counted_are_found(db: Database, connect):
    write(connect(), [row(NOON)] * 6)
    execute(db, "update calculation_logs set xact_id = 3")
    write(connect(), [row(NOON)])
    refresh(db)
    assert waiting_days(db) == [DAY]
    execute(db, "insert into calculation_stats_daily values (9, '2026-03-01', 1000, 0, 0, 1000, 0, 0)")
    assert red(db) == {DAY: [STATS.name]}
    for _ in range(2):
        rebuild(db, [DAY], decision=AUTOMATIC)
        assert red(db) == {DAY: [STATS.name]}
    rebuild(db, [DAY], decision=Decision.ALLOW_SHRINK)
    assert red(db) == {}
    assert_exact(db)


@pytest.mark.parametrize("steps", [([STATS], [HOURS]), ([STATS], [HOURS], [STATS])])
def test_exchanging_rollups_forgets_no_day(owner: Engine, connect, steps: Any):
    days = [date(2026, 3, n + 1) for n in range(len(steps))]
    for day, kept in zip(days, steps, strict=True):
        one = Database(owner, LOG.only([rollup.name for rollup in kept]), "UTC")
        install(one)
        write(connect(), [row(utc(2026, 3, day.day, 12))] * 5)
        refresh(one)
        rebuild(one, waiting_days(one))
    assert built_days(one) == days
    assert sum(sums[0] for sums in stored(owner, steps[-1][0].name).values()) == 5 * len(days)


def test_rows_not_counted_before_a_rebase_wait_for_a_rebuild(counted: Database, owner: Engine, connect):
    write(connect(), [row(utc(2026, 3, 5, 12))] * 50)
    rebase(Database(owner, LOG, "UTC"))
    assert waiting_days(counted) == [DAY, NEXT, date(2026, 3, 5)]
    rebuild(counted, waiting_days(counted))
    assert_exact(counted)


def test_prune_stops_when_the_day_begins_to_differ(counted: Database):
    execute(counted, f"grant delete on calculation_logs to {ROLE}")

    def tamper(rows: int) -> None:
        execute(counted, "update calculation_stats_daily set total_calculations = total_calculations + 1000 "
                         "where date = '2026-03-01' and publisher_id = 1")  # fmt: skip
        audit(counted)

    report = prune(counted, NEXT, batch_rows=20, progress=tamper)
    assert report.rows_by_day == {DAY: 20}


def test_an_upgraded_cluster_is_audited_and_keeps_its_rollups(counted: Database, owner: Engine):
    execute(counted, "update rollup_state set system_identifier = 7, written_by = txid_current()")
    audit(counted)
    refresh(counted)
    install(Database(owner, LOG.only([STATS.name]), "UTC"))
    refresh(Database(counted.engine, LOG.only([STATS.name]), "UTC"))
