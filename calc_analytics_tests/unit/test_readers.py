"""The pure parts of a report: its period, its labels, its numbers in words, and the names that it shows."""

import re
from datetime import date

import pytest
from starlette.exceptions import HTTPException

from calc_analytics.days import InvalidDay
from calc_analytics.operations.reports import require_token
from calc_analytics.readers import figures, names
from calc_analytics.readers.period import LONGEST_DAYS, Period, PeriodTooLong, period

TODAY = date(2026, 11, 27)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (None, None, (date(2026, 10, 29), TODAY)),
        (date(2026, 11, 27), None, (TODAY, TODAY)),
        (None, date(2026, 1, 31), (date(2026, 1, 2), date(2026, 1, 31))),
        (None, date(1, 1, 2), (date(1, 1, 1), date(1, 1, 2))),
        (date(2026, 11, 27), date(2027, 1, 1), (TODAY, date(2027, 1, 1))),
    ],
)
def test_a_period_is_the_last_thirty_days_unless_it_is_given(first: date | None, last: date | None, expected: tuple):
    assert period(first, last, TODAY) == Period(*expected)


def test_a_period_that_ends_before_it_begins_or_is_too_long_is_refused():
    with pytest.raises(InvalidDay, match=r"ends \(2026-11-27\) before it begins \(2026-11-28\)"):
        period(date(2026, 11, 28), None, TODAY)
    longest = period(date.fromordinal(TODAY.toordinal() - LONGEST_DAYS + 1), TODAY, TODAY)
    assert longest.days == LONGEST_DAYS
    with pytest.raises(PeriodTooLong, match="3,661 days, a report at most 3,660"):
        period(date.fromordinal(TODAY.toordinal() - LONGEST_DAYS), TODAY, TODAY)


def test_the_period_before_has_the_same_length_and_ends_the_day_before():
    assert Period(date(2026, 3, 1), date(2026, 3, 31)).before == Period(date(2026, 1, 29), date(2026, 2, 28))
    assert Period(date(1, 1, 2), date(1, 1, 9)).before == Period(date(1, 1, 1), date(1, 1, 1))


def test_the_weeks_of_a_period_begin_on_mondays_and_cover_each_day_once():
    whole = Period(date(2026, 11, 5), date(2026, 11, 24))
    weeks = list(whole.spans(is_by_week=True))
    assert [each.in_words for each in weeks] == [
        "2026-11-05 to 2026-11-08",
        "2026-11-09 to 2026-11-15",
        "2026-11-16 to 2026-11-22",
        "2026-11-23 to 2026-11-24",
    ]
    assert sum(each.days for each in weeks) == whole.days == len(list(whole.spans(is_by_week=False)))


@pytest.mark.parametrize("most", [4, 9])
@pytest.mark.parametrize("length", [1, 2, 9, 30, 70, 71, 92, 120, 365, 400, 1000, 2000, 3660])
def test_there_are_labels_below_a_figure_and_not_more_than_fit(length: int, most: int):
    shown = Period(date.fromordinal(TODAY.toordinal() - length + 1), TODAY)
    labels = dict(figures._day_labels(shown, most))
    assert 1 <= len(labels) <= most
    assert all(shown.first <= day <= shown.last for day in labels)
    assert length < 400 or re.search("20[0-9]{2}", " ".join(labels.values()))


@pytest.mark.parametrize(("least", "greatest"), [(0, 0), (0, 0.4), (1, 1), (3, 7), (12, 900), (0, 32767), (128, 129)])
def test_the_scale_of_response_times_contains_them(least: float, greatest: float):
    scale = figures._scale(least, greatest)
    assert scale[0] <= least
    assert scale[-1] >= greatest
    assert 2 <= len(scale) <= 8
    assert scale == sorted(set(scale))


def test_numbers_in_words():
    assert [figures.compact(value) for value in (0, 950, 1200, 35_000_000, 2e9)] == ["0", "950", "1.2k", "35M", "2G"]
    shown = [figures.as_milliseconds(value).replace("\N{NO-BREAK SPACE}", " ") for value in (0.42, 12, 128.5, 1250)]
    assert shown == ["0.42 ms", "12 ms", "128 ms", "1.25 s"]
    assert figures.as_percent(0.598) == "59.8\N{NO-BREAK SPACE}%"


def test_names_become_one_line_without_control_characters_and_blank_ones_none():
    given = {1: " a\r\n\tb ", 2: "\u202egnp.exe", 3: " \x00 ", 4: None, 5: "x" * 400, 6: "שלום", 7: "\u2066\u2069"}
    shown = names._clean(given)
    assert shown == {1: "a b", 2: "gnp.exe", 5: "x" * (names.LONGEST - 1) + "…", 6: "שלום"}
    assert [names.Entity(7, name, "publisher").label for name in (None, "Seven")] == ["publisher 7", "Seven"]


def test_reports_are_closed_without_a_token_in_the_settings_even_to_an_empty_one():
    for sent in ({}, {"authorization": "Bearer "}, {"authorization": "Basic Og=="}):
        with pytest.raises(HTTPException) as closed:
            require_token(sent, None)
        assert closed.value.status_code == 403
        with pytest.raises(HTTPException) as refused:
            require_token(sent, "token")
        assert refused.value.status_code == 401
    require_token({"authorization": "bearer token"}, "token")
    require_token({"authorization": "Basic OnRva2Vu"}, "token")
