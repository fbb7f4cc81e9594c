"""The command line: reports, JSON, exit codes, and one line for each kind of error."""

import json
import re
import signal
import socket
import subprocess
import sys
from datetime import date, datetime, timedelta, timezone

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text
from sqlalchemy.engine import URL, Connection

from benchmarks.running import eventually
from calc_analytics.cli import counting, running, terminal
from calc_analytics.cli import main as cli
from calc_analytics.cli.main import main
from calc_analytics.cli.opening import make_ready
from calc_analytics.config import Settings
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup import ledger, status
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollups import HOURS, LATENCY, LOG, STATS
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import assert_exact, execute, oracle, oracles, row, stored, utc, write

DAY = date(2026, 3, 1)
NEXT = date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)
SECRET = "hunter2"
TEACHES = {
    "migrate": "Safe to repeat",
    "refresh": "The cost depends on the new rows, not on the size of the log",
    "rollup": "Running it twice changes nothing",
    "verify": "the difference is zero, or something has to be resolved",
    "rebase": "Statistics stay until each day is rebuilt",
    "archive": "hold exactly the log rows",
    "partitions": "Without a partition for a row, and without a default partition, the API's INSERT fails",
    "prune": "statistics stay",
    "erase": "The opposite of `prune`",
    "history": "Newest first",
    "report": "All numbers are of one instant",
    "simulate": "COPY",
    "up": "Ctrl-C or SIGTERM stops all of it",
    "demo": "a table of totals that grows",
    "serve": "It starts, and keeps running, while the database and Dagster are down",
    "status": "which transactions are open",
    "doctor": "the fact, why it matters, what to type",
    "widen": "live views",
}


@pytest.fixture
def calc(database: URL):
    """Runs `calc-analytics` with these words."""

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, words)

    return run


@pytest.fixture
def calc_as_owner(calc, database: URL, monkeypatch):
    """The same as the role that owns the tables, and writes logs as the API does."""
    monkeypatch.setenv("DATABASE_URL", database.render_as_string(hide_password=False))
    return calc


def refused(result: Result, code: int = 1) -> str:
    """The one line on standard error."""
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert SECRET not in result.output
    return result.stderr


def run_by_hand(url: URL, *words: str) -> subprocess.Popen:
    """`calc-analytics` with these words as a process of its own, which takes Ctrl-C even if the tests do not."""
    given = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return subprocess.Popen(
        [sys.executable, "-m", "calc_analytics.cli", *words],
        env={"DATABASE_URL": given, "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def journal(calc, *words: str) -> list[dict]:
    """The entries of `history --json`."""
    return json.loads(calc("history", *words, "--json").stdout)["entries"]


def days_on_record(db) -> list[date]:
    """Every day in the ledger, of any status."""
    return list(ledger.days_by_status(db, list(status.STATUSES)))


def days_rebuilt(db) -> list[date]:
    """The days that a rebuild built in every rollup."""
    found = status.recent_days(db, 100)
    return sorted({each.day for each in found} - {each.day for each in found if each.method != "rebuild"})


def waits_for_locks(connection: Connection) -> int:
    """How many sessions of this database wait for a lock."""
    statement = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    return int(connection.execute(text(statement)).scalar_one())


@pytest.fixture
def calc_with_lost_logs(calc, db, connect):
    """The same; 6,187 rows of the day are counted, and 1,000 of them were deleted since."""
    write(connect(), [row(NOON)] * 6_187)
    assert calc("rollup", "--day", "2026-03-01").exit_code == 0
    execute(db, "delete from calculation_logs where id <= 1000")
    return calc


def test_every_command_has_help_that_teaches(calc):
    assert set(TEACHES) == set(main.commands)
    for name, says in TEACHES.items():
        assert says in " ".join(calc(name, "--help").output.split())
        assert name in calc("--help").output


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_help_names_what_changes_an_example_and_the_exit_codes(name: str):
    message = CliRunner().invoke(main, [name, "--help"]).output
    assert "  Changes:     " in message
    assert re.search(rf"  Examples?: +.*calc-analytics {name}\b", message)
    assert "  Exit codes:  0 " in message
    assert all(len(line) <= 80 for line in message.splitlines())


def test_refresh_prints_rows_and_days_and_which_days_are_left_to_rollup(calc, db, connect):
    rebuild(db, [DAY])
    writer = connect()
    write(writer, [row(NOON, publisher=n) for n in range(3)])
    message = calc("refresh").output
    assert "3 rows counted" in message
    assert "2026-03-01  +3 rows into 12 statistics rows of 4 rollups" in message
    write(writer, [row(NOON + timedelta(days=1))])
    writer.execute("update calculation_logs set xact_id = null where created_at > '2026-03-02'")
    writer.commit()
    write(writer, [row(NOON + timedelta(days=1))])
    message = calc("refresh").output
    assert "2026-03-02  1 row not counted in 4 rollups" in message
    assert "run 'calc-analytics rollup --day 2026-03-02'" in message


def test_refresh_as_json_has_the_measures_of_each_day_and_rollup(calc, db, connect):
    rebuild(db, [DAY])
    write(connect(), [row(NOON, cache_hit=True)] * 2)
    answer = json.loads(calc("refresh", "--json").stdout)
    assert set(answer) == {"rows", "days", "never_built_days", "seconds"}
    assert (answer["rows"], answer["never_built_days"]) == (2, [])
    assert set(answer["days"]["2026-03-01"]) == set(LOG.names)
    assert answer["days"]["2026-03-01"][STATS.name]["cache_hits"] == 2
    assert answer["days"]["2026-03-01"][LATENCY.name] == {"calculations": 2}


def test_refresh_and_rollup_show_each_step_of_a_backlog(calc, db, connect, monkeypatch):
    shown: dict[str, list[float]] = {}

    class Bar:
        def __init__(self, description: str, total: float | None) -> None:
            self.steps = shown.setdefault(description, [])

        def __enter__(self):
            return self.steps.append

        def __exit__(self, *error) -> None:
            pass

    real = counting.refresh_once
    monkeypatch.setattr(terminal, "bar", Bar)
    monkeypatch.setattr(counting, "refresh_once", lambda db, progress: real(db, step_rows=10, progress=progress))
    writer = connect()
    for _ in range(5):
        write(writer, [row(NOON)] * 10)
    assert "50 rows counted" in calc("refresh").output
    assert len(shown["counting new rows"]) > 1
    assert sum(shown["counting new rows"]) == 50
    calc("rollup", "--from", "2026-03-01", "--to", "2026-03-12")
    assert shown["rebuilding days"] == [10, 2]
    calc("verify", "--from", "2026-03-01", "--to", "2026-03-12")
    assert sum(shown["comparing days and rollups"]) == 12 * 4


def test_rollup_builds_ranges_days_and_what_waits(calc, db, connect):
    now = datetime.now(timezone.utc)
    write(connect(), [row(NOON + timedelta(days=n)) for n in range(4)] + [row(now)])
    message = calc("rollup", "--from", "2026-03-01", "--to", "2026-03-04").output
    assert "4 days rebuilt, 4 rows in" in message
    assert "2026-03-04  1 row in 4 rollups" in message
    assert "1 day rebuilt, 1 row in" in calc("rollup", "--day", "2026-03-01").output
    answer = json.loads(calc("rollup", "--day", "2026-03-01", "--json").stdout)
    assert (answer["rows"], answer["days"]["2026-03-01"][HOURS.name]["total_calculations"]) == (1, 1)
    assert str(now.date()) in calc("rollup").output
    assert_exact(db)


def test_rollup_builds_a_day_that_only_its_own_refresh_finds_waiting(calc, db, connect):
    writer = connect()
    write(writer, [row(NOON)])
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    write(writer, [row(NOON)] * 5)
    assert "2026-03-01  6 rows in 4 rollups (0 before)" in calc("rollup").output
    assert_exact(db)


def test_rollup_of_one_rollup_leaves_the_others_alone(calc, db, connect):
    write(connect(), [row(NOON)] * 5)
    calc("rollup", "--day", "2026-03-01")
    for name in (HOURS.name, STATS.name):
        execute(db, f"update {name} set cache_hits = 7")
    message = calc("rollup", "--day", "2026-03-01", "--rollup", HOURS.name).output
    assert f"2026-03-01  5 rows in {HOURS.name}" in message
    assert stored(db, HOURS.name) == oracles(db)[HOURS.name]
    assert stored(db)[1, DAY][1] == 7


@pytest.mark.parametrize("command", ["rollup", "verify", "history"])
def test_an_unknown_rollup_is_one_line_that_lists_the_names(calc, db, connect, command: str):
    write(connect(), [row(NOON)])
    message = refused(calc(command, "--rollup", "calculation_stats_weekly"))
    assert "there is no rollup 'calculation_stats_weekly'" in message
    assert all(name in message for name in LOG.names)
    assert days_on_record(db) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--day", "2030-01-01"], "2030-01-01 lies outside of"),
        (["--from", "1900-01-01"], "1900-01-01 to 2024-12-31: 45,656 days outside of 2025-01-01 (ROLLUP_START_DATE)"),
        (["--from", "2026-03-01", "--to", "2999-01-01"], "to 2999-01-01"),
    ],
)
def test_days_that_are_not_real_are_refused_and_nothing_is_recorded(calc, db, connect, words: list[str], message: str):
    write(connect(), [row(NOON)])
    for command in ("rollup", "verify"):
        assert message in refused(calc(command, *words))
    assert days_on_record(db) == []
    assert journal(calc) == []


def test_a_day_outside_of_the_partitions_that_has_log_rows_is_rebuilt(calc, db, connect):
    write(connect(), [row(utc(2024, 12, 31)), row(utc(2030, 1, 1))])
    assert calc("rollup", "--day", "2024-12-31", "--day", "2030-01-01").exit_code == 0
    assert_exact(db)


def test_rollup_leaves_a_day_whose_logs_were_deleted_and_names_both_ways_on(calc_with_lost_logs, db):
    calc = calc_with_lost_logs
    message = refused(calc("rollup", "--day", "2026-03-01"))
    assert "2026-03-01 of 4 rollups was not rebuilt: 5,187 log rows but 6,187 counted. Keep " in message
    assert " --keep', or recount " in message
    assert " --allow-shrink'." in message
    assert stored(db)[1, DAY][0] == 6_187
    result = calc("rollup", "--day", "2026-03-01", "--json")
    assert result.exit_code == 1
    assert {each["rollup"] for each in json.loads(result.stdout)["refused"]} == set(LOG.names)
    assert journal(calc)[0]["operation"] == "refuse"


def test_the_default_rollup_fails_only_for_days_that_need_a_decision(calc, db, connect):
    today = datetime.now(timezone.utc)
    write(connect(), [row(today)] * 5)
    calc("rollup")
    execute(db, "delete from calculation_logs where id <= 2")
    assert "3 log rows but 5 counted" in refused(calc("rollup"))
    assert calc("rollup", "--day", str(today.date()), "--keep").exit_code == 0
    result = calc("rollup")
    assert (result.exit_code, result.stderr) == (0, "")
    assert (
        "of 4 rollups was not rebuilt: 2 of its 5 counted log rows were deleted. Its statistics stay; --allow-shrink"
        in result.output
    )
    assert "Its statistics stay" in refused(calc("rollup", "--day", str(today.date())))


def test_allow_shrink_recounts_from_what_is_left(calc_with_lost_logs, db):
    result = calc_with_lost_logs("rollup", "--day", "2026-03-01", "--allow-shrink")
    assert result.exit_code == 0
    assert "2026-03-01  5,187 rows in 4 rollups (6,187 before)" in result.output
    assert_exact(db)
    assert calc_with_lost_logs("verify").exit_code == 0
    assert "recounted: 6,187 -> 5,187 rows (4 rollups)" in calc_with_lost_logs("history").output


def test_keep_leaves_the_statistics_and_they_are_proven_from_then_on(calc_with_lost_logs, db):
    calc = calc_with_lost_logs
    assert calc("verify").exit_code == 1
    result = calc("rollup", "--day", "2026-03-01", "--keep")
    assert result.exit_code == 0
    kept = "5,187 log rows, 6,187 counted, 1,000 noted as deleted"
    assert f"kept: 2026-03-01 in 4 rollups: {kept}" in result.output
    result = calc("verify")
    assert result.exit_code == 0
    assert "equal in 4 rollups with the 1,000 rows deleted since" in result.output
    assert status.different_days(db) == {}
    assert f"{kept} (4 rollups)" in " ".join(calc("history").output.split())
    assert stored(db)[1, DAY][0] == 6_187


def test_a_deletion_that_was_announced_is_noted_by_rollup_and_by_verify(calc_with_lost_logs, db, monkeypatch):
    calc = calc_with_lost_logs
    monkeypatch.setenv("LOGS_KEPT_DAYS", "30")
    result = calc("rollup", "--day", "2026-03-01", "--rollup", HOURS.name)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"kept: 2026-03-01 in {HOURS.name}: 5,187 log rows, 6,187 counted, 1,000 noted as deleted" in result.output
    assert "LOGS_KEPT_DAYS announced the deletion" in result.output
    assert "equal in 4 rollups with the 1,000 rows deleted since" in calc("verify").output
    noted = [entry for entry in journal(calc, "--day", "2026-03-01") if entry["operation"] == "deletion"]
    assert {name for entry in noted for name in entry["days"]["2026-03-01"]} == set(LOG.names)
    assert status.different_days(db) == {}
    assert "1,000 noted as deleted by LOGS_KEPT_DAYS" in " ".join(calc("history").output.split())


def test_rows_that_were_moved_to_another_day_are_reported_on_both_days(calc, db, connect):
    write(connect(), [row(NOON)] * 62 + [row(NOON + timedelta(days=1))] * 5)
    calc("rollup", "--from", "2026-03-01", "--to", "2026-03-02")
    execute(db, "update calculation_logs set created_at = created_at + interval '1 day' where id <= 10")
    result = calc("verify", "--rollup", STATS.name)
    assert result.exit_code == 1
    assert f"2026-03-01 of {STATS.name}: log rows are missing: 52 log rows, 62 counted" in result.output
    assert f"2026-03-02 of {STATS.name}: rows were added to the past or moved here: 15 log rows" in result.output
    assert "52 log rows but 62 counted" in refused(calc("rollup", "--from", "2026-03-01", "--to", "2026-03-02"))
    assert calc("verify").exit_code == 1
    assert calc("rollup", "--day", "2026-03-01", "--allow-shrink").exit_code == 0
    assert calc("verify").exit_code == 0
    assert_exact(db)


@pytest.mark.parametrize(
    "words",
    [["--keep"], ["--allow-shrink"], ["--day", "2026-03-01", "--keep", "--allow-shrink"]],
)
def test_a_decision_is_one_of_two_and_about_days_that_are_named(calc, words: list[str]):
    result = calc("rollup", *words)
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr or "name the days" in result.stderr


def test_ctrl_c_is_exit_code_130_and_what_was_committed_stays(database: URL, owner, db, connect):
    write(connect(), [row(NOON + timedelta(days=n)) for n in range(30)])
    rebuild(db, [DAY])
    blocker = connect()
    blocker.execute("update rollup_days set status = status where date = '2026-03-15'")
    process = run_by_hand(database, "rollup", "--from", "2026-03-01", "--to", "2026-03-30")
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        eventually(lambda: waits_for_locks(connection) > 0, "a rebuild that waits")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        eventually(lambda: waits_for_locks(connection) == 0, "the end of the transaction")
    assert (process.returncode, out) == (130, "")
    assert err.count("\n") <= 1, err
    blocker.rollback()
    assert days_rebuilt(db) == [NOON.date() + timedelta(days=n) for n in range(10)], "the first of three transactions"
    assert_exact(db)


def test_verify_prints_a_line_per_day_and_records_what_it_found(calc, db, connect):
    write(connect(), [row(NOON)] * 1_234 + [row(NOON + timedelta(days=1), response_time_ms=-1)])
    calc("rollup", "--from", "2026-03-01", "--to", "2026-03-02")
    result = calc("verify")
    assert result.exit_code == 0
    assert "2026-03-01  logs       1,234  equal in 4 rollups\n" in result.output
    assert "2026-03-02  logs           1  equal in 4 rollups; negative response times: 1" in result.output
    assert "2 days compared in" in result.output
    assert "difference 0" in result.output
    assert all(day.verified_at for day in status.recent_days(db, 2))
    assert f"equal in {HOURS.name}" in calc("verify", "--rollup", HOURS.name).output
    assert "1 day compared in" in calc("verify", "--day", "2026-03-01").output


def test_verify_names_the_publisher_that_was_tampered_with_and_rollup_repairs_it(calc, db, connect):
    write(connect(), [row(NOON, publisher=publisher) for publisher in (7, 7, 8)])
    calc("rollup", "--day", "2026-03-01")
    execute(db, f"update {STATS.name} set total_calculations = total_calculations + 1 where publisher_id = 7")
    result = calc("verify")
    assert result.exit_code == 1
    assert (
        f"2026-03-01 of {STATS.name}: another program changed the statistics: 4 stored but 3 counted" in result.output
    )
    assert "publisher_id 7: 2 in the log, 3 stored" in result.output
    assert "Recount with 'calc-analytics rollup --day 2026-03-01'." in result.output
    assert "equal" not in result.output
    assert status.different_days(db) == {DAY: [STATS.name]}
    answer = json.loads(calc("verify", "--json").stdout)
    assert answer["days"]["2026-03-01"][STATS.name]["differences"]["total_calculations"] == 1
    assert answer["days"]["2026-03-01"][HOURS.name]["difference"] == 0
    assert f"2026-03-01  3 rows in {STATS.name} (4 before)" in calc("rollup", "--day", "2026-03-01").output
    assert calc("verify").exit_code == 0
    assert status.different_days(db) == {}
    assert_exact(db)


def test_verify_finds_statistics_of_a_day_that_was_never_counted(calc, db):
    values = ", ".join(["1, '2026-03-01'", *("5" for _ in STATS.measure_names)])
    execute(db, f"insert into {STATS.name} (publisher_id, date, {', '.join(STATS.measure_names)}) values ({values})")
    result = calc("verify")
    assert result.exit_code == 1
    assert f"2026-03-01 of {STATS.name}" in result.output
    assert status.different_days(db) == {DAY: [STATS.name]}


def test_verify_says_that_days_wait_and_fails_when_none_could_be_proven(calc_as_owner, connect):
    calc = calc_as_owner
    write(connect(), [row(NOON)])
    calc("rollup", "--day", "2026-03-01")
    assert "1 day waits for a rebuild" in calc("rebase", "--yes").output
    result = calc("verify")
    assert result.exit_code == 1
    assert "1 day waits for a rebuild" in result.output
    assert "0 days compared" in result.output
    calc("rollup")
    answer = json.loads(calc("verify", "--json").stdout)
    assert (answer["waiting_days"], answer["nothing_built"]) == ([], False)


def test_verify_fails_while_there_are_logs_and_no_day_was_ever_built(calc, connect):
    assert calc("verify").exit_code == 0, "without logs there is nothing to prove"
    write(connect(), [row(NOON)])
    assert "no day is built, so nothing is proven: run 'calc-analytics rollup'" in refused(calc("verify"))
    assert json.loads(calc("verify", "--json").stdout)["nothing_built"] is True


def test_verify_of_a_day_that_was_never_built_says_what_to_run(calc, connect):
    writer = connect()
    write(writer, [row(NOON)])
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    result = calc("verify", "--day", "2026-03-01", "--day", "2026-03-02")
    assert result.exit_code == 1
    assert "'calc-analytics rollup --day 2026-03-01'" in result.output
    assert "1 day without log rows and without statistics" in result.output


def test_a_value_that_does_not_fit_its_column_fails_verify_until_the_day_is_recounted(calc, db, connect):
    writer = connect()
    write(writer, [row(NOON)] * 3)
    calc("rollup", "--day", "2026-03-01")
    execute(db, f"update {STATS.name} set total_calculations = {STATS.measures[0].greatest}")
    write(writer, [row(NOON)])
    assert f"2026-03-01  1 row not counted in {STATS.name}" in calc("refresh").output
    result = calc("verify")
    assert result.exit_code == 1
    assert "not counted, because a value exceeds its column: 2026-03-01" in result.output
    assert json.loads(calc("verify", "--json").stdout)["overflowed_days"] == ["2026-03-01"]
    assert calc("rollup", "--day", "2026-03-01").exit_code == 0
    assert calc("verify").exit_code == 0
    assert_exact(db)


def test_history_is_newest_first_and_fits_100_columns(calc, db, connect):
    assert calc("history").output == "the journal has no such entry\n"
    writer = connect()
    write(writer, [row(NOON)] * 1_303)
    calc("refresh")
    calc("refresh")
    execute(db, "delete from calculation_logs where id <= 1000")
    calc("rollup", "--day", "2026-03-01", "--allow-shrink")
    lines = calc("history").output.splitlines()
    assert lines[0].split() == ["when", "(UTC)", "what", "days", "rows", "by"]
    assert lines[1].split()[2:5] == ["rebuild", "2026-03-01", "303"]
    assert lines[1].endswith(f"calc_analytics as {ROLE}")
    assert lines[2].strip() == "recounted: 1,303 -> 303 rows (4 rollups)"
    assert lines[3].split()[2:5] == ["refresh", "2026-03-01", "1,303"]
    assert lines[4].strip().startswith("counted in 1 refresh, ")
    assert "the oldest row was counted after" in " ".join(lines)
    assert all(len(line.replace(ROLE, "rollup_writer")) <= 100 for line in lines)


def test_history_of_a_day_or_of_a_rollup_leaves_out_the_others(calc, db, connect):
    write(connect(), [row(NOON), row(NOON + timedelta(days=1))])
    calc("rollup", "--day", "2026-03-01")
    calc("rollup", "--day", "2026-03-02", "--rollup", HOURS.name)
    assert [entry["operation"] for entry in journal(calc)] == ["rebuild", "rebuild", "refresh"]
    message = calc("history", "--day", "2026-03-01").output
    assert "2026-03-01" in message
    assert "2026-03-02" not in message
    assert len(journal(calc, "--rollup", STATS.name)) == 2
    assert f"({HOURS.name})" in calc("history", "--rollup", HOURS.name).output
    assert len(journal(calc, "--limit", "1")) == 1
    assert "1 entry shown: --limit shows more" in calc("history", "--limit", "1").output


def test_history_shows_differences_rebases_and_prunes(calc_as_owner, db, connect):
    calc = calc_as_owner
    write(connect(), [row(NOON)] * 5)
    calc("rollup", "--day", "2026-03-01")
    execute(db, f"update {STATS.name} set cache_hits = 1")
    calc("verify")
    assert f"difference 1: statistics changed ({STATS.name})" in calc("history", "--day", "2026-03-01").output
    calc("rollup", "--day", "2026-03-01")
    calc("prune", "--older-than", "1", "--yes")
    calc("rebase", "--yes")
    message = " ".join(calc("history").output.split())
    assert "prune 2026-03-01 5 calc_analytics as" in message
    assert "deleted in 1 batch, " in message
    assert "every built day is to be rebuilt; days in UTC" in message


def test_an_internal_error_is_one_line_too(calc, monkeypatch, tmp_path):
    monkeypatch.setattr(counting, "refresh_once", lambda *given, **options: int("several\nlines"))
    monkeypatch.setattr(cli, "data_folder", lambda: tmp_path)
    message = refused(calc("refresh"))
    assert "internal error: ValueError" in message
    assert "Traceback" in (tmp_path / "logs" / "cli.log").read_text()


def test_a_port_of_the_service_that_is_taken_is_named_with_its_option(calc):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = refused(calc("up", "--ui-port", str(free_port()), "--service-port", port))
    assert f"port {port} is in use" in message
    assert "--service-port" in message


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("127.0.0.1", "is in use on 127.0.0.1: end the program that has it, or choose another with --port"),
        ("192.0.2.1", "of 192.0.2.1: Cannot assign requested address"),
        ("no.such.host.invalid", "of no.such.host.invalid: "),
    ],
)
def test_an_address_that_serve_cannot_have_is_named(calc, host: str, message: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert message in refused(calc("serve", "--host", host, "--port", port))


def test_a_role_that_may_not_create_anything_runs_what_is_installed(calc):
    assert make_ready(Settings.from_environment()).log is LOG
    assert "run this command once with DATABASE_URL naming the role that owns the API's tables" in refused(
        calc("migrate")
    )


def test_prune_asks_deletes_what_is_counted_and_names_what_it_left(calc_as_owner, db, connect):
    calc, writer = calc_as_owner, connect()
    write(writer, [row(NOON + timedelta(days=n)) for n in range(3) for _ in range(5 - n)])
    calc("rollup", "--from", "2026-03-01", "--to", "2026-03-03")
    execute(db, "update rollup_days set status = 'pending' where date = '2026-03-02'")
    execute(db, f"update {HOURS.name} set cache_hits = 2 where date = '2026-03-03'")
    message = refused(calc("prune", "--older-than", "1"))
    assert "there is no terminal to answer 'Delete 8 counted log rows of 2 days before " in message
    assert "add --yes to confirm. Nothing was deleted." in message
    assert len(oracle(db)) == 3, "not confirmed"
    message = calc("prune", "--older-than", "1", "--yes").output
    assert "2026-03-01  5 rows deleted, statistics kept" in message
    assert (
        "2026-03-02  not built in every rollup, so its log rows stay: 'calc-analytics rollup --day 2026-03-02' says why"
        in message
    )
    assert (
        "2026-03-03  differs from its log, so its log rows stay: run 'calc-analytics verify --day 2026-03-03'"
        in message
    )
    assert "5 rows of 1 day deleted in" in message
    assert {day for _, day in oracle(db)} == {NEXT, date(2026, 3, 3)}
    assert "equal in 4 rollups with the 5 rows deleted since" in calc("verify", "--day", "2026-03-01").output
    answer = json.loads(calc("prune", "--older-than", "1", "--yes", "--json").stdout)
    assert (answer["rows"], answer["different_days"]) == (0, ["2026-03-03"])
    assert "of 4 rollups was not rebuilt: 5 of its 5 counted log rows were deleted" in refused(
        calc("rollup", "--day", "2026-03-01")
    )


@pytest.mark.parametrize(
    ("words", "question"),
    [
        (["rebase"], "Mark every built day for a rebuild?"),
        (["widen", "response_time_ms"], "Widen now?"),
        (["prune", "--older-than", "1"], "Delete 5 counted log rows of 1 day before "),
        (["erase", "--publisher", "1"], "Erase publisher_id 1 for good: 5 of calculation_logs"),
        (["erase", "--publisher", "1", "--json"], "Erase publisher_id 1 for good: 5 of calculation_logs"),
    ],
)
def test_a_question_that_cannot_be_answered_names_the_option_and_changes_nothing(
    calc_as_owner, db, connect, words: list[str], question: str
):
    write(connect(), [row(NOON)] * 5)
    calc_as_owner("rollup", "--day", "2026-03-01")
    result = calc_as_owner(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no terminal to answer '")
    assert question in result.stderr
    assert "': add --yes to confirm. Nothing was " in result.stderr
    assert result.stderr.count("\n") == 1
    assert status.different_days(db) == {}
    assert_exact(db)


@pytest.mark.parametrize(("answer", "is_changed"), [("y\n", True), ("n\n", False), ("", False)])
def test_the_answer_decides(calc_as_owner, db, connect, monkeypatch, answer: str, is_changed: bool):
    write(connect(), [row(NOON)])
    calc_as_owner("rollup", "--day", "2026-03-01")
    monkeypatch.setattr(terminal, "has_terminal", lambda: True)
    result = CliRunner().invoke(main, ["rebase"], input=answer)
    assert result.exit_code == (0 if is_changed else 1)
    assert "Mark every built day for a rebuild? [y/N]: " in result.output
    assert ("error: not confirmed. Nothing was changed." in result.stderr) != is_changed
    assert bool(ledger.waiting_days(db)) == is_changed


def test_a_statement_that_waits_for_a_lock_says_for_which_and_who_holds_it(database: URL, owner, db, connect):
    write(connect(), [row(NOON)])
    holder = connect()
    holder.execute("set application_name = 'a migration'")
    holder.execute("lock table calculation_logs in access exclusive mode")
    process = run_by_hand(database, "refresh")
    assert process.stderr
    assert process.stdout
    message = process.stderr.readline()
    holder.rollback()
    assert message == (
        f"waiting for a lock on calculation_logs, held by process {holder.info.backend_pid} "
        f"(a migration, idle in transaction)\n"
    )
    assert process.wait() == 0
    assert process.stdout.read().startswith("1 row counted")
    process.stdout.close()
    process.stderr.close()


def test_a_pipe_that_is_closed_ends_the_command_without_an_error(database: URL, db, connect):
    write(connect(), [row(NOON + timedelta(days=n)) for n in range(30)])
    rebuild(db, [DAY + timedelta(days=n) for n in range(30)])
    process = run_by_hand(database, "verify")
    assert process.stderr
    assert process.stdout
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait()
    process.stderr.close()


def test_a_misspelled_variable_is_a_warning(calc, monkeypatch):
    monkeypatch.setenv("ROLUP_TIMEZONE", "Asia/Tokyo")
    result = calc("refresh")
    assert result.exit_code == 0
    assert result.stderr == ("warning: the variable ROLUP_TIMEZONE is not a setting: did you mean ROLLUP_TIMEZONE?\n")


def test_prune_without_the_right_to_delete_says_what_to_grant(calc, db, connect):
    write(connect(), [row(NOON)] * 5)
    assert f"grant it to the role '{ROLE}'" in refused(calc("prune", "--older-than", "1", "--yes"))
    assert sum(measures[0] for measures in oracle(db).values()) == 5


def test_simulate_writes_and_reports(calc_as_owner, db):
    answer = json.loads(calc_as_owner("simulate", "--rows", "250", "--rate", "5000", "--json").stdout)
    assert answer["rows"] == 250
    assert sum(measures[0] for measures in oracle(db).values()) == 250


def test_migrate_can_be_repeated_and_prints_where_which_rollups_and_which_zone(calc_as_owner, monkeypatch):
    message = calc_as_owner("migrate").output
    assert message.startswith("ready: postgresql://")
    assert f", days in UTC\nrollups: {', '.join(LOG.names)}\n" in message
    monkeypatch.setenv("ROLLUP_TIMEZONE", "Asia/Tokyo")
    result = calc_as_owner("migrate")
    assert result.exit_code == 0
    assert ", days in UTC\n" in result.output
    assert "ROLLUP_TIMEZONE is Asia/Tokyo: set it to UTC, or run 'calc-analytics rebase'" in result.output


def test_migrate_chooses_the_rollups_and_other_commands_refuse_another_choice(calc_as_owner, db, connect, monkeypatch):
    calc = calc_as_owner
    write(connect(), [row(NOON)] * 5)
    calc("refresh")
    monkeypatch.setenv("ROLLUPS", f"{STATS.name}, {HOURS.name}")
    for command in ("refresh", "rollup", "verify"):
        message = refused(calc(command))
        assert f"the database keeps {', '.join(LOG.names)}, but ROLLUPS names {STATS.name}, {HOURS.name}" in message
        assert "'calc-analytics migrate'" in message
    assert f"rollups: {STATS.name}, {HOURS.name}\n" in calc("migrate").output
    assert "5 rows in 2 rollups" in calc("rollup", "--day", "2026-03-01").output
    monkeypatch.delenv("ROLLUPS")
    assert "1 day waits for a rebuild: run 'calc-analytics rollup'" in calc("migrate").output
    calc("rollup")
    assert calc("verify").exit_code == 0
    assert_exact(db)


@pytest.mark.parametrize("command", ["refresh", "migrate", "history", "up"])
def test_a_rollup_in_the_settings_that_does_not_exist_is_named(calc, monkeypatch, command: str):
    monkeypatch.setenv("ROLLUPS", f"{STATS.name},weekly")
    monkeypatch.setattr(running, "claim", lambda *ports: None)
    message = refused(calc(command))
    assert message.startswith("error: ROLLUPS: ")
    assert "there is no rollup 'weekly'" in message
    assert LATENCY.name in message


def test_rebase_resolves_a_restore_into_another_cluster(calc_as_owner, db, connect):
    calc = calc_as_owner
    write(connect(), [row(NOON), row(NOON + timedelta(days=1))] * 5)
    calc("rollup", "--from", "2026-03-01", "--to", "2026-03-02")
    execute(db, "update rollup_state set system_identifier = 7")
    assert "calc-analytics rebase" in refused(calc("refresh"))
    assert "2 days wait for a rebuild" in calc("rebase", "--yes").output
    assert calc("rollup").exit_code == 0
    assert_exact(db)


@pytest.mark.parametrize("command", ["refresh", "rollup", "verify", "migrate", "simulate", "up"])
def test_a_server_that_is_down_is_named(calc, monkeypatch, command: str):
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:{SECRET}@127.0.0.1:{free_port()}/db")
    free = free_ports() if command == "up" else []
    assert "cannot connect to postgresql://me:***@127.0.0.1" in refused(calc(command, *free))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", f"mysql://me:{SECRET}@db/x"),
        ("ROLLUP_TIMEZONE", "Mars/Olympus"),
        ("ROLLUP_DEBOUNCE_SECONDS", "soon"),
        ("ROLLUP_START_DATE", "2026-13-01"),
        ("ROLLUP_INTERVAL_HOURS", "7"),
        ("ROLLUPS", "a;b"),
        ("LOGS_KEPT_DAYS", "0"),
    ],
)
@pytest.mark.parametrize("command", ["refresh", "up"])
def test_a_wrong_setting_is_named(calc, monkeypatch, command: str, variable: str, value: str):
    monkeypatch.setenv(variable, value)
    assert variable in refused(calc(command))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollup", "--day", "1.3.2026"], "YYYY-MM-DD"),
        (["verify", "--from", "2026-03-02", "--to", "2026-03-01"], "before it begins"),
        (["rollup", "--from", "2026-02-30"], "YYYY-MM-DD"),
        (["rollup", "--from", ""], "YYYY-MM-DD"),
        (["rollup", "--day", "2026-2-3"], "YYYY-MM-DD"),
        (["verify", "--day", "9999-12-31"], "out of range"),
        (["verify", "--day", "２０２６-０３-０１"], "YYYY-MM-DD"),
    ],
)
def test_a_malformed_day_is_named(calc, words: list[str], message: str):
    assert message in refused(calc(*words))


@pytest.mark.parametrize(
    "words",
    [
        ["rollup", "--to", "2026-03-01"],
        ["rollup", "--from", "2999-01-01"],
        ["simulate", "--rate", "0"],
        ["simulate", "--rate", "nan"],
        ["simulate", "--seconds", "inf"],
        ["verify", "--no"],
        ["prune"],
        ["erase"],
        ["erase", "--publisher", "seven"],
        ["history", "--limit", "0"],
        ["prune", "--older-than", "-1"],
        ["prune", "--older-than", "soon"],
        ["prune", "--older-than", "９"],
        ["erase", "--publisher", "１２"],
        ["erase", "--publisher", "1_000"],
        ["simulate", "--rate", "１０"],
        ["history", "--limit", "５"],
        ["serve", "--host", ""],
        ["serve", "--port", "８０８０"],
    ],
)
def test_wrong_usage_is_exit_code_2(calc, words: list[str]):
    assert calc(*words).exit_code == 2


def test_a_database_without_tables_says_what_to_run(calc, monkeypatch, empty_url: URL):
    monkeypatch.setenv("DATABASE_URL", empty_url.render_as_string(hide_password=False))
    for command in ("refresh", "rollup", "verify"):
        assert "calc-analytics migrate" in refused(calc(command))
    assert "calc-analytics migrate" in refused(calc("simulate", "--rows", "10"))


def free_ports() -> list[str]:
    return ["--ui-port", str(free_port()), "--service-port", str(free_port())]


@pytest.mark.parametrize(
    ("setting", "zone", "message"),
    [
        ("default_transaction_read_only = on", "UTC", "is read-only (a standby?): use the primary's address"),
        ("log_duration = off", "Asia/Tokyo", "built in UTC, but ROLLUP_TIMEZONE is Asia/Tokyo"),
    ],
)
def test_up_reports_before_starting_what_would_fail_every_tick(
    calc, db, maintenance, monkeypatch, setting, zone, message
):
    maintenance(f'alter database "{db.engine.url.database}" set {setting}')
    monkeypatch.setenv("ROLLUP_TIMEZONE", zone)
    monkeypatch.setattr(running, "claim", lambda *ports: None)  # this process holds the lock since its first `up`
    assert message in refused(calc("up", *free_ports()))


def test_a_missing_column_says_so(calc, db):
    execute(db, "alter table calculation_logs rename column cache_hit to hit")
    assert "cache_hit" in refused(calc("refresh"))


def test_a_read_only_database_says_so(calc, db, maintenance):
    maintenance(f'alter database "{db.engine.url.database}" set default_transaction_read_only = on')
    assert "read-only" in refused(calc("refresh"))
    assert "but it is read-only" in calc("status").output
    assert "is read-only by default_transaction_read_only" in calc("doctor").output
    assert calc("verify").exit_code == 0


def test_a_role_without_the_right_says_what_to_grant(calc, database: URL, maintenance, monkeypatch):
    role = f"reader_{database.database}"
    maintenance(f"create role {role} login password '{SECRET}'")
    given = database.set(username=role, password=SECRET).render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", given)
    try:
        assert f"grant it to the role '{role}'" in refused(calc("refresh"))
    finally:
        maintenance(f"drop role {role}")
