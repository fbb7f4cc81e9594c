"""The doctor on a real database: each thing that can be wrong is found, and the command it names fixes it."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from calc_analytics.archive.writing import archive
from calc_analytics.cli.main import main
from calc_analytics.config import InvalidSetting, Settings
from calc_analytics.database.engine import engine_for
from calc_analytics.database.server import utc_offsets
from calc_analytics.operations import doctor
from calc_analytics.operations.doctor import Ports, examine
from calc_analytics.operations.findings import Finding
from calc_analytics.operations.probes import Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.orchestration import history
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup import diagnosis
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.archives import archive_in
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import row, utc, write

PATIENT = 60.0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A DAGSTER_HOME of the test's own: Dagster's default storage, nothing on record."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    history.instance.cache_clear()
    yield tmp_path
    history.instance.cache_clear()


Examine = Callable[[], list[Finding]]


@pytest.fixture
def examined(database: URL, home: Path) -> Examine:
    """All findings about the test's own database."""

    def run() -> list[Finding]:
        return examine(Sources(Settings.from_environment()), Prober(PATIENT), Ports(free_port(), free_port()))

    return run


def execute(owner: Engine, *statements: str) -> None:
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.execute(text(statement))


def level(found: list[Finding], wanted: str, part: str | None = None) -> list[Finding]:
    return [finding for finding in found if finding.level == wanted and part in (None, finding.name)]


def commands(found: list[Finding]) -> list[str]:
    """The SQL statements that the findings name."""
    return [line.rstrip(";") for finding in found for line in finding.command.splitlines()]


def repaired(owner: Engine, found: list[Finding], again: Examine, part: str) -> None:
    """Runs what the findings of that part name; afterwards nothing is wrong with it."""
    wrong = level(found, "wrong", part)
    assert wrong
    assert all(finding.why for finding in wrong)
    if commands(wrong) == ["calc-analytics migrate"]:
        install(Database(owner, LOG, "UTC"))
    else:
        execute(owner, *commands(wrong))
    assert level(again(), "wrong", part) == []


def test_of_a_database_that_is_ready_nothing_is_wrong(examined: Examine):
    found = examined()
    assert level(found, "wrong") == []
    assert {finding.name for finding in found} == {*doctor.EXAMINATIONS} - {"triggers", "archive"}


def test_missing_rights_are_found_and_the_grants_fix_them(examined, owner, database, maintenance, monkeypatch):
    role = f"doctor_{owner.url.database}"
    maintenance(f'create role "{role}" login')
    maintenance(f'revoke temporary on database "{owner.url.database}" from public')
    monkeypatch.setenv("DATABASE_URL", database.set(username=role).render_as_string(hide_password=False))
    try:
        found = examined()
        (wrong,) = level(found, "wrong", "permissions")
        assert f'grant select on calculation_logs to "{role}";' in wrong.command
        for rollup in LOG.rollups:
            assert f'grant select, insert, update, delete on {rollup.name} to "{role}";' in wrong.command
            assert f'grant select on {rollup.live_view} to "{role}";' in wrong.command
        assert f'grant select, insert, update, delete on rollup_journal to "{role}";' in wrong.command
        assert f'grant usage on sequence rollup_journal_id_seq to "{role}";' in wrong.command
        assert f'grant temporary on database "{owner.url.database}" to "{role}";' in wrong.command
        execute(owner, *commands([wrong]))
        assert level(examined(), "wrong") == []
        own = engine_for(database.set(username=role))
        write_and_rebuild(owner, own)
        own.dispose()
    finally:
        execute(owner, f'drop owned by "{role}"')
        maintenance(f'drop role "{role}"')


def write_and_rebuild(owner: Engine, role: Engine) -> None:
    """What the rights are for."""
    execute(
        owner,
        "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at) "
        "values (1, 1, current_date, 1, '2026-03-01 12:00+00')",
    )
    db = Database(role, LOG, "UTC")
    rebuild(db, [utc(2026, 3, 1).date()])
    assert verify(db, [utc(2026, 3, 1).date()]).difference == 0


def test_notes_say_what_a_role_could_do_with_more(examined, owner, database, maintenance, monkeypatch):
    role = f"notes_{owner.url.database}"
    maintenance(f'create role "{role}" login')
    execute(owner, f'grant select on all tables in schema public to "{role}"')
    monkeypatch.setenv("DATABASE_URL", database.set(username=role).render_as_string(hide_password=False))
    try:
        notes = level(examined(), "note", "permissions")
        assert commands(notes) == [
            f'grant pg_read_all_stats to "{role}"',
            f'grant delete on calculation_logs to "{role}"',
        ]
        execute(owner, *commands(notes))
        assert level(examined(), "note", "permissions") == []
    finally:
        execute(owner, f'drop owned by "{role}"')
        maintenance(f'drop role "{role}"')


@pytest.mark.parametrize("place", ["database", "role in database"])
def test_a_role_or_database_that_is_set_to_read_only_is_found(examined, owner, place: str):
    name = owner.url.database
    target = f'database "{name}"' if place == "database" else f'role {ROLE} in database "{name}"'
    execute(owner, f"alter {target} set default_transaction_read_only = on")
    found = examined()
    (wrong,) = level(found, "wrong", "database")
    assert "is read-only by default_transaction_read_only" in wrong.fact
    assert wrong.command == f"alter {target.replace(chr(34), '')} reset default_transaction_read_only;"
    with engine_for(owner.url).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("set default_transaction_read_only = off")
        connection.exec_driver_sql(wrong.command)
    assert level(examined(), "wrong", "database") == []


def test_a_missing_index_is_found_with_the_statement_that_builds_it(examined, owner):
    execute(owner, "drop index calculation_logs_rollup_idx")
    found = examined()
    (wrong,) = level(found, "wrong", "indexes")
    assert wrong.command.startswith("create index concurrently if not exists calculation_logs_rollup_idx")
    repaired(owner, found, examined, "indexes")


def test_an_invalid_index_is_dropped_first(examined, owner):
    execute(owner, "update pg_index set indisvalid = false where indexrelid = 'calculation_logs_rollup_idx'::regclass")
    found = examined()
    assert "is invalid" in level(found, "wrong", "indexes")[0].fact
    repaired(owner, found, examined, "indexes")


def partition(owner: Engine) -> None:
    """Makes the log table a partitioned one, as an API may have it."""
    execute(
        owner,
        "drop table calculation_logs cascade",
        "create table calculation_logs (id bigserial, publisher_id int not null, locality_id bigint not null, "
        "date_calculated date not null, cache_hit boolean not null default false, response_time_ms smallint, "
        "zman_count smallint, source smallint not null, created_at timestamptz not null default now(), "
        "xact_id bigint default txid_current(), primary key (id, created_at)) partition by range (created_at)",
        "create table logs_old partition of calculation_logs for values from ('2020-01-01') to ('2026-01-01')",
        "create table logs_new partition of calculation_logs for values from ('2026-01-01') to ('2030-01-01')",
    )


def test_of_partitions_each_needs_its_index(examined, owner):
    partition(owner)
    install(Database(owner, LOG, "UTC"))
    assert level(examined(), "wrong", "indexes") == []
    execute(owner, "drop index calculation_logs_rollup_idx")
    found = examined()
    assert [finding.fact.split()[3] for finding in level(found, "wrong", "indexes")] == [
        "logs_new",
        "logs_old",
        "calculation_logs",
    ]
    repaired(owner, found, examined, "indexes")
    with owner.begin() as connection:
        valid = "select indisvalid from pg_index where indexrelid = 'calculation_logs_rollup_idx'::regclass"
        assert connection.execute(text(valid)).scalar_one()


def test_a_partition_without_the_default_is_found(examined, owner):
    partition(owner)
    execute(owner, "alter table logs_new alter column xact_id drop default")
    found = examined()
    assert level(found, "wrong", "xact_id")[0].fact == "the default of logs_new.xact_id is missing"
    repaired(owner, found, examined, "xact_id")


def test_a_default_of_another_kind_is_found(examined, owner):
    execute(owner, "alter table calculation_logs alter column xact_id set default 0")
    found = examined()
    assert "is 0" in level(found, "wrong", "xact_id")[0].fact
    repaired(owner, found, examined, "xact_id")


def test_a_trigger_that_sets_xact_id_is_found_and_another_is_not(examined, owner):
    for name, body in (("sets_it", "new.xact_id := null"), ("other", "new.zman_count := 1")):
        execute(
            owner,
            f"create function {name}() returns trigger language plpgsql as $$ begin {body}; return new; end $$",
            f"create trigger {name} before insert on calculation_logs for each row execute function {name}()",
        )
    found = examined()
    (wrong,) = level(found, "wrong", "xact_id")
    assert "the trigger sets_it" in wrong.fact
    repaired(owner, found, examined, "xact_id")


def test_a_rule_on_inserts_is_found(examined, owner):
    execute(owner, "create rule aside as on insert to calculation_logs do instead nothing")
    found = examined()
    assert "the rule aside" in level(found, "wrong", "xact_id")[0].fact
    repaired(owner, found, examined, "xact_id")


def test_a_table_filled_by_logical_replication_is_found(examined, owner):
    execute(
        owner,
        "insert into pg_subscription_rel (srsubid, srrelid, srsubstate) values (1, 'calculation_logs'::regclass, 'r')",
    )
    assert any("logical replication" in finding.fact for finding in level(examined(), "wrong", "xact_id"))


def test_rows_that_came_past_the_default_are_found(examined, owner, connect):
    now = datetime.now(timezone.utc)
    writer = connect()
    write(writer, [row(now), row(now - timedelta(hours=3))])
    assert diagnosis.rows_bypassing(Database(owner, LOG, "UTC")) == diagnosis.BypassingRows(0, 0)
    writer.execute("update calculation_logs set xact_id = null")
    writer.commit()
    assert diagnosis.rows_bypassing(Database(owner, LOG, "UTC")) == diagnosis.BypassingRows(1, 0)
    assert "have no xact_id" in level(examined(), "note", "log rows")[0].fact
    write(writer, [row(now)])
    writer.execute("update calculation_logs set xact_id = 1000000000 where xact_id is not null")
    writer.commit()
    assert diagnosis.rows_bypassing(Database(owner, LOG, "UTC")) == diagnosis.BypassingRows(1, 1)
    assert "no transaction has had yet" in level(examined(), "wrong", "log rows")[0].fact


def test_tables_that_were_never_made_say_what_to_run(home, empty_url, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", empty_url.render_as_string(hide_password=False))
    monkeypatch.setattr(doctor, "EXAMINATIONS", {name: doctor.EXAMINATIONS[name] for name in ("tables", "state")})
    found = examine(Sources(Settings.from_environment()), Prober(PATIENT), Ports(free_port(), free_port()))
    assert all("calc-analytics migrate" in finding.fact + finding.command for finding in level(found, "wrong"))
    assert len(level(found, "wrong")) == 2


def test_an_api_table_that_cannot_be_counted_says_why(examined, owner):
    execute(owner, "alter table calculation_logs alter column source drop not null")
    assert any("source must not be null" in finding.fact for finding in level(examined(), "wrong", "tables"))


def test_a_restored_cluster_and_another_time_zone_are_found(examined, owner, monkeypatch):
    monkeypatch.setenv("ROLLUP_TIMEZONE", "Asia/Jerusalem")
    assert "ROLLUP_TIMEZONE is Asia/Jerusalem" in level(examined(), "wrong", "state")[0].fact
    execute(owner, "update rollup_state set system_identifier = 7, relation = 7")
    assert "restored into another" in level(examined(), "wrong", "state")[0].fact


def test_rollups_that_are_not_those_of_the_database_are_found(examined, monkeypatch):
    monkeypatch.setenv("ROLLUPS", "calculation_stats_daily,calculation_stats_hourly")
    (wrong,) = level(examined(), "wrong", "state")
    assert "the database keeps calculation_stats_daily, calculation_locality_stats_daily" in wrong.fact
    assert wrong.command == "set ROLLUPS back, or calc-analytics migrate"


def test_a_rollup_that_is_not_declared_is_found(examined, monkeypatch):
    monkeypatch.setenv("ROLLUPS", "calculation_stats_daily,nothing")
    (wrong,) = level(examined(), "wrong")
    assert (wrong.name, "there is no rollup 'nothing'" in wrong.fact) == ("settings", True)
    assert "calculation_stats_hourly" in wrong.command


@pytest.mark.parametrize("cron", ["0 0 31 2 *", "61 * * * *"])
def test_a_cron_line_that_is_none_or_never_comes_is_found(examined, monkeypatch, cron: str):
    monkeypatch.setenv("ROLLUP_CRON", cron)
    with pytest.raises(InvalidSetting, match="ROLLUP_CRON: ") as refused:
        examined()
    assert cron in str(refused.value)


@pytest.mark.parametrize("word", ["missing", "restored"])
def test_a_state_that_stops_every_operation_names_what_resolves_it(examined, owner, word: str):
    missing, restored = "delete from rollup_state", "update rollup_state set system_identifier = 7, relation = 7"
    execute(owner, missing if word == "missing" else restored)
    (wrong,) = level(examined(), "wrong", "state")
    assert wrong.command == ("calc-analytics migrate" if word == "missing" else "calc-analytics rebase")
    assert wrong.why


def test_triggers_and_rules_of_other_programs_on_the_tables_of_statistics_are_noted(examined, owner):
    assert level(examined(), "note", "triggers") == []
    execute(
        owner,
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'not today'; end $$",
        'create trigger "Guard" before insert on calculation_stats_hourly for each row execute function refuse()',
        "create rule quiet as on delete to rollup_days do also nothing",
    )
    found = level(examined(), "note", "triggers")
    assert [each.fact for each in found] == [
        """the trigger "Guard" of calculation_stats_hourly is not the project's""",
        "the rule quiet of rollup_days is not the project's",
    ]
    assert all(each.why for each in found)
    execute(owner, *commands(found))
    assert level(examined(), "note", "triggers") == []


def test_clocks_that_differ_are_found(examined, monkeypatch):
    clock = doctor.clock
    monkeypatch.setattr(doctor, "clock", lambda owner: clock(owner) + timedelta(minutes=3))
    assert "ahead of this machine's" in level(examined(), "wrong", "clock")[0].fact


def test_time_zone_data_that_differ_are_found(examined, monkeypatch):
    offsets = doctor.utc_offsets
    monkeypatch.setattr(doctor, "utc_offsets", lambda *given: [*offsets(*given)[:-1], offsets(*given)[-1] + 3600.0])
    assert "disagree about UTC" in level(examined(), "wrong", "time zone")[0].fact


@pytest.mark.parametrize("zone", ["UTC", "Asia/Jerusalem", "America/Havana", "Pacific/Apia", "Africa/Casablanca"])
def test_python_and_postgresql_agree_on_offsets(owner, zone: str):
    from calc_analytics import days

    instants = [utc(2026, 1, 1) + timedelta(days=10 * n) for n in range(40)]
    here = [at.astimezone(days.zone(zone)).utcoffset().total_seconds() for at in instants]
    assert utc_offsets(owner, zone, instants) == here


def test_ticks_that_are_kept_without_limit_are_found(examined, home):
    (home / "dagster.yaml").write_text("retention: {sensor: {purge_after_days: {skipped: 2, success: -1}}}\n")
    (note,) = level(examined(), "note", "dagster")
    assert "success without limit" in note.fact
    history.instance.cache_clear()
    (home / "dagster.yaml").write_text(
        "retention: {sensor: {purge_after_days: {skipped: 2, success: 7, failure: 30}}}\n"
    )
    assert level(examined(), "note", "dagster") == []


def test_a_dagster_configuration_that_cannot_be_read_is_found(examined, home):
    (home / "dagster.yaml").write_text("no_such_block: {}\n")
    (wrong,) = level(examined(), "wrong", "dagster")
    assert "no_such_block" in wrong.fact or "dagster.yaml" in wrong.fact


def test_ports_are_free_ours_or_another_programs():
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *given: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        taken, free = server.server_port, free_port()
        ui, service = doctor._ports(Ports(taken, free))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (ui.level, service.level) == ("wrong", "ok")
    assert ui.command == f"calc-analytics up --ui-port {taken + 1}"


def test_a_port_that_never_answers_is_another_programs(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (ui, _) = doctor._ports(Ports(silent.getsockname()[1], free_port()))
    assert ui.level == "wrong"


@pytest.fixture
def calc(database: URL, home: Path):
    """Runs `calc-analytics` with these words."""
    return lambda *words: CliRunner().invoke(main, words)


def test_the_command_prints_fact_reason_and_command(calc, owner):
    ports = ("--ui-port", str(free_port()), "--service-port", str(free_port()))
    assert calc("doctor", *ports).exit_code == 0
    execute(owner, "drop index calculation_logs_rollup_idx")
    result = calc("doctor", *ports)
    assert result.exit_code == 1
    assert "!!  indexes      the index of calculation_logs" in result.output
    assert "every refresh reads the whole table" in result.output
    assert "-> create index concurrently" in result.output
    assert "1 wrong" in result.output
    answer = json.loads(calc("doctor", "--json", *ports).output)
    assert answer["wrong"] == 1
    reported = json.loads(calc("status", "--json").output)["health"]["probes"]
    assert {*answer["findings"][0]} == {*reported[0]}, "one shape for both"


def test_a_database_that_is_down_is_reported_once_and_the_rest_is_examined(calc, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/db")
    result = calc("doctor", "--json")
    assert result.exit_code == 1
    found = json.loads(result.output)["findings"]
    wrong = [finding for finding in found if finding["level"] == "wrong" and finding["name"] != "ports"]
    assert len(wrong) == 1
    assert "cannot connect to postgresql://me:***" in wrong[0]["compared"]
    assert [finding["name"] for finding in found if finding["level"] == "ok"][:3] == [
        "settings",
        "settings",
        "dagster",
    ]
    assert "hunter2" not in result.output


def test_the_archive_is_written_to_and_days_that_are_not_archived_are_counted(
    examined: Examine, db: Database, connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ARCHIVE_URL", str(tmp_path / "archive"))
    write(connect(), [row(utc(2026, 3, 1, 12)), row(utc(2026, 3, 2, 12))])
    rebuild(db, [date(2026, 3, 1), date(2026, 3, 2)])
    (left,) = level(examined(), "note", "archive")
    assert (left.fact, left.command) == ("2 counted days are not archived whole", "calc-analytics archive")
    assert [each.fact for each in level(examined(), "ok", "archive")] == [f"{tmp_path}/archive can be written"]
    assert [path for path in (tmp_path / "archive").rglob("*") if path.is_file()] == []
    assert len(archive(archive_in(db, tmp_path / "archive")).archived) == 2
    facts = [each.fact for each in level(examined(), "ok", "archive")]
    assert facts[1:] == ["every counted day that is over is archived"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARCHIVE_URL", str(tmp_path / "file"))
    (wrong, _) = level(examined(), "wrong", "archive")
    assert wrong.fact.startswith(f"cannot write {tmp_path}/file/_writable-")
    monkeypatch.setenv("ARCHIVE_URL", str(tmp_path / "elsewhere"))
    (missing,) = level(examined(), "wrong", "archive")
    assert "date=2026-03-02/" in missing.fact
    assert missing.fact.endswith("is missing: restore it from a backup of the archive, or correct ARCHIVE_URL")
