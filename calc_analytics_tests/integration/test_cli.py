"""The command line: reports, JSON, exit codes, and one line for each kind of trouble."""

import json
import socket
from datetime import date, datetime, timedelta, timezone

import pytest
from click.testing import CliRunner, Result
from sqlalchemy.engine import URL

from calc_analytics import cli
from calc_analytics.cli import main
from calc_analytics.config import Settings
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.supervisor import free_port
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import execute, live, oracle, row, stored, utc, write

DAY = date(2026, 3, 1)
NOON = utc(2026, 3, 1, 12)
SECRET = "hunter2"
TEACHES = {
    "migrate": "Safe to repeat",
    "refresh": "Cost: the new rows only",
    "rollup": "Running it twice changes nothing",
    "verify": "zero difference, or logs were deleted, or a bug",
    "rebase": "Statistics stay until each day is rebuilt",
    "prune": "Their statistics stay",
    "simulate": "COPY",
    "up": "Ctrl-C or SIGTERM stops all of it",
    "demo": "a table of today's totals that grows",
    "serve": "It starts, and stays up, while the database and Dagster are down",
    "status": "who holds an old transaction",
    "doctor": "the fact, why it matters, what to type",
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
    """The one line that a user is told."""
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert SECRET not in result.output
    return result.stderr


def test_every_command_has_help_that_teaches(calc):
    assert set(TEACHES) == set(main.commands)
    for name, says in TEACHES.items():
        assert says in " ".join(calc(name, "--help").output.split())
        assert name in calc("--help").output


def test_refresh_says_what_it_counted_and_what_waits(calc, engine, connect):
    rebuild(engine, ROLLUP, "UTC", [DAY])
    writer = connect()
    write(writer, [row(NOON, publisher=n) for n in range(3)])
    said = calc("refresh").output
    assert "3 rows counted" in said
    assert "2026-03-01  +3 rows, 3 publishers" in said
    write(writer, [row(NOON + timedelta(days=1))])
    writer.execute("update calculation_logs set xact_id = null where created_at > '2026-03-02'")
    writer.commit()
    write(writer, [row(NOON + timedelta(days=1))] * 2)
    assert "run 'calc-analytics rollup --day 2026-03-02'" in calc("refresh").output
    write(writer, [row(NOON)] * 2)
    answer = json.loads(calc("refresh", "--json").stdout)
    assert (answer["rows"], answer["days"]["2026-03-01"]["total_calculations"]) == (2, 2)


def test_rollup_builds_ranges_days_and_what_waits(calc, engine, connect):
    now = datetime.now(timezone.utc)
    write(connect(), [row(NOON + timedelta(days=n)) for n in range(4)] + [row(now)])
    assert "4 days rebuilt, 4 rows" in calc("rollup", "--from", "2026-03-01", "--to", "2026-03-04").output
    assert json.loads(calc("rollup", "--day", "2026-03-01", "--json").stdout)["rows"] == 1
    assert str(now.date()) in calc("rollup").output
    assert stored(engine) == live(engine) == oracle(engine)


def test_rollup_builds_a_day_that_only_its_own_refresh_finds_waiting(calc, engine, connect):
    writer = connect()
    write(writer, [row(NOON)])
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    write(writer, [row(NOON)] * 5)
    assert "2026-03-01  6 rows" in calc("rollup").output
    assert stored(engine) == oracle(engine)


def test_verify_says_that_days_wait_and_fails_when_none_could_be_proven(calc_as_owner, engine, connect):
    calc = calc_as_owner
    write(connect(), [row(NOON)])
    calc("rollup", "--day", "2026-03-01")
    assert calc("rebase", "--yes").exit_code == 0
    result = calc("verify")
    assert result.exit_code == 1
    assert "1 days wait for a rebuild" in result.output
    calc("rollup")
    assert json.loads(calc("verify", "--json").stdout)["waiting_days"] == []


def test_an_error_nobody_foresaw_is_one_line_too(calc, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "refresh_once", lambda *given: 1 / 0)
    monkeypatch.setattr(cli, "data_folder", lambda: tmp_path)
    said = refused(calc("refresh"))
    assert "a bug: ZeroDivisionError" in said
    assert "Traceback" in (tmp_path / "logs" / "cli.log").read_text()


def test_a_port_of_the_service_that_is_taken_is_named_with_its_option(calc):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused(calc("up", "--ui-port", str(free_port()), "--service-port", port))
    assert f"port {port} is in use" in said
    assert "--service-port" in said


def test_a_role_that_may_not_create_anything_runs_what_is_installed(calc):
    assert cli._ready(Settings.from_environment()) is not None
    assert "run this command once with DATABASE_URL naming the role that owns the API's tables" in refused(
        calc("migrate")
    )


def test_rollup_refuses_to_shrink_with_both_counts_and_exit_code_1(calc, engine, connect):
    write(connect(), [row(NOON)] * 5)
    calc("rollup", "--day", "2026-03-01")
    execute(engine, "delete from calculation_logs")
    said = refused(calc("rollup", "--day", "2026-03-01"))
    assert "0 raw rows" in said
    assert "5 already counted" in said
    assert calc("rollup", "--day", "2026-03-01", "--allow-shrink").exit_code == 0
    assert stored(engine) == {}


def test_prune_asks_deletes_what_is_counted_and_says_what_it_left(calc_as_owner, engine, connect):
    calc, writer = calc_as_owner, connect()
    write(writer, [row(NOON)] * 5 + [row(NOON + timedelta(days=1))] * 4)
    calc("rollup", "--day", "2026-03-01")
    execute(engine, "update rollup_days set status = 'pending' where date = '2026-03-02'")
    assert "Delete 5 counted log rows of 1 days" in calc("prune", "--older-than", "1").output
    assert len(oracle(engine)) == 2, "nobody said yes"
    said = calc("prune", "--older-than", "1", "--yes").output
    assert "2026-03-01  5 rows deleted, statistics kept" in said
    assert "2026-03-02  not built, so its logs stay: run 'calc-analytics rollup --day 2026-03-02'" in said
    assert {day for _, day in oracle(engine)} == {date(2026, 3, 2)}
    assert "equal with the 5 rows that were deleted" in calc("verify").output
    assert json.loads(calc("prune", "--older-than", "1", "--yes", "--json").stdout)["rows"] == 0
    assert "5 were deleted after they were counted" in refused(calc("rollup", "--day", "2026-03-01"))


def test_prune_without_the_right_to_delete_says_what_to_grant(calc, engine, connect):
    write(connect(), [row(NOON)] * 5)
    assert f"grant it to the role '{ROLE}'" in refused(calc("prune", "--older-than", "1", "--yes"))
    assert sum(measures[0] for measures in oracle(engine).values()) == 5


def test_verify_proves_and_fails_on_a_difference(calc, engine, connect):
    write(connect(), [row(NOON)] * 5)
    calc("rollup", "--day", "2026-03-01")
    result = calc("verify")
    assert result.exit_code == 0
    assert "difference 0" in result.output
    execute(engine, "update calculation_stats_daily set cache_hits = 2")
    result = calc("verify", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["days"]["2026-03-01"]["differences"]["cache_hits"] == 2
    assert "DIFFERENT for 1 publishers" in calc("verify", "--from", "2026-03-01").output


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
    result = calc("verify", "--day", "2026-03-01")
    assert result.exit_code == 1
    assert "run 'calc-analytics rollup --day 2026-03-01'" in result.output


def test_simulate_writes_and_reports(calc_as_owner, engine):
    answer = json.loads(calc_as_owner("simulate", "--rows", "250", "--rate", "5000", "--json").stdout)
    assert answer["rows"] == 250
    assert sum(measures[0] for measures in oracle(engine).values()) == 250


def test_migrate_can_be_repeated_and_says_where(calc_as_owner):
    assert calc_as_owner("migrate").output.startswith("ready: postgresql://")
    assert calc_as_owner("migrate").exit_code == 0


def test_rebase_is_the_way_on_after_a_restore(calc_as_owner, engine, connect):
    calc = calc_as_owner
    write(connect(), [row(NOON)] * 5)
    calc("rollup", "--day", "2026-03-01")
    execute(engine, "update rollup_state set system_identifier = 7")
    assert "calc-analytics rebase" in refused(calc("refresh"))
    assert "1 days wait" in calc("rebase", "--yes").output
    assert calc("rollup").exit_code == 0
    assert stored(engine) == live(engine) == oracle(engine)


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
    ],
)
@pytest.mark.parametrize("command", ["refresh", "up"])
def test_a_wrong_setting_is_named(calc, monkeypatch, command: str, variable: str, value: str):
    monkeypatch.setenv(variable, value)
    assert variable in refused(calc(command))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rollup", "--day", "1.3.2026"], "YYYY-MM-DD"),
        (["verify", "--from", "2026-03-02", "--to", "2026-03-01"], "before it begins"),
        (["rollup", "--from", "2026-02-30"], "YYYY-MM-DD"),
        (["rollup", "--from", ""], "YYYY-MM-DD"),
        (["rollup", "--day", "2026-2-3"], "YYYY-MM-DD"),
        (["verify", "--day", "9999-12-31"], "out of range"),
    ],
)
def test_a_malformed_day_is_named(calc, words: list[str], said: str):
    assert said in refused(calc(*words))


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
        ["prune", "--older-than", "-1"],
        ["prune", "--older-than", "soon"],
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
    ("setting", "zone", "said"),
    [
        ("default_transaction_read_only = on", "UTC", "is read-only (a standby?): use the primary's address"),
        ("log_duration = off", "Asia/Tokyo", "built in UTC, but ROLLUP_TIMEZONE is Asia/Tokyo"),
    ],
)
def test_up_says_before_it_starts_what_every_tick_would_say(
    calc, engine, maintenance, monkeypatch, setting, zone, said
):
    maintenance(f'alter database "{engine.url.database}" set {setting}')
    monkeypatch.setenv("ROLLUP_TIMEZONE", zone)
    monkeypatch.setattr(cli, "claim", lambda *ports: None)  # this process holds it since its first `up`
    assert said in refused(calc("up", *free_ports()))


def test_a_missing_column_says_so(calc, engine):
    execute(engine, "alter table calculation_logs rename column cache_hit to hit")
    assert "cache_hit" in refused(calc("refresh"))


def test_a_read_only_database_says_so(calc, engine, maintenance):
    maintenance(f'alter database "{engine.url.database}" set default_transaction_read_only = on')
    assert "read-only" in refused(calc("refresh"))
    assert "but it is read-only" in calc("status").output
    assert "is read-only (a standby?)" in calc("doctor").output
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
