"""The check `usual_total` on made-up history: it warns of what is far from the same weekdays before, and only then."""

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Any

import numpy
import pytest
from dagster import AssetCheckKey, AssetCheckSeverity, AssetKey
from sqlalchemy import text

from calc_analytics.orchestration.checks import Verdict, evaluate
from calc_analytics.rollup import usual
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.erasure import erase
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollups import LOG, STATS
from calc_analytics_tests.logs import execute, row, utc, write

CHECK = AssetCheckKey(AssetKey(STATS.name), "usual_total")
DAY = date(2026, 3, 3)
WEEK = timedelta(days=7)
LAST_WEEKS = [DAY - n * WEEK for n in range(1, 9)]
# What publisher 7 has on a Tuesday, week by week.
TUESDAYS = (1000, 900, 1100, 1400, 1250, 950, 1300, 1050)


def keep(db: Database, counts: Mapping[date, Mapping[int, int]], status: str = "built") -> None:
    """Statistics and ledger of these days, as rebuilds would have left them: calculations by publisher."""
    with db.engine.begin() as connection:
        for day, of in counts.items():
            for publisher, count in of.items():
                connection.execute(
                    text(
                        "insert into calculation_stats_daily (publisher_id, date, total_calculations) "
                        "values (:p, :d, :n)"
                    ),
                    {"p": publisher, "d": day, "n": count},
                )
            ledger = "insert into rollup_days (rollup, date, status, timezone) values (:r, :d, :s, 'UTC')"
            connection.execute(text(ledger), {"r": STATS.name, "d": day, "s": status})


def history(*publishers: int, weeks: int = 8) -> dict[date, dict[int, int]]:
    """That many Tuesdays before DAY, of these publishers."""
    return {day: dict.fromkeys(publishers, TUESDAYS[n]) for n, day in enumerate(LAST_WEEKS[:weeks])}


def judge(db: Database, day: date = DAY) -> Verdict:
    """What the check says about the day."""
    return evaluate(db, [CHECK], [day])[CHECK][day]


def test_a_usual_day_passes_and_says_what_is_usual(db):
    keep(db, {**history(7, 8), DAY: {7: 1200, 8: 700}})
    said = judge(db)
    low, high = numpy.percentile([2 * each for each in TUESDAYS], [25, 75])
    assert said.passed
    assert (
        said.description
        == f"as usual: all publishers: 1,900 calculations, usually {low:,.0f} to {high:,.0f} on a Tuesday"
    )
    assert said.metadata == {
        "calculations": 1900,
        "usual_low": round(low),
        "usual_high": round(high),
        "unusual_publishers": 0,
    }


@pytest.mark.parametrize(("count", "warns"), [(0, True), (12, True), (450, False), (3000, False), (9000, True)])
def test_a_drop_and_a_spike_warn_with_publisher_and_size_and_nothing_between(db, count: int, warns: bool):
    keep(db, {**history(7, 8, 9), DAY: {8: 1000, 9: 1000, **({7: count} if count else {})}})
    said = judge(db)
    assert said.severity == AssetCheckSeverity.WARN
    assert said.passed is not warns
    if warns:
        noun = f"{count:,} calculations"
        assert f"publisher 7: {noun}, usually 988 to 1,262 on a Tuesday" in said.description
        assert said.description.startswith("2026-03-03: ")
        assert "publisher 8" not in said.description
        assert said.metadata["unusual_publishers"] == 1


def test_a_day_without_any_row_is_a_drop_of_all_publishers(db):
    keep(db, {**history(7), DAY: {}})
    description = judge(db).description
    assert description.startswith(
        "2026-03-03: all publishers: 0 calculations, usually 988 to 1,262 on a Tuesday; publisher 7: 0"
    )


def test_at_most_ten_are_named_those_that_differ_most(db):
    many = {day: {p: 1000 * p for p in range(1, 14)} for day in LAST_WEEKS}
    keep(db, {**many, DAY: {20: 5}})
    said = judge(db)
    assert [int(each.split(":")[0]) for each in said.description.split("publisher ")[1:]] == list(range(13, 3, -1))
    assert said.description.endswith("; 3 more publishers")
    assert said.metadata["unusual_publishers"] == 13


def test_small_publishers_do_not_warn(db):
    keep(db, {**{day: {1: 90, 2: 5000} for day in LAST_WEEKS}, DAY: {2: 5000, 3: 99}})
    assert judge(db).passed


@pytest.mark.parametrize(("weeks", "passes"), [(3, True), (4, False)])
def test_young_data_is_not_judged(db, weeks: int, passes: bool):
    keep(db, {**history(7, weeks=weeks), DAY: {7: 1}})
    said = judge(db)
    assert said.passed is passes
    if passes:
        assert said.description == "not judged: 3 of the 8 Tuesdays before are built, and 4 are needed"


def test_a_young_publisher_is_not_judged_and_days_before_its_first_are_not_zero(db):
    keep(db, {**history(7), DAY: {7: 1000, 8: 90_000}})
    execute(
        db,
        f"insert into calculation_stats_daily (publisher_id, date, total_calculations) "
        f"select 8, date '{DAY}' - 7 * n, 100 from generate_series(1, 3) n",
    )
    assert [each.key for each in usual.judge_counts(db, STATS, [DAY])[DAY].unusual] == []


def test_a_holiday_warns_once_and_is_not_taken_for_usual_afterwards(db):
    days = {DAY - n * WEEK: {7: TUESDAYS[n % 8]} for n in range(2, 12)}
    holiday = DAY - WEEK
    keep(db, {**days, holiday: {7: 3}, DAY: {7: 1000}})
    assert not judge(db, holiday).passed
    assert judge(db).passed


def test_other_weekdays_do_not_count(db):
    sundays = {day - timedelta(days=2): {7: 5} for day in LAST_WEEKS}
    keep(db, {**history(7), **sundays, DAY: {7: 1000}})
    assert judge(db).passed


def test_today_and_days_that_are_not_built_are_not_judged(db, monkeypatch):
    keep(db, history(7))
    assert judge(db).description == "not judged: the day is not built"
    keep(db, {DAY: {7: 1}}, status="pending")
    assert (judge(db).passed, judge(db).description) == (True, "not judged: the day is not built")
    monkeypatch.setattr(usual, "today", lambda zone: DAY)
    assert (judge(db).passed, judge(db).description) == (True, "not judged: the day is not over")


def test_pending_days_before_are_not_history(db):
    keep(db, history(7, weeks=3))
    keep(db, {day: {7: 1} for day in LAST_WEEKS[3:]}, status="pending")
    keep(db, {DAY: {7: 1}})
    assert judge(db).description.startswith("not judged: 3 of the 8")


def rows(days: Iterable[date], publisher: int, count: int) -> list[tuple[Any, ...]]:
    return [row(utc(day.year, day.month, day.day, 12), publisher=publisher) for day in days for _ in range(count)]


@pytest.fixture
def sundays(owner, connect) -> tuple[Database, list[date]]:
    """Nine Sundays in Berlin, the last of 23 hours (summer time begins); publisher 8 has no row on the last."""
    db = Database(owner, LOG, "Europe/Berlin")
    execute(owner, "update rollup_state set timezone = 'Europe/Berlin'")
    days = [date(2026, 3, 29) - n * WEEK for n in range(8, -1, -1)]
    # Half an hour after midnight in Berlin: the day before in UTC.
    at_night = [
        row(utc(day.year, day.month, day.day) - timedelta(minutes=30), publisher=7) for day in days for _ in range(150)
    ]
    write(connect(), [*at_night, *rows(days[:-1], 8, 120), *rows(days[-1:], 9, 1)])
    rebuild(db, days)
    return db, days


def test_a_day_of_23_hours_is_compared_by_the_days_of_the_reporting_time_zone(sundays):
    db, days = sundays
    (unusual,) = usual.judge_counts(db, STATS, [days[-1]])[days[-1]].unusual
    assert (unusual.key, unusual.counted, unusual.low, unusual.high) == (8, 0, 120, 120)
    said = judge(db, days[-1])
    assert said.description == "2026-03-29: publisher 8: 0 calculations, usually 120 on a Sunday"


def test_an_erased_publisher_is_quiet(sundays):
    db, days = sundays
    assert erase(db, {"publisher_id": 8}).left == []
    assert judge(db, days[-1]).passed


def test_several_days_are_judged_at_once_as_each_alone(db):
    keep(db, {**history(7), DAY: {7: 12}, DAY + WEEK: {7: 1000}, DAY + 2 * WEEK: {7: 50_000}})
    days = [DAY, DAY + WEEK, DAY + 2 * WEEK, DAY + timedelta(days=1)]
    assert evaluate(db, [CHECK], days)[CHECK] == {day: judge(db, day) for day in days}


def test_a_run_reports_a_warning_that_blocks_nothing(location, instance, db, connect):
    write(connect(), [*rows(LAST_WEEKS, 7, 110), *rows([DAY], 8, 1)])
    rebuild(db, LAST_WEEKS)
    result = location.resolve_job_def("rollup_job").execute_in_process(instance=instance, partition_key=str(DAY))
    assert result.success
    (said,) = [each for each in result.get_asset_check_evaluations() if each.check_name == "usual_total"]
    assert (said.passed, said.severity, said.blocking) == (False, AssetCheckSeverity.WARN, False)
    assert said.description == (
        "2026-03-03: all publishers: 1 calculation, usually 110 on a Tuesday; "
        "publisher 7: 0 calculations, usually 110 on a Tuesday"
    )
