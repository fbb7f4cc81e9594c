"""Log lines and recorded failures: one line each, and logging never raises."""

import json
import logging
from datetime import date

import pytest
import structlog
from sqlalchemy import create_engine

from calc_analytics import logs
from calc_analytics.database.errors import DatabaseError
from calc_analytics.rollup import journal
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.ledger import RollupsChanged
from calc_analytics.rollup.reports import (
    DayCount,
    DayProof,
    RebuildReport,
    RefreshReport,
    SkippedDay,
    VerifyReport,
)
from calc_analytics.rollup.snapshot import Snapshot
from calc_analytics.rollups import LOG

DAY = date(2026, 3, 1)
AT = Snapshot.parse("7:7:")
STATS, HOURS = "calculation_stats_daily", "calculation_stats_hourly"


def counts(day: date, rows: int, status: str = "built") -> list[DayCount]:
    """A day's rows, counted in two rollups."""
    return [DayCount(name, day, rows, {"total_calculations": rows}, 2, status) for name in (STATS, HOURS)]


def proof(finding: str, difference: int, rollup: str = STATS) -> DayProof:
    return DayProof(
        rollup, DAY, "built", 3, 3 + difference, 3, 0, {"total_calculations": difference}, difference, finding
    )


COUNTED = RefreshReport(counts(DAY, 3), 0.0125, AT)
NOTHING = RefreshReport([], 0.001, AT)
PRUNED = RebuildReport([], [SkippedDay(STATS, DAY, "pruned", 0, 5, 5)], seconds=0.1)
DIFFERS = RebuildReport([], [SkippedDay(name, DAY, "differs", 0, 5) for name in (STATS, HOURS)], seconds=0.1)


@pytest.fixture(autouse=True)
def _default_configuration():
    """Text at level info before and after each test."""
    logs.configure()
    yield
    logs.configure()


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]):
    """What has been logged since the last call."""
    return lambda: capsys.readouterr().err


def test_a_refresh_is_one_line_of_key_and_value(logged):
    logs.log_refresh(COUNTED)
    line = logged()
    assert line.count("\n") == 1
    assert " INFO refresh rows=3 days=2026-03-01 seconds=0.0125" in line


def test_a_refresh_that_found_nothing_is_silent(logged):
    logs.log_refresh(NOTHING)
    assert logged() == ""


def test_it_is_a_line_at_level_debug(logged):
    logs.configure(log_level="debug")
    logs.log_refresh(NOTHING)
    assert " DEBUG refresh rows=0 " in logged()


def test_json_lines_have_the_same_fields(logged):
    logs.configure("json")
    logs.log_refresh(COUNTED, request_id="abc")
    line = json.loads(logged())
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "info",
        "event": "refresh",
        "rows": 3,
        "days": ["2026-03-01"],
        "seconds": 0.0125,
        "request_id": "abc",
    }


def test_a_day_that_waits_is_named_once_however_many_rollups_it_waits_in(logged):
    logs.log_refresh(RefreshReport(counts(DAY, 3, "pending"), 0.01, AT))
    assert "never_built_days=2026-03-01" in (line := logged())
    assert line.count("2026-03-01") == 1


@pytest.mark.parametrize(("report", "level"), [(PRUNED, "INFO"), (DIFFERS, "WARNING")])
def test_a_refused_day_is_a_warning_if_it_needs_a_decision(logged, report: RebuildReport, level: str):
    logs.log_rebuild(report)
    assert f" {level} rebuild rows=0 " in (line := logged())
    assert line.count("2026-03-01") == 1
    assert "refused_days=2026-03-01" in line


def test_a_day_whose_statistics_were_kept_is_named(logged):
    logs.log_rebuild(RebuildReport(kept=[SkippedDay(STATS, DAY, "keep", 0, 5, 5)]))
    assert " INFO rebuild " in (line := logged())
    assert "kept_days=2026-03-01" in line


def test_a_comparison_that_finds_nothing_is_one_line_for_all_rollups(logged):
    logs.log_verify(VerifyReport([proof("equal", 0), proof("equal", 0, HOURS)], 0.1))
    assert " INFO verify difference=0 days=2026-03-01 " in (line := logged())
    assert line.count("\n") == 1


def test_each_difference_is_an_error_that_names_the_command(logged):
    logs.log_verify(VerifyReport([proof("equal", 0), proof("statistics_changed", 1000, HOURS)], 0.1))
    total, found = logged().splitlines()
    assert " ERROR verify difference=1000 " in total
    assert "different_days=2026-03-01" in total
    assert f"2026-03-01 of {HOURS}: another program changed the statistics" in found
    assert "calc-analytics rollup --day 2026-03-01" in found


def test_many_days_are_a_span(logged):
    days = [each for n in range(1, 31) for each in counts(date(2026, 3, n), 1)]
    logs.log_rebuild(RebuildReport(days))
    assert "days=2026-03-01..2026-03-30" in logged()


@pytest.mark.parametrize(("transient", "level"), [(True, "WARNING"), (False, "ERROR")])
def test_a_failure_is_one_line_and_is_raised_again(logged, transient: bool, level: str):
    with pytest.raises(DatabaseError), logs.record_failures("refresh", request_id="abc"):
        raise DatabaseError("cannot connect to 'x=1'", transient)
    assert f""" {level} refresh failed="cannot connect to 'x=1'" request_id=abc""" in logged()


def test_of_an_internal_error_only_the_type_is_logged(logged):
    logs.log_failure("refresh", ValueError("postgresql://me:hunter2@db"))
    assert 'failed="internal error: ValueError"' in (line := logged())
    assert "hunter2" not in line


def test_values_that_could_be_misread_are_quoted(logged):
    logs.log(logging.INFO, "x", empty="", lines="a\nb", equals="a=b", several=["a", "b"], quote='"')
    assert r'empty="" lines="a\nb" equals="a=b" several=a,b quote="\""' in logged()


def test_an_exception_is_a_field_of_its_line(logged):
    try:
        raise ValueError("x")
    except ValueError:
        logs.log(logging.ERROR, "probe", exc_info=True)
    line = logged()
    assert line.count("\n") == 1
    assert " ERROR probe exception=" in line
    assert "Traceback" in line


def test_lines_of_another_logger_on_this_handler_have_the_same_form(logged):
    other = logging.getLogger("uvicorn.error")
    other.addHandler(logs.handler)
    try:
        other.error("cannot %s", "start")
    finally:
        other.removeHandler(logs.handler)
    assert logged().splitlines()[0].endswith("Z ERROR cannot start")


def test_the_logging_of_other_programs_stays_as_it_is(logged):
    before = (logging.root.level, [*logging.root.handlers])
    logs.configure("json", "debug")
    logs.log(logging.ERROR, "x")
    assert logged().count("\n") == 1
    assert (logging.root.level, [*logging.root.handlers]) == before
    assert not structlog.is_configured()


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Database, str, str]]:
    """What was written to the journal."""
    found: list[tuple[Database, str, str]] = []
    monkeypatch.setattr(journal, "note_failure", lambda *given: found.append(given))
    return found


@pytest.fixture
def db() -> Database:
    """A database that is never connected to."""
    engine = create_engine("postgresql+psycopg://user@127.0.0.1:1/nothing")
    return Database(engine.execution_options(local_settings={"statement_timeout": "1h", "jit": "off"}), LOG, "UTC")


@pytest.mark.parametrize(
    "error", [DatabaseError("canceled", False, "57014"), RollupsChanged("set ROLLUPS"), ValueError("hunter2")]
)
def test_a_failure_is_written_to_the_journal_with_short_timeouts(logged, noted, db, error: Exception):
    with pytest.raises(type(error)), logs.record_failures("rebuild", db=db, run="abc"):
        raise error
    ((where, operation, reason),) = noted
    assert (operation, reason) == ("rebuild", logs.error_line(error))
    assert "hunter2" not in reason
    settings = where.engine.get_execution_options()["local_settings"]
    assert settings == {"statement_timeout": "2s", "jit": "off", "lock_timeout": "1s"}
    assert " rebuild failed=" in logged()


@pytest.mark.parametrize("sqlstate", [None, "08006", "57P01", "53300", "25006"])
def test_no_failure_is_written_to_a_database_that_does_not_answer(noted, db, sqlstate: str | None):
    logs.log_failure("refresh", DatabaseError("the connection is lost", True, sqlstate), db=db)
    assert noted == []


def test_a_failure_that_cannot_be_written_is_still_one_line(logged, db):
    logs.log_failure("refresh", ValueError(), db=db)
    assert logged().count("\n") == 1


def test_without_a_database_nothing_is_written(noted):
    logs.log_failure("refresh", ValueError())
    assert noted == []
