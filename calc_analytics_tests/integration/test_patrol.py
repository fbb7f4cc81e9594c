"""Patrol: what is due is done, the oldest proof first, in a small share of the time; what it finds is recorded."""

import random
import threading
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import text

from calc_analytics.archive.writing import archive
from calc_analytics.rollup import patrol as patrol_module
from calc_analytics.rollup import verify as verify_module
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.patrol import Patrol, oldest_proof
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.status import different_days, ledger_report
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import STATS
from calc_analytics_tests.archives import archive_in
from calc_analytics_tests.logs import execute, random_rows, row, write

TODAY = datetime.now(timezone.utc).date()
DAYS = [TODAY - timedelta(days=n) for n in (40, 30, 1, 0)]


def noon(day) -> datetime:
    """An instant in the day."""
    return datetime(day.year, day.month, day.day, 12, tzinfo=timezone.utc)


class Clock:
    """A clock that stands still until the test advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Lets time pass, for the patrol and for the records of the database."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The patrol's clock."""
    clock = Clock()
    monkeypatch.setattr(patrol_module, "time", clock)
    return clock


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list:
    """What the patrol did, in order."""
    calls: list = []
    audit, verify_days = patrol_module.audit, patrol_module.verify

    def auditing(db, days=None):
        calls.append(("audit", days))
        return audit(db, days)

    def verifying(db, days):
        calls.append(("verify", days))
        return verify_days(db, days)

    monkeypatch.setattr(patrol_module, "audit", auditing)
    monkeypatch.setattr(patrol_module, "verify", verifying)
    return calls


@pytest.fixture
def built(db: Database, connect) -> Database:
    """Four built days that were never compared."""
    writer = connect()
    for day in DAYS:
        write(writer, random_rows(random.Random(1), 20, noon(day), noon(day) + timedelta(hours=1)))
    rebuild(db, DAYS)
    return db


def let_pass(db: Database, clock: Clock, seconds: float) -> None:
    """Time passes for the patrol, and for what is on record."""
    clock.sleep(seconds)
    ago = f"interval '{seconds} seconds'"
    execute(db, f"update rollup_days set verified_at = verified_at - {ago}, audited_at = audited_at - {ago}")
    # The state row is marked with the transaction that wrote it; the test writes it as the project does.
    execute(db, f"update rollup_state set audited_at = audited_at - {ago}, written_by = txid_current()")


def test_audits_are_due_each_minute_and_each_hour(built: Database, clock: Clock, done: list):
    patrol = Patrol(built, threading.Event())
    recent = [TODAY - timedelta(days=1), TODAY]
    patrol.step()
    assert [call for call in done if call[0] == "audit"] == [("audit", None)]
    for seconds, expected in ((30, []), (31, [("audit", recent)]), (10, []), (51, [("audit", recent)])):
        done.clear()
        let_pass(built, clock, seconds)
        patrol.step()
        assert [call for call in done if call[0] == "audit"] == expected
    done.clear()
    let_pass(built, clock, 3600)
    patrol.step()
    assert [call for call in done if call[0] == "audit"] == [("audit", None)]


def test_another_process_does_not_audit_all_days_again(built: Database, clock: Clock, done: list):
    for _ in range(2):
        Patrol(built, threading.Event()).step()
    assert [days for name, days in done if name == "audit"] == [None, [TODAY - timedelta(days=1), TODAY]]
    assert [days for name, days in done if name == "verify"] == [[DAYS[3]], [DAYS[2]]]


def test_every_day_is_proven_in_turn_the_oldest_proof_first(built: Database, clock: Clock, done: list):
    patrol = Patrol(built, threading.Event())
    for _ in range(6):
        patrol.step()
        clock.sleep(1000)
    assert [days for name, days in done if name == "verify"] == [[day] for day in reversed(DAYS)]
    assert oldest_proof(built) is None
    assert all(each.unproven == 0 for each in ledger_report(built).days.values())
    let_pass(built, clock, 4000)
    verify(built, [DAYS[3]])
    assert oldest_proof(built) == DAYS[2]


def test_comparing_takes_one_per_cent_of_the_time(built: Database, clock: Clock, done: list, monkeypatch):
    verifying = patrol_module.verify

    def slowly(db, days):
        clock.sleep(5)
        return verifying(db, days)

    monkeypatch.setattr(patrol_module, "verify", slowly)
    patrol = Patrol(built, threading.Event())
    for _ in range(3):
        patrol.step()
        assert len([call for call in done if call[0] == "verify"]) == 1
        clock.sleep(150)
    clock.sleep(60)
    patrol.step()
    assert len([call for call in done if call[0] == "verify"]) == 2


def test_what_it_finds_is_recorded(built: Database, clock: Clock):
    execute(built, f"update {STATS.name} set cache_hits = cache_hits + 1 where date = '{DAYS[0]}'")
    execute(built, f"update {STATS.name} set publisher_id = 99 where date = '{DAYS[3]}' and publisher_id = 1")
    patrol = Patrol(built, threading.Event())
    patrol.step()
    assert different_days(built) == {DAYS[0]: [STATS.name], DAYS[3]: [STATS.name]}
    rebuild(built, DAYS)
    for _ in range(4):
        clock.sleep(1000)
        patrol.step()
    assert different_days(built) == {}


def test_an_archive_that_does_not_add_up_is_found_and_its_repair_too(built: Database, clock: Clock, tmp_path: Path):
    place = archive_in(built, tmp_path)
    assert archive(place, DAYS[:2]).left == []
    patrol = Patrol(place.db, threading.Event())

    def patrol_all() -> None:
        let_pass(built, clock, 4000)
        for _ in range(5):
            patrol.step()
            let_pass(built, clock, 100)

    patrol_all()
    assert ledger_report(place.db).unbalanced == []
    execute(built, f"update rollup_archive set rows = rows - 2 where date = '{DAYS[0]}'")
    patrol_all()
    assert ledger_report(place.db).unbalanced == [DAYS[0]]
    assert different_days(place.db) == {DAYS[0]: place.db.log.names}
    # An archive that was given up is no reason to be red.
    assert (ledger_report(built).unbalanced, different_days(built)) == ([], {})
    execute(built, f"update rollup_archive set rows = rows + 2 where date = '{DAYS[0]}'")
    # Every other turn a day that differed comes first, once a minute has passed.
    for _ in range(2):
        patrol.step()
        let_pass(built, clock, 61)
    assert (ledger_report(place.db).unbalanced, different_days(place.db)) == ([], {})


def test_a_day_that_is_refreshed_all_the_time_is_proven_too(built: Database, connect, monkeypatch):
    """A refresh between the comparison and its record changes nothing about what was found."""
    writer, prove = connect(), verify_module.read_proof

    def refresh_first(*arguments):
        write(writer, [row(noon(DAYS[3]))])
        refresh(built)
        return prove(*arguments)

    monkeypatch.setattr(verify_module, "read_proof", refresh_first)
    for day in DAYS:
        assert verify(built, [day], with_checksum=True).difference == 0
        assert oldest_proof(built) != day
    monkeypatch.undo()
    assert verify(built, DAYS).difference == 0, "no checksum from before the refresh was kept"


def test_a_stopped_process_begins_nothing(built: Database, done: list):
    stopping = threading.Event()
    stopping.set()
    patrol = Patrol(built, stopping)
    patrol.walk()
    patrol.wait(10)
    assert done == []


def test_a_walk_goes_on_in_the_background_one_at_a_time(built: Database, done: list, monkeypatch):
    going_on, may_end = threading.Event(), threading.Event()

    def waiting(db, days=None):
        done.append("audit")
        going_on.set()
        may_end.wait(60)

    monkeypatch.setattr(patrol_module, "audit", waiting)
    patrol = Patrol(built, threading.Event())
    patrol.walk()
    going_on.wait(60)
    patrol.walk()
    assert done == ["audit"]
    may_end.set()
    patrol.wait(60)
    assert ("verify", [DAYS[3]]) in done


def test_an_error_is_reported_and_what_failed_is_tried_again_after_the_usual_pause(built: Database, monkeypatch):
    def failing(db, days=None):
        raise ValueError("no")

    monkeypatch.setattr(patrol_module, "audit", failing)
    errors: list[tuple[str, str]] = []
    patrol = Patrol(built, threading.Event(), lambda operation, error: errors.append((operation, str(error))))
    patrol.step()
    patrol.step()
    assert errors == [("audit", "no")]
    patrol._audit_at = 0.0
    patrol.step()
    assert errors == [("audit", "no")] * 2


def test_a_day_that_cannot_be_compared_does_not_keep_the_others_waiting(built: Database, monkeypatch):
    compared: list[date] = []

    def verify(db, days):
        compared.append(days[0])
        if len(compared) == 1:
            raise ValueError("no")
        return patrol_verify(db, days)

    patrol_verify = patrol_module.verify
    monkeypatch.setattr(patrol_module, "verify", verify)
    patrol = Patrol(built, threading.Event())
    for _ in range(3):
        patrol._verify_at = 0.0
        patrol.step()
    assert len(set(compared)) == 3


def test_a_day_that_differs_does_not_keep_the_others_waiting(built: Database, monkeypatch):
    execute(built, f"delete from calculation_logs where created_at >= '{DAYS[0]}Z' and created_at < '{DAYS[1]}Z'")
    verify(built, [DAYS[0]])
    execute(built, "update rollup_days set verified_at = clock_timestamp() - interval '2 hours'")
    compared: list[date] = []
    monkeypatch.setattr(patrol_module, "verify", lambda db, days: compared.append(days[0]))
    patrol = Patrol(built, threading.Event())
    for _ in range(6):
        patrol._verify_at = 0.0
        patrol.step()
        execute(built, "update rollup_days set verified_at = clock_timestamp() - interval '2 minutes' "
                       f"where date = '{compared[-1]}'")  # fmt: skip
    assert compared.count(DAYS[0]) <= 4
    assert len(set(compared)) >= 3


def test_two_processes_at_once_do_not_disturb_each_other(built: Database):
    patrols = [Patrol(built, threading.Event()) for _ in range(2)]
    for patrol in patrols:
        patrol.walk()
    for patrol in patrols:
        patrol.wait(60)
        patrol.walk()
        patrol.wait(60)
    with built.engine.begin() as connection:
        audited = connection.execute(text("select audited_at is not null from rollup_state")).scalar()
    assert audited
    assert different_days(built) == {}
