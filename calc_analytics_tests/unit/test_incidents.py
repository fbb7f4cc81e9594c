"""What is told, when, and how often: outcomes in, lines out."""

import pytest

from calc_analytics.orchestration.incidents import (
    DETAIL_LENGTH,
    OPEN_AT_MOST,
    Incidents,
    Outcome,
    message,
    name_check,
)
from calc_analytics.rollups import HOURS, LATENCY, LOG, STATS

NOON = 1_772_366_400.0  # 2026-03-01 12:00 UTC
DAY = ("2026-03-01", "2026-03-01")


def failed(subject: str = "check x", days=DAY, at: float = NOON, detail: str = "differs by 5") -> Outcome:
    return Outcome(subject, True, at, detail, days)


def well(subject: str = "check x", days=DAY, at: float = NOON + 600) -> Outcome:
    return Outcome(subject, False, at, "", days)


def incidents(*outcomes: Outcome) -> Incidents:
    book = Incidents([])
    for outcome in outcomes:
        book.note(outcome)
    return book


def lines(book: Incidents) -> list[str]:
    """What is due; it counts as delivered."""
    said = [incident.line() for incident in book.due()]
    book.told()
    return said


def test_a_failure_is_told_once_however_often_it_comes():
    book = incidents(failed(), failed(at=NOON + 30))
    assert lines(book) == ["failed: check x of 2026-03-01 (since 2026-03-01 12:00 UTC): differs by 5"]
    book.note(failed(at=NOON + 60))
    assert lines(book) == []


def test_a_recovery_is_told_once_and_then_a_failure_is_news_again():
    book = incidents(failed())
    lines(book)
    book.note(well())
    book.note(well(at=NOON + 700))
    assert lines(book) == [
        "resolved: check x of 2026-03-01 (failed 2026-03-01 12:00 UTC; ok since 2026-03-01 12:10 UTC)"
    ]
    book.note(well())
    assert lines(book) == []
    book.note(failed())
    assert len(lines(book)) == 1


def test_what_was_never_delivered_stays_due():
    book = incidents(failed())
    assert book.due()
    book.note(failed())
    book.note(failed("check y"))
    assert len(book.due()) == 2


def test_a_failure_that_passed_before_anybody_was_told_is_one_line_with_both_times():
    (line,) = lines(incidents(failed(), well()))
    assert line.startswith("resolved: check x of 2026-03-01 (failed 2026-03-01 12:00 UTC, differs by 5; ok since")


def test_a_flap_between_two_deliveries_is_nothing_new():
    book = incidents(failed())
    lines(book)
    for outcome in (well(), failed(at=NOON + 900)):
        book.note(outcome)
    assert lines(book) == []


def test_success_without_a_failure_is_nothing():
    assert lines(incidents(well())) == []


@pytest.mark.parametrize(
    ("days", "ends"),
    [
        (DAY, True),
        (("2026-02-01", "2026-03-31"), True),
        (("2026-03-02", "2026-03-31"), False),
        (None, False),
    ],
)
def test_a_success_ends_the_failures_of_the_days_it_covers(days, ends: bool):
    book = incidents(failed(), well(days=days))
    assert (book.due()[0].over_at is not None) == ends


def test_a_range_that_fails_is_news_although_one_of_its_days_had_failed():
    book = incidents(failed())
    lines(book)
    book.note(failed(days=("2026-03-01", "2026-03-09")))
    assert lines(book) == ["failed: check x of 2026-03-01 to 2026-03-09 (since 2026-03-01 12:00 UTC): differs by 5"]


def test_another_subject_or_day_is_another_incident():
    assert len(lines(incidents(failed(), failed("check y"), failed(days=("2026-03-02", "2026-03-02"))))) == 3


def test_a_subject_without_days_is_named_by_itself():
    assert lines(incidents(failed("job housekeeping", None)))[0].startswith("failed: job housekeeping (since")


def test_what_a_tick_leaves_is_read_by_the_next():
    book = incidents(failed(), failed("job housekeeping", None))
    again = Incidents.parse(book.values())
    assert [i.line() for i in again.due()] == [i.line() for i in book.due()]
    lines(again)
    assert Incidents.parse(again.values()).due() == []


def test_many_at_once_are_one_text_of_ten_lines():
    book = incidents(*(failed(f"check {n}") for n in range(600)))
    text = message(book.due(), "calc_analytics")
    assert text.count("\n") == 11
    assert text.endswith("and 590 more: see the Dagster UI")


def test_what_is_told_of_several_rollups_for_the_same_reason_is_one_line():
    book = incidents(
        failed("freshness of a", None), failed("freshness of b", None, at=NOON + 60), failed("freshness of c", None)
    )
    assert message(book.due(), "me") == "me: failed: freshness of a, b, c (since 2026-03-01 12:00 UTC): differs by 5"
    book.told()
    for name in ("a", "c"):
        book.note(well(f"freshness of {name}", None))
    assert message(book.due(), "me").startswith("me: resolved: freshness of a, c (failed 2026-03-01 12:00 UTC; ok")
    book.told()
    assert [incident.subject for incident in book.open] == ["freshness of b"]


def test_another_reason_or_day_or_kind_is_another_line():
    book = incidents(
        failed("check x of a"),
        failed("check x of b"),
        failed("check x of c", detail="else"),
        failed("check x of d", ("2026-03-02", "2026-03-02")),
        failed("check y of a"),
        failed("check x"),
        failed("check z"),
    )
    names = [line.partition("failed: ")[2].partition(" (")[0] for line in message(book.due(), "me").splitlines()[1:]]
    assert names == [
        "check x of a, b on 2026-03-01",
        "check x of c on 2026-03-01",
        "check x of d on 2026-03-02",
        "check y of a on 2026-03-01",
        "check x of 2026-03-01",
        "check z of 2026-03-01",
    ]


def test_a_check_is_named_with_its_rollup_where_the_name_does_not_tell_which():
    assert name_check("cache_hits_within_total", STATS.name) == "cache_hits_within_total"
    assert name_check("cache_hits_within_total", HOURS.name) == "cache_hits_within_total of calculation_stats_hourly"
    assert name_check(LATENCY.match_check_name, LATENCY.name) == "calculation_latency_daily_match_logs"
    names = [name_check(name, rollup.name) for rollup in LOG.rollups for name in rollup.check_names]
    assert len(names) == len(set(names)) == 8


def test_the_state_stays_small():
    book = incidents(*(failed(f"check {n}", detail="x" * 5_000) for n in range(600)))
    assert max(len(incident.detail) for incident in book.due()) == DETAIL_LENGTH
    lines(book)
    assert len(book.open) == OPEN_AT_MOST
    assert book.open[-1].subject == "check 599"


def test_an_error_of_several_lines_is_one_line_and_cannot_mention_the_channel():
    (incident,) = incidents(failed(detail="<!channel> a & b\n  second")).due()
    assert message([incident], "me").endswith("&lt;!channel&gt; a &amp; b second")
