"""Alerts are transitions of health: reports in, lines out. No clock, no database, no webhook."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from calc_analytics.operations.alerts import DETAIL_LENGTH, LOOKS_LIMIT, Alerts, message
from calc_analytics.operations.disclosure import NO_ANSWER
from calc_analytics.operations.findings import NOTE, OK, WRONG, Finding, Problem
from calc_analytics.operations.health import PROBES, Health

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


class Watched:
    """Alerts that look every 15 seconds; what is due is posted, unless the webhook is down."""

    def __init__(self) -> None:
        self.alerts, self.at, self.is_down = Alerts(), NOON, False

    def look(self, *findings: Finding, times: int = 1) -> list[str]:
        """The lines that are posted at the last of these looks; other probes pass."""
        lines: list[str] = []
        for _ in range(times):
            self.at += timedelta(seconds=15)
            given = {finding.name: finding for finding in findings}
            self.alerts.look(Health(self.at, [given.get(name, Finding(name, OK, "fine")) for name in PROBES]))
            due = self.alerts.due()
            lines = lines_of(message(due, "me")) if due and not self.is_down else []
            if not self.is_down:
                self.alerts.delivered(self.at)
        return lines


def lines_of(text: str) -> list[str]:
    head, *others = text.split("\n• ")
    return others or [head.removeprefix("me: ")]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def failed(name: str = "freshness", fact: str = "last counted 3 h ago", **more: object) -> Finding:
    return Finding(name, WRONG, fact, command="calc-analytics status", **more)


def unread(name: str, fact: str = "cannot connect", code: str = "database_unreachable") -> Finding:
    return Finding(name, WRONG, fact, command="calc-analytics doctor", code=code, is_known=False)


def days(*names: str) -> Finding:
    return failed("proofs", "days differ", problems=tuple(Problem(f"day {day}", "differs") for day in names))


DATABASE = ("database", "tables", "state", "freshness", "proofs", "audit", "runs")
DAGSTER = ("daemon", "sensor", "schedule", "housekeeping", "checks", "scheduled_run", "runs")


def test_what_is_wrong_on_two_looks_is_posted_once_with_the_next_command(watched):
    assert watched.look(failed()) == []
    assert watched.look(failed()) == [
        "failed: freshness (since 2026-03-01 12:00 UTC): last counted 3 h ago. Next: calc-analytics status"
    ]
    assert watched.look(failed(), times=10) == []


def test_what_passes_on_two_looks_is_posted_as_resolved_with_both_instants(watched):
    watched.look(failed(), times=4)
    assert watched.look() == []
    assert watched.look() == ["resolved: freshness (failed 2026-03-01 12:00 UTC; ok since 2026-03-01 12:01 UTC)"]
    assert watched.look(times=10) == []


def test_one_wrong_look_among_others_is_nothing(watched):
    for _ in range(20):
        assert watched.look(failed()) == []
        assert watched.look() == []


def test_one_look_that_passes_does_not_resolve(watched):
    watched.look(failed(), times=2)
    for _ in range(10):
        assert watched.look() == []
        assert watched.look(failed()) == []


def test_what_keeps_flapping_becomes_one_open_alert(watched):
    posted = [watched.look(failed(), times=2) + watched.look(times=2) for _ in range(100)]
    assert len([lines for lines in posted if lines]) <= 2
    assert [watched.look() for _ in range(LOOKS_LIMIT)].count([]) == LOOKS_LIMIT - 1, "its end"


def test_an_hour_later_it_is_no_flapping_any_more(watched):
    for _ in range(3):
        assert watched.look(failed(), times=2)
        assert watched.look(times=2)
        watched.look(times=300)


def test_each_day_that_differs_is_an_alert_of_its_own(watched):
    watched.look(days("2026-03-01"), times=2)
    watched.look(days("2026-03-01", "2026-03-02", "2026-03-03"))
    assert watched.look(days("2026-03-01", "2026-03-02", "2026-03-03")) == [
        "failed: day 2026-03-02, day 2026-03-03 (since 2026-03-01 12:00 UTC): differs. Next: calc-analytics status"
    ]
    assert "resolved: day 2026-03-01" in watched.look(days("2026-03-02", "2026-03-03"), times=2)[0]


def test_a_database_that_is_down_is_one_line_and_resolves_nothing(watched):
    watched.look(days("2026-03-01"), times=2)
    assert watched.look(*map(unread, DATABASE), times=2) == [
        "failed: database (since 2026-03-01 12:00 UTC): cannot connect. Next: calc-analytics doctor"
    ]
    assert watched.look(*map(unread, DATABASE), times=5) == []
    watched.look(days("2026-03-01"))
    assert [line[:18] for line in watched.look(days("2026-03-01"))] == ["resolved: database"]
    assert watched.look(days("2026-03-01"), times=5) == []


def test_a_server_that_hangs_is_one_line_for_each_database(watched):
    hanging = [unread(name, "no answer within 3 s", NO_ANSWER) for name in {*DATABASE, *DAGSTER}]
    (line,) = watched.look(*hanging, times=2)
    assert line.startswith("failed: database, daemon (since")


@pytest.mark.parametrize("hanging", [DATABASE, DAGSTER])
def test_a_server_that_hangs_alone_is_one_line(watched, hanging: tuple[str, ...]):
    (line,) = watched.look(*(unread(name, "no answer within 3 s", NO_ANSWER) for name in hanging), times=2)
    assert line.startswith(f"failed: {hanging[0]} (since")


def test_a_locked_table_alone_names_the_probes_that_do_not_answer(watched):
    (line,) = watched.look(*(unread(name, "no answer", NO_ANSWER) for name in ("freshness", "audit")), times=2)
    assert line.startswith("failed: freshness, audit (since")


def test_a_cause_that_several_probes_have_in_common_is_one_line(watched):
    restored = [unread(name, "restored elsewhere", "restored_elsewhere") for name in ("state", "freshness", "audit")]
    (line,) = watched.look(*restored, times=2)
    assert line.startswith("failed: state (since")


def test_a_dead_daemon_is_not_reported_again_by_its_sensor(watched):
    late = failed("sensor", "its last tick began 90 s ago")
    assert len(watched.look(failed("daemon", "dead"), late, times=2)) == 1
    assert watched.look(failed("daemon", "dead"), late, times=5) == []
    watched.look(late)
    assert any(line.startswith("failed: sensor") for line in watched.look(late))


def test_a_sensors_open_alert_is_not_resolved_by_the_death_of_the_daemon(watched):
    late = failed("sensor", "its last 2 ticks failed")
    watched.look(late, times=2)
    (line,) = watched.look(failed("daemon", "dead"), late, times=2)
    assert line.startswith("failed: daemon")
    assert [watched.look(failed("daemon", "dead"), late) for _ in range(LOOKS_LIMIT)] == [[]] * LOOKS_LIMIT
    assert watched.look(late) == []
    assert [line[:16] for line in watched.look(late)] == ["resolved: daemon"], "the sensor still fails"
    assert [line[:16] for line in watched.look(times=2)] == ["resolved: sensor"]


def test_what_could_not_be_read_of_a_finding_is_not_resolved(watched):
    watched.look(days("2026-03-01", "2026-03-02"), times=2)
    some = replace(days("2026-03-02", "2026-03-03"), is_known=False)
    watched.look(some)
    assert [line[:22] for line in watched.look(some)] == ["failed: day 2026-03-03"]
    assert watched.look(some, times=5) == []
    assert [line[:24] for line in watched.look(days("2026-03-02", "2026-03-03"), times=2)] == [
        "resolved: day 2026-03-01"
    ]


def test_each_problem_has_its_own_next_command(watched):
    problems = (Problem("day 1", "differs", command="verify"), Problem("day 2", "waits", command="rollup"))
    lines = watched.look(failed("proofs", "days differ", problems=problems), times=2)
    assert [line.rpartition(": ")[2] for line in lines] == ["verify", "rollup"]


def test_a_warning_is_posted_as_one_and_is_not_a_failure(watched):
    warned = Finding("checks", NOTE, "x warns", problems=(Problem("check x of 2026-03-01", "differs by 5", NOTE),))
    assert watched.look(warned, times=2)[0].startswith("warning: check x of 2026-03-01 (since")
    assert watched.look(times=2)[0].startswith("resolved: check x of 2026-03-01")


def test_what_is_only_to_be_shown_is_not_posted(watched):
    shown = Problem("check usual_total of 2026-03-01", "publisher 7: 12 calculations", NOTE, is_posted=False)
    assert watched.look(Finding("checks", NOTE, "usual_total warns", problems=(shown,)), times=3) == []


def test_a_day_that_waited_and_now_differs_is_posted_again(watched):
    def day(kind: str) -> Finding:
        return failed("proofs", "days", problems=(Problem("day 2026-03-01", kind, kind=kind),))

    assert watched.look(day("waits"), times=2)
    (text,) = watched.look(day("differs"))
    assert "failed: day 2026-03-01" in text
    assert "differs" in text
    assert watched.look(day("differs"), times=3) == []


def test_a_warning_that_becomes_a_failure_is_posted_again(watched):
    def check(level: str) -> Finding:
        return Finding("checks", level, "x", problems=(Problem("check x", "off by 5", level),))

    assert "warning: check x" in watched.look(check(NOTE), times=2)[0]
    assert "failed: check x" in watched.look(check(WRONG))[0]


def test_what_the_webhook_does_not_take_stays_due_and_later_ones_join_it(watched):
    watched.is_down = True
    watched.look(failed(), times=4)
    watched.look(failed(), failed("audit", "late"), times=4)
    watched.is_down = False
    assert [line[:16] for line in watched.look(failed(), failed("audit", "late"))] == [
        "failed: freshnes",
        "failed: audit (s",
    ]
    assert watched.look(failed(), failed("audit", "late"), times=3) == []


def test_what_was_resolved_before_it_could_be_posted_is_one_line_with_its_reason(watched):
    watched.is_down = True
    watched.look(failed(), times=2)
    watched.look(times=4)
    watched.is_down = False
    (line,) = watched.look()
    assert line.startswith("resolved: freshness (failed 2026-03-01 12:00 UTC, last counted 3 h ago; ok since")


def test_what_fails_again_before_its_end_could_be_posted_stays_one_alert(watched):
    watched.look(failed(), times=2)
    watched.is_down = True
    watched.look(times=3)
    watched.look(failed())
    watched.is_down = False
    assert watched.look(failed(), times=5) == []


def test_after_a_restart_what_is_still_wrong_is_posted_again_and_nothing_else(watched):
    watched.look(failed(), failed("audit", "late"), times=4)
    restarted = Watched()
    assert restarted.look(failed()) == []
    (line,) = restarted.look(failed())
    assert line.startswith("failed: freshness")


def test_a_message_has_ten_lines_at_the_most(watched):
    problems = tuple(Problem(f"day {n}", f"differs by {n}") for n in range(50))
    lines = watched.look(failed("proofs", "days differ", problems=problems), times=2)
    assert len(lines) == 11
    assert lines[-1] == "and 40 more: see 'calc-analytics status'"


def test_many_days_for_one_reason_are_one_short_line(watched):
    (line,) = watched.look(days(*(f"2026-{month:02}-01" for month in range(1, 13))), times=2)
    assert "day 2026-05-01 and 7 more (since" in line


def test_an_error_of_several_lines_is_one_line_and_cannot_mention_the_channel(watched):
    (line,) = watched.look(failed(fact="<!channel> a & b\n  second"), times=2)
    assert "&lt;!channel&gt; a &amp; b second" in line


def test_a_long_detail_is_cut(watched):
    (line,) = watched.look(failed(fact="z" * 5_000), times=2)
    assert line.count("z") == DETAIL_LENGTH
