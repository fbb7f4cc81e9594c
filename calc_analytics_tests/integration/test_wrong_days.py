"""Days that are wrong, as Dagster shows them: through hourly runs they stay red, or are repaired to the right number.

Never green and wrong; and no run fails because of them.
"""

from datetime import date, datetime, timedelta

import pytest
from dagster import AssetKey, DagsterInstance, Definitions

from calc_analytics.days import today, today_and_yesterday
from calc_analytics.orchestration import sensors
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.retention import prune
from calc_analytics.rollups import LOG
from calc_analytics_tests.integration.test_dagster_runs import check, config, metadata, run
from calc_analytics_tests.integration.test_sensor import later, run_checks, tick
from calc_analytics_tests.logs import execute, oracle, row, stored, utc, write

STATS = "calculation_stats_daily"
MATCH = "stats_match_logs"
TODAY = today("UTC")
YESTERDAY = TODAY - timedelta(days=1)
OLD = date(2026, 3, 1)


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "FOLLOW_SECONDS", 1.0)


@pytest.fixture
def built(location: Definitions, db: Database, connect) -> Database:
    """Today and yesterday, each with ten log rows of the publishers 7 and 8, built."""
    write(connect(), [row(begin(day), publisher=n % 2 + 7) for day in (YESTERDAY, TODAY) for n in range(10)])
    rebuild(db, [YESTERDAY, TODAY])
    return db


def begin(day: date) -> datetime:
    return utc(day.year, day.month, day.day)


def run_hourly(location: Definitions, instance: DagsterInstance) -> None:
    """What a tick of `hourly_rollup` starts; no run may fail."""
    for day in today_and_yesterday("UTC"):
        assert run(location, instance, day, run_config=config(automatic=True)).success


def matches(instance: DagsterInstance, day: date) -> dict[str, bool]:
    """Whether the last comparison of each rollup of the day passed."""
    return {
        rollup.name: check(instance, rollup.match_check_name, day, AssetKey(rollup.name)).passed
        for rollup in LOG.rollups
    }


def test_changed_statistics_are_red_with_the_publisher_until_the_hourly_run_repairs_them(location, instance, built):
    before = tick(location, instance).cursor
    changed = "total_calculations = total_calculations + 1000"
    execute(built, f"update {STATS} set {changed} where date = '{YESTERDAY}' and publisher_id = 7")
    audit(built)
    first = tick(location, instance, before)
    (request,) = first.run_requests
    assert tick(location, instance, first.cursor).run_requests == [], "requested once"
    run_checks(location, instance, request)
    evaluation = check(instance, MATCH, YESTERDAY)
    assert (evaluation.passed, evaluation.severity.value) == (False, "ERROR")
    assert "publisher_id 7: 5 in the log, 1,005 stored" in evaluation.description
    assert f"'calc-analytics rollup --day {YESTERDAY}'" in evaluation.description
    for _ in range(3):
        run_hourly(location, instance)
        assert stored(built) == oracle(built)
        assert all(matches(instance, YESTERDAY).values())
    last = tick(location, instance, later(first.cursor, 3600))
    assert last.run_requests == [], "the hourly run has reported that it is right again"


def test_deleted_log_rows_stay_red_and_the_statistics_what_they_were(location, instance, built):
    before = stored(built)
    execute(built, f"delete from calculation_logs where publisher_id = 7 and created_at = '{begin(YESTERDAY)}'")
    for _ in range(3):
        run_hourly(location, instance)
        assert not any(matches(instance, YESTERDAY).values())
        assert stored(built) == before
    message = check(instance, MATCH, YESTERDAY).description
    assert "log rows are missing: 5 log rows, 10 counted" in message
    assert f"'calc-analytics rollup --day {YESTERDAY} --keep'" in message
    assert "5 log rows but 10 counted" in metadata(instance, YESTERDAY)["not_rebuilt"]


def test_announced_deletions_are_kept_and_green(location, instance, built, connect, monkeypatch):
    write(connect(), [row(utc(2026, 3, 1, 12))] * 4)
    rebuild(built, [OLD])
    monkeypatch.setenv("LOGS_KEPT_DAYS", "30")
    execute(built, "delete from calculation_logs where created_at < '2026-03-02'")
    assert run(location, instance, OLD, run_config=config(automatic=True)).success
    assert all(matches(instance, OLD).values())
    assert "LOGS_KEPT_DAYS" in metadata(instance, OLD)["not_rebuilt"]
    assert stored(built)[1, OLD][0] == 4


def test_log_rows_moved_to_another_day_make_both_days_red_as_what_they_are(location, instance, built):
    before = stored(built)
    moved = f"created_at = '{begin(TODAY)}' where publisher_id = 7 and created_at = '{begin(YESTERDAY)}'"
    execute(built, f"update calculation_logs set {moved}")
    for _ in range(3):
        run_hourly(location, instance)
        assert not any(matches(instance, YESTERDAY).values())
        assert not any(matches(instance, TODAY).values())
        assert stored(built) == before
    assert "log rows are missing: 5 log rows, 10 counted" in check(instance, MATCH, YESTERDAY).description
    message = check(instance, MATCH, TODAY).description
    assert "rows were added to the past or moved here: 15 log rows, 10 counted" in message


def test_changed_statistics_of_a_pruned_day_stay_red_and_say_so(location, instance, built, owner):
    assert prune(Database(owner, LOG, "UTC"), TODAY).rows_by_day == {YESTERDAY: 10}
    changed = "total_calculations = total_calculations - 2"
    execute(built, f"update {STATS} set {changed} where date = '{YESTERDAY}' and publisher_id = 7")
    for _ in range(3):
        run_hourly(location, instance)
        assert not matches(instance, YESTERDAY)[STATS]
        assert matches(instance, YESTERDAY)["calculation_stats_hourly"]
    message = check(instance, MATCH, YESTERDAY).description
    assert "another program changed the statistics: 8 stored but 10 counted" in message
    assert "Log rows were deleted, so they cannot be recounted" in message
    assert "10 of its 10 counted log rows were deleted" in metadata(instance, YESTERDAY)["not_rebuilt"]


def test_a_day_that_is_frozen_is_a_warning(location, instance, built):
    """As adoption records statistics of a predecessor: of a day whose log rows are gone."""
    execute(built, f"insert into {STATS} values (7, '{OLD}', 5, 1, 0, 5, 0, 0)")
    execute(built, f"insert into rollup_days (rollup, date, status, method) "
                   f"values ('{STATS}', '{OLD}', 'pending', 'predecessor')")  # fmt: skip
    assert run(location, instance, OLD, run_config=config(automatic=True)).success
    evaluation = check(instance, MATCH, OLD)
    assert (evaluation.passed, evaluation.severity.value) == (False, "WARN"), evaluation.description
    assert "its log rows are gone" in metadata(instance, OLD)["not_rebuilt"]
