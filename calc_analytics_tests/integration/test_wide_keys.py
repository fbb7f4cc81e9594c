"""Keys and measures that are wider than the columns of the statistics: adoption gives the tables the log's types, and
a value that does not fit sets its day aside, with its column and value, while the others go on."""

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from click.testing import CliRunner, Result
from dagster import AssetCheckKey, AssetKey
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from calc_analytics.cli.main import main
from calc_analytics.database import relations
from calc_analytics.database.adopt import UnfitTable
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup import journal, overflow, retention
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.ledger import days_by_status, waiting_days
from calc_analytics.rollup.live_view import create_live_view
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LATENCY, LOCALITIES, LOG, STATS
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import OWNER, assert_exact, execute, live, row, stored, utc, write

NOON, NEXT_NOON = utc(2026, 3, 1, 12), utc(2026, 3, 2, 12)
DAY, NEXT = NOON.date(), NEXT_NOON.date()
LARGE = 5_000_000_000
API_LOGS = """
    create table calculation_logs (
        id bigserial primary key, publisher_id {publisher} not null, city_id bigint not null,
        date_calculated date not null, cache_hit boolean not null default false, response_time_ms {response_time},
        zman_count smallint, source {source} not null, created_at timestamptz not null default now())
"""
API_STATS = """
    create table calculation_stats_daily (
        publisher_id {publisher} not null, date date not null, total_calculations integer not null default 0,
        cache_hits integer not null default 0, total_response_time_ms bigint not null default 0,
        source_web integer not null default 0, source_api integer not null default 0,
        source_external integer not null default 0, primary key (publisher_id, date))
"""


def types(engine: Engine, table: str) -> dict[str, str]:
    with engine.begin() as connection:
        return relations.integer_types(connection, table)


def widen_log(db: Database | Engine, column: str, to: str) -> None:
    """What the API's team does by itself: the views are dropped, and nothing else is altered."""
    definitions = {rollup.live_view for rollup in LOG.rollups}
    for view in definitions:
        execute(db, f"drop view if exists {view}")
    execute(db, f"alter table calculation_logs alter column {column} type {to}")


@pytest.fixture
def calc(url: URL, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command as the owner of the tables."""
    monkeypatch.setenv("DATABASE_URL", url.set(**OWNER).render_as_string(hide_password=False))
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize(
    ("publisher", "response_time", "source"),
    [("bigint", "smallint", "smallint"), ("integer", "bigint", "bigint"), ("bigint", "integer", "integer")],
)
def test_adoption_gives_the_new_tables_the_logs_types(empty_url: URL, publisher: str, response_time: str, source: str):
    engine = engine_for(empty_url)
    execute(engine, API_LOGS.format(publisher=publisher, response_time=response_time, source=source))
    db = Database(engine, LOG, "UTC")
    install(db)
    for table in LOG.names:
        assert types(engine, table)["publisher_id"] == publisher
    latency = types(engine, LATENCY.name)
    assert (latency["source"], latency["response_time_ms"] == "bigint") == (source, response_time == "bigint")
    greatest = {"integer": 2**31 - 1, "bigint": 2**63 - 1, "smallint": 2**15 - 1}
    values = f"{greatest[publisher]}, 7, '2030-01-01', true, {greatest[response_time]}, {greatest[source]}, '{NOON}'"
    columns = "publisher_id, locality_id, date_calculated, cache_hit, response_time_ms, source, created_at"
    execute(engine, f"insert into calculation_logs ({columns}) values ({values})")
    refresh(db)
    assert verify(db, [DAY]).difference == 0
    assert days_by_status(db, ["overflow"]) == {}
    (measures,) = stored(db).values()
    assert (measures[0], measures[2]) == (1, greatest[response_time])
    assert live(db) == stored(db)
    engine.dispose()


def test_an_existing_table_of_the_api_with_a_narrower_key_is_refused_before_anything_is_changed(
    empty_url: URL, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_for(empty_url)
    execute(engine, API_LOGS.format(publisher="bigint", response_time="smallint", source="smallint"))
    execute(engine, API_STATS.format(publisher="integer"))
    db = Database(engine, LOG, "UTC")
    with pytest.raises(UnfitTable) as refused:
        install(db)
    assert "calculation_stats_daily.publisher_id is integer, but calculation_logs has bigint" in str(refused.value)
    assert "'calc-analytics widen publisher_id'" in str(refused.value)
    with engine.begin() as connection:
        statement = "select count(*) from pg_class where relname in ('rollup_state', 'calculation_stats_hourly')"
        assert connection.execute(text(statement)).scalar() == 0
    monkeypatch.setenv("DATABASE_URL", empty_url.render_as_string(hide_password=False))
    done = CliRunner().invoke(main, ["widen", "publisher_id", "--yes"])
    assert done.exit_code == 0, done.output
    assert "calculation_stats_daily.publisher_id: integer -> bigint" in done.output
    assert CliRunner().invoke(main, ["migrate"]).exit_code == 0
    engine.dispose()


def test_an_interrupted_adoption_can_be_repeated(empty_url: URL):
    """The revisions commit before the last step, which gives the tables the log's types."""
    engine = engine_for(empty_url)
    execute(engine, API_LOGS.format(publisher="bigint", response_time="smallint", source="smallint"))
    db = Database(engine, LOG, "UTC")
    install(db)
    for statement in (
        *(f"drop view {rollup.live_view}" for rollup in LOG.rollups),
        "alter table calculation_stats_daily alter column publisher_id type integer",
        "delete from rollup_state",
        "update calc_analytics_version set version_num = '0001'",
    ):
        execute(engine, statement)
    install(db)
    assert types(engine, STATS.name)["publisher_id"] == "bigint"
    engine.dispose()


def test_migrate_widens_the_projects_own_tables_and_their_readers_keep_their_rights(
    owner: Engine, db: Database, connect
):
    own = Database(owner, LOG, "UTC")
    write(connect(), [row(NOON, publisher=n) for n in range(3)])
    rebuild(own, [DAY])
    widen_log(own, "source", "integer")
    assert types(owner, LATENCY.name)["source"] == "smallint"
    install(own)
    assert types(owner, LATENCY.name)["source"] == "integer"
    write(connect(), [row(NOON, source=100_000)])
    refresh(db)
    assert verify(db, [DAY]).difference == 0
    assert_exact(db)


def log_row(publisher: int, at: Any = NOON) -> str:
    columns = "publisher_id, locality_id, date_calculated, response_time_ms, source, created_at"
    return f"insert into calculation_logs ({columns}) values ({publisher}, 1, '2030-01-01', 5, 1, '{at}')"


def test_a_key_that_does_not_fit_sets_its_day_aside_and_the_others_go_on(db: Database, connect):
    rebuild(db, [DAY, NEXT])
    write(connect(), [row(NOON)] * 2)
    refresh(db)
    widen_log(db, "publisher_id", "bigint")
    execute(db, log_row(LARGE))
    execute(db, log_row(-LARGE, NEXT_NOON))
    execute(db, "delete from calculation_logs where publisher_id < 0")
    write(connect(), [row(NOON)] * 3 + [row(NEXT_NOON)] * 4)
    report = refresh(db)
    assert report.rows_by_day == {NEXT: 4}
    assert days_by_status(db, ["overflow"]) == {DAY: LOG.names}
    assert {misfit.rollup for misfit in report.misfits} == set(LOG.names)
    message = str(report.misfits[0])
    unfit = f"does not fit its column ({STATS.name}.publisher_id is integer)"
    assert message == f"publisher_id is {LARGE:,} and {unfit}"
    write(connect(), [row(NEXT_NOON)] * 2)
    assert refresh(db).rows_by_day == {NEXT: 2}, "and goes on"
    proofs = {proof.day: proof for proof in verify(db, [DAY, NEXT]).days if proof.rollup == STATS.name}
    assert (proofs[NEXT].finding, proofs[DAY].finding) == ("equal", "overflow")
    assert message in proofs[DAY].describe()
    assert "'calc-analytics widen publisher_id'" in proofs[DAY].describe()
    assert f"'calc-analytics rollup --day {DAY}'" in proofs[DAY].describe()
    (refused, *others) = rebuild(db, [DAY]).failed
    assert len(others) == 3
    assert message in str(refused)
    with db.engine.begin() as connection:
        assert message in [str(each) for each in overflow.known(connection, db.log)]
    assert waiting_days(db) == [], "its rebuild is not requested again"
    assert audit(db).different == []
    execute(db, f"delete from calculation_logs where publisher_id = {LARGE}")
    rebuild(db, [DAY])
    assert verify(db, [DAY, NEXT]).difference == 0
    assert days_by_status(db, ["overflow"]) == {}


@pytest.mark.parametrize("at", ["rebuild", "backlog", "a new day"])
def test_a_key_that_does_not_fit_stops_no_other_day_however_it_is_met(db: Database, connect, at: str):
    widen_log(db, "publisher_id", "bigint")
    execute(db, log_row(LARGE))
    write(connect(), [row(NEXT_NOON)] * 40 + [row(NOON)])
    if at == "rebuild":
        execute(db, "update calculation_logs set xact_id = null")
        report = rebuild(db, [DAY, NEXT])
        assert {day.day for day in report.rebuilt} == {NEXT}
        assert {each.day for each in report.failed} == {DAY}
    elif at == "backlog":
        assert refresh(db, step_rows=10).rows_by_day == {NEXT: 40}
    else:
        assert refresh(db).rows_by_day == {NEXT: 40}
    assert days_by_status(db, ["overflow"]) == {DAY: LOG.names}
    assert verify(db, [NEXT]).difference == 0


def test_a_single_rollup_and_values_of_any_column(db: Database, connect):
    """Sums beyond bigint, a source and a response time that fit no column."""
    widen_log(db, "response_time_ms", "bigint")
    execute(db, "alter table calculation_logs alter column source type bigint")
    columns = "publisher_id, locality_id, date_calculated, response_time_ms, source, created_at"
    for milliseconds, source in ((2**63 - 1, 1), (2**63 - 1, 1), (5, 70_000), (2**40, 1)):
        values = f"1, 1, '2030-01-01', {milliseconds}, {source}, '{NOON}'"
        execute(db, f"insert into calculation_logs ({columns}) values ({values})")
    write(connect(), [row(NEXT_NOON)] * 3)
    report = refresh(db)
    assert report.rows_by_day == {NEXT: 3}
    assert days_by_status(db, ["overflow"]) == {DAY: LOG.names}
    columns_found = {misfit.rollup: misfit.column for misfit in report.misfits}
    assert columns_found[STATS.name] == columns_found[LOCALITIES.name] == "total_response_time_ms"
    assert columns_found[LATENCY.name] in ("source", "response_time_ms")
    for rollup in (STATS, LATENCY):
        alone = Database(db.engine, LOG.only([rollup.name]), "UTC")
        execute(db, f"update rollup_state set rollups = array['{rollup.name}']")
        write(connect(), [row(NEXT_NOON)])
        execute(db, f"update rollup_days set status = 'built' where date = '{DAY}'")
        execute(db, f"insert into calculation_logs ({columns}) values (1, 1, '2030-01-01', {2**62}, 70001, '{NOON}')")
        execute(db, f"insert into calculation_logs ({columns}) values (1, 1, '2030-01-01', {2**62}, 70001, '{NOON}')")
        assert refresh(alone).rows_by_day == {NEXT: 1}


def test_check_status_doctor_history_and_log_name_the_column_and_the_value(
    calc: Callable[..., Result], location, instance, db: Database, connect
):
    widen_log(db, "publisher_id", "bigint")
    execute(db, log_row(LARGE))
    write(connect(), [row(NEXT_NOON)])
    value = f"{LARGE:,}"
    assert value in calc("refresh").output
    for command in (
        ("status",),
        ("doctor",),
        ("verify",),
        ("history", "--day", str(DAY)),
        ("rollup", "--day", str(DAY)),
    ):
        done = calc(*command)
        output = " ".join(done.output.split())
        assert value in output, (command, output)
        assert "publisher_id" in output
        assert done.exit_code == (0 if command[0] == "history" else 1), command
    assert "calc-analytics widen publisher_id" in calc("doctor").output
    key = AssetCheckKey(AssetKey(STATS.name), "stats_match_logs")
    job = location.resolve_implicit_global_asset_job_def()
    job = job.get_subset(asset_selection=set(), asset_check_selection={key})
    assert job.execute_in_process(instance=instance, partition_key=str(DAY)).success
    (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    evaluation = record.event.dagster_event.asset_check_evaluation_data
    assert not evaluation.passed
    assert value in evaluation.description


def test_the_live_views_can_be_read_while_a_key_waits_that_does_not_fit(db: Database, owner: Engine, connect):
    """The API widened its log and migrated the project's own tables; its own table is as it was."""
    rebuild(db, [DAY, NEXT])
    widen_log(db, "publisher_id", "bigint")
    own = Database(owner, LOG, "UTC")
    with owner.begin() as connection:
        for rollup in LOG.rollups:
            create_live_view(connection, LOG, rollup)
    execute(db, log_row(LARGE))
    write(connect(), [row(NOON)] * 2 + [row(NEXT_NOON)] * 3)
    for _ in ("before the day is set aside", "and after"):
        for name in LOG.names:
            counted = {key[len(key) - 1]: measures[0] for key, measures in live(own, name).items()}
            assert counted == {NEXT: 3}
        refresh(own)
    assert days_by_status(own, ["overflow"]) == {DAY: LOG.names}


def test_widening_counts_the_days_that_were_set_aside(calc: Callable[..., Result], db: Database, connect):
    rebuild(db, [DAY])
    widen_log(db, "publisher_id", "bigint")
    execute(db, log_row(LARGE))
    write(connect(), [row(NOON)] * 3)
    refresh(db)
    assert days_by_status(db, ["overflow"]) == {DAY: LOG.names}
    done = calc("widen", "publisher_id", "--yes")
    assert done.exit_code == 0, done.output
    assert "1 day to be rebuilt" in done.output
    assert calc("migrate").exit_code == 0
    assert calc("rollup").exit_code == 0
    assert verify(db, [DAY]).difference == 0
    assert_exact(db)
    assert "publisher_id: integer -> bigint" in calc("history").output


def test_a_counter_whose_column_was_widened_by_hand_is_counted(db: Database, owner: Engine, connect):
    """The runbook of 0.1 advised to alter the column. The limits are those of the table as it is."""
    rebuild(db, [DAY])
    write(connect(), [row(NOON)])
    refresh(db)
    for view in (STATS.live_view,):
        execute(db, f"drop view {view}")
    execute(db, f"alter table {STATS.name} alter column total_calculations type bigint")
    install(Database(owner, LOG, "UTC"))
    execute(db, f"update {STATS.name} set total_calculations = 2147483647")
    write(connect(), [row(NOON)] * 5)
    refresh(db)
    assert days_by_status(db, ["overflow"]) == {}
    assert {measures[0] for measures in stored(db).values()} == {2147483652}
    assert {measures[0] for measures in live(db).values()} == {2147483652}
    rebuild(db, [DAY])
    assert_exact(db)


def test_checksums_stay_valid_when_columns_are_widened(calc: Callable[..., Result], db: Database, owner, connect):
    """A pruned day is audited by the checksum of its rows; negative and large numbers hash alike in every width."""
    write(connect(), [row(NOON, publisher=n, locality_id=-n) for n in range(-3, 40)])
    rebuild(db, [DAY])
    verify(db, [DAY], with_checksum=True)
    own = Database(owner, LOG, "UTC")
    retention.prune(own, date(2026, 3, 2))
    for column in ("publisher_id", "total_calculations", "cache_hits", "source", "response_time_ms"):
        assert calc("widen", column, "--yes").exit_code == 0
    assert audit(db).different == []
    write(connect(), [row(NOON, publisher=2)])
    refresh(db)
    assert audit(db).different == []
    assert verify(db, [DAY]).difference == 0
    execute(db, f"update {STATS.name} set cache_hits = cache_hits + 1 where publisher_id = -3")
    assert audit(db).different


def test_the_hash_of_a_row_is_that_of_version_0_1_and_of_any_width(owner: Engine):
    """Checksums that older versions stored are over the declared types."""
    with owner.begin() as connection:
        for value in (0, 1, -1, 2**31 - 1, -(2**31)):
            statement = (
                f"select hash_record_extended(row(cast({value} as integer), date '2026-03-01'), 0)"
                f" = hash_record_extended(row(cast({value} as bigint), date '2026-03-01'), 0)"
            )
            assert connection.execute(text(statement)).scalar() is True


def test_the_journal_says_when_a_day_was_set_aside_and_why(db: Database, connect):
    widen_log(db, "publisher_id", "bigint")
    execute(db, log_row(LARGE))
    refresh(db)
    (entry,) = [each for each in journal.history(db) if each.operation == "overflow"]
    found = entry.days[str(DAY)][STATS.name]
    assert (found["column"], found["value"], found["type"]) == ("publisher_id", LARGE, "integer")
    assert ROLE in entry.by
