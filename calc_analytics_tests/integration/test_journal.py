"""The journal: every operation is in it, in its own transaction; old minutes are summed up and nothing is lost."""

import random
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone

import numpy
import pytest
from sqlalchemy import text

from calc_analytics.rollup import rebuild as rebuild_module
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import rebase
from calc_analytics.rollup.journal import BUCKETS_PER_DOUBLING, compact, freshness, history, note_failure, totals
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.refresh_sql import AGE_SAMPLE
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LATENCY, LOG, STATS
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import execute, row, utc, write

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)
BY = f"calc_analytics as {ROLE}"


def operations(db: Database) -> list[str]:
    """The operations in the journal, oldest first."""
    return [entry.operation for entry in reversed(history(db))]


def sums(db: Database) -> dict:
    """What the counters show."""
    return {
        (each["operation"], each["failed"]): (int(each["operations"]), int(each["rows"]), round(each["seconds"], 6))
        for each in totals(db)
    }


@pytest.fixture
def built(db: Database, connect) -> Iterator[Database]:
    """Two built days, five rows in each, and the right to delete logs."""
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    write(connect(), [row(NOON + timedelta(days=n % 2)) for n in range(10)])
    rebuild(db, [DAY, NEXT])
    return db


def test_each_operation_has_an_entry_with_days_rows_and_by_whom(built: Database, owner, connect):
    write(connect(), [row(NOON)] * 3)
    refresh(built)
    execute(built, "delete from calculation_logs where id in (select min(id) from calculation_logs)")
    verify(built, [DAY])
    rebuild(built, [DAY], decision=Decision.AUTOMATIC)
    rebuild(built, [DAY], decision=Decision.KEEP)
    execute(built, f"update {STATS.name} set cache_hits = 9 where date = '{NEXT}'")
    audit(built)
    rebuild(built, [NEXT])
    prune(built, NEXT)
    rebase(Database(owner, LOG, "UTC"))
    note_failure(built, "rebuild", "no")
    found = {entry.operation: entry for entry in reversed(history(built))}
    assert {"refresh", "rebuild", "verify", "refuse", "keep", "audit", "prune", "rebase"} <= set(found)
    assert {found[name].by for name in ("refresh", "refuse", "keep", "audit", "prune")} == {BY}
    assert (found["refresh"].rows, found["prune"].rows) == (13, 7)
    assert found["refuse"].days[str(DAY)][STATS.name] == {"refused": "differs"}
    numbers = {"log_rows": 7, "counted": 8, "deleted": 1}
    assert found["keep"].days == {str(DAY): dict.fromkeys(LOG.names, numbers)}
    assert found["audit"].days == {str(NEXT): {STATS.name: {"difference": 9}}}
    assert found["prune"].days == {str(DAY): 7}
    assert [(each.operation, each.detail) for each in history(built) if each.failed] == [("rebuild", "no")]


def test_a_rebuild_has_rows_before_and_after(built: Database):
    execute(built, "update calculation_logs set created_at = '2026-03-02 13:00Z' where created_at < '2026-03-02Z'")
    rebuild(built, [NEXT])
    entry = next(each for each in history(built) if each.operation == "rebuild")
    assert entry.days == {str(NEXT): {name: {"before": 5, "after": 10} for name in LOG.names}}


def test_an_operation_that_is_rolled_back_is_not_in_the_journal(built: Database, connect, monkeypatch):
    before = operations(built)
    note = rebuild_module._note

    def note_and_fail(*arguments):
        note(*arguments)
        raise ValueError("no")

    monkeypatch.setattr(rebuild_module, "_note", note_and_fail)
    with pytest.raises(ValueError, match="no"):
        rebuild(built, [DAY])
    assert operations(built) == before
    write(connect(), [row(NOON)] * 3)
    execute(built, f"alter table {STATS.name} add constraint small check (total_calculations < 6) not valid")
    counted = sums(built)
    with pytest.raises(Exception, match="small"):
        refresh(built)
    assert sums(built) == counted


def test_refreshes_are_summed_up_per_minute(built: Database, connect):
    writer, minutes = connect(), []
    execute(built, "delete from rollup_journal")
    for n in range(1, 6):
        write(writer, [row(NOON)] * n + [row(NOON + timedelta(days=1))])
        refresh(built)
        minutes.append(datetime.now(timezone.utc).replace(second=0, microsecond=0))
    entries = [each for each in history(built) if each.operation == "refresh"]
    assert {each.at for each in entries} <= set(minutes)
    assert sum(each.operations for each in entries) == 5
    assert sum(each.rows for each in entries) == 20
    assert sum(each.days[str(DAY)] for each in entries) == 15
    assert sum(each.days[str(NEXT)] for each in entries) == 5
    refresh(built)
    assert sums(built)[("refresh", False)][:2] == (5, 20), "a refresh without rows is nothing"


def test_rows_that_are_not_counted_are_not_in_the_journal(db: Database, connect):
    writer = connect()
    write(writer, [row(NOON)] * 3)
    execute(db, "update calculation_logs set xact_id = null")
    write(writer, [row(NOON)] * 2)
    refresh(db)
    assert operations(db) == []


def minutes_of_work(db: Database, days_ago: int) -> None:
    """Entries of refreshes in minutes that many days ago, the first minute of the day among them."""
    for day in (days_ago, days_ago + 1):
        for minute in (0, 1, 700):
            execute(
                db,
                f"""
                insert into rollup_journal (log, at, operation, by, summed, operations, rows, seconds, days, ages,
                                            oldest_seconds)
                values ('calculation_logs', date_trunc('day', clock_timestamp() at time zone 'UTC') at time zone 'UTC'
                        - interval '{day} days' + interval '{minute} minutes', 'refresh', 'x as y', true, 3,
                        {minute + 5}, 0.25, '{{"{DAY}": {minute + 2}, "{NEXT}": 3}}', '{{"1": 16}}', {minute})
                """,
            )


def test_compacting_keeps_all_sums(built: Database):
    minutes_of_work(built, 40)
    minutes_of_work(built, 3)
    before, entries = sums(built), len(history(built))
    assert compact(built) == 6
    assert sums(built) == before
    assert len(history(built)) == entries - 4
    old = [each for each in history(built) if each.by == "x as y"][-2:]
    for entry in old:
        assert (entry.operations, entry.rows) == (9, 5 + 6 + 705)
        assert entry.days == {str(DAY): 2 + 3 + 702, str(NEXT): 9}
        assert (entry.oldest_seconds, entry.at.hour, entry.at.minute) == (700, 0, 0)
    assert (compact(built), sums(built)) == (0, before)
    assert compact(built, minutes_kept_days=1) == 6
    assert sums(built) == before


def test_counters_never_fall(built: Database):
    minutes_of_work(built, 40)
    before = {(each["operation"], each["failed"]): each for each in totals(built)}
    compact(built)
    for each in totals(built):
        for name in ("operations", "rows", "seconds", "days"):
            assert each[name] >= before[each["operation"], each["failed"]][name]


def test_sums_of_seconds_are_the_same_in_any_order(db: Database):
    execute(
        db,
        """
        insert into rollup_journal (log, at, operation, by, summed, seconds)
        select 'calculation_logs', clock_timestamp() - interval '60 days' + interval '1 minute' * n, 'refresh',
               'x as y', true, 0.1 * n + 1e-7
        from generate_series(1, 4000) n
        """,
    )
    (before,) = totals(db)
    compact(db)
    (after,) = totals(db)
    assert after == before


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_of_ages_are_within_a_buckets_width(db: Database, connect, seed: int):
    """Compared with numpy on the rows whose ages are noted."""
    rng, now = random.Random(seed), datetime.now(timezone.utc)
    ages = [min(60 * rng.lognormvariate(1, 1.5), 80_000) for _ in range(4000)]
    write(connect(), [row(now - timedelta(seconds=age)) for age in ages])
    assert refresh(db).rows == 4000
    took = (datetime.now(timezone.utc) - now).total_seconds()
    with db.engine.begin() as connection:
        statement = f"select created_at from calculation_logs where id & {AGE_SAMPLE - 1} = 0"
        sampled = [(now - at).total_seconds() for at in connection.execute(text(statement)).scalars()]
    assert len(sampled) == pytest.approx(4000 / AGE_SAMPLE, abs=1)
    (minute,) = freshness(db, now - timedelta(minutes=1))
    assert minute.rows == 4000
    assert max(ages) <= minute.oldest <= max(ages) + took
    width = 2 ** (1 / BUCKETS_PER_DOUBLING)
    for share, found in ((0.5, minute.p50), (0.95, minute.p95)):
        exact = float(numpy.quantile(sampled, share, method="inverted_cdf"))
        assert exact / width <= found <= (exact + took) * width


def test_freshness_adds_up_the_processes_of_a_minute(built: Database):
    execute(built, "delete from rollup_journal")
    for by, rows, bucket, oldest in (("one", 96, 0, 1.5), ("other", 4, 80, 1100.0)):
        execute(
            built,
            f"""
            insert into rollup_journal (log, at, operation, by, summed, rows, ages, oldest_seconds)
            values ('calculation_logs', '2026-03-01 12:00Z', 'refresh', '{by}', true, {rows}, '{{"{bucket}": {rows}}}',
                    {oldest})
            """,
        )
    (minute,) = freshness(built, NOON - timedelta(hours=1))
    assert (minute.minute, minute.rows, minute.oldest) == (NOON, 100, 1100.0)
    assert minute.p50 == minute.p95 == pytest.approx(2 ** (0.5 / 8))
    assert freshness(built, NOON + timedelta(minutes=1)) == []


def test_history_is_by_day_and_by_rollup(built: Database, connect):
    execute(built, "delete from rollup_journal")
    write(connect(), [row(NOON)])
    refresh(built)
    rebuild(built, [NEXT], [STATS.name])
    rebuild(built, [DAY], [LATENCY.name])
    assert [each.operation for each in history(built, DAY)] == ["rebuild", "refresh"]
    assert [each.operation for each in history(built, NEXT)] == ["rebuild"]
    assert [list(each.days) for each in history(built, rollup=STATS.name) if each.operation == "rebuild"] == [
        [str(NEXT)]
    ]
    assert history(built, NEXT, LATENCY.name) == []
    assert [each.operation for each in history(built, DAY, LATENCY.name)] == ["rebuild", "refresh"]
    assert len(history(built, limit=1)) == 1
    assert history(built)[0].as_dict()["operation"] == "rebuild"


def test_proofs_without_a_difference_are_summed_up_per_hour(built: Database):
    execute(built, "delete from rollup_journal")
    for _ in range(3):
        verify(built, [DAY])
        audit(built)
    found = sums(built)
    assert (found["verify", False][0], found["audit", False][0]) == (3 * len(LOG.rollups), 3)
    assert len(history(built)) <= 4
