"""The list of rollups: a fifth one on a live database, fewer than declared, and declarations that do not fit."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timezone

import psycopg
import pytest
from dagster import AssetCheckKey, AssetKey
from sqlalchemy import BigInteger, Column, Date, Float, Integer, MetaData, Table, func, text
from sqlalchemy.engine import Engine

from calc_analytics import definitions
from calc_analytics.database.adopt import UnfitTable
from calc_analytics.database.engine import transaction
from calc_analytics.database.errors import DatabaseError
from calc_analytics.database.tables import calculation_logs
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log, Rollup, UnknownRollup
from calc_analytics.rollup.install import install, is_installed
from calc_analytics.rollup.journal import history
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import RollupsChanged, days_by_status, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import HOURS, LATENCY, LOCALITIES, LOG, STATS
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import assert_exact, execute, live, oracle, row, stored, utc, write

logs = calculation_logs.c
zmanim_table = Table(
    "calculation_zmanim_daily",
    MetaData(),
    Column("publisher_id", Integer, primary_key=True, autoincrement=False),
    Column("date", Date, primary_key=True),
    Column("zman_count", Integer, primary_key=True, autoincrement=False),
    Column("calculations", Integer, nullable=False),
    Column("from_cache", BigInteger, nullable=False),
)
ZMANIM = Rollup(
    target=zmanim_table,
    key_expressions={"publisher_id": logs.publisher_id, "zman_count": func.coalesce(logs.zman_count, -1)},
    aggregates={"calculations": func.count(), "from_cache": func.count().filter(logs.cache_hit)},
    description="Calculations per publisher and number of zmanim.",
)
FIVE = replace(LOG, rollups=(*LOG.rollups, ZMANIM))
PRUNED, DAY, NEXT = date(2026, 2, 1), date(2026, 3, 1), date(2026, 3, 2)
OTHERS = [LOCALITIES.name, HOURS.name, LATENCY.name]
INSERT = """
    insert into calculation_logs (publisher_id, locality_id, date_calculated, cache_hit, zman_count, source, created_at)
    select i % 3, i % 5, '2030-01-01', i % 2 = 0, nullif(i % 7, 0), 1 + i % 3, '{at}' from generate_series(1, {rows}) i
"""
TEN_DELETED = """
    delete from calculation_logs where id in (
        select id from calculation_logs where created_at >= '2026-03-01Z' and created_at < '2026-03-02Z' limit 10)
"""


@pytest.fixture
def history_of_days(owner: Engine, db: Database) -> None:
    """Days built in four rollups, and one that was pruned."""
    execute(owner, f"grant delete on calculation_logs to {ROLE}")
    for day, rows in {PRUNED: 60, DAY: 100, NEXT: 50}.items():
        execute(owner, INSERT.format(at=f"{day} 10:00Z", rows=rows))
    refresh(db)
    assert sum(prune(db, DAY).rows_by_day.values()) == 60


def with_log(db: Database, log: Log) -> Database:
    return replace(db, log=log)


@contextmanager
def writing(owner: Engine) -> Iterator[Callable[[], int]]:
    """A writer that commits all the time; gives a function that waits for some more rows and returns how many."""
    stopping, written, errors = threading.Event(), [0], list[Exception]()

    def write_on() -> None:
        try:
            with psycopg.connect(owner.url.set(drivername="postgresql").render_as_string(False)) as connection:
                while not stopping.wait(0.005):
                    for at in (utc(2026, 3, 2, 12), datetime.now(timezone.utc)):
                        connection.execute(INSERT.format(at=at.isoformat(), rows=5))
                        connection.commit()
                    written[0] += 10
        except Exception as error:
            errors.append(error)

    def wait_for_more() -> int:
        wanted = written[0] + 50
        while written[0] < wanted and not errors:
            stopping.wait(0.01)
        assert errors == []
        return written[0]

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        yield wait_for_more
    finally:
        stopping.set()
        thread.join()


def zmanim(engine: Engine, relation: str = "calculation_zmanim_daily") -> dict:
    with engine.begin() as connection:
        statement = f"select publisher_id, zman_count, date, calculations, from_cache from {relation}"
        return {tuple(each[:3]): tuple(each[3:]) for each in connection.execute(text(statement))}


def counted_by_hand(engine: Engine) -> dict:
    """The fifth rollup by a loop over the rows."""
    rows, hits = Counter[tuple](), Counter[tuple]()
    with engine.begin() as connection:
        found = connection.execute(text("select publisher_id, zman_count, created_at, cache_hit from calculation_logs"))
        for publisher, count, at, is_hit in found:
            key = (publisher, -1 if count is None else count, at.astimezone(timezone.utc).date())
            rows[key] += 1
            hits[key] += is_hit
    return {key: (rows[key], hits[key]) for key in rows}


def status_of(db: Database, rollup: Rollup) -> dict[str, list[date]]:
    found: dict[str, list[date]] = {}
    for status in ("built", "pending", "stale", "frozen", "overflow"):
        days = [day for day, names in days_by_status(db, [status]).items() if rollup.name in names]
        if days:
            found[status] = days
    return found


@pytest.mark.usefixtures("history_of_days")
def test_a_fifth_rollup_needs_its_declaration_and_its_table(owner: Engine, db: Database):
    five = with_log(db, FIVE)
    with writing(owner) as wait_for_more:
        wait_for_more()
        refresh(db)
        with owner.begin() as connection:  # its migration
            zmanim_table.create(connection)
        with pytest.raises(RollupsChanged, match=r"ROLLUPS names .*calculation_zmanim_daily"):
            refresh(Database(owner, FIVE, "UTC"))
        install(Database(owner, FIVE, "UTC"))
        with pytest.raises(RollupsChanged, match=r"the database keeps .*calculation_zmanim_daily"):
            refresh(db)
        today = datetime.now(timezone.utc).date()
        assert status_of(five, ZMANIM) == {"pending": sorted({PRUNED, DAY, NEXT, today})}
        wait_for_more()
        refresh(five)
        assert zmanim(owner) == {}
        report = rebuild(five, waiting_days(five))
        assert report.failed == []
        refused = {each.rollup: (each.day, each.reason) for each in report.refused}
        assert refused == {**dict.fromkeys(LOG.names, (PRUNED, "pruned")), ZMANIM.name: (PRUNED, "frozen")}
        wait_for_more()
        refresh(five)
        wait_for_more()
    assert zmanim(owner, "calculation_zmanim_daily_live") == counted_by_hand(owner)
    assert refresh(five).rows > 0
    assert zmanim(owner) == zmanim(owner, "calculation_zmanim_daily_live") == counted_by_hand(owner)
    days = [DAY, NEXT, today]
    assert [each.is_proven for each in verify(five, days).days] == [True] * 15
    assert stored(owner, STATS.name) == {**oracle(owner), **pruned_statistics(owner)}
    assert is_installed(five)
    assert not is_installed(db)


def pruned_statistics(engine: Engine) -> dict:
    return {key: value for key, value in stored(engine).items() if key[1] == PRUNED}


@pytest.fixture
def five(history_of_days: None, owner: Engine, db: Database) -> Database:
    """A database with the fifth rollup, built."""
    with owner.begin() as connection:
        zmanim_table.create(connection)
    install(Database(owner, FIVE, "UTC"))
    five = with_log(db, FIVE)
    rebuild(five, waiting_days(five))
    return five


def test_a_fifth_rollup_is_audited_and_recounted(five: Database, owner: Engine):
    for day in (DAY, PRUNED):
        execute(owner, f"insert into calculation_zmanim_daily values (9, '{day}', 9, 1, 1)")
    assert [(each.rollup, each.day) for each in audit(five).different] == [(ZMANIM.name, PRUNED), (ZMANIM.name, DAY)]
    (proof,) = verify(five, [DAY], [ZMANIM.name]).days
    assert (proof.finding, proof.difference) == ("statistics_changed", 2)
    assert proof.examples == ({"key": {"publisher_id": 9, "zman_count": 9}, "log_rows": 0, "stored_rows": 1},)
    assert different_days(five) == {PRUNED: [ZMANIM.name], DAY: [ZMANIM.name]}
    rebuild(five, [DAY], [ZMANIM.name])
    assert different_days(five) == {PRUNED: [ZMANIM.name]}
    assert {k: v for k, v in zmanim(owner).items() if k[2] == DAY} == {
        k: v for k, v in counted_by_hand(owner).items() if k[2] == DAY
    }


def test_a_fifth_rollup_can_be_asked_for_by_name(five: Database, db: Database):
    report = rebuild(five, [DAY], [ZMANIM.name])
    assert [(day.rollup, day.rows, day.rows_before) for day in report.rebuilt] == [(ZMANIM.name, 100, 100)]
    assert [proof.rollup for proof in verify(five, [DAY], [ZMANIM.name]).days] == [ZMANIM.name]
    with pytest.raises(UnknownRollup, match="there is no rollup 'calculation_zmanim_daily'"):
        db.log.only([ZMANIM.name])


def test_a_fifth_rollup_is_in_the_journal(five: Database):
    entries = history(five)
    assert [entry.detail for entry in entries if entry.operation == "rollups"] == ["+calculation_zmanim_daily"]
    done = next(e.days for e in history(five, DAY, ZMANIM.name) if e.operation == "rebuild")
    assert done[str(DAY)][ZMANIM.name] == {"before": 0, "after": 100}


def test_a_fifth_rollup_is_pruned_with_the_others(five: Database, owner: Engine):
    before = zmanim(owner)
    assert prune(five, NEXT).rows_by_day == {DAY: 100}
    assert zmanim(owner) == before
    (proof,) = verify(five, [DAY], [ZMANIM.name]).days
    assert (proof.is_proven, proof.difference, proof.deleted_rows) == (True, 0, 100)


def test_a_fifth_rollup_is_granted_like_the_others(five: Database):
    assert refresh(five).rows == 0, "as the least-privileged role"
    assert zmanim(five.engine) == zmanim(five.engine, "calculation_zmanim_daily_live") != {}


def test_a_fifth_rollup_is_an_asset_with_a_check_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(definitions, "chosen_log", lambda names: FIVE)
    location = definitions.defs()
    assert AssetKey(ZMANIM.name) in set(location.resolve_all_asset_keys())
    (checks,) = location.asset_checks or []
    assert AssetCheckKey(AssetKey(ZMANIM.name), "calculation_zmanim_daily_match_logs") in set(checks.check_keys)


def test_a_rollup_without_a_table_is_refused_and_nothing_changes(owner: Engine, db: Database):
    with pytest.raises(UnfitTable, match="there is no table calculation_zmanim_daily: add a migration that creates it"):
        install(Database(owner, FIVE, "UTC"))
    assert refresh(db).rows == 0


def test_a_rollup_whose_table_has_another_key_is_refused(owner: Engine, db: Database):
    with owner.begin() as connection:
        zmanim_table.create(connection)
        connection.execute(text("alter table calculation_zmanim_daily drop constraint calculation_zmanim_daily_pkey"))
    with pytest.raises(UnfitTable, match=r"no primary key \(publisher_id, date, zman_count\)"):
        install(Database(owner, FIVE, "UTC"))
    assert refresh(db).rows == 0


# -- Fewer rollups than are declared -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("history_of_days")
def test_a_rollup_that_is_switched_off_and_on_again_fills_itself_while_writers_write(owner: Engine, db: Database):
    one, chosen = with_log(db, LOG.only([STATS.name])), LOG.only([STATS.name])
    reading = f"select count(*) from {HOURS.name}_live"
    with writing(owner) as wait_for_more:
        wait_for_more()
        refresh(db)
        install(Database(owner, chosen, "UTC"))
        with pytest.raises(RollupsChanged, match=f"the database keeps {STATS.name}, but ROLLUPS names"):
            refresh(db)
        before = stored(owner, HOURS.name)
        wait_for_more()
        refresh(one)
        assert stored(owner, HOURS.name) == before
        with pytest.raises(DatabaseError, match="does not exist"), transaction(db.engine) as connection:
            connection.execute(text(reading))
        install(Database(owner, LOG, "UTC"))
        with transaction(db.engine) as connection:
            connection.execute(text(reading))
        with pytest.raises(RollupsChanged):
            refresh(one)
        assert status_of(db, STATS).keys() == {"built"}
        assert status_of(db, HOURS).keys() == {"stale"}
        wait_for_more()
        refresh(db)
        report = rebuild(db, waiting_days(db))
        assert report.failed == []
        wait_for_more()
    refresh(db)
    assert waiting_days(db) == []
    execute(owner, f"delete from {STATS.name} where date = '{PRUNED}'")
    for name in OTHERS:
        execute(owner, f"delete from {name} where date = '{PRUNED}'")
    assert_exact(owner)


@pytest.mark.usefixtures("history_of_days")
def test_a_day_pruned_while_a_rollup_was_off_is_frozen_in_it(owner: Engine, db: Database):
    install(Database(owner, LOG.only([STATS.name]), "UTC"))
    one = with_log(db, LOG.only([STATS.name]))
    before = {name: stored(owner, name) for name in OTHERS}
    with psycopg.connect(owner.url.set(drivername="postgresql").render_as_string(False)) as connection:
        write(connection, [row(utc(2026, 3, 1, 11)), row(utc(2026, 2, 20, 11))])
    refresh(one)
    assert prune(one, NEXT).rows_by_day == {DAY: 101, date(2026, 2, 20): 1}
    install(Database(owner, LOG, "UTC"))
    report = rebuild(db, waiting_days(db))
    assert report.failed == []
    for rollup in (LOCALITIES, HOURS, LATENCY):
        assert status_of(db, rollup) == {"built": [PRUNED, NEXT], "frozen": [date(2026, 2, 20), DAY]}
        assert {k: v for k, v in stored(owner, rollup.name).items() if DAY in k} == {
            k: v for k, v in before[rollup.name].items() if DAY in k
        }
    assert verify(db, [PRUNED, DAY, NEXT, date(2026, 2, 20)]).different == []
    assert audit(db).different == []
    assert different_days(db) == {}
    execute(owner, f"update {HOURS.name} set cache_hits = cache_hits + 1 where date = '{DAY}' and publisher_id = 1")
    assert [(each.rollup, each.day) for each in audit(db).different] == [(HOURS.name, DAY)]


@pytest.mark.usefixtures("history_of_days")
def test_rows_that_others_deleted_while_a_rollup_was_off_stay_red(owner: Engine, db: Database):
    install(Database(owner, LOG.only([STATS.name]), "UTC"))
    execute(owner, TEN_DELETED)
    install(Database(owner, LOG, "UTC"))
    report = rebuild(db, waiting_days(db))
    assert (STATS.name, DAY, "differs") in [(each.rollup, each.day, each.reason) for each in report.failed]
    found = {proof.rollup: proof.finding for proof in verify(db, [DAY]).days}
    assert found == dict.fromkeys(LOG.names, "logs_missing")
    assert different_days(db) == {DAY: sorted(LOG.names)}
    rebuild(db, [DAY], decision=Decision.ALLOW_SHRINK)
    assert verify(db, [DAY]).difference == 0
    assert {sum(values[0] for key, values in stored(owner, name).items() if DAY in key) for name in LOG.names} == {90}


@pytest.mark.usefixtures("history_of_days")
def test_the_apis_own_table_can_be_switched_off(owner: Engine, db: Database):
    rest = LOG.only(OTHERS)
    install(Database(owner, rest, "UTC"))
    execute(owner, INSERT.format(at=f"{NEXT} 12:00Z", rows=30))
    report = refresh(with_log(db, rest))
    assert report.rows == 30
    assert {day.rollup for day in report.counted} == set(OTHERS)
    assert verify(with_log(db, rest), [NEXT]).difference == 0
    install(Database(owner, LOG, "UTC"))
    rebuild(db, waiting_days(db))
    assert live(db.engine)[(1, NEXT)] == oracle(owner)[(1, NEXT)], "its live view is back, with its grants"


@pytest.mark.usefixtures("history_of_days")
def test_an_other_set_of_rollups_keeps_the_grants_of_live_views(owner: Engine, db: Database):
    """The views of the first are gone before those of the second are there."""
    for names in ([STATS.name], [HOURS.name], [LATENCY.name, LOCALITIES.name]):
        log = LOG.only(names)
        install(Database(owner, log, "UTC"))
        refresh(with_log(db, log))
        for name in names:
            with transaction(db.engine) as connection:
                connection.execute(text(f"select count(*) from {name}_live"))


# -- Declarations that do not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_expressions": {"publisher_id": logs.publisher_id}}, r"the primary key is .*zman_count.*, the keys are"),
        (
            {"aggregates": {"from_cache": func.sum(logs.cache_hit), "calculations": func.count()}},
            r"must be count\(\*\)",
        ),
        ({"aggregates": {}}, r"the first measure must be count\(\*\)"),
        ({"aggregates": {"calculations": func.count(), "hits": func.count()}}, "the table has no column hits"),
    ],
)
def test_a_declaration_that_does_not_fit_its_table_is_refused_at_import(changes: dict, message: str):
    with pytest.raises(ValueError, match=rf"calculation_zmanim_daily: .*{message}"):
        replace(ZMANIM, **changes)


def test_a_measure_must_be_an_integer():
    table = Table("averages", MetaData(), Column("date", Date, primary_key=True), Column("calculations", Integer),
                  Column("average", Float))  # fmt: skip
    with pytest.raises(ValueError, match="averages: the measure average is not SmallInteger, Integer or BigInteger"):
        Rollup(table, {}, {"calculations": func.count(), "average": func.avg(logs.source)}, "Averages.")


def test_a_misspelt_column_of_the_log_is_refused_at_import():
    with pytest.raises(AttributeError, match="zman_cuont"):
        func.count().filter(logs.zman_cuont)
    other = Column("zman_cuont", Integer)
    wrong = replace(ZMANIM, key_expressions={"publisher_id": logs.publisher_id, "zman_count": other})
    with pytest.raises(ValueError, match="calculation_zmanim_daily: the log calculation_logs has no column zman_cuont"):
        replace(LOG, rollups=(*LOG.rollups, wrong))
    with pytest.raises(ValueError, match="calculation_zmanim_daily is declared twice"):
        replace(LOG, rollups=(ZMANIM, ZMANIM))
