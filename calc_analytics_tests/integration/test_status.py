"""Figures for people and Prometheus: lag, days, writers; and `calc-analytics status` over them."""

import json
import shutil
import socket
import tempfile
from collections import Counter
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import event, text
from sqlalchemy.engine import Engine, make_url

from calc_analytics.cli.main import main
from calc_analytics.cli.status import worst_word
from calc_analytics.config import Settings, project_root, with_driver
from calc_analytics.database import embedded
from calc_analytics.database.engine import engine_for
from calc_analytics.database.writers import writers
from calc_analytics.operations.health import PROBES
from calc_analytics.operations.probes import Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.operations.status import report
from calc_analytics.orchestration import history
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup import status
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.ledger import ClusterChanged, RollupsChanged, TimezoneChanged
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import HOURS, LOG, STATS
from calc_analytics_tests.logs import copy_rows, row, utc, write

DAY = date(2026, 3, 1)
NOON = utc(2026, 3, 1, 12)


def now() -> datetime:
    return datetime.now(timezone.utc)


def execute(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_nothing_was_ever_counted(db):
    assert status.refreshed(db).at is None
    assert status.refreshed(db).seconds_ago is None
    assert status.lag(db) == status.Lag(0, 0.0)


def test_ledger_and_log_are_each_read_in_one_transaction(db: Database, connect):
    write(connect(), [row(NOON)])
    refresh(db)
    execute(db.engine, "update rollup_days set status = 'overflow'")
    begun: list[object] = []
    event.listen(db.engine, "begin", begun.append)
    assert status.ledger_report(db).overflowing == {DAY: LOG.names}
    assert len(begun) == 1
    status.log_report(db)
    assert len(begun) == 2


def test_lag_is_the_rows_that_are_committed_and_not_counted(db, connect):
    refresh(db)
    writer, slow = connect(), connect()
    write(writer, [row(now())] * 7)
    copy_rows(slow, [row(now())] * 100)
    lag = status.lag(db)
    assert lag.rows == 7
    assert 0 <= lag.seconds < 60
    refresh(db)
    assert status.lag(db) == status.Lag(0, 0.0)
    slow.commit()
    assert status.lag(db).rows == 100


def test_a_row_waits_no_longer_than_since_the_last_refresh_and_since_it_was_written(db, engine, owner, connect):
    refresh(db)
    write(connect(), [row(now() - timedelta(days=2)), row(now() + timedelta(hours=1))])
    assert status.lag(db).seconds < 60
    execute(engine, "update rollup_state set refreshed_at = now() - interval '1 day'")
    assert status.lag(db).seconds == pytest.approx(86_400, abs=60)
    execute(owner, "delete from calculation_logs")
    write(connect(), [row(now() - timedelta(hours=1))])
    assert status.lag(db).seconds == pytest.approx(3600, abs=60)


def test_rows_that_no_day_can_hold_do_not_lag_permanently(db, owner, connect):
    write(connect(), [row(now())])
    execute(owner, "update calculation_logs set created_at = '-infinity'")
    assert status.lag(db).seconds == 0
    refresh(db)
    assert status.lag(db) == status.Lag(0, 0.0)


def test_an_unusable_state_is_reported(db, engine):
    with pytest.raises(TimezoneChanged):
        status.refreshed(replace(db, timezone="Asia/Jerusalem"))
    with pytest.raises(RollupsChanged):
        status.refreshed(replace(db, log=LOG.only([STATS.name])))
    execute(engine, "update rollup_state set system_identifier = 7, relation = 7")
    with pytest.raises(ClusterChanged):
        status.refreshed(db)


def test_days_are_listed_for_each_rollup(db, engine, owner, connect):
    write(connect(), [row(NOON), row(NOON + timedelta(days=1)), row(NOON + timedelta(days=2))])
    rebuild(db, [DAY, DAY + timedelta(days=1), DAY + timedelta(days=2)])
    verify(db, [DAY])
    prune(Database(owner, LOG, "UTC"), DAY + timedelta(days=1))
    execute(engine, f"update rollup_days set difference = 4 where date = '2026-03-02' and rollup = '{HOURS.name}'")
    execute(engine, f"update rollup_days set status = 'stale' where date = '2026-03-03' and rollup = '{STATS.name}'")
    days = status.ledger_report(db).days
    assert list(days) == LOG.names
    assert days[HOURS.name].by_status == {"built": 3}
    assert days[STATS.name].by_status == {"built": 2, "stale": 1}
    assert [(each.pruned, each.different, each.difference) for each in days.values()] == [
        (1, 0, 0),
        (1, 0, 0),
        (1, 1, 4),
        (1, 0, 0),
    ]
    together = status.together(days.values())
    assert (together.different, together.difference, together.waiting) == (1, 4, 1)
    assert together.rebuilt_at is not None
    assert together.verified_at is not None
    assert together.oldest_proof_at is not None
    assert status.different_days(db) == {DAY + timedelta(days=1): [HOURS.name]}


def test_pruned_are_built_days_of_which_log_rows_were_deleted(calc, db, owner, connect):
    write(connect(), [row(NOON + timedelta(days=n)) for n in range(4)])
    rebuild(db, [DAY + timedelta(days=n) for n in range(4)])
    prune(Database(owner, LOG, "UTC"), DAY + timedelta(days=2))
    assert [each.pruned for each in status.ledger_report(db).days.values()] == [2] * len(LOG.rollups)
    assert "  days       2 built, 2 pruned (log rows deleted, statistics kept)\n" in refused(calc("status"))
    execute(owner, f"update rollup_days set status = 'frozen', deleted = null where date = '{DAY}'")
    assert [each.pruned for each in status.ledger_report(db).days.values()] == [1] * len(LOG.rollups), (
        "frozen is not pruned"
    )
    message = refused(calc("status"))
    assert "  days       2 built, 1 pruned (log rows deleted, statistics kept), 1 frozen\n" in message
    for days in status.ledger_report(db).days.values():
        assert days.by_state == Counter(each.word for each in status.recent_days(db, 9) if each.rollup == STATS.name)
        assert sum(days.by_state.values()) == sum(days.by_status.values()) == 4


def test_recent_days_hold_what_their_statistics_hold(db, connect):
    write(connect(), [row(NOON, publisher=n) for n in (1, 2, 2)] + [row(NOON + timedelta(days=1))])
    rebuild(db, [DAY, DAY + timedelta(days=1), DAY + timedelta(days=2)])
    newest, middle, oldest = (day for day in status.recent_days(db, 5) if day.rollup == STATS.name)
    assert [day.day for day in (newest, middle, oldest)] == [DAY + timedelta(days=n) for n in (2, 1, 0)]
    assert [(day.rows, day.keys) for day in (newest, middle, oldest)] == [(0, 0), (1, 1), (3, 2)]
    assert (oldest.status, oldest.method, oldest.verified_at) == ("built", "rebuild", None)
    assert [day.rollup for day in status.recent_days(db, 1)] == LOG.names


def test_open_transactions_that_have_written_are_listed_oldest_first(owner, connect):
    reader, of_logs, of_others = connect(), connect(), connect()
    reader.execute("select count(*) from calculation_logs")
    of_logs.execute("set application_name = 'calc-api-3'")
    of_logs.commit()
    copy_rows(of_logs, [row(NOON)])
    of_others.execute("insert into rollup_days (rollup, date, status) values ('x', '2026-03-01', 'built')")
    first, second = writers(owner, LOG.name)
    assert (first.pid, first.application, first.writes_logs) == (of_logs.info.backend_pid, "calc-api-3", True)
    assert (second.pid, second.writes_logs) == (of_others.info.backend_pid, False)
    assert first.state == "idle in transaction"
    assert first.seconds is not None
    assert second.seconds is not None
    assert first.seconds >= second.seconds >= 0
    of_logs.rollback()
    of_others.rollback()
    assert writers(owner, LOG.name) == []


def test_of_other_roles_transactions_the_age_is_hidden_but_not_that_they_write(db, connect):
    writer = connect()
    copy_rows(writer, [row(NOON)])
    (found,) = writers(db.engine, LOG.name)
    assert (found.pid, found.seconds, found.writes_logs) == (writer.info.backend_pid, None, True)


def test_who_writes_into_a_partition_writes_the_logs(owner, connect):
    execute(owner, "create table part (like calculation_logs including defaults)")
    execute(owner, f"drop view {', '.join(each.live_view for each in LOG.rollups)}")
    execute(owner, "alter table calculation_logs rename to old")
    execute(
        owner,
        "create table calculation_logs (like old including defaults) partition by range (created_at)",
    )
    execute(owner, "alter table calculation_logs attach partition part default")
    writer = connect()
    writer.execute(
        "insert into part (publisher_id, locality_id, date_calculated, source) values (1, 1, current_date, 1)"
    )
    assert [found.writes_logs for found in writers(owner, LOG.name)] == [True]


def test_a_prepared_transaction_has_a_name_and_no_pid(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    try:
        server = embedded.start(folder / "pg")
        with open(folder / "pg" / "postgresql.conf", "a") as settings:
            settings.write("max_prepared_transactions = 5\n")
        server.stop()
        server = embedded.start(folder / "pg")
        try:
            url = with_driver(
                make_url(server.get_uri(database="postgres").replace("postgres:@", "postgres@")), "psycopg"
            )
            engine = engine_for(url)
            db = Database(engine, LOG, "UTC")
            install(db)
            plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
            with psycopg.connect(plain, autocommit=True) as connection:
                connection.execute("begin")
                connection.execute(
                    "insert into calculation_logs (publisher_id, locality_id, date_calculated, source) "
                    "values (1, 1, current_date, 1)"
                )
                connection.execute("prepare transaction 'left behind'")
            (found,) = writers(db.engine, LOG.name)
            engine.dispose()
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
    assert (found.pid, found.name, found.state, found.writes_logs) == (None, "left behind", "prepared", True)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A DAGSTER_HOME of the test's own: Dagster's default storage, nothing on record."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    history.instance.cache_clear()
    yield tmp_path
    history.instance.cache_clear()


@pytest.fixture
def calc(database, home):
    """Runs `calc-analytics` with these words."""
    return lambda *words: CliRunner().invoke(main, words)


def test_a_server_that_does_not_answer_is_waited_for_once(home: Path, monkeypatch):
    """Dagster's storage is on the same server: the database has been tried before that is connected to."""
    shutil.copy(project_root() / "dagster.yaml", home)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DATABASE_URL", f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/x")
        found = report(Sources(Settings.from_environment()), Prober(deadline_seconds=60), 7)
        silent.setblocking(False)
        for _ in ("catalogs", "tables", "log"):
            silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert all("no answer from" in finding.fact for finding in found.health.wrong)
    assert {finding.name for finding in found.health.wrong} == {*PROBES}


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.output


def test_status_says_what_is_wrong_and_goes_on_with_the_rest(calc, db, connect):
    write(connect(), [row(NOON)] * 3)
    rebuild(db, [DAY])
    writer = connect()
    copy_rows(writer, [row(NOON)])
    message = refused(calc("status"))
    assert "calc_analytics is unhealthy" in message
    assert "the daemon has never registered the sensor new_log_batches" in message
    assert "-> calc-analytics up" in message
    assert "0 rows wait to be counted" in message
    assert message.count("2026-03-01  built                3") == 1
    assert "  days       1 built\n" in message
    assert f"{writer.info.backend_pid} " in message
    assert "They delay no other rows" in message
    assert "ok  database" in message
    assert max(len(line) for line in message.splitlines() if line.startswith("  2026")) <= 100


def test_a_day_that_differs_in_one_rollup_differs_and_the_rollup_is_named(calc, db, engine, connect):
    write(connect(), [row(NOON), row(NOON + timedelta(days=1))])
    rebuild(db, [DAY, DAY + timedelta(days=1)])
    execute(engine, f"update {HOURS.name} set cache_hits = cache_hits + 7 where date = '{DAY}'")
    audit(db)
    message = refused(calc("status"))
    assert f"1 day differs from the log or from what was counted: {DAY} ({HOURS.name})" in message
    assert f"-> calc-analytics verify --day {DAY}" in message
    lines = message.splitlines()
    (at,) = [n for n, line in enumerate(lines) if line.startswith(f"  {DAY}")]
    assert lines[at].split()[1] == "differs"
    assert lines[at].endswith("never: 7")
    assert lines[at + 1].split() == ["differs", "in", HOURS.name]
    assert "2026-03-02  built " in message
    assert "2026-03-01  built " in refused(calc("status", "--rollup", STATS.name))


def test_a_day_that_waits_in_a_new_rollup_alone_says_where(calc, db, engine, connect):
    write(connect(), [row(NOON)])
    rebuild(db, [DAY])
    execute(engine, f"update rollup_days set status = 'stale' where rollup = '{HOURS.name}'")
    message = refused(calc("status"))
    assert "2026-03-01  stale " in message
    assert f"stale in {HOURS.name}" in message
    assert "1 waits for a rebuild -> calc-analytics rollup" in message
    assert f"1 stale of {HOURS.name}" in message


@pytest.mark.parametrize(
    ("words", "worst"),
    [
        (["built", "built"], "built"),
        (["built", "pruned"], "pruned"),
        (["pruned", "frozen"], "frozen"),
        (["frozen", "stale"], "stale"),
        (["stale", "pending"], "pending"),
        (["pending", "unrecorded"], "unrecorded"),
        (["unrecorded", "overflow"], "overflow"),
        (["overflow", "differs"], "differs"),
    ],
)
def test_of_several_rollups_a_day_has_the_worst_word(words: list[str], worst: str):
    class Day:
        def __init__(self, word: str) -> None:
            self.word = word

    for order in (words, words[::-1]):
        assert worst_word([Day(word) for word in order]) == worst


def test_of_many_days_the_newest_are_listed(calc, db):
    rebuild(db, [DAY + timedelta(days=n) for n in range(5)])
    listed = [line.split()[0] for line in refused(calc("status", "--days", "2")).splitlines() if "rebuild)" in line]
    assert listed == ["2026-03-05", "2026-03-04"]


def test_a_rollup_that_is_not_kept_is_refused_in_one_line(calc):
    message = refused(calc("status", "--rollup", "nothing"))
    assert "there is no rollup 'nothing'" in message
    assert message.count("\n") == 1


def test_status_in_json_has_all_of_it(calc, db, engine, connect):
    write(connect(), [row(NOON)] * 3)
    rebuild(db, [DAY])
    copy_rows(connect(), [row(NOON)])
    answer = json.loads(refused(calc("status", "--json")))
    assert answer["lag"] == {"rows": 0, "seconds": 0.0}
    assert list(answer["days"]) == LOG.names
    for days in answer["days"].values():
        assert {name: days[name] for name in ("built", "pruned", "different", "difference", "unproven")} == {
            "built": 1,
            "pruned": 0,
            "different": 0,
            "difference": 0,
            "unproven": 1,
        }
    assert (answer["difference"], answer["different_days"]) == (0, {})
    assert {day["rollup"] for day in answer["recent_days"]} == set(LOG.names)
    assert {(day["day"], day["word"]) for day in answer["recent_days"]} == {("2026-03-01", "built")}
    assert set(answer["last"]) == {"refresh", "rebuild", "verify", "audit", "oldest_proof"}
    assert answer["open_transactions"][0]["writes_logs"] is True
    assert {beat["daemon"] for beat in answer["heartbeats"]} >= {"SENSOR", "SCHEDULER"}
    assert answer["health"]["status"] == "unhealthy"
    assert answer["errors"] == {}
    execute(engine, f"update rollup_days set difference = 3 where rollup = '{HOURS.name}'")
    answer = json.loads(refused(calc("status", "--json", "--rollup", HOURS.name)))
    assert list(answer["days"]) == [HOURS.name]
    assert answer["different_days"] == {"2026-03-01": [HOURS.name]}
    assert [day["word"] for day in answer["recent_days"]] == ["differs"]


def test_status_of_a_database_that_is_down_says_so_once(calc, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/db")
    message = refused(calc("status"))
    assert message.count("cannot connect to postgresql://me:***@127.0.0.1") == 1
    assert "counting   not known: see above" in message
    assert "hunter2" not in message
    answer = json.loads(refused(calc("status", "--json")))
    assert "cannot connect" in answer["errors"]["lag"]
    assert answer["lag"] is None


def test_status_while_dagsters_storage_is_down_says_so(calc, home, monkeypatch):
    shutil.copy(project_root() / "dagster.yaml", home)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/dagster")
    message = refused(calc("status"))
    assert "0 rows wait to be counted" in message
    names = "daemon, sensor, schedule, housekeeping, checks, scheduled_run, runs"
    assert f"{names}: Dagster's storage: cannot connect to postgresql://me:***" in message
    assert "hunter2" not in message
