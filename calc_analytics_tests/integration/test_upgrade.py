"""A database of version 0.1 is upgraded: nothing lost, nothing counted twice, and nothing wrong taken over."""

import os
import threading
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DBAPIError

from calc_analytics.config import project_root
from calc_analytics.database import migrate
from calc_analytics.database.adopt import UnfitTable
from calc_analytics.database.engine import engine_for
from calc_analytics.database.migrate import NotOwner, TableBusy
from calc_analytics.rollup import install as installing
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install, is_installed
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import days_by_status, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests import version_0_1
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import FORMS, STATS, all_stored, execute, live, oracles, row, stored, utc, write
from calc_analytics_tests.version_0_1 import (
    BUILT,
    EMPTY,
    FOUND,
    KEPT,
    LAUNDERED,
    NEVER_ON_RECORD,
    OVERFLOW,
    PENDING,
    PRUNED_WHOLE,
    PRUNED_WITH_LATE_ROWS,
    START,
    OldRefresher,
)

READER = f"stats_reader_{os.getpid()}"
NEW = [name for name in FORMS if name != STATS]
GRANTS = """
    select relname || ': ' || coalesce(string_agg(item, ' ' order by item), '')
    from pg_class left join lateral (select cast(unnest(relacl) as text) as item) items on true
    where relnamespace = cast('public' as regnamespace) and relkind in ('r', 'v') and relname = any(:names)
    group by relname order by relname
"""


@pytest.fixture(scope="module")
def reader(maintenance: Callable[[str], None]) -> Iterator[str]:
    """A role that may read statistics and their live view."""
    maintenance(f"create role {READER} login")
    yield READER
    maintenance(f"drop role {READER}")


@pytest.fixture
def load(template: str, empty_url: URL, reader: str) -> Iterator[Callable[..., Engine]]:
    """Loads a database of version 0.1; returns its owner's engine."""
    made: list[Engine] = []

    def load_one(dump: str = "version_0_1") -> Engine:
        engine = engine_for(empty_url)
        made.append(engine)
        version_0_1.load(engine, ROLE, reader, dump)
        return engine

    yield load_one
    for engine in made:
        engine.dispose()


@pytest.fixture
def old(load: Callable[..., Engine]) -> Engine:
    return load()


@pytest.fixture
def db(old: Engine) -> Iterator[Database]:
    """What operations take, as the least-privileged role."""
    engine = engine_for(old.url.set(username=ROLE))
    yield Database(engine, LOG, "UTC")
    engine.dispose()


def as_owner(engine: Engine) -> Database:
    return Database(engine, LOG, "UTC")


def upgrade(engine: Engine) -> None:
    install(as_owner(engine), START)


def scalars(engine: Engine, statement: str, **parameters: object) -> list:
    with engine.begin() as connection:
        return list(connection.execute(text(statement), parameters).scalars())


def psycopg_url(engine: Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


def by_day(statistics: dict, day: date) -> dict:
    return {key: value for key, value in statistics.items() if day in key}


def total(statistics: dict, day: date) -> int:
    return sum(values[0] for values in by_day(statistics, day).values())


@pytest.mark.parametrize("dump", ["version_0_1", "version_0_1_partitioned"])
def test_every_day_becomes_what_it_was_and_the_new_tables_fill(load: Callable[..., Engine], dump: str):
    engine = load(dump)
    before = stored(engine)
    upgrade(engine)
    db = as_owner(engine)
    assert stored(engine) == before, "an upgrade recounts nothing"
    assert is_installed(db)
    status = days_by_status(db, ["built", "pending", "stale", "frozen", "overflow"])
    assert not set(EMPTY) & set(status)
    assert [day for day, names in days_by_status(db, ["frozen"]).items() if STATS in names] == [NEVER_ON_RECORD, KEPT]
    assert list(days_by_status(db, ["overflow"])) == [OVERFLOW]
    refresh(db)
    report = rebuild(db, sorted({*waiting_days(db), OVERFLOW}))
    assert {each.day for each in report.failed} == {FOUND, LAUNDERED}
    assert waiting_days(db) == list(days_by_status(db, ["overflow"])) == []
    expected = oracles(db)
    for day in [PENDING, *BUILT, OVERFLOW]:
        for name in FORMS:
            assert by_day(stored(db, name), day) == by_day(live(db, name), day) == by_day(expected[name], day) != {}
        assert verify(db, [day]).difference == 0
    assert audit(db).different == []


def test_a_day_that_was_pruned_stays_proven_and_is_frozen_where_it_was_never_counted(old: Engine, db: Database):
    before = stored(old)
    upgrade(old)
    rebuild(db, waiting_days(db))
    for day, rows in {PRUNED_WHOLE: 100, PRUNED_WITH_LATE_ROWS: 93}.items():
        assert total(stored(db), day) == rows
        proof = next(each for each in verify(db, [day]).days if each.rollup == STATS)
        assert (proof.is_proven, proof.difference, proof.deleted_rows) == (True, 0, 90 + 10 * (rows == 100))
        assert sorted(days_by_status(db, ["frozen"])[day]) == sorted(NEW)
    assert by_day(stored(db), PRUNED_WHOLE) == by_day(before, PRUNED_WHOLE)
    execute(old, f"update {STATS} set cache_hits = cache_hits + 1 where date = '{PRUNED_WHOLE}' and publisher_id = 0")
    assert [(each.rollup, each.day) for each in audit(db).different] == [(STATS, PRUNED_WHOLE)]


def test_an_exchange_between_keys_of_a_pruned_day_is_found(old: Engine, db: Database):
    upgrade(old)
    changed = "total_calculations = total_calculations + (publisher_id - 1)"
    execute(old, f"update {STATS} set {changed} where date = '{PRUNED_WHOLE}'")
    assert [(each.rollup, each.day) for each in audit(db).different] == [(STATS, PRUNED_WHOLE)]


@pytest.mark.parametrize("day", [FOUND, LAUNDERED])
def test_what_version_0_1_accepted_by_itself_is_red_until_a_person_decides(old: Engine, db: Database, day: date):
    upgrade(old)
    assert different_days(db)[day] == [STATS]
    for _ in range(3):
        report = rebuild(db, sorted({day, *waiting_days(db)}), decision=Decision.AUTOMATIC)
        assert (day, STATS, "differs") in [(each.day, each.rollup, each.reason) for each in report.failed]
        (proof,) = verify(db, [day], [STATS]).days
        assert proof.finding == "logs_missing"
        assert proof.difference > 0
        assert different_days(db)[day] == [STATS]
    prune(db, date(2026, 4, 1))
    assert total(oracles(db)[STATS], day) == proof.log_rows, "its log rows were left alone"
    rebuild(db, [day], decision=Decision.ALLOW_SHRINK)
    assert by_day(stored(db), day) == by_day(oracles(db)[STATS], day)
    assert day not in different_days(db)
    assert verify(db, [day]).difference == 0


def test_a_day_whose_rows_were_deleted_on_purpose_can_be_kept(old: Engine, db: Database):
    upgrade(old)
    before = by_day(stored(db), FOUND)
    report = rebuild(db, [FOUND], [STATS], decision=Decision.KEEP)
    assert [(each.log_rows, each.counted_rows, each.deleted_rows) for each in report.kept] == [(40, 80, 40)]
    assert by_day(stored(db), FOUND) == before
    assert verify(db, [FOUND], [STATS]).difference == 0
    assert FOUND not in different_days(db)


def test_a_deletion_that_the_setting_announces_needs_no_decision(old: Engine):
    upgrade(old)
    db = Database(old, LOG, "UTC", logs_kept_days=30)
    assert verify(db, [FOUND], [STATS]).difference == 0
    assert FOUND not in different_days(db)


def test_statistics_of_a_predecessor_stay_and_are_audited(old: Engine, db: Database):
    upgrade(old)
    rebuild(db, waiting_days(db))
    for day, rows in {NEVER_ON_RECORD: 7, KEPT: 8}.items():
        assert total(stored(db), day) == rows
        assert day not in different_days(db)
        assert not rebuild(db, [day], [STATS]).failed
    assert audit(db).different == []
    execute(old, f"update {STATS} set source_web = source_web + 1 where date = '{NEVER_ON_RECORD}'")
    assert [(each.rollup, each.day) for each in audit(db).different] == [(STATS, NEVER_ON_RECORD)]


def test_days_that_waited_after_a_rebase_are_judged_alike(old: Engine, db: Database):
    execute(old, "update rollup_days set status = 'stale' where status in ('built', 'kept')")  # what `rebase` did
    upgrade(old)
    report = rebuild(db, waiting_days(db), decision=Decision.AUTOMATIC)
    assert {each.day for each in report.failed} == {FOUND, LAUNDERED}
    assert waiting_days(db) == []
    for day in (PRUNED_WHOLE, PRUNED_WITH_LATE_ROWS, *BUILT):
        assert verify(db, [day], [STATS]).days[0].is_proven
    (proof,) = verify(db, [KEPT], [STATS]).days
    assert (proof.finding, proof.difference, proof.stored_rows) == ("frozen", 0, 8)
    for day in (FOUND, LAUNDERED):
        assert verify(db, [day], [STATS]).days[0].finding == "logs_missing"
        assert day in different_days(db)


def test_statistics_of_a_predecessor_are_rebuilt_where_log_rows_are_left(old: Engine, db: Database):
    execute(old, f"delete from rollup_days where date = '{PENDING}'")
    execute(old, f"insert into {STATS} values (0, '{PENDING}', 999, 0, 0, 999, 0, 0)")
    upgrade(old)
    assert days_by_status(db, ["pending"])[PENDING] == list(FORMS)
    rebuild(db, [PENDING])
    assert by_day(stored(db), PENDING) == by_day(oracles(db)[STATS], PENDING)
    assert verify(db, [PENDING]).difference == 0


def test_roles_that_had_rights_have_them_in_the_new_tables_too(old: Engine, db: Database):
    tables, views = sorted(FORMS), sorted(f"{name}_live" for name in FORMS)
    names = [*tables, *views, "rollup_state", "rollup_days", "rollup_journal"]
    (before,) = scalars(old, GRANTS, names=[f"{STATS}_live"])
    upgrade(old)
    found = dict(each.split(": ") for each in scalars(old, GRANTS, names=names))
    assert f"{STATS}_live: {found[f'{STATS}_live']}" == before
    assert {found[name] for name in tables} == {found[STATS]}
    assert {found[name] for name in views} == {found[f"{STATS}_live"]}
    assert f"{READER}=r/" in found[STATS]
    assert f"{READER}=r/" in found[f"{STATS}_live"]
    assert f"{ROLE}=arwd/" in found["rollup_journal"]
    assert READER not in found["rollup_journal"]
    owners = "select distinct relowner from pg_class where relname = any(:names)"
    assert len(scalars(old, owners, names=names)) == 1
    reading = engine_for(old.url.set(username=READER))
    assert all(stored(reading, name) == stored(old, name) for name in [*tables, *views])
    total = "select all_time from platform_usage"
    assert scalars(reading, total) == scalars(old, total)
    reading.dispose()
    rebuild(db, waiting_days(db))
    execute(old, f"revoke select on calculation_stats_hourly from {READER}")
    upgrade(old)
    (hourly,) = scalars(old, GRANTS, names=["calculation_stats_hourly"])
    assert READER not in hourly, "a right that was taken away is not given back"


@pytest.mark.parametrize("is_upgraded", [False, True])
def test_a_database_of_version_0_1_can_be_uninstalled(old: Engine, is_upgraded: bool):
    if is_upgraded:
        upgrade(old)
    script = (project_root() / "deploy" / "uninstall.sql").read_text()
    with old.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.connection.driver_connection.execute(script.replace("rollup_writer", ROLE))  # type: ignore[union-attr]
    left = "select relname from pg_class where relnamespace = to_regnamespace('public') and relkind in ('r', 'v', 'S')"
    assert {*scalars(old, left)} == {"calculation_logs", "calculation_logs_id_seq", STATS}
    assert scalars(old, "select proname from pg_proc where pronamespace = to_regnamespace('public')") == []


def test_an_upgrade_can_be_repeated(old: Engine, db: Database):
    upgrade(old)
    rebuild(db, [*waiting_days(db), OVERFLOW])
    everything = "select to_jsonb(d) from rollup_days d order by rollup, date"
    before = scalars(old, everything), all_stored(db)
    upgrade(old)
    assert (scalars(old, everything), all_stored(db)) == before


def test_an_upgrade_that_ends_before_its_last_step_changed_nothing(
    old: Engine, db: Database, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    before = live(old)
    with monkeypatch.context() as patch:
        patch.setattr(installing, "_keep_state", broken)
        with pytest.raises(KeyboardInterrupt):
            upgrade(old)
    assert scalars(old, "select version_num from calc_analytics_version") == ["0003"]
    assert scalars(old, "select rollup from rollup_state") == [STATS]
    assert scalars(old, "select to_regclass('rollup_journal') is null") == [True]
    assert live(old) == before
    assert version_0_1.refresh_once(old) == 0, "version 0.1 goes on"
    upgrade(old)
    (hourly,) = scalars(old, GRANTS, names=["calculation_stats_hourly"])
    assert READER in hourly
    assert ROLE in hourly


def test_a_role_without_the_right_is_refused_and_nothing_changes(old: Engine, db: Database):
    with pytest.raises(NotOwner, match="naming the role that owns the API's tables; nothing was changed"):
        install(db, START)
    assert scalars(old, "select version_num from calc_analytics_version") == ["0003"]
    assert version_0_1.refresh_once(old) == 0


def test_an_upgrade_refuses_statistics_that_another_role_owns_before_it_changes_anything(
    old: Engine, maintenance: Callable[[str], None]
):
    role = f"migrator_{os.getpid()}"
    maintenance(f"create role {role} login")
    try:
        execute(old, f"grant all on schema public to {role}")
        for name in ("calculation_logs", "rollup_state", "rollup_days", f"{STATS}_live", "calc_analytics_version"):
            execute(old, f"alter table {name} owner to {role}")
        migrator = engine_for(old.url.set(username=role))
        with pytest.raises(NotOwner, match=f"the role '{role}' does not own {STATS}: run this command once"):
            upgrade(migrator)
        migrator.dispose()
        assert scalars(old, "select version_num from calc_analytics_version") == ["0003"]
    finally:
        execute(old, f"reassign owned by {role} to {old.url.username}")
        execute(old, f"drop owned by {role}")
        maintenance(f"drop role {role}")


def test_a_table_of_a_new_ones_name_is_refused_before_anything_changes(old: Engine):
    execute(
        old, "create table calculation_stats_hourly (publisher_id integer, date date, hour integer, clicks integer)"
    )
    with pytest.raises(UnfitTable, match="table calculation_stats_hourly has no column total_calculations"):
        upgrade(old)
    assert scalars(old, "select version_num from calc_analytics_version") == ["0003"]
    install(Database(old, LOG.only([STATS, "calculation_latency_daily"]), "UTC"), START)
    assert scalars(old, "select rollups from rollup_state") == [[STATS, "calculation_latency_daily"]]


def test_a_transaction_that_stays_open_is_waited_for_and_then_named(old: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(migrate, "ATTEMPTS", 2)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "50ms")
    with psycopg.connect(psycopg_url(old)) as reading:
        reading.execute("select from rollup_days limit 1")
        with pytest.raises(TableBusy, match="nothing was changed"):
            upgrade(old)
        reading.rollback()
    assert scalars(old, "select version_num from calc_analytics_version") == ["0003"]
    upgrade(old)
    assert is_installed(as_owner(old))


def test_an_open_writer_does_not_delay_an_upgrade_and_is_counted_once(old: Engine, db: Database):
    at = utc(2026, 3, 6, 12)
    with psycopg.connect(psycopg_url(old)) as writer:
        write(writer, [row(at)] * 3)
        writer.cursor().execute(
            "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at) "
            "values (1, 1, '2030-01-01', 1, %s)", (at,),
        )  # fmt: skip
        assert version_0_1.refresh_once(old) == 3
        upgrade(old)
        rebuild(db, waiting_days(db))
        writer.commit()
    assert refresh(db).rows == 1
    for name in FORMS:
        assert by_day(stored(db, name), at.date()) == by_day(oracles(db)[name], at.date())
    assert verify(db, [at.date()]).difference == 0


def test_version_0_1_that_runs_on_stops_and_nothing_is_counted_twice_or_lost(old: Engine, db: Database):
    today = datetime.now(timezone.utc)
    instants = [today, today - timedelta(days=1), utc(2026, 3, 6, 12), utc(2026, 3, 2, 12), utc(2026, 2, 27, 12)]
    written, stopping, errors = [0] * 3, threading.Event(), list[Exception]()

    def write_on(number: int) -> None:
        try:
            with psycopg.connect(psycopg_url(old)) as connection:
                while not stopping.wait(0.002):
                    place = [row(at, publisher=number, locality_id=written[number] % 5) for at in instants]
                    write(connection, place * 2)
                    written[number] += len(place) * 2
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write_on, args=(number,)) for number in range(3)]
    refreshers = [OldRefresher(old.url.set(username=ROLE)) for _ in range(2)]
    for thread in [*writers, *refreshers]:
        thread.start()
    wait_for(lambda: all(each.refreshes > 5 for each in refreshers) and all(written))
    upgrade(old)
    for each in refreshers:
        each.join()
    so_far = sum(written)
    wait_for(lambda: sum(written) > so_far + 100)
    refresh(db)
    rebuild(db, [day for day in waiting_days(db) if day not in (FOUND, LAUNDERED)])
    wait_for(lambda: sum(written) > so_far + 200)
    stopping.set()
    for thread in writers:
        thread.join()
    refresh(db)
    assert errors == []
    for each in refreshers:
        assert "this is 0.1: stop it and install 0.2" in str(each.error)
        assert each.rows > 0
    expected = oracles(db)
    for day in {at.date() for at in instants}:
        for name in FORMS:
            assert by_day(stored(db, name), day) == by_day(live(db, name), day) == by_day(expected[name], day) != {}
        report = verify(db, [day])
        assert [each.is_proven for each in report.days] == [True] * len(FORMS)
        assert report.difference == 0


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(0.01)


@pytest.mark.parametrize("name", ["lock", "store"])
def test_what_version_0_1_sends_after_the_upgrade_is_refused(old: Engine, name: str):
    upgrade(old)
    message = {"lock": "this database was upgraded for calc_analytics 0.2", "store": 'column "rollup" does not exist'}
    sent, parameters = text(version_0_1.statements()[name]), {"rollup": STATS, "snapshot": "1:1:"}
    with old.connect() as connection, pytest.raises(DBAPIError, match=message[name]):
        connection.execute(sent, parameters)


def test_the_live_view_is_exact_before_and_after(old: Engine, db: Database):
    """Rows that version 0.1 did not count are in the view all the time, and are counted by the first refresh."""
    at = utc(2026, 3, 6, 12)
    with psycopg.connect(psycopg_url(old)) as writer:
        write(writer, [row(at)] * 4)
    expected = by_day(oracles(db)[STATS], at.date())
    assert by_day(live(old), at.date()) == expected
    upgrade(old)
    assert by_day(live(old), at.date()) == expected
    assert refresh(db).rows == 4
    assert by_day(stored(old), at.date()) == by_day(live(old), at.date()) == expected
