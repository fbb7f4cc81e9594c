"""Log lines and counts: one line each, counts that outlive their processes, and never an error for who is observed."""

import json
import logging
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from calc_analytics import telemetry
from calc_analytics.database.engine import DatabaseTrouble
from calc_analytics.rollup.reports import DayCount, DayProof, RebuildReport, RefreshReport, Shrunk, VerifyReport
from calc_analytics.rollup.snapshot import Snapshot
from calc_analytics.telemetry import logs

DAY = date(2026, 3, 1)
AT = Snapshot.parse("7:7:")
COUNTED = RefreshReport([DayCount(DAY, {"total_calculations": 3}, 2, "built")], [], 0.0125, AT)
NOTHING = RefreshReport([], [], 0.001, AT)
PRUNED = RebuildReport([], [Shrunk(DAY, 0, 5, pruned_rows=5)], 0.1)
DELETED = RebuildReport([], [Shrunk(DAY, 0, 5)], 0.1)
EQUAL = DayProof(DAY, 3, 3, {"total_calculations": 0}, 0)
DIFFERENT = DayProof(DAY, 3, 5, {"total_calculations": 2}, 1)

# In a process of its own, since counts are kept per process.
COUNT = """
import sys
from calc_analytics import telemetry
from calc_analytics_tests.unit.test_telemetry import COUNTED, DELETED
for _ in range(int(sys.argv[1])):
    telemetry.refreshed(COUNTED, log=False)
telemetry.rebuilt(DELETED, log=False)
telemetry.failed("verify", ValueError(), log=False)
print("counted", flush=True)
sys.stdin.read()
"""
READ = """
from prometheus_client import CollectorRegistry, generate_latest
from calc_analytics.telemetry.metrics import AllProcesses, counts
counts()
registry = CollectorRegistry()
registry.register(AllProcesses())
print(generate_latest(registry).decode())
"""


@pytest.fixture(autouse=True)
def _set_up_afresh(monkeypatch: pytest.MonkeyPatch):
    """Each test's own format, level and standard error."""

    def forget() -> None:
        logging.getLogger(logs.NAME).handlers.clear()
        logs.handler.cache_clear()
        logs.logger.cache_clear()

    for name in ("LOG_FORMAT", "LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield
    forget()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What has been logged since the last call; counting is left to other tests."""
    monkeypatch.setattr(telemetry, "_count", lambda add: None)
    return lambda: capsys.readouterr().err


def test_a_refresh_is_one_line_of_key_and_value(said):
    telemetry.refreshed(COUNTED)
    line = said()
    assert line.count("\n") == 1
    assert " INFO refresh rows=3 days=2026-03-01 seconds=0.0125" in line


def test_a_refresh_that_found_nothing_is_silent(said, monkeypatch):
    telemetry.refreshed(NOTHING)
    assert said() == ""


def test_at_debug_it_is_not(said, monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", "debug")
    telemetry.refreshed(NOTHING)
    assert " DEBUG refresh rows=0 " in said()


def test_json_lines_have_the_same_fields(said, monkeypatch):
    monkeypatch.setenv("LOG_FORMAT", "json")
    telemetry.refreshed(COUNTED, request_id="abc")
    line = json.loads(said())
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "info",
        "event": "refresh",
        "rows": 3,
        "days": ["2026-03-01"],
        "seconds": 0.0125,
        "request_id": "abc",
    }


def test_a_day_that_waits_is_named(said):
    waiting = RefreshReport([], [DayCount(DAY, {"total_calculations": 3}, 2, "pending")], 0.01, AT)
    telemetry.refreshed(waiting)
    assert "never_built_days=2026-03-01" in said()


@pytest.mark.parametrize(("report", "level"), [(PRUNED, "INFO"), (DELETED, "WARNING")])
def test_a_refused_day_is_a_warning_unless_it_is_known_to_be_pruned(said, report: RebuildReport, level: str):
    telemetry.rebuilt(report)
    assert f" {level} rebuild rows=0 " in (line := said())
    assert "refused_days=2026-03-01" in line


@pytest.mark.parametrize(("proof", "level"), [(EQUAL, "INFO"), (DIFFERENT, "ERROR")])
def test_a_difference_is_an_error(said, proof: DayProof, level: str):
    telemetry.verified(VerifyReport([proof], 0.1))
    assert f" {level} verify difference={proof.difference} " in said()


def test_many_days_are_a_span(said):
    days = [DayCount(date(2026, 3, n), {"total_calculations": 1}, 1, "built") for n in range(1, 31)]
    telemetry.rebuilt(RebuildReport(days))
    assert "days=2026-03-01..2026-03-30" in said()


@pytest.mark.parametrize(("transient", "level"), [(True, "WARNING"), (False, "ERROR")])
def test_trouble_is_one_line_and_goes_on_its_way(said, transient: bool, level: str):
    with pytest.raises(DatabaseTrouble), telemetry.failures_noted("refresh", request_id="abc"):
        raise DatabaseTrouble("cannot connect to 'x=1'", transient)
    assert f""" {level} refresh failed="cannot connect to 'x=1'" request_id=abc""" in said()


def test_of_a_bug_only_the_kind_is_said(said):
    telemetry.failed("refresh", ValueError("postgresql://me:hunter2@db"))
    assert 'failed="a bug: ValueError"' in (line := said())
    assert "hunter2" not in line


def test_values_that_could_be_misread_are_quoted(said):
    logs.line(logging.INFO, "x", empty="", lines="a\nb", equals="a=b", several=["a", "b"], quote='"')
    assert r'empty="" lines="a\nb" equals="a=b" several=a,b quote="\""' in said()


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "LOG_FORMAT": "text"}


def counting(folder: Path, refreshes: int) -> "subprocess.Popen[str]":
    """A process that has counted and stays."""
    process = subprocess.Popen(
        [sys.executable, "-c", COUNT, str(refreshes)],
        env=environment(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "counted\n"
    return process


def read(folder: Path) -> dict[str, float]:
    """The samples that a process reads which has counted nothing."""
    done = subprocess.run(
        [sys.executable, "-c", READ], env=environment(folder), capture_output=True, text=True, check=True
    )
    samples = (line.rsplit(" ", 1) for line in done.stdout.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_counts_of_all_processes_are_summed_up_and_outlive_them_in_two_files(tmp_path: Path):
    living, ended, killed = counting(tmp_path, 2), counting(tmp_path, 3), counting(tmp_path, 5)
    ended.communicate("")
    killed.kill()
    killed.communicate()
    for _ in range(3):
        found = read(tmp_path)
        assert found["calc_analytics_rows_counted_total"] == 30
        assert found["calc_analytics_refresh_duration_seconds_count"] == 10
        assert found['calc_analytics_refresh_duration_seconds_bucket{le="0.025"}'] == 10
        assert found["calc_analytics_partitions_refused_total"] == 3
        assert found['calc_analytics_failures_total{operation="verify"}'] == 3
        assert found['calc_analytics_failures_total{operation="refresh"}'] == 0
    # Those of the living, of the last that read, and of all that have ended.
    assert len(list(tmp_path.glob("*.db"))) == 6
    living.communicate("")


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", COUNT, "3"], env=environment(tmp_path / "file" / "metrics"),
        input="", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "counted\n")
    assert done.stderr.count("\n") == 1
    assert "WARNING telemetry failed=" in done.stderr
