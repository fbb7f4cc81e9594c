"""Changes of records, statistics and log rows that together could look right: they stay red until a person decides."""

import random
from datetime import date, timedelta

import pytest
from sqlalchemy.engine import Engine

from calc_analytics.rollup import unseen
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOCALITIES, LOG, STATS
from calc_analytics_tests.logs import disagreements, execute, random_rows, row, stored, utc, write

PRUNED, OPEN = date(2026, 3, 1), date(2026, 3, 2)
LATE = [row(utc(2026, 3, 1, 12))] * 7
PLUS_1000 = """
    update calculation_stats_daily set total_calculations = total_calculations + 1000
    where ctid = (select ctid from calculation_stats_daily where date = '{day}' limit 1)
"""
AUTOMATIC, KEEP = Decision.AUTOMATIC, Decision.KEEP


@pytest.fixture
def counted(db: Database, owner: Engine, connect) -> Database:
    """A pruned day and one with its log, of 100 rows each."""
    rng, writer = random.Random(8), connect()
    write(writer, random_rows(rng, 100, utc(2026, 3, 1), utc(2026, 3, 2)))
    write(writer, random_rows(rng, 100, utc(2026, 3, 2), utc(2026, 3, 3)))
    rebuild(db, [PRUNED, OPEN])
    verify(db, [PRUNED, OPEN])
    prune(Database(owner, LOG, "UTC"), OPEN)
    return db


def red(db: Database) -> dict[date, list[str]]:
    """What differs once everything was compared, as it is on record."""
    audit(db)
    verify(db, [PRUNED, OPEN])
    return different_days(db)


def rows_of(db: Database, name: str, day: date) -> int:
    """Log rows of the day, according to a rollup's statistics."""
    return sum(sums[0] for key, sums in stored(db, name).items() if key[-1] == day)


def test_a_loss_found_in_a_rollup_that_is_off_now_keeps_others_from_being_built_too_low(
    counted: Database, owner: Engine, connect
):
    def keep(*names: str) -> Database:
        install(Database(owner, LOG.only(names), "UTC"))
        return Database(counted.engine, LOG.only(names), "UTC")

    only_stats = keep(STATS.name)
    execute(counted, "delete from calculation_logs where id in (select id from calculation_logs limit 40)")
    write(connect(), [row(utc(2026, 3, 2, 12))] * 60)
    refresh(only_stats)
    only_localities = keep(LOCALITIES.name)
    done = rebuild(only_localities, [OPEN], decision=AUTOMATIC)
    assert [each.reason for each in done.refused] == ["frozen"]
    assert rows_of(counted, LOCALITIES.name, OPEN) == 100


def test_late_rows_of_a_pruned_day_that_came_while_a_rollup_was_off_are_added(
    counted: Database, owner: Engine, connect
):
    install(Database(owner, LOG.only([STATS.name]), "UTC"))
    write(connect(), LATE)
    refresh(Database(counted.engine, LOG.only([STATS.name]), "UTC"))
    install(Database(owner, LOG, "UTC"))
    rebuild(counted, [PRUNED, OPEN], decision=AUTOMATIC)
    assert red(counted) == {}
    assert {rows_of(counted, name, PRUNED) for name in LOG.names} == {107}
    assert disagreements(counted) == []


@pytest.mark.parametrize("day", [PRUNED, OPEN])
def test_a_record_deleted_with_its_statistics_is_found(counted: Database, day: date):
    execute(counted, f"delete from calculation_stats_daily where date = '{day}'")
    execute(counted, f"delete from rollup_days where rollup = 'calculation_stats_daily' and date = '{day}'")
    assert red(counted) == {day: [STATS.name]}
    rebuild(counted, [day], decision=AUTOMATIC)
    assert red(counted) == ({} if day == OPEN else {day: [STATS.name]})
    assert rows_of(counted, STATS.name, day) == (100 if day == OPEN else 0)


def test_statistics_that_contradict_the_other_rollups_are_not_frozen_as_right(counted: Database):
    execute(counted, PLUS_1000.format(day=PRUNED))
    execute(counted, f"delete from rollup_days where rollup = 'calculation_stats_daily' and date = '{PRUNED}'")
    rebuild(counted, [PRUNED], decision=AUTOMATIC)
    for _ in range(2):
        assert red(counted) == {PRUNED: [STATS.name]}


@pytest.mark.parametrize("odd", ["infinity", "-infinity", "20000-01-01", "0044-03-15 BC"])
def test_a_date_that_no_calendar_holds_hides_no_other_change(counted: Database, odd: str):
    execute(
        counted, f"insert into calculation_stats_daily (publisher_id, date, total_calculations) values (1, '{odd}', 5)"
    )
    execute(counted, PLUS_1000.format(day=PRUNED))
    found = red(counted)
    assert PRUNED in found
    assert len(found) == 2
    execute(counted, "delete from calculation_stats_daily where not date between '2026-01-01' and '2026-12-31'")
    assert set(red(counted)) == {PRUNED}


def test_sums_beyond_bigint_hide_no_other_change(counted: Database):
    execute(
        counted,
        f"update calculation_stats_daily set total_response_time_ms = 9223372036854775807 where date = '{OPEN}'",
    )
    execute(counted, PLUS_1000.format(day=PRUNED))
    assert set(red(counted)) == {PRUNED, OPEN}


def test_an_announced_deletion_of_one_row_does_not_excuse_changes_of_a_hundred(counted: Database):
    announced = Database(counted.engine, LOG, "UTC", logs_kept_days=10)
    execute(counted, "delete from calculation_logs where id = (select min(id) from calculation_logs where cache_hit)")
    execute(counted, "update calculation_logs set cache_hit = false")
    verify(announced, [OPEN])
    rebuild(announced, [OPEN], decision=AUTOMATIC)
    assert OPEN in red(announced)


def test_keep_does_not_lose_rows_that_a_rebase_made_old(counted: Database, owner: Engine, connect):
    write(connect(), LATE)
    rebase(Database(owner, LOG, "UTC"))
    rebuild(counted, [PRUNED], decision=AUTOMATIC)
    done = rebuild(counted, [PRUNED], decision=KEEP)
    assert {each.reason for each in done.refused} == {"late"}
    assert PRUNED in red(counted)


def test_keep_accepts_no_change_that_no_proof_has_reported(counted: Database):
    execute(counted, PLUS_1000.format(day=PRUNED))
    done = rebuild(counted, [PRUNED], decision=KEEP)
    assert "unproven" in {each.reason for each in done.refused}
    assert red(counted) == {PRUNED: [STATS.name]}


def test_keep_given_twice_for_a_loss_does_not_accept_a_change_that_came_with_it(counted: Database):
    execute(counted, "delete from calculation_logs where id in (select id from calculation_logs limit 10)")
    execute(counted, PLUS_1000.format(day=OPEN))
    for _ in range(2):
        rebuild(counted, [OPEN], decision=KEEP)
    assert red(counted) == {OPEN: [STATS.name]}


def test_a_comparison_does_not_hide_changed_statistics_of_a_day_with_a_value_too_large(counted: Database, connect):
    execute(
        counted,
        "update calculation_stats_daily set total_calculations = 2147483647 "
        f"where ctid = (select ctid from calculation_stats_daily where date = '{PRUNED}' and publisher_id = "
        f"(select min(publisher_id) from calculation_stats_daily where date = '{PRUNED}'))",
    )
    publisher = min(key[0] for key in stored(counted, STATS.name) if key[-1] == PRUNED)
    write(connect(), [row(utc(2026, 3, 1, 12), publisher=publisher)] * 7)
    refresh(counted)
    for _ in range(2):
        assert PRUNED in red(counted)


def test_a_day_whose_rows_were_pruned_as_another_zones_day_is_not_counted_again(counted: Database, owner: Engine):
    tokyo = Database(owner, LOG, "Asia/Tokyo")
    rebase(tokyo)
    done = rebuild(tokyo, [PRUNED, OPEN, OPEN + timedelta(days=1)], decision=AUTOMATIC)
    assert {(each.day, each.reason) for each in done.refused} == {(PRUNED, "frozen"), (OPEN, "frozen")}
    assert rows_of(counted, STATS.name, OPEN) == 100


@pytest.mark.parametrize("lost", ["the rebase is interrupted", "the state is deleted"])
def test_rows_of_a_new_day_that_were_not_counted_are_found(
    counted: Database, owner: Engine, connect, monkeypatch: pytest.MonkeyPatch, lost: str
):
    mine = Database(owner, LOG, "UTC")
    write(connect(), [row(utc(2026, 4, 1, 12))] * 50)
    if lost == "the state is deleted":
        execute(counted, "delete from rollup_state")
        install(mine)
    else:
        monkeypatch.setattr(unseen, "record_days", interrupt)
        with pytest.raises(KeyboardInterrupt):
            rebase(mine)
        monkeypatch.undo()
    assert unseen.Search().days(counted) == [date(2026, 4, 1)]
    unseen.record_days(counted)
    rebuild(counted, waiting_days(counted), decision=AUTOMATIC)
    assert rows_of(counted, STATS.name, date(2026, 4, 1)) == 50


def interrupt(db: Database) -> None:
    """Ctrl-C, or the end of the process."""
    raise KeyboardInterrupt
