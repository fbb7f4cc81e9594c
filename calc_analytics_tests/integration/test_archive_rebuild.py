"""Days whose log rows were pruned are rebuilt from the archive, exactly, or not at all."""

import random
import shutil
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from sqlalchemy import Column, MetaData, Table, text

from calc_analytics.archive.checking import check, prove_day
from calc_analytics.archive.erasing import erase_archived
from calc_analytics.archive.place import Archive
from calc_analytics.archive.writing import Replacing, archive
from calc_analytics.engines.archived import ArchivedDays
from calc_analytics.rollup import rebuild as rebuilding
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.erasure import erase
from calc_analytics.rollup.from_archive import Reduction
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.journal import history
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import days_by_status, mark_stale, waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollup.widen import widen
from calc_analytics_tests.archives import archive_in, counted_in, files_of
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.integration.test_rollups import FIVE, ZMANIM, zmanim
from calc_analytics_tests.logs import FORMS, all_stored, execute, oracles, random_rows, row, stored, utc, write

DAY, NEXT, LAST = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)
NOON = utc(2026, 3, 1, 12)
DUCKDB = "DuckDB"


def of_days(found: dict, days: Sequence[date]) -> dict:
    """The statistics of these days."""
    return {name: {key: value for key, value in rows.items() if key[-1] in days} for name, rows in found.items()}


def rebuilt(place: Archive, days: Sequence[date] = (DAY,), **options):
    return rebuild(place.db, days, archived=counted_in(place), **options)


def sources(report) -> set[str]:
    return {day.source for day in report.rebuilt}


def damage_statistics(db: Database) -> None:
    """Another program changes statistics of pruned days, of which PostgreSQL alone has no rows."""
    for relation in FORMS:
        execute(db, f"delete from {relation} where date = '{DAY}' and publisher_id = 2")
        count = FORMS[relation][1][0]
        execute(db, f"update {relation} set {count} = {count} + 1 where date = '{DAY}' and publisher_id = 3")


def require_proven(db: Database, days: Sequence[date] = (DAY, NEXT, LAST)) -> None:
    """Statistics, ledger, log and archive agree."""
    report = verify(db, days)
    assert (report.difference, report.archive) == (0, [])
    assert all(proof.is_proven for proof in report.days), [proof.describe() for proof in report.days]
    assert audit(db).different == []


@pytest.fixture
def place(db: Database, connect, tmp_path: Path) -> Archive:
    """See `archive_three_days`."""
    return archive_three_days(db, connect, tmp_path / "archive")


def archive_three_days(db: Database, connect, folder: Path) -> Archive:
    """Three archived days of random rows, the first two pruned."""
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    write(connect(), random_rows(random.Random(3), 600, utc(2026, 3, 1), utc(2026, 3, 4)))
    rebuild(db, [DAY, NEXT, LAST])
    place = archive_in(db, folder)
    assert len(archive(place).archived) == 3
    prune_before(place, LAST)
    return place


def prune_before(place: Archive, day: date) -> None:
    report = prune(place.db, day, prove_archived=lambda each: prove_day(place, each))
    assert report.refused == {}


def log_rows(db: Database, day: date) -> int:
    with db.engine.begin() as connection:
        statement = "select count(*) from calculation_logs where cast(created_at at time zone :tz as date) = :day"
        return connection.execute(text(statement), {"day": day, "tz": db.timezone}).scalar_one()


def test_a_pruned_day_is_rebuilt_from_the_archive_to_what_it_was(place: Archive):
    before = all_stored(place.db)
    damage_statistics(place.db)
    assert all_stored(place.db) != before
    assert rebuild(place.db, [DAY]).rebuilt == []
    report = rebuilt(place, [DAY, NEXT, LAST])
    assert {(each.day, each.source, each.engine.split()[0] if each.engine else "") for each in report.rebuilt} == {
        (DAY, "archive", DUCKDB),
        (NEXT, "archive", DUCKDB),
        (LAST, "log rows", ""),
    }
    assert report.refused == []
    assert all_stored(place.db) == before
    require_proven(place.db)


CHANGES = {
    "a measure": "update {table} set {count} = {count} + 1 where {one_row}",
    "two rows, of which the sum is the same": "update {table} set {count} = {count} + case publisher_id when 2 then 1 "
    "else -1 end where date = :day and ctid in (select min(ctid) from {table} where date = :day and publisher_id "
    "in (2, 3) group by publisher_id)",
    "a row that is missing": "delete from {table} where {one_row}",
    "a row too many": "insert into {table} select (jsonb_populate_record(t, '{{\"publisher_id\": 77}}')).* "
    "from {table} t where {one_row}",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("table", FORMS)
def test_days_that_are_as_the_archive_has_them_are_not_written_again(place: Archive, table: str, change: str):
    def written_by() -> dict:
        statement = "select date, array_agg(distinct cast(xmin as text)) from {} group by date"
        with place.db.engine.begin() as connection:
            found = {name: connection.execute(text(statement.format(name))) for name in FORMS}
            return {(name, each.date): each.array_agg for name, rows in found.items() for each in rows}

    before, writers = all_stored(place.db), written_by()
    one_row = f"ctid = (select min(ctid) from {table} where date = :day and publisher_id = 2)"
    with place.db.engine.begin() as connection:
        statement = change.format(table=table, count=FORMS[table][1][0], one_row=one_row)
        assert connection.execute(text(statement), {"day": DAY}).rowcount in (1, 2)
    assert all_stored(place.db) != before
    report = rebuilt(place, [DAY, NEXT])
    assert {(each.rollup, each.day) for each in report.rebuilt} == {
        (name, day) for name in FORMS for day in (DAY, NEXT)
    }
    assert all_stored(place.db) == before
    assert {key for key, value in written_by().items() if value != writers[key]} == {(table, DAY)}
    require_proven(place.db)


@pytest.mark.parametrize("is_before", [True, False])
def test_a_change_beside_a_rebuild_that_writes_nothing_is_not_recorded_as_counted(
    place: Archive, monkeypatch: pytest.MonkeyPatch, is_before: bool
):
    """By another program: it is written over if it comes before the days are compared, else an audit finds it."""
    before, table, compared = all_stored(place.db), place.db.log.names[0], rebuilding._differing

    def change() -> None:
        execute(place.db, f"update {table} set cache_hits = cache_hits + 1 where date = '{DAY}' and publisher_id = 2")

    def changed(*arguments) -> set[date]:
        if is_before:
            change()
        found = compared(*arguments)
        if not is_before:
            change()
        return found

    monkeypatch.setattr(rebuilding, "_differing", changed)
    assert rebuilt(place, rollups=[table]).refused == []
    monkeypatch.undo()
    if is_before:
        assert all_stored(place.db) == before
        require_proven(place.db)
    else:
        assert audit(place.db).different
        assert [(each.day, each.finding) for each in verify(place.db, [DAY]).different] == [(DAY, "statistics_changed")]


@pytest.mark.parametrize("is_rebuilt_first", [False, True])
def test_after_a_rebase_a_day_of_which_prune_deleted_a_part_is_rebuilt_from_its_files(
    place: Archive, owner, is_rebuilt_first: bool
):
    """Which of the log rows are archived is found by their ids."""
    before, frame = all_stored(place.db), pandas.read_parquet(f"{place.store.address.path}/date={DAY}").head(40)
    statement = f"insert into calculation_logs ({', '.join(frame)}) values ({', '.join(f':{name}' for name in frame)})"
    with owner.begin() as connection:
        connection.execute(text(statement), frame.astype(object).where(frame.notna(), None).to_dict("records"))
    rebase(replace(place.db, engine=owner))
    if is_rebuilt_first:
        assert {each.day for each in rebuilt(place, [DAY]).refused} == {DAY}
    assert archive(place).left == []
    report = rebuilt(place, [DAY, NEXT, LAST])
    assert (report.refused, {each.source for each in report.rebuilt if each.day == DAY}) == ([], {"archive"})
    assert all_stored(place.db) == before
    require_proven(place.db)
    assert (archive(place).archived, archive(place).left) == ([], [])
    assert check(place).problems == []


def test_report_and_journal_have_the_source_and_the_engine(place: Archive):
    report = rebuilt(place)
    (source,) = report.as_dict()["sources"].values()
    assert source["source"] == "archive"
    assert source["engine"].startswith("DuckDB ")
    entry = next(entry for entry in history(place.db) if entry.operation == "rebuild")
    assert all(
        done["source"] == "archive" and done["engine"] == source["engine"] for done in entry.days[str(DAY)].values()
    )


def test_rebuilding_from_the_archive_twice_changes_nothing(place: Archive):
    before = all_stored(place.db)
    for _ in range(2):
        rebuilt(place, [DAY, NEXT])
        assert all_stored(place.db) == before
    require_proven(place.db)


def test_late_rows_of_a_pruned_day_are_counted_beside_the_archive(place: Archive, connect):
    write(connect(), [row(NOON, publisher=2, response_time_ms=300), row(NOON, publisher=77)])
    refresh(place.db)
    before = all_stored(place.db)
    damage_statistics(place.db)
    report = rebuilt(place)
    assert sources(report) == {"archive and log rows"}
    assert all_stored(place.db) == before
    require_proven(place.db)
    archive(place)
    assert sources(rebuilt(place)) == {"archive"}
    assert all_stored(place.db) == before
    require_proven(place.db)


def test_rows_that_come_during_the_rebuild_are_counted_once(place: Archive, connect):
    slow = connect()
    slow.execute(
        "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at) "
        f"values (5, 1, '2030-01-01', 1, '{NOON}')"
    )
    before = stored(place.db)

    def then_others_write() -> None:
        slow.commit()
        write(connect(), [row(NOON, publisher=77)] * 2)

    report = rebuild(place.db, [DAY], archived=Between(counted_in(place), then_others_write))
    assert sources(report) == {"archive and log rows"}
    after = stored(place.db)
    assert after[5, DAY][0] == before[5, DAY][0] + 1
    assert after[77, DAY][0] == 2
    require_proven(place.db)


def test_a_day_that_was_pruned_in_part_is_counted_once(place: Archive, connect):
    before = all_stored(place.db)
    with place.db.engine.begin() as connection:
        ids = connection.execute(text("select id from calculation_logs order by id")).scalars().all()
    prune_in_part(place, LAST)
    assert 0 < log_rows(place.db, LAST) < len(ids)
    assert sources(rebuilt(place, [LAST])) == {"archive"}
    assert all_stored(place.db) == before
    require_proven(place.db)
    prune_before(place, LAST + timedelta(days=1))
    require_proven(place.db)


class _Stopped(Exception):
    """The pruning ends in the middle of a day."""


def prune_in_part(place: Archive, day: date) -> None:
    def stop(rows: int) -> None:
        raise _Stopped

    with pytest.raises(_Stopped):
        prune(
            place.db,
            day + timedelta(days=1),
            batch_rows=50,
            progress=stop,
            prove_archived=lambda each: prove_day(place, each),
        )


def with_a_fifth_rollup(place: Archive, owner) -> Archive:
    """The archive of the database in which one more rollup is declared."""
    execute(
        place.db,
        "create table calculation_zmanim_daily (publisher_id int, date date, zman_count int, "
        "calculations int not null, from_cache bigint not null, primary key (publisher_id, date, zman_count))",
    )
    five = Archive(replace(place.db, log=FIVE))
    install(replace(five.db, engine=owner))
    execute(place.db, f"grant select, insert, update, delete on calculation_zmanim_daily to {ROLE}")
    return five


@pytest.mark.parametrize("decision", [Decision.AUTOMATIC, Decision.NONE])
def test_a_rollup_that_is_declared_later_is_filled_from_the_archive(place: Archive, owner, decision: Decision):
    five = with_a_fifth_rollup(place, owner)
    assert waiting_days(five.db) == [DAY, NEXT, LAST]
    report = rebuilt(five, waiting_days(five.db), rollups=[ZMANIM.name], decision=decision)
    assert report.refused == []
    assert waiting_days(five.db) == []
    totals = {}
    for (_, _, day), (calculations, _) in zmanim(owner).items():
        totals[day] = totals.get(day, 0) + calculations
    for day in (DAY, NEXT, LAST):
        assert totals[day] == sum(measures[0] for (_, of_day), measures in stored(place.db).items() if of_day == day)
    require_proven(five.db)


def without_column(db: Database, name: str) -> Database:
    """As if that column of the log were not declared."""
    kept = [each for each in db.log.table.columns if each.name != name]
    columns = [Column(each.name, each.type, primary_key=each.primary_key) for each in kept]
    return replace(db, log=replace(db.log, table=Table(db.log.name, MetaData(), *columns)))


def test_days_that_were_archived_before_a_column_was_declared_are_counted_checked_and_erased(
    db: Database, owner, connect, tmp_path: Path
):
    """In these days it is null, as in PostgreSQL; where the log has values, the archive differs from it."""
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    write(connect(), random_rows(random.Random(5), 600, utc(2026, 3, 1), utc(2026, 3, 4)))
    execute(owner, "update calculation_logs set zman_count = 7 where created_at >= '2026-03-02Z'")
    rebuild(db, [DAY, NEXT, LAST])
    place = archive_in(db, tmp_path)
    old = Archive(without_column(place.db, "zman_count"))
    archive(old, [DAY, NEXT])
    archive(place, [LAST])
    found = check(place)
    assert (found.days, len(found.problems)) == ([DAY, LAST], 1)
    problem = found.problems[0]
    assert f"date={NEXT} differs from the log" in problem
    assert archive(place, [NEXT], replacing=Replacing.WHOLE).archived
    assert check(place).problems == []
    assert check(old).problems == []
    prune_before(place, LAST + timedelta(days=1))
    before = all_stored(place.db)
    assert rebuilt(place, [DAY, NEXT, LAST]).refused == []
    assert all_stored(place.db) == before

    five = with_a_fifth_rollup(place, owner)
    assert rebuilt(five, [DAY, NEXT, LAST], rollups=[ZMANIM.name]).refused == []
    assert {(count, day) for _, count, day in zmanim(owner)} == {(-1, DAY), (7, NEXT), (7, LAST)}

    erase(five.db, {"publisher_id": 2})
    assert set(erase_archived(five, {"publisher_id": 2}).rows) == {DAY, NEXT, LAST}
    assert check(five).problems == []
    schemas = [parquet_columns(place, day) for day in (DAY, NEXT)]
    assert [("zman_count" in each) for each in schemas] == [False, True]
    require_proven(five.db)


def parquet_columns(place: Archive, day: date) -> list[str]:
    (name,) = files_of(place, day)
    return list(pyarrow.parquet.read_schema(Path(place.store.address.path) / name).names)


def test_a_frozen_day_is_built_from_the_archive(place: Archive):
    execute(place.db, f"delete from calculation_latency_daily where date = '{DAY}'")
    execute(
        place.db,
        f"update rollup_days set status = 'frozen', counted = '{{}}', deleted = null, checksum = null "
        f"where date = '{DAY}' and rollup = 'calculation_latency_daily'",
    )
    assert rebuilt(place).refused == []
    assert DAY not in days_by_status(place.db, ["frozen"])
    require_proven(place.db)


def test_after_a_rebase_a_pruned_day_is_rebuilt_from_the_archive(place: Archive, owner):
    before = all_stored(place.db)
    rebase(replace(place.db, engine=owner))
    damage_statistics(place.db)
    report = rebuilt(place, waiting_days(place.db), decision=Decision.AUTOMATIC)
    assert sources(report) == {"archive", "log rows"}
    assert all_stored(place.db) == before


def test_a_measure_that_is_added_later_is_filled_from_the_archive(place: Archive, owner):
    """What its migration does: a column of zeros that `counted` does not have, and days that wait for a rebuild."""
    before = all_stored(place.db)
    execute(place.db, "update calculation_stats_daily set source_web = 0")
    execute(place.db, "update rollup_days set counted = counted - 'source_web', deleted = deleted - 'source_web'")
    with place.db.engine.begin() as connection:
        mark_stale(connection, place.db.log)
    report = rebuilt(place, waiting_days(place.db), decision=Decision.AUTOMATIC)
    assert report.refused == []
    assert all_stored(place.db) == before
    require_proven(place.db)


@pytest.mark.parametrize("status", ["stale", "frozen"])
def test_late_rows_of_an_archived_day_that_waits_are_counted(place: Archive, connect, status: str):
    """No refresh adds to such a day, so that it has more rows than were counted."""
    execute(place.db, f"update rollup_days set status = '{status}' where date = '{DAY}'")
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(place.db)
    report = rebuilt(place, decision=Decision.AUTOMATIC)
    assert report.refused == []
    assert sources(report) == {"archive and log rows"}
    assert stored(place.db)[77, DAY][0] == 3
    require_proven(place.db)


# What is refused.


def test_late_rows_do_not_hide_an_interrupted_erasure(place: Archive, connect):
    write(connect(), [row(NOON, publisher=77)] * 500)
    refresh(place.db)
    erase(place.db, {"publisher_id": 2}, even_if_writing=True)
    execute(place.db, f"update rollup_days set status = 'stale' where date = '{DAY}'")
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(place.db)
    before = all_stored(place.db)
    assert {each.reason for each in rebuilt(place).failed} == {"archive"}
    assert all_stored(place.db) == before


@dataclass
class Faulty:
    """An engine that loses a row of the archive in one rollup."""

    archived: ArchivedDays
    rollup: str

    def reduce(self, rollups, records: Mapping) -> Reduction:
        found = self.archived.reduce(rollups, records)
        return replace(found, tables={**found.tables, self.rollup: found.tables[self.rollup].slice(1)})


@pytest.mark.parametrize("rollup", FORMS)
@pytest.mark.parametrize("decision", [Decision.AUTOMATIC, Decision.ALLOW_SHRINK])
def test_a_day_with_fewer_archived_rows_in_any_rollup_is_refused(place: Archive, rollup: str, decision: Decision):
    before = all_stored(place.db)
    report = rebuild(place.db, [DAY], archived=Faulty(counted_in(place), rollup), decision=decision)
    assert {each.reason for each in report.failed} == {"archive"}
    assert report.rebuilt == []
    assert all_stored(place.db) == before


def test_allow_shrink_recounts_an_unbalanced_day_from_its_log_rows(place: Archive, connect):
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(place.db)
    erase(place.db, {"publisher_id": 2}, even_if_writing=True)
    assert {each.reason for each in rebuilt(place).failed} == {"archive"}
    report = rebuilt(place, decision=Decision.ALLOW_SHRINK)
    assert report.refused == []
    assert sources(report) == {"log rows"}
    assert {key: row[0] for key, row in stored(place.db).items() if key[-1] == DAY} == {(77, DAY): 3}


def test_allow_shrink_counts_what_is_left_in_the_archive_and_in_the_log(place: Archive, connect):
    archived = {key: row[0] for key, row in stored(place.db).items() if key[-1] == DAY}
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(place.db)
    execute(place.db, "delete from calculation_logs where id = (select max(id) from calculation_logs)")
    assert {each.reason for each in rebuilt(place).failed} == {"archive"}
    report = rebuilt(place, decision=Decision.ALLOW_SHRINK)
    assert sources(report) == {"archive and log rows"}
    assert {key: row[0] for key, row in stored(place.db).items() if key[-1] == DAY} == {**archived, (77, DAY): 2}
    require_proven(place.db)


@pytest.mark.parametrize("how", ["damaged", "missing", "cut"])
def test_a_day_with_a_file_that_is_not_what_was_written_stays_as_it_is(place: Archive, how: str):
    (name,) = files_of(place, DAY)
    file = Path(place.store.path(name))
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if how == "damaged" else content[:-100])
    before, known = all_stored(place.db), days_by_status(place.db, ["built"])
    report = rebuilt(place, [DAY, NEXT])
    assert {(each.day, each.reason) for each in report.refused} == {(DAY, "archive")}
    assert all(str(file) in str(each) for each in report.failed)
    assert report.days == [NEXT]
    assert all_stored(place.db) == before
    assert days_by_status(place.db, ["built"]) == known
    assert [entry.operation for entry in history(place.db)[:2]].count("refuse") == 1


def test_a_day_whose_books_do_not_balance_is_refused(place: Archive, connect):
    """A row of which the ledger knows nothing is in the log beside the archive."""
    write(connect(), [row(NOON, publisher=77)])
    refresh(place.db)
    execute(place.db, "delete from calculation_logs where publisher_id = 77")
    before = all_stored(place.db)
    report = rebuilt(place)
    assert {each.reason for each in report.failed} == {"archive"}
    assert "0 log rows that are not in it" in str(report.failed[0])
    assert all_stored(place.db) == before


def test_the_same_refusal_is_in_the_journal_once(place: Archive):
    (name,) = files_of(place, DAY)
    file = Path(place.store.path(name))
    content = file.read_bytes()
    file.unlink()

    def refusals() -> int:
        return sum(entry.operation == "refuse" for entry in history(place.db))

    for _ in range(2):
        assert rebuilt(place).failed
        assert refusals() == 1
    file.write_bytes(content[:-1])
    assert rebuilt(place).failed
    assert refusals() == 2, "another reason"
    file.write_bytes(content)
    assert rebuilt(place).failed == []
    file.write_bytes(content[:-1])
    assert rebuilt(place).failed
    assert refusals() == 3, "it was rebuilt meanwhile"


def test_a_missing_package_is_one_line_and_hot_days_are_rebuilt(place: Archive, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    monkeypatch.delitem(sys.modules, "calc_analytics.engines.duckdb", raising=False)
    report = rebuilt(place, [DAY, LAST])
    assert report.days == [LAST]
    assert all("pip install -c constraints.txt '.[archive]'" in str(each) for each in report.refused)
    assert {each.day for each in report.refused} == {DAY}


def test_keep_does_not_look_into_the_archive_and_allow_shrink_does(place: Archive):
    before = all_stored(place.db)
    assert rebuilt(place, decision=Decision.KEEP).rebuilt == []
    assert sources(rebuilt(place, decision=Decision.ALLOW_SHRINK)) == {"archive"}
    assert all_stored(place.db) == before
    require_proven(place.db)


def test_an_archived_value_that_its_column_cannot_hold_sets_that_day_aside(place: Archive, owner, connect):
    widen(replace(place.db, engine=owner), "response_time_ms", "bigint")
    write(connect(), [row(NOON, publisher=9, response_time_ms=2**16)])
    refresh(place.db)
    archive(place)
    prune_before(place, LAST)
    execute(place.db, "drop view calculation_latency_daily_live")
    execute(place.db, "delete from calculation_latency_daily where publisher_id = 9")
    execute(place.db, "alter table calculation_latency_daily alter response_time_ms type smallint")
    report = rebuilt(place, [DAY, NEXT])
    (refused,) = report.refused
    assert (refused.day, refused.rollup, refused.reason) == (DAY, "calculation_latency_daily", "overflow")
    assert "65,536" in refused.detail
    assert len(report.rebuilt) == 7


# What others do meanwhile.


@dataclass
class Between:
    """The archive; after it was reduced, and before the result is stored, something happens, once."""

    archived: ArchivedDays
    happens: Callable[[], object]
    times: int = 0

    def reduce(self, rollups, records: Mapping) -> Reduction:
        found = self.archived.reduce(rollups, records)
        self.times += 1
        if self.times == 1:
            self.happens()
        return found


def test_an_erased_publisher_does_not_come_back_from_the_archive(place: Archive):
    erase(place.db, {"publisher_id": 2}, even_if_writing=True)
    report = rebuilt(place, [DAY, NEXT])
    assert {each.reason for each in report.failed} == {"archive"}
    erase_archived(place, {"publisher_id": 2})
    assert rebuilt(place, [DAY, NEXT]).refused == []
    assert 2 not in {key[0] for relation in FORMS for key in stored(place.db, relation)}
    require_proven(place.db)


@pytest.mark.parametrize("whole", [True, False], ids=["with its files", "not yet from its files"])
def test_a_publisher_that_is_erased_after_the_reduction_does_not_come_back(place: Archive, whole: bool):
    def erase_it() -> None:
        erase(place.db, {"publisher_id": 2}, even_if_writing=True)
        if whole:
            erase_archived(place, {"publisher_id": 2})

    between = Between(counted_in(place), erase_it)
    report = rebuild(place.db, [DAY, NEXT], archived=between)
    assert 2 not in {key[0] for relation in FORMS for key in stored(place.db, relation)}
    assert report.days == ([DAY, NEXT] if whole else [])
    if whole:
        assert between.times > 1
        require_proven(place.db)


def test_rows_that_are_archived_after_the_reduction_are_counted_once(place: Archive, connect):
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(place.db)
    before = all_stored(place.db)
    between = Between(counted_in(place), lambda: archive(place))
    assert sources(rebuild(place.db, [DAY], archived=between)) == {"archive"}
    assert between.times > 1
    assert all_stored(place.db) == before
    require_proven(place.db)


def test_days_that_cannot_be_counted_from_a_changed_archive_are_reported(place: Archive):
    """The record of one day is gone while the result is loaded; the other day is rebuilt all the same."""

    class Loading(Reduction):
        def of_days(self, rollup, days: Sequence[date]):
            execute(place.db, f"delete from rollup_archive where date = '{DAY}'")
            return super().of_days(rollup, days)

    class Loaded(ArchivedDays):
        def reduce(self, rollups, records: Mapping) -> Reduction:
            return Loading(**vars(super().reduce(rollups, records)))

    archived = counted_in(place)
    report = rebuild(place.db, [DAY, NEXT], archived=Loaded(archived.place, archived.settings))
    assert {(each.day, each.rollup) for each in report.failed} == {(DAY, relation) for relation in FORMS}
    assert all("its archive was changed while it was read, repeat the command" in str(each) for each in report.failed)
    assert report.days == [NEXT]


def test_a_day_whose_archive_changes_all_the_time_is_reported(place: Archive, connect):
    @dataclass
    class Always(Between):
        def reduce(self, rollups, records: Mapping) -> Reduction:
            found = self.archived.reduce(rollups, records)
            self.happens()
            return found

    def archive_another() -> None:
        write(connect(), [row(NOON, publisher=77)])
        refresh(place.db)
        archive(place)

    before = stored(place.db)
    report = rebuild(place.db, [DAY], archived=Always(counted_in(place), archive_another))
    assert {each.day for each in report.failed} == {DAY}
    assert all("its archive was changed while it was read, repeat the command" in str(each) for each in report.failed)
    assert {key: row for key, row in stored(place.db).items() if key[0] != 77} == before


class _Closing(socketserver.StreamRequestHandler):
    """Notes what is asked for, and closes the connection."""

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline().decode())


def test_a_bucket_that_cannot_be_used_is_asked_for_one_day_of_many(place: Archive):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Closing) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        lost = archive_in(
            place.db, f"s3://NAME:PASSWORD@bucket/a?endpoint_url=http://127.0.0.1:{server.server_address[1]}"
        )
        report = rebuilt(lost, [DAY, NEXT, LAST])
        server.shutdown()
    assert {each.day for each in report.failed} == {DAY, NEXT}
    assert len({str(each).split(": ", 1)[1] for each in report.failed}) == 1
    assert report.days == [LAST]
    assert server.asked
    assert all(str(DAY) in asked for asked in server.asked)


def test_days_in_berlin_are_rebuilt_exactly_when_clocks_change(db: Database, connect, owner, tmp_path: Path):
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    berlin = replace(db, timezone="Europe/Berlin")
    rebase(replace(berlin, engine=owner))
    for day in (utc(2026, 3, 27), utc(2026, 10, 23)):
        write(connect(), random_rows(random.Random(day.month), 400, day, day + timedelta(days=4)))
    days = [date(2026, 3, 28), date(2026, 3, 29), date(2026, 3, 30), date(2026, 10, 24), date(2026, 10, 25)]
    rebuild(berlin, days)
    expected = of_days(oracles(berlin), days)
    # Folders above the archive that are called like columns are none.
    place = archive_in(berlin, tmp_path / "source=7" / "date=2020-01-01")
    assert len(archive(place, days).archived) == len(days)
    for day in days:
        prune_before(place, day + timedelta(days=1))
    for relation in FORMS:
        execute(db, f"delete from {relation} where date in ({', '.join(repr(str(day)) for day in days)})")
    report = rebuilt(place, days)
    assert report.days == days
    assert sources(report) == {"archive"}
    assert {
        name: {k: v for k, v in rows.items() if k[-1] in days} for name, rows in all_stored(berlin).items()
    } == expected
    require_proven(berlin, days)


@pytest.mark.parametrize(
    ("folder", "beside"), [("a[1]", "a1"), ("b*", "bc"), ("c?", "cd"), (r"d [e]{f}*\g", r"d e{f}x\g")]
)
def test_only_the_proven_files_are_read_though_the_folder_is_called_like_a_pattern(
    db: Database, connect, tmp_path: Path, folder: str, beside: str
):
    write(connect(), random_rows(random.Random(5), 200, utc(2026, 3, 1), utc(2026, 3, 2)))
    write(connect(), random_rows(random.Random(6), 10, utc(2026, 3, 3), utc(2026, 3, 4)))
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    rebuild(db, [DAY, LAST])
    place = archive_in(db, tmp_path / folder)
    archive(place)
    shutil.copytree(tmp_path / folder, tmp_path / beside)
    for file in (tmp_path / beside).rglob("*.parquet"):
        table = pyarrow.parquet.read_table(file)
        changed = table.set_column(
            table.column_names.index("cache_hit"), "cache_hit", pyarrow.array([True] * table.num_rows)
        )
        pyarrow.parquet.write_table(changed, file)
    prune_before(place, LAST)
    before = all_stored(place.db)
    damage_statistics(place.db)
    assert rebuilt(place).refused == []
    assert all_stored(place.db) == before
