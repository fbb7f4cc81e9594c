"""Health follows from facts: pure functions, no database and no Dagster."""

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest

from calc_analytics.config import Settings
from calc_analytics.database import row_security
from calc_analytics.database.partitioning import LeftCheck
from calc_analytics.database.server import Role, Server
from calc_analytics.operations import doctor
from calc_analytics.operations.disclosure import NO_ANSWER, Cause
from calc_analytics.operations.facts import Daemons, Facts, Runs, questions
from calc_analytics.operations.findings import Finding
from calc_analytics.operations.health import NEEDED, PROBES, report
from calc_analytics.operations.probes import Answer
from calc_analytics.operations.sources import Sources
from calc_analytics.orchestration.history import (
    FailedDay,
    FailedRun,
    FinishedRun,
    Heartbeat,
    Instigator,
    LastCheck,
    Tick,
)
from calc_analytics.rollup.ledger import ClusterChanged, LogReplaced, NotInstalled, RollupsChanged, TimezoneChanged
from calc_analytics.rollup.partitions import Outlook
from calc_analytics.rollup.status import Days, Lag, LastRefresh, LedgerReport, LogReport, ProofAges
from calc_analytics.rollup.unseen import SearchReport

NOW = datetime(2026, 3, 2, 12, tzinfo=timezone.utc)
DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)


def ago(**given: float) -> datetime:
    return NOW - timedelta(**given)


ROLE = Role("calc", is_superuser=False, missing=[], may_prune=True, sees_others=True)
PROOFS = ProofAges(ago(seconds=1), ago(days=9), ago(minutes=5), ago(hours=2), ago(minutes=1), 2, 3.0)
LEDGER = LedgerReport(
    None, LastRefresh(ago(seconds=1), NOW), PROOFS, {"calculation_stats_daily": Days({"built": 2})}, {}, {}, {}, [], {}
)
ON = Instigator("new_log_batches", True, Tick(ago(seconds=12), "skipped"), ago(seconds=2))
DAEMONS = ("SENSOR", "SCHEDULER", "QUEUED_RUN_COORDINATOR")
# Facts of a deployment in which everything runs.
GOOD: dict[str, Any] = {
    "interval": 3600.0,
    "server": Server("18.4", 180_004, False),
    "is_installed": True,
    "hidden": [],
    "partitions": None,
    "ledger": LEDGER,
    "log": LogReport(Lag(0, 0.0), None),
    "unseen": SearchReport([]),
    "daemons": Daemons([Heartbeat(name, ago(seconds=20), True) for name in DAEMONS], ["daemon 1 on a"]),
    "instigators": {"new_log_batches": ON, "hourly_rollup": replace(ON, name="hourly_rollup")},
    "runs": Runs(FinishedRun("0a1b2c3d4e", True, "2026-03-02", ago(minutes=3)), []),
    "checks": [LastCheck("stats_match_logs", True, False, ago(minutes=3), "")],
}


def facts(**changed: Any) -> Facts:
    """Those facts, with some changed; an `Answer` is one as it is."""
    values = {**GOOD, **changed}
    answers = {
        name: value if isinstance(value, Answer) else Answer(value, None, 0.01) for name, value in values.items()
    }
    return Facts(Settings.from_environment({}), answers, NOW)


def finding(name: str, **changed: Any) -> Finding:
    return next(found for found in report(facts(**changed)).findings if found.name == name)


def wrong(**changed: Any) -> list[str]:
    return [found.name for found in report(facts(**changed)).wrong]


def unanswered(error: str = "no answer within 3 s", code: str = NO_ANSWER) -> Answer[Any]:
    return Answer(None, error, 3.0, Cause(code, "general words"))


def test_everything_that_is_as_it_should_be_is_healthy():
    found = report(facts())
    assert (found.healthy, found.running, found.wrong, found.notes) == (True, True, [], [])
    assert all(each.public and not each.command for each in found.findings)


def test_every_fact_that_health_needs_is_read_and_each_once():
    asked = questions(Sources(Settings.from_environment({}))).values()
    readers = [name for question in asked for name in question.readers]
    assert set(NEEDED) <= set(readers)
    assert len(set(readers)) == len(readers)
    assert len(set(NEEDED)) == len(NEEDED)
    assert set(NEEDED) == set(GOOD)


def test_last_run_is_when_rows_were_last_counted():
    assert report(facts()).last_run == "2026-03-02T11:59:59.000Z"
    assert report(facts(ledger=unanswered())).last_run is None
    assert "last_run" not in PROBES, "the probe of the schedule's run has a name of its own"


@pytest.mark.parametrize("group", NEEDED)
def test_a_group_that_does_not_answer_takes_only_its_own_probes_away(group: str):
    found = report(facts(**{group: unanswered()}))
    concerned = {name for name, probe in PROBES.items() if group in probe.groups}
    assert {each.name for each in found.findings if not each.is_known} == concerned
    assert {each.name for each in found.wrong} == concerned
    assert all(each.fact == "no answer within 3 s" for each in found.wrong)


def test_days_that_differ_are_named_even_if_the_log_does_not_answer():
    ledger = replace(LEDGER, different={DAY: ["calculation_stats_daily"]})
    found = finding("proofs", ledger=ledger, unseen=unanswered())
    assert "1 day differs" in found.fact
    assert [problem.subject for problem in found.problems] == ["day 2026-03-01"]
    assert not found.is_known, "other days may wait: no alert of one is resolved"


def test_days_of_every_class_are_problems_and_the_worst_is_the_fact():
    of, day, third = ["calculation_stats_daily"], DAY - timedelta(days=1), date(2026, 3, 3)
    ledger = replace(LEDGER, different={DAY: of}, overflowing={NEXT: of, DAY: of}, waiting={third: of})
    found = finding("proofs", ledger=ledger, unseen=SearchReport([day]))
    assert "1 day differs" in found.fact
    assert (found.command, found.code) == ("calc-analytics verify --day 2026-03-01", None)
    assert {problem.subject: (problem.detail.split()[0], problem.command) for problem in found.problems} == {
        "day 2026-03-01": ("differs", "calc-analytics verify --day 2026-03-01"),
        "day 2026-03-02": ("is", "calc-analytics verify --day 2026-03-02"),
        "day 2026-03-03": ("waits", "calc-analytics rollup"),
        "day 2026-02-28": ("waits", "calc-analytics rollup"),
    }


def test_days_whose_archive_does_not_add_up_are_wrong():
    found = finding("proofs", ledger=replace(LEDGER, unbalanced=[DAY, NEXT]))
    assert (found.ok, found.command) == (False, "calc-analytics verify --day 2026-03-01")
    assert found.fact == ("the archived rows of 2 days do not add up to what was counted: 2026-03-01, 2026-03-02")
    assert [(each.subject, each.detail) for each in found.problems] == [
        (f"day {day}", "has archived rows that do not add up to what was counted") for day in (DAY, NEXT)
    ]


def test_days_that_wait_are_wrong_whether_on_record_or_not():
    found = finding(
        "proofs", ledger=replace(LEDGER, waiting={DAY: ["calculation_stats_daily"]}), unseen=SearchReport([NEXT])
    )
    assert found.fact.startswith("2 days with log rows wait for a rebuild: 2026-03-01, 2026-03-02;")
    assert {problem.subject for problem in found.problems} == {"day 2026-03-01", "day 2026-03-02"}


def test_a_state_that_cannot_be_used_says_what_resolves_it():
    ledger = replace(LEDGER, error=ClusterChanged("restored into another cluster"), refreshed=None, proofs=None)
    assert wrong(ledger=ledger) == ["state", "freshness", "audit"]
    found = finding("state", ledger=ledger)
    assert (found.code, found.command) == ("restored_elsewhere", "calc-analytics rebase")
    assert finding("audit", ledger=ledger).public == "not known: see the probe state"


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (NotInstalled, "calc-analytics migrate"),
        (ClusterChanged, "calc-analytics rebase"),
        (LogReplaced, "calc-analytics migrate && calc-analytics rebase && calc-analytics rollup"),
        (TimezoneChanged, "set ROLLUP_TIMEZONE back, or calc-analytics rebase"),
        (RollupsChanged, "set ROLLUPS back, or calc-analytics migrate"),
    ],
)
def test_each_state_that_stops_every_operation_names_what_resolves_it_in_health_and_doctor(error, command: str):
    changed = {"ledger": replace(LEDGER, error=error("no operation may use it"), refreshed=None, proofs=None)}
    (found,) = doctor.EXAMINATIONS["state"].judge(facts(**changed))
    assert (found.level, found.fact, found.command) == ("wrong", "no operation may use it", command)
    assert finding("state", **changed).command == command


@pytest.mark.parametrize(
    ("left", "changes", "level", "command"),
    [
        (None, {}, "ok", ""),
        (timedelta(days=8), {}, "ok", ""),
        (timedelta(days=6), {}, "note", "calc-analytics partitions --create"),
        (timedelta(hours=23), {}, "wrong", "calc-analytics partitions --create"),
        (timedelta(0), {"step": None}, "wrong", "create the next partition of the log table"),
        (timedelta(0), {"has_default": True}, "ok", ""),
        (timedelta(days=3), {"created_by": "partman"}, "ok", ""),
        (timedelta(hours=23), {"created_by": "partman"}, "wrong", "see why pg_partman creates no partitions"),
    ],
)
def test_a_missing_partition_is_a_note_a_week_before_and_wrong_a_day_before(
    left: timedelta | None, changes: dict[str, Any], level: str, command: str
):
    outlook = replace(Outlook(NOW + left if left is not None else None, False, "month", None), **changes)
    found = finding("partitions", partitions=outlook)
    assert found.level == level
    assert found.command.startswith(command)
    assert bool(found.command) == bool(command)


@pytest.mark.parametrize(("left", "level"), [(timedelta(days=8), "note"), (timedelta(days=6), "wrong")])
def test_the_check_of_an_unfinished_partitioning_is_wrong_a_week_before_it_refuses_rows(left: timedelta, level: str):
    check = LeftCheck("calculation_logs_before_2026_12_range", NOW + left, "alter table …;")
    found = finding("partitions", partitions=Outlook(check.until, False, None, None, check))
    assert (found.level, found.command) == (level, "alter table …;")
    assert check.name in found.fact


def test_freshness_is_twice_the_interval():
    def refreshed(seconds: float) -> LedgerReport:
        return replace(LEDGER, refreshed=LastRefresh(ago(seconds=seconds), NOW))

    assert wrong(ledger=refreshed(7190)) == []
    assert wrong(ledger=refreshed(7210)) == ["freshness"]
    assert wrong(ledger=refreshed(7210), interval=7200.0) == []
    assert wrong(ledger=replace(LEDGER, refreshed=LastRefresh(None, NOW))) == ["freshness"]


def test_of_daemons_the_dead_and_the_second_are_wrong():
    beats = [Heartbeat(name, ago(seconds=70), True) for name in DAEMONS]
    assert wrong(daemons=Daemons(beats, ["one"])) == ["daemon"]
    assert wrong(daemons=Daemons(GOOD["daemons"].heartbeats, ["one", "two"])) == ["daemon"]
    assert finding("daemon", daemons=Daemons(GOOD["daemons"].heartbeats, [], True)).code == "two_daemons"


def test_what_doctor_finds_wrong_is_what_health_finds():
    """The same fact and command, with the reason why it matters."""
    hidden = row_security.Hidden("calculation_logs", "calc", is_owner=False)
    for part, name, changed in (
        ("dagster", "daemon", {"daemons": Daemons([], [], is_alternating=True)}),
        ("dagster", "daemon", {"daemons": Daemons([], ["daemon 1 on a", "daemon 2 on b"])}),
        ("database", "database", {"server": Server("18.4", 180_004, True)}),
        ("database", "database", {"server": Server("18.4", 180_004, True, ("alter role calc reset x",))}),
        ("tables", "tables", {"is_installed": False}),
        ("permissions", "state", {"hidden": [hidden]}),
    ):
        given = facts(**changed, role=ROLE)
        (found,) = (each for each in doctor.EXAMINATIONS[part].judge(given) if each.level == "wrong")
        expected = finding(name, **changed)
        assert (found.level, found.fact, found.command) == (expected.level, expected.fact, expected.command)
        assert expected.level == "wrong"
        assert found.why


def doctors(**changed: Any) -> dict[str, Finding]:
    """What doctor finds in the rest of the health report, by name."""
    return {each.name: each for each in doctor.EXAMINATIONS["health"].judge(facts(**changed))}


def test_what_is_wrong_in_the_health_report_is_wrong_for_doctor():
    off = {**GOOD["instigators"], "new_log_batches": replace(ON, on=False)}
    tick = Tick(ago(seconds=5), "failure", 2, "a trigger of another program raised an error")
    failing = {**GOOD["instigators"], "new_log_batches": replace(ON, last_tick=tick)}
    differs = replace(LEDGER, different={DAY: ["calculation_stats_daily"]})
    for changed in ({}, {"instigators": off}, {"instigators": failing}, {"ledger": differs}, {"checks": unanswered()}):
        assert sorted(doctors(**changed)) == sorted(wrong(**changed))
    found = doctors(instigators=failing)["sensor"]
    assert "a trigger of another program" in found.fact
    assert found.command == "open its last tick in the Dagster UI"


def test_a_dead_daemon_and_what_follows_from_it_are_one_note_for_doctor():
    """As before `up`; what else is wrong stays wrong."""
    dead = Daemons([Heartbeat(name, None, True) for name in DAEMONS], [])
    (found,) = doctors(daemons=dead, instigators={}).values()
    assert (found.level, found.command) == ("note", "calc-analytics up")
    differs = replace(LEDGER, different={DAY: ["calculation_stats_daily"]})
    assert {name: each.level for name, each in doctors(daemons=dead, instigators={}, ledger=differs).items()} == {
        "": "note",
        "proofs": "wrong",
    }


def test_a_search_that_was_stopped_is_named():
    assert "was stopped" in finding("proofs", unseen=SearchReport([], is_complete=False)).fact
    assert "was stopped" not in finding("proofs").fact


def test_no_command_with_a_name_in_it_is_public():
    hidden = row_security.Hidden("calculation_logs", "secret_role", is_owner=False)
    server = Server("18.4", 180_004, True, ("alter role secret_role reset default_transaction_read_only",))
    found = report(facts(server=server, hidden=[hidden]))
    assert str(found.as_dict()).count("secret_role") == 3, "two statements and a fact"
    assert "secret_role" not in str(found.public())
    assert {each["next_command"] for each in found.public()["probes"]} == {None, "calc-analytics doctor"}


def test_a_sensor_may_fail_once_and_a_schedule_may_not():
    def failing(name: str, times: int) -> dict[str, Instigator]:
        tick = Tick(ago(seconds=5), "failure", times, "the disk is full")
        return {**GOOD["instigators"], name: Instigator(name, True, tick, ago(seconds=5))}

    assert wrong(instigators=failing("new_log_batches", 1)) == []
    assert wrong(instigators=failing("new_log_batches", 2)) == ["sensor"]
    assert wrong(instigators=failing("hourly_rollup", 1)) == ["schedule"]
    assert wrong(instigators=failing("daily_housekeeping", 1)) == ["housekeeping"]
    assert "disk" not in finding("sensor", instigators=failing("new_log_batches", 2)).public


def test_the_housekeeping_may_be_off_and_the_others_may_not():
    off = {name: replace(ON, name=name, on=False) for name in ("new_log_batches", "hourly_rollup")}
    assert wrong(instigators=off) == ["sensor", "schedule"]
    assert wrong(instigators={**GOOD["instigators"], "daily_housekeeping": replace(ON, on=False)}) == []


def failed_run(first: date, last: date, at: datetime, run_id: str = "9f8e7d6c") -> FailedRun:
    return FailedRun(run_id, "the rebuild", (first, last), at, "the disk is full")


def test_a_failed_run_is_wrong_until_all_its_days_are_rebuilt():
    runs = Runs(None, [failed_run(DAY, NEXT, ago(hours=1))])
    found = finding("runs", runs=runs)
    assert found.command == "calc-analytics rollup --from 2026-03-01 --to 2026-03-02"
    assert "the rebuild of 2026-03-01 to 2026-03-02" in found.public
    assert "disk" not in found.public
    for rebuilt, is_wrong in (
        ({DAY: ago(minutes=1)}, True),
        ({DAY: ago(minutes=1), NEXT: ago(hours=2)}, True),
        ({DAY: ago(minutes=1), NEXT: ago(minutes=1)}, False),
    ):
        assert ("runs" in wrong(runs=runs, ledger=replace(LEDGER, rebuilt=rebuilt))) is is_wrong


def test_whether_a_failed_run_was_made_good_is_not_known_without_the_ledger():
    runs = Runs(None, [failed_run(DAY, DAY, ago(hours=1))])
    assert wrong(runs=runs, ledger=replace(LEDGER, rebuilt={DAY: ago(minutes=1)})) == []
    found = finding("runs", runs=runs, ledger=unanswered())
    assert (found.is_known, found.problems) == (False, ())


def test_the_schedules_failed_run_is_reported_by_one_probe():
    failed = failed_run(DAY, DAY, ago(minutes=2))
    scheduled = FinishedRun(failed.run_id, False, str(DAY), ago(minutes=2))
    assert wrong(runs=Runs(scheduled, [failed])) == ["scheduled_run"]
    assert wrong(runs=Runs(replace(scheduled, will_retry=True), [])) == []


def test_checks_that_fail_are_wrong_and_those_that_warn_are_a_note():
    day = FailedDay("2026-03-01", False, "differs by 5")
    failed = LastCheck("stats_match_logs", False, False, ago(minutes=1), "2026-03-01: differs by 5", (day,))
    assert wrong(checks=[failed]) == ["checks"]
    assert "differs" not in finding("checks", checks=[failed]).public
    warned = replace(failed, warning=True, failed=(replace(day, warning=True),))
    found = report(facts(checks=[warned]))
    assert (found.healthy, [each.name for each in found.notes]) == (True, ["checks"])
    assert [problem.level for problem in found.notes[0].problems] == ["note"]


def test_an_unusual_total_is_a_note_without_a_command_and_is_not_posted():
    day = FailedDay("2026-03-01", True, "publisher 7: 12 calculations")
    unusual = LastCheck("usual_total", False, True, ago(minutes=1), "2026-03-01: publisher 7", (day,), is_advice=True)
    found = report(facts(checks=[unusual]))
    (shown,) = found.notes
    assert (found.healthy, shown.command) == (True, "")
    assert [(problem.level, problem.is_posted) for problem in shown.problems] == [("note", False)]


def test_a_cause_that_several_share_is_public_once():
    down = unanswered("cannot connect to postgresql://me:***@db", "database_unreachable")
    found = report(facts(server=down, is_installed=down, hidden=down, ledger=down, log=down, unseen=down))
    public = {each.name: each.public for each in found.wrong}
    assert public.pop("database") == "general words"
    assert set(public.values()) == {"not known: see the probe database"}
