"""Days: reading, listing, and which day it is where."""

from datetime import date, datetime, timezone

import pytest

from calc_analytics.days import InvalidDay, days_between, parse_day, today, today_and_yesterday


def test_a_day_is_written_year_month_day():
    assert parse_day("2026-02-28") == date(2026, 2, 28)


@pytest.mark.parametrize("text", ["2026-02-30", "28.2.2026", "2026-2", "", "today", "2026-02-28T00:00"])
def test_anything_else_is_refused_and_the_form_is_shown(text: str):
    with pytest.raises(InvalidDay, match="YYYY-MM-DD"):
        parse_day(text)


def test_a_range_includes_both_ends():
    assert days_between(date(2026, 2, 28), date(2026, 3, 2)) == [date(2026, 2, 28), date(2026, 3, 1), date(2026, 3, 2)]


def test_a_range_the_wrong_way_round_is_refused():
    with pytest.raises(InvalidDay, match="before it begins"):
        days_between(date(2026, 3, 2), date(2026, 3, 1))


@pytest.mark.parametrize(
    ("zone", "instant", "day"),
    [
        ("UTC", datetime(2026, 3, 1, 23, 59, tzinfo=timezone.utc), date(2026, 3, 1)),
        ("UTC", datetime(2026, 3, 2, 0, 0, tzinfo=timezone.utc), date(2026, 3, 2)),
        ("Asia/Jerusalem", datetime(2026, 3, 1, 22, 0, tzinfo=timezone.utc), date(2026, 3, 2)),
        ("Asia/Jerusalem", datetime(2026, 3, 27, 21, 0, tzinfo=timezone.utc), date(2026, 3, 28)),  # summer time
        ("America/New_York", datetime(2026, 3, 2, 3, 0, tzinfo=timezone.utc), date(2026, 3, 1)),
    ],
)
def test_today_is_the_reporting_zones(zone: str, instant: datetime, day: date):
    assert today(zone, instant) == day
    assert today_and_yesterday(zone, instant)[1] == day
    assert (day - today_and_yesterday(zone, instant)[0]).days == 1
