"""The archive in a folder: its files hold exactly what is counted, and nothing that is not proven is published, pruned
or read."""

import os
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from threading import Thread

import pandas
import pytest
from sqlalchemy import text

from benchmarks.running import eventually
from calc_analytics.archive import rows, store, writing
from calc_analytics.archive.checking import check, prove_day
from calc_analytics.archive.erasing import count_archived, erase_archived
from calc_analytics.archive.forgetting import forget
from calc_analytics.archive.manifest import NAME as MANIFEST
from calc_analytics.archive.place import Archive
from calc_analytics.archive.rows import CannotArchiveColumn
from calc_analytics.archive.store import CannotUseArchive
from calc_analytics.archive.writing import Replacing, archive
from calc_analytics.days import today
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.erasure import erase
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.journal import history
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.ledger import TimezoneChanged
from calc_analytics.rollup.patrol import oldest_proof
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollup.widen import widen
from calc_analytics_tests.archives import (
    archive_in,
    archived_rows,
    as_microseconds,
    counted_in,
    files_of,
    log_rows,
    manifest,
    record,
)
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.crowd import Crowd
from calc_analytics_tests.logs import all_stored, copy_rows, execute, oracle, random_rows, row, stored, utc, write

DAY, NEXT, LAST = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)
NOON = utc(2026, 3, 1, 12)


@pytest.fixture
def place(db: Database, connect, tmp_path: Path) -> Archive:
    """Three built days of random rows, an archive that is empty, and the right to delete logs."""
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    write(connect(), random_rows(random.Random(3), 600, utc(2026, 3, 1), utc(2026, 3, 4)))
    rebuild(db, [DAY, NEXT, LAST])
    return archive_in(db, tmp_path / "archive")


@pytest.fixture
def archived(place: Archive) -> Archive:
    """The same with the three days archived."""
    assert len(archive(place).archived) == 3
    return place


def folder(place: Archive) -> Path:
    return Path(place.store.address.path)


def snapshot_of(place: Archive) -> dict[str, bytes]:
    """Every file of the archive, hidden ones too, with its content."""
    root = folder(place)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def prune_all(place: Archive, before: date = LAST):
    return prune(place.db, before, prove_archived=lambda day: prove_day(place, day))


def test_an_upgrade_gives_the_table_of_archived_days_the_grants_of_the_ledger(archived: Archive, owner):
    execute(archived.db, "drop table rollup_archive")
    execute(archived.db, "update calc_analytics_version set version_num = '0007_readers'")
    install(replace(archived.db, engine=owner))
    shutil.rmtree(folder(archived))
    assert len(archive(archived).archived) == 3


# What is archived.


def test_a_days_files_hold_exactly_its_counted_rows_in_every_column(archived: Archive):
    for day in (DAY, NEXT, LAST):
        expected = as_microseconds(log_rows(archived.db, day))
        assert archived_rows(folder(archived), day) == expected
        assert record(archived, day).rows == manifest(archived, day).rows == len(expected) > 100
    assert verify(archived.db, [DAY, NEXT, LAST]).archive == []


def test_pandas_reads_the_folder_with_the_day_as_a_column_and_counts_what_is_counted(archived: Archive):
    frame = pandas.read_parquet(folder(archived))
    assert str(frame["created_at"].dtype) == "datetime64[us, UTC]"
    frame["day"] = pandas.to_datetime(frame["date"].astype(str)).dt.date
    counts = frame.groupby(["publisher_id", "day"]).size().to_dict()
    assert counts == {key: measures[0] for key, measures in stored(archived.db).items()}


def test_archiving_again_changes_nothing(archived: Archive):
    before, entries = snapshot_of(archived), len(history(archived.db))
    assert archive(archived).archived == []
    again = archive(archived, [DAY, NEXT, LAST])
    assert (again.archived, again.unchanged, again.left) == ([], [DAY, NEXT, LAST], [])
    assert snapshot_of(archived) == before
    assert len(history(archived.db)) == entries


def test_late_rows_become_a_further_file_and_the_first_stays_as_it_is(archived: Archive, connect):
    before = snapshot_of(archived)
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    (done,) = archive(archived).archived
    assert (done.day, done.rows, done.files, done.total) == (DAY, 3, 2, len(log_rows(archived.db, DAY)))
    after = snapshot_of(archived)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {f"date={DAY}/_manifest.json"}
    assert [name[-11:] for name in files_of(archived, DAY)].count("002.parquet") == 1
    assert archived_rows(folder(archived), DAY) == as_microseconds(log_rows(archived.db, DAY))


def test_rows_that_are_not_counted_yet_wait_for_their_refresh(archived: Archive, connect):
    slow, quick = connect(), connect()
    copy_rows(slow, [row(NOON, publisher=77)] * 3)
    write(quick, [row(NOON, publisher=88)] * 2)
    assert archive(archived).archived == []
    refresh(archived.db)
    assert [done.rows for done in archive(archived).archived] == [2]
    slow.commit()
    assert archive(archived).archived == []
    refresh(archived.db)
    assert [done.rows for done in archive(archived).archived] == [3]
    assert archived_rows(folder(archived), DAY) == as_microseconds(log_rows(archived.db, DAY))


def test_values_at_their_limits_and_nulls_come_back_as_they_were(db: Database, connect, tmp_path: Path):
    writer = connect()
    write(writer, [row(NOON + timedelta(microseconds=1), response_time_ms=None, locality_id=2**62, source=-1)])
    write(writer, [row(NOON, response_time_ms=-32768, date_calculated=date(1, 1, 1), cache_hit=True)])
    writer.execute("update calculation_logs set zman_count = 32767 where response_time_ms is null")
    writer.execute("update calculation_logs set xact_id = null where response_time_ms is not null")
    writer.commit()
    rebuild(db, [DAY])
    place = archive_in(db, tmp_path)
    archive(place)
    assert archived_rows(folder(place), DAY) == as_microseconds(log_rows(db, DAY))
    assert check(place).problems == []


def test_a_widened_column_leaves_the_files_columns_as_they_were(archived: Archive, owner, connect):
    widen(replace(archived.db, engine=owner), "response_time_ms", "bigint")
    write(connect(), [row(NOON, response_time_ms=2**40)])
    refresh(archived.db)
    archive(archived)
    frame = pandas.read_parquet(folder(archived) / f"date={DAY}")
    assert frame["response_time_ms"].max() == 2**40
    assert check(archived).problems == []


def test_a_column_that_the_archive_cannot_hold_is_refused(place: Archive):
    execute(place.db, "alter table calculation_logs alter column zman_count type text")
    with pytest.raises(CannotArchiveColumn, match="zman_count is text"):
        archive(place)
    execute(place.db, "alter table calculation_logs drop column zman_count")
    assert len(archive(place).archived) == 3
    assert pandas.read_parquet(folder(place))["zman_count"].isna().all()


def test_batches_are_bounded_and_sorted_by_id(place: Archive, monkeypatch):
    monkeypatch.setattr(rows.RowReader.tables, "__defaults__", (64,))
    seen: list[int] = []
    report = archive(place, [DAY], progress=seen.append)
    assert max(seen) == 64
    assert sum(seen) == report.rows
    assert archived_rows(folder(place), DAY) == as_microseconds(log_rows(place.db, DAY))
    assert check(place).problems == []


def test_days_of_another_zone_are_those_of_the_statistics(db: Database, connect, tmp_path: Path):
    execute(db, "update rollup_state set timezone = 'America/Havana'")
    db = replace(db, timezone="America/Havana")
    # Clocks are turned back over midnight on this day: the windows of two days overlap.
    writer, turned = connect(), date(2026, 11, 1)
    write(writer, [row(utc(2026, 11, 1, 4) + timedelta(minutes=7 * n)) for n in range(60)])
    days = [date(2026, 10, 31), turned]
    rebuild(db, days)
    place = archive_in(db, tmp_path)
    archive(place, days)
    expected = {day: measures[0] for (_, day), measures in stored(db).items()}
    assert {day: len(archived_rows(tmp_path, day)) for day in days if day in expected} == expected
    assert sum(expected.values()) == 60


# What is left.


def test_today_days_that_are_not_built_and_days_that_differ_are_left_and_named(place: Archive, connect):
    writer, now = connect(), datetime.now(timezone.utc)
    write(writer, [row(now)])
    write(writer, [row(utc(2026, 3, 5))])
    writer.execute("update calculation_logs set xact_id = null where created_at >= '2026-03-05Z'")
    writer.execute("delete from calculation_logs where id = (select min(id) from calculation_logs)")
    writer.commit()
    refresh(place.db)
    write(writer, [row(utc(2026, 3, 5, 1))])
    refresh(place.db)
    lost = next(day for day in (DAY, NEXT, LAST) if verify(place.db, [day]).different)
    report = archive(place, [today("UTC"), DAY, NEXT, LAST, date(2026, 3, 5), date(2026, 3, 9)])
    assert {each.day: each.reason for each in report.left} == {
        today("UTC"): "not_over",
        lost: "differs",
        date(2026, 3, 5): "not_built",
    }
    assert report.unchanged == [date(2026, 3, 9)]
    assert len(report.archived) == 2
    assert not (folder(place) / f"date={lost}").exists()


def test_rows_that_are_not_as_many_as_were_counted_are_not_published(place: Archive):
    execute(place.db, "delete from calculation_logs where id = (select min(id) from calculation_logs)")
    report = archive(place)
    (left,) = report.left
    assert left.reason == "counts"
    assert left.expected == left.rows + 1
    assert files_of(place, left.day) == []
    assert record(place, left.day).manifest is None


def test_a_day_that_was_pruned_before_is_archived_as_far_as_it_is_there(place: Archive, connect):
    without = replace(place.db, archive_url=None)
    prune(without, NEXT)
    deleted = len(archived_rows_of(place, DAY))
    write(connect(), [row(NOON)] * 4)
    refresh(place.db)
    done = {each.day: each for each in archive(place).archived}
    assert (done[DAY].rows, done[DAY].missing) == (4, stored_count(place, DAY) - 4)
    assert deleted == 0
    assert verify(place.db, [DAY]).archive == []
    assert check(place).problems == []


def test_a_late_row_of_a_pruned_day_that_vanished_is_not_noted_as_deleted_before(archived: Archive, connect):
    prune_all(archived, NEXT)
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    before = snapshot_of(archived)
    execute(archived.db, "delete from calculation_logs where id = (select max(id) from calculation_logs)")
    (left,) = archive(archived).left
    assert (left.day, left.reason, left.rows, left.expected, left.is_wrong) == (DAY, "counts", 2, 3, True)
    assert snapshot_of(archived) == before
    assert record(archived, DAY).missing == 0


def test_late_rows_that_were_pruned_without_the_archive_are_missing(archived: Archive, connect):
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    prune(replace(archived.db, archive_url=None), NEXT)
    write(connect(), [row(NOON, publisher=77)] * 2)
    refresh(archived.db)
    (done,) = archive(archived).archived
    assert (done.rows, done.missing) == (2, 3)
    assert verify(archived.db, [DAY]).archive == []


def test_an_archived_day_that_the_ledger_does_not_have_is_left_and_named(archived: Archive):
    before = snapshot_of(archived)
    execute(archived.db, f"delete from rollup_days where date = '{DAY}'")
    for replacing in Replacing:
        assert [left.reason for left in archive(archived, [DAY], replacing=replacing).left] == ["not_built"]
    assert snapshot_of(archived) == before


def archived_rows_of(place: Archive, day: date) -> list:
    return archived_rows(folder(place), day) if (folder(place) / f"date={day}").exists() else []


def stored_count(place: Archive, day: date) -> int:
    return sum(measures[0] for (_, of), measures in stored(place.db).items() if of == day)


# What differs is found.


def test_verify_reports_a_day_whose_archived_rows_do_not_add_up(archived: Archive):
    execute(archived.db, f"update rollup_archive set rows = rows - 1 where date = '{DAY}'")
    (found,) = verify(archived.db, [DAY, NEXT]).archive
    assert (found.day, found.counted) == (DAY, found.archived + found.unarchived + 1)
    assert f"{DAY} of the archive" in str(found)


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "missing", "swapped", "unknown", "manifest", "no manifest", "format"]
)
def test_a_file_that_is_not_what_was_written_is_refused_by_name(archived: Archive, damage: str):
    (name,) = files_of(archived, DAY)
    file, note = folder(archived) / name, folder(archived) / f"date={DAY}" / "_manifest.json"
    expected = {"manifest": note, "no manifest": note, "format": note}.get(damage, file)
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "swapped":
        shutil.copy(folder(archived) / files_of(archived, NEXT)[0], file)
    elif damage == "unknown":
        expected = file.with_name("calculation_logs-00000000-009.parquet")
        shutil.copy(file, expected)
    elif damage == "no manifest":
        note.unlink()
    elif damage == "manifest":
        note.write_text(note.read_text().replace('"missing": 0', '"missing": 1'))
    else:
        note.write_text(note.read_text().replace('"format": 1', '"format": 2'))
    (problem,) = check(archived).problems
    assert problem.startswith(str(expected))
    assert "\n" not in problem
    assert check(archived, [NEXT, LAST]).problems == []
    if damage != "unknown":
        assert str(expected) in (prove_day(archived, DAY) or "")
        report = prune_all(archived, NEXT)
        assert (report.rows, set(report.refused)) == (0, {DAY})
    assert len(log_rows(archived.db, DAY)) == record(archived, DAY).rows


def test_an_archive_of_another_log_zone_or_database_is_refused(archived: Archive, connect):
    before = snapshot_of(archived)
    execute(archived.db, "update rollup_archive set manifest = replace(manifest, '\"UTC\"', '\"Asia/Jerusalem\"')")
    assert all("time zone Asia/Jerusalem" in each for each in check(archived).problems)
    execute(archived.db, "update rollup_archive set manifest = replace(manifest, 'calculation_logs\",', 'other\",')")
    assert all("of the log other" in each for each in check(archived).problems)
    execute(archived.db, "delete from rollup_archive")
    report = archive(archived)
    assert {each.reason for each in report.left} == {"damaged"}
    assert all("not known to this database" in str(each) for each in report.left)
    assert snapshot_of(archived) == before


def test_after_a_restore_the_manifest_that_the_database_holds_is_put_back(archived: Archive, connect):
    held = record(archived, DAY)
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    archive(archived, [DAY])
    with archived.db.engine.begin() as connection:
        ledger.record_archived(connection, archived.db.log, held)
    (left,) = archive(archived, [DAY]).left
    assert "Put the manifest back that rollup_archive holds" in str(left)
    assert "or move that folder away" not in str(left)
    archived.store.publish(f"date={DAY}/_manifest.json", (held.manifest or "").encode())
    assert [done.rows for done in archive(archived, [DAY]).archived] == [3]
    (unknown,) = check(archived).problems
    assert "is unknown" in unknown


def test_an_archive_that_was_moved_is_the_same_at_its_new_place(archived: Archive, connect, tmp_path: Path):
    shutil.copytree(folder(archived), tmp_path / "elsewhere")
    empty, moved = archive_in(archived.db, tmp_path / "empty"), archive_in(archived.db, tmp_path / "elsewhere")
    assert all("is missing" in problem for problem in check(empty).problems)
    assert check(moved).problems == []
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    assert [left.reason for left in archive(empty).left] == ["damaged"]
    assert [done.rows for done in archive(moved).archived] == [3]
    assert check(moved).problems == []


def test_a_log_row_that_was_corrected_is_found_and_the_day_written_again_when_asked(archived: Archive):
    corrected = log_rows(archived.db, DAY)[0][0]
    execute(archived.db, f"update calculation_logs set response_time_ms = 31 where id = {corrected}")
    rebuild(archived.db, [DAY])
    (problem,) = check(archived).problems
    assert "1 rows have other values" in problem
    assert set(prune_all(archived, NEXT).refused) == {DAY}
    assert archive(archived).archived == []
    old = files_of(archived, DAY)
    (done,) = archive(archived, [DAY], replacing=Replacing.WHOLE).archived
    assert done.rows == done.total
    assert set(files_of(archived, DAY)).isdisjoint(old)
    assert check(archived).problems == []
    assert archived_rows(folder(archived), DAY) == as_microseconds(log_rows(archived.db, DAY))


def test_the_only_copy_of_a_row_is_never_replaced(archived: Archive):
    before = snapshot_of(archived)
    assert prune_all(archived, NEXT).rows == record(archived, DAY).rows
    (left,) = archive(archived, [DAY], replacing=Replacing.WHOLE).left
    assert (left.reason, left.rows) == ("only_copy", record(archived, DAY).rows)
    rebuild(archived.db, [DAY], decision=Decision.ALLOW_SHRINK)
    assert [left.reason for left in archive(archived).left] == ["counts"]
    assert [left.reason for left in archive(archived, [DAY], replacing=Replacing.WHOLE).left] == ["only_copy"]
    assert snapshot_of(archived) == before


def test_rows_that_were_wrong_are_dropped_from_the_files_when_that_is_decided(archived: Archive):
    wrong = log_rows(archived.db, DAY)[0][0]
    execute(archived.db, f"delete from calculation_logs where id = {wrong}")
    rebuild(archived.db, [DAY], decision=Decision.ALLOW_SHRINK)
    assert [each.day for each in verify(archived.db, [DAY, NEXT]).archive] == [DAY]
    assert [left.reason for left in archive(archived).left] == ["counts"]
    assert [left.rows for left in archive(archived, [DAY], replacing=Replacing.WHOLE).left] == [1]
    assert len(archive(archived, [DAY], replacing=Replacing.ALLOW_SHRINK).archived) == 1
    assert archived_rows(folder(archived), DAY) == as_microseconds(log_rows(archived.db, DAY))
    assert verify(archived.db, [DAY, NEXT]).archive == []
    assert check(archived).problems == []


def test_after_a_rebase_rows_that_were_not_archived_become_a_further_file_once_they_are_counted(
    archived: Archive, owner, connect
):
    write(connect(), [row(NOON, publisher=77)] * 3)
    rebase(replace(archived.db, engine=owner))
    before = snapshot_of(archived)
    assert archive(archived).archived == []
    assert prune_all(archived).rows == 0
    rebuild(archived.db, [DAY, NEXT, LAST])
    assert [(done.day, done.rows, done.files) for done in archive(archived).archived] == [(DAY, 3, 2)]
    after = snapshot_of(archived)
    assert {name: before[name] for name in before if not name.endswith(MANIFEST)}.items() <= after.items()
    without_transactions = [each[:-1] for each in archived_rows(folder(archived), DAY)]
    assert without_transactions == [each[:-1] for each in as_microseconds(log_rows(archived.db, DAY))]
    assert check(archived).problems == []
    assert prune_all(archived).rows > 100


def prune_and_add_late_rows(place: Archive, connect) -> None:
    prune_all(place, NEXT)
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(place.db)


@pytest.mark.parametrize("first", ["archive", "rebuild", "late rows", "late rows, rebuild"])
def test_after_a_rebase_a_pruned_day_takes_the_late_rows_that_were_not_archived_before_it(
    archived: Archive, owner, connect, first: str
):
    """And those that came after it, whatever was done in between."""
    db, before = archived.db, archived_rows(folder(archived), DAY)
    prune_and_add_late_rows(archived, connect)
    wanted = all_stored(db)
    rebase(replace(db, engine=owner))
    if "late rows" in first:
        write(connect(), [row(NOON, publisher=78)] * 2)
        refresh(db)
    if "rebuild" in first:
        rebuild(db, [DAY, NEXT, LAST], decision=Decision.KEEP)
    late = as_microseconds(log_rows(db, DAY))
    (done,) = archive(archived, [DAY]).archived
    assert (done.day, done.rows, done.files, done.missing) == (DAY, 3, 2, 0)
    assert archived_rows(folder(archived), DAY) == sorted(before + [each for each in late if each[1] == 77])
    report = rebuild(db, [DAY, NEXT, LAST], archived=counted_in(archived))
    assert (report.refused, {each.source for each in report.rebuilt if each.day == DAY}) == (
        [],
        {"archive and log rows" if "late rows" in first else "archive"},
    )
    assert "late rows" in first or all_stored(db) == wanted
    archive(archived)
    assert archived_rows(folder(archived), DAY) == sorted(before + late)
    assert verify(db, [DAY, NEXT, LAST]).difference == 0
    assert verify(db, [DAY, NEXT, LAST]).archive == []
    assert check(archived).problems == []
    assert prune_all(archived, NEXT).rows == len(late)


ONE_LATE_ROW = "where id = (select max(id) from calculation_logs where publisher_id = 77)"


@pytest.mark.parametrize("is_verified", [True, False])
@pytest.mark.parametrize("change", ["never counted", "changed", "moved", "exchanged", "deleted"])
def test_after_a_rebase_late_rows_that_are_not_what_was_counted_are_not_archived(
    archived: Archive, owner, connect, change: str, is_verified: bool
):
    prune_and_add_late_rows(archived, connect)
    match change:
        case "changed":
            execute(archived.db, f"update calculation_logs set response_time_ms = response_time_ms + 9 {ONE_LATE_ROW}")
        case "moved":
            execute(archived.db, f"update calculation_logs set publisher_id = 78 {ONE_LATE_ROW}")
        case "exchanged" | "deleted":
            execute(archived.db, f"delete from calculation_logs {ONE_LATE_ROW}")
    if is_verified:
        verify(archived.db, [DAY])
    if change in ("never counted", "exchanged"):
        write(connect(), [row(NOON, publisher=77 if is_verified else 78)])
    before = snapshot_of(archived)
    rebase(replace(archived.db, engine=owner))
    assert archive(archived).archived == []
    assert snapshot_of(archived) == before
    assert record(archived, DAY).snapshot is None


@pytest.mark.parametrize("is_noted", [True, False])
@pytest.mark.parametrize("how", ["kept", "pruned without the archive"])
def test_after_a_rebase_rows_whose_deletion_is_on_record_are_missing(
    archived: Archive, owner, connect, how: str, is_noted: bool
):
    db = archived.db
    prune_and_add_late_rows(archived, connect)
    if how == "kept":
        execute(db, f"delete from calculation_logs {ONE_LATE_ROW}")
        rebuild(db, [DAY], decision=Decision.KEEP)
    else:
        prune(replace(db, archive_url=None), NEXT)
        write(connect(), [row(NOON, publisher=79)] * 2)
        refresh(db)
    if is_noted:
        archive(archived)
        write(connect(), [row(NOON, publisher=79)])
        refresh(db)
    rebase(replace(db, engine=owner))
    assert [(done.day, done.rows) for done in archive(archived).archived] == [(DAY, 1 if is_noted else 2)]
    assert record(archived, DAY).missing == (1 if how == "kept" else 3)
    rebuild(db, [DAY, NEXT, LAST], decision=Decision.KEEP)
    assert verify(db, [DAY, NEXT, LAST]).difference == 0
    assert verify(db, [DAY, NEXT, LAST]).archive == []
    assert check(archived).problems == []


@pytest.mark.parametrize("is_built", [True, False])
def test_after_a_rebase_an_interrupted_erasure_is_completed_though_late_rows_came(
    archived: Archive, owner, connect, is_built: bool
):
    db = archived.db
    prune_all(archived, NEXT)
    assert erase(db, {"publisher_id": 3}).left == []
    write(connect(), [row(NOON, publisher=3)] * 3)
    refresh(db)
    rebase(replace(db, engine=owner))
    if is_built:
        rebuild(db, [DAY, NEXT, LAST], decision=Decision.KEEP)
    archive(archived)
    assert set(record(archived, DAY).erased) == {"publisher_id 3"}
    from_archive = counted_in(archived)
    if not is_built:
        report = rebuild(db, [DAY, NEXT, LAST], archived=from_archive)
        assert {each.day for each in report.refused} == {DAY}
        assert f"rollup --day {DAY} --keep' if it waits for a rebuild, then erase again" in report.refused[0].detail
        rebuild(db, [DAY], decision=Decision.KEEP, archived=from_archive)
    assert erase_everywhere(archived, 3).problems == []
    assert rebuild(db, [DAY, NEXT, LAST], archived=from_archive).refused == []
    archive(archived)
    assert_whole_without(archived, 3)


def test_a_late_row_that_vanishes_while_it_is_archived_after_a_rebase_leaves_its_day_alone(
    archived: Archive, owner, connect, monkeypatch: pytest.MonkeyPatch
):
    prune_and_add_late_rows(archived, connect)
    before = snapshot_of(archived)
    rebase(replace(archived.db, engine=owner))
    rebuild(archived.db, [NEXT, LAST])
    write(connect(), [row(NOON + timedelta(days=1), publisher=77)])
    refresh(archived.db)
    counted = writing.count_days

    def then_deleted(*arguments) -> None:
        counted(*arguments)
        execute(archived.db, f"delete from calculation_logs {ONE_LATE_ROW.replace('max(id)', 'min(id)')}")

    monkeypatch.setattr(writing, "count_days", then_deleted)
    report = archive(archived)
    assert [(left.day, left.reason, left.rows, left.expected) for left in report.left] == [(DAY, "counts", 2, 3)]
    assert [done.day for done in report.archived] == [NEXT]
    after = snapshot_of(archived)
    of_day = [{name: files[name] for name in files if f"date={DAY}" in name} for files in (before, after)]
    assert of_day[0] == of_day[1]


@pytest.mark.parametrize("replacing", [Replacing.NO, Replacing.WHOLE])
def test_after_a_rebase_a_day_is_once_in_the_report(archived: Archive, owner, connect, replacing: Replacing):
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    rebase(replace(archived.db, engine=owner))
    rebuild(archived.db, [DAY, NEXT, LAST])
    write(connect(), [row(NOON, publisher=78)] * 2)
    refresh(archived.db)
    report = archive(archived, [DAY], replacing=replacing)
    total = len(log_rows(archived.db, DAY))
    wanted = (DAY, 5, 3, total) if replacing is Replacing.NO else (DAY, total, 1, total)
    assert [(done.day, done.rows, done.files, done.total) for done in report.archived] == [wanted]
    assert (report.left, report.unchanged, check(archived).problems) == ([], [], [])


def test_after_a_rebase_a_pruned_day_keeps_its_files_and_takes_late_rows(archived: Archive, owner, connect):
    before, everything = snapshot_of(archived), archived_rows(folder(archived), DAY)
    prune_all(archived, NEXT)
    rebase(replace(archived.db, engine=owner))
    rebuild(archived.db, [DAY], decision=Decision.KEEP)
    report = archive(archived)
    assert (report.archived, report.left, report.unchanged) == ([], [], [])
    assert snapshot_of(archived) == before
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    assert [done.rows for done in archive(archived).archived] == [3]
    assert archived_rows(folder(archived), DAY) == sorted(everything + as_microseconds(log_rows(archived.db, DAY)))
    assert verify(archived.db, [DAY]).archive == []
    assert check(archived).problems == []


def test_days_of_another_time_zone_are_archived_at_another_place(archived: Archive, owner, tmp_path: Path):
    zone = replace(archived.db, timezone="Asia/Jerusalem")
    rebase(replace(zone, engine=owner))
    days = [*(DAY + timedelta(days=n) for n in range(-1, 4))]
    rebuild(zone, days)
    before = snapshot_of(archived)
    report = archive(replace(archived, db=zone), days)
    assert {left.day for left in report.left} == {DAY, NEXT, LAST}
    assert all("'calc-analytics archive --forget' and set ARCHIVE_URL to another place" in str(e) for e in report.left)
    elsewhere = archive_in(zone, tmp_path / "elsewhere")
    assert set(forget(replace(elsewhere, db=replace(zone, timezone="Asia/Tokyo"))).rows) >= {DAY, NEXT, LAST}, (
        "the state is not needed"
    )
    assert archive(elsewhere, days).left == []
    assert check(elsewhere).problems == []
    assert verify(elsewhere.db, days).archive == []
    assert sum(record(elsewhere, day).rows for day in days) == 600
    assert {name: snapshot_of(archived)[name] for name in before} == before


def test_archived_days_are_those_of_the_time_zone_or_of_another_until_they_are_forgotten(archived: Archive):
    def counted(timezone_: str) -> tuple[int, int]:
        with archived.db.engine.begin() as connection:
            return ledger.count_by_zone(connection, replace(archived.db, timezone=timezone_))

    assert (counted("UTC"), counted("Asia/Jerusalem")) == ((3, 0), (0, 3))
    forget(archived, [DAY])
    assert (counted("UTC"), counted("Asia/Jerusalem")) == ((2, 0), (0, 2))


def test_a_time_zone_that_is_set_back_finds_the_archive_again(archived: Archive, owner):
    before = snapshot_of(archived)
    for timezone_ in ("Asia/Jerusalem", "UTC"):
        rebase(replace(archived.db, engine=owner, timezone=timezone_))
    rebuild(archived.db, [DAY, NEXT, LAST])
    assert (archive(archived, [DAY, NEXT, LAST]).left, check(archived).problems) == ([], [])
    assert snapshot_of(archived) == before


@pytest.mark.parametrize("change", ["changed", "unknown"])
def test_after_a_rebase_log_rows_that_are_not_the_archived_ones_are_not_taken_for_them(
    archived: Archive, owner, connect, change: str
):
    execute(archived.db, f"delete from calculation_logs where id = {log_rows(archived.db, DAY)[0][0]}")
    if change == "changed":
        corrected = log_rows(archived.db, DAY)[0][0]
        execute(archived.db, f"update calculation_logs set response_time_ms = 31 where id = {corrected}")
    else:
        write(connect(), [row(NOON, publisher=77)])
    rebase(replace(archived.db, engine=owner))
    archive(archived)
    assert record(archived, DAY).snapshot is None
    assert record(archived, NEXT).snapshot is not None


def test_the_report_of_an_only_copy_names_no_command_that_deletes_it(archived: Archive):
    prune_all(archived, NEXT)
    (left,) = archive(archived, [DAY], replacing=Replacing.WHOLE).left
    assert "--allow-shrink" not in str(left)


# Prune.


def test_prune_deletes_archived_rows_only_and_names_the_days_that_have_others(archived: Archive, connect):
    write(connect(), [row(NOON)] * 3)
    refresh(archived.db)
    report = prune_all(archived)
    assert (set(report.rows_by_day), report.not_archived) == ({NEXT}, [DAY])
    assert len(log_rows(archived.db, DAY)) == stored_count(archived, DAY)
    archive(archived)
    before = archived_rows(folder(archived), DAY)
    assert prune_all(archived).rows == len(before)
    assert log_rows(archived.db, DAY) == []
    assert verify(archived.db, [DAY, NEXT, LAST]).difference == 0
    assert verify(archived.db, [DAY, NEXT, LAST]).archive == []
    assert check(archived).problems == []


def test_rows_that_were_counted_after_the_archive_are_not_pruned(archived: Archive, connect):
    def late(day: date) -> str | None:
        if not log_rows(archived.db, date(2026, 3, 9)):
            write(connect(), [row(NOON, publisher=77)] * 2 + [row(utc(2026, 3, 9))])
            refresh(archived.db)
        return prove_day(archived, day)

    prune(archived.db, NEXT, prove_archived=late)
    assert {each[1] for each in log_rows(archived.db, DAY)} == {77}
    assert len(log_rows(archived.db, DAY)) == 2


def test_prune_needs_the_proof_of_the_archive(archived: Archive):
    with pytest.raises(ValueError, match="prove_archived is required"):
        prune(archived.db, NEXT)


def test_late_rows_of_a_pruned_day_are_archived_and_pruned_in_turn(archived: Archive, connect):
    everything = archived_rows(folder(archived), DAY)
    prune_all(archived)
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    late = as_microseconds(log_rows(archived.db, DAY))
    assert [done.rows for done in archive(archived).archived] == [3]
    assert prune_all(archived).rows == 3
    assert archived_rows(folder(archived), DAY) == sorted(everything + late)
    assert verify(archived.db, [DAY]).archive == []


def test_archiving_writing_counting_and_pruning_at_once_lose_and_double_no_row(archived: Archive, connect):
    writer, rng = connect(), random.Random(5)

    def write_some() -> None:
        write(writer, random_rows(rng, 20, utc(2026, 3, 1), utc(2026, 3, 3)))

    with Crowd(
        write_some, lambda: refresh(archived.db), lambda: archive(archived), lambda: prune_all(archived)
    ) as crowd:
        eventually(lambda: min(crowd.rounds) > 2 or crowd.over.is_set(), "each has worked three times")
        crowd.over.wait(0.8)
    refresh(archived.db)
    archive(archived)
    for day in (DAY, NEXT):
        found = archived_rows(folder(archived), day)
        assert len({each[0] for each in found}) == len(found) == stored_count(archived, day)
    assert verify(archived.db, [DAY, NEXT]).archive == []
    assert check(archived).problems == []


def test_two_that_archive_at_once_write_each_day_once(place: Archive):
    other = Archive(place.db)
    with Crowd(lambda: archive(place), lambda: archive(other)) as crowd:
        crowd.over.wait(0.3)
    assert [len(files_of(place, day)) for day in (DAY, NEXT, LAST)] == [1, 1, 1]
    assert len([entry for entry in history(place.db) if entry.operation == "archive"]) == 3
    assert check(place).problems == []


def test_a_new_time_zone_is_noticed_after_the_wait_for_the_turn(place: Archive):
    refused: list[BaseException] = []

    def wait_for_the_turn() -> None:
        try:
            archive(place, [DAY])
        except TimezoneChanged as error:
            refused.append(error)

    with place.turn():
        waiting = Thread(target=wait_for_the_turn)
        waiting.start()
        eventually(lambda: is_waiting(place.db), "the other waits for the turn")
        execute(place.db, "update rollup_state set timezone = 'Asia/Jerusalem'")
    waiting.join()
    assert len(refused) == 1
    assert place.store.sizes() == {}


def is_waiting(db: Database) -> bool:
    with db.engine.begin() as connection:
        found = connection.execute(text("select count(*) from pg_locks where locktype = 'advisory' and not granted"))
        return bool(found.scalar_one())


def test_a_turn_has_no_limits_of_time(place: Archive):
    with place.turn() as connection:
        for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            assert connection.execute(text(f"show {name}")).scalar_one() == "0"


# Interruptions.


class Killed(BaseException):
    """A process ends at this moment."""


@pytest.mark.parametrize("moment", ["half", "file", "manifest", "commit"])
def test_a_kill_at_any_moment_leaves_the_last_state_valid(archived: Archive, connect, monkeypatch, moment: str):
    before = {day: manifest(archived, day) for day in (DAY, NEXT)}
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    with monkeypatch.context() as patch:
        interrupt(patch, moment)
        with pytest.raises(Killed):
            archive(archived)
    assert manifest(archived, DAY) == before[DAY]
    assert verify(archived.db, [DAY, NEXT]).archive == []
    assert check(archived).problems == []
    assert prune_all(archived).not_archived == [DAY]
    assert [done.rows for done in archive(archived).archived] == [3]
    assert len(files_of(archived, DAY)) == 2
    assert not list(folder(archived).rglob(".*"))
    assert check(archived).problems == []
    assert archived_rows(folder(archived), DAY) == as_microseconds(log_rows(archived.db, DAY))


def test_a_kill_while_a_manifest_without_a_new_file_is_published_is_made_good_by_the_next(
    archived: Archive, connect, monkeypatch
):
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    prune(replace(archived.db, archive_url=None), NEXT)
    with monkeypatch.context() as patch:
        interrupt(patch, "manifest")
        with pytest.raises(Killed):
            archive(archived)
    (done,) = archive(archived).archived
    assert (done.rows, done.missing, done.files) == (0, 3, 1)
    assert check(archived).problems == []


def interrupt(patch: pytest.MonkeyPatch, moment: str) -> None:
    """From now on the archiving ends at that moment, without cleaning up."""

    def killed(*_: object, **__: object) -> None:
        raise Killed

    match moment:
        case "noted":
            patch.setattr(writing, "parquet_writer", killed)
            patch.setattr(Path, "unlink", lambda path, **_: None)
        case "half":
            patch.setattr(store.HashingFile, "write", killed)
            patch.setattr(Path, "unlink", lambda path, **_: None)
        case "file":
            patch.setattr(store.Folder, "publish", killed)
        case "manifest":
            patch.setattr(ledger, "record_archived", killed)
        case "deleting":
            patch.setattr(store.Folder, "delete", killed)
        case _:
            patch.setattr(writing, "delete_old_files", killed)
            patch.setattr(writing.journal, "note", killed)


def test_a_kill_while_the_first_file_of_a_day_is_written_is_made_good_by_the_next(place: Archive, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, "manifest")
        with pytest.raises(Killed):
            archive(place, [DAY])
    assert len(files_of(place, DAY)) == 1
    assert record(place, DAY).manifest is None
    assert check(place).problems == []
    archive(place)
    assert len(files_of(place, DAY)) == 1
    assert check(place).problems == []


def test_a_connection_that_is_lost_in_the_middle_is_replaced(place: Archive, monkeypatch):
    monkeypatch.setattr(rows.RowReader.tables, "__defaults__", (64,))
    seen: list[int] = []

    def lose_the_connection(batch: int) -> None:
        seen.append(batch)
        if len(seen) == 1:
            execute(place.db, f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'")

    (done,) = archive(place, [DAY], progress=lose_the_connection).archived
    assert sum(seen) > done.rows
    assert len(files_of(place, DAY)) == 1
    assert archived_rows(folder(place), DAY) == as_microseconds(log_rows(place.db, DAY))
    assert check(place).problems == []


def test_a_folder_that_cannot_be_written_is_one_line_and_nothing_is_published(archived: Archive, connect, monkeypatch):
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    before = snapshot_of(archived)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(store.HashingFile, "write", full)
    with pytest.raises(CannotUseArchive, match=r"^cannot write [^ ]+date=2026-03-01[^ ]+: No space left on device"):
        archive(archived)
    monkeypatch.undo()
    assert snapshot_of(archived) == before
    assert [done.rows for done in archive(archived).archived] == [3]


def refuse_to_delete(patch: pytest.MonkeyPatch) -> None:
    """From now on files of the archive cannot be deleted."""

    def refuse(self: store.Folder, name: str) -> None:
        raise CannotUseArchive(f"cannot delete {self.path(name)}: Permission denied")

    patch.setattr(store.Folder, "delete", refuse)


def test_old_files_that_cannot_be_deleted_are_named_beside_what_was_archived(archived: Archive, monkeypatch):
    with monkeypatch.context() as patch:
        refuse_to_delete(patch)
        report = archive(archived, [DAY, NEXT], replacing=Replacing.WHOLE)
    assert [done.day for done in report.archived] == [DAY, NEXT]
    assert [(left.day, left.reason) for left in report.left] == [(DAY, "old_files"), (NEXT, "old_files")]
    assert "Permission denied" in str(report.left[0])
    assert [len(files_of(archived, day)) for day in (DAY, NEXT)] == [2, 2]
    assert archive(archived).left == []
    assert [len(files_of(archived, day)) for day in (DAY, NEXT)] == [1, 1]
    assert check(archived).problems == []


# Erasing.


def erase_everywhere(place: Archive, publisher: int):
    keys = {"publisher_id": publisher}
    report = erase(place.db, keys)
    return erase_archived(place, keys, [each.day for each in report.left])


@pytest.mark.parametrize("is_pruned", [False, True])
def test_an_erased_publisher_is_in_no_file(archived: Archive, connect, is_pruned: bool):
    if is_pruned:
        prune_all(archived)
    others = {day: [each for each in archived_rows(folder(archived), day) if each[1] != 3] for day in (DAY, NEXT, LAST)}
    untouched = archived.store.sizes()
    rows_before = {day: record(archived, day).rows for day in others}
    done = erase_everywhere(archived, 3)
    assert done.rows == {day: rows_before[day] - len(others[day]) for day in others}
    for day, expected in others.items():
        assert archived_rows(folder(archived), day) == expected
        assert len(files_of(archived, day)) == 1
    assert not set(files_of(archived, DAY)) & set(untouched)
    assert verify(archived.db, list(others)).archive == []
    assert verify(archived.db, list(others)).difference == 0
    assert check(archived).problems == []
    receipt = next(entry for entry in history(archived.db) if "archive" in entry.days.get(str(DAY), {}))
    assert (receipt.operation, receipt.detail) == ("erase", "publisher_id 3")
    assert {day: done["archive"] for day, done in receipt.days.items()} == {
        str(day): rows for day, rows in done.rows.items()
    }


def test_rows_of_an_erased_publisher_that_were_deleted_before_are_no_longer_missing(place: Archive, connect):
    prune(replace(place.db, archive_url=None), NEXT)
    write(connect(), [row(NOON, publisher=publisher) for publisher in (3, 3, 4)])
    refresh(place.db)
    archive(place)
    write(connect(), [row(NOON, publisher=publisher) for publisher in (3, 4)])
    refresh(place.db)
    before = record(place, DAY)
    assert before.missing > 100
    assert erase_everywhere(place, 3).rows[DAY] == 2
    assert verify(place.db, [DAY, NEXT, LAST]).archive == []
    after = record(place, DAY)
    assert (after.rows, after.missing < before.missing) == (1, True)
    assert [done.rows for done in archive(place).archived] == [1]
    assert manifest(place, DAY).missing == after.missing
    assert check(place).problems == []


def with_missing_rows(place: Archive, connect) -> dict[date, int]:
    """The first days were pruned before there was an archive: DAY has a file of publisher 4 alone, NEXT has none.

    Returns how many rows of each are missing.
    """
    prune(replace(place.db, archive_url=None), LAST)
    write(connect(), [row(NOON, publisher=4)])
    refresh(place.db)
    archive(place)
    assert (record(place, DAY).rows, record(place, NEXT).rows) == (1, 0)
    return {day: record(place, day).missing for day in (DAY, NEXT)}


def missing_of(place: Archive, publisher: int) -> dict[date, int]:
    """How many of the rows of these days that are in no file are the publisher's."""
    found = {day: stored(place.db).get((publisher, day), [0])[0] for day in (DAY, NEXT)}
    return {**found, DAY: found[DAY] - (publisher == 4)}


def assert_whole_without(place: Archive, publisher: int) -> None:
    """The books balance, nothing is left to archive, and the statistics have the other publishers."""
    report = verify(place.db, [DAY, NEXT, LAST])
    assert (report.archive, report.difference) == ([], 0)
    assert different_days(place.db) == {}
    assert check(place).problems == []
    assert (archive(place).archived, archive(place).left) == ([], [])
    kept = {of for of, _ in stored(place.db)}
    assert publisher not in kept
    assert kept


def test_a_publisher_that_is_in_no_file_is_erased_from_what_is_missing(place: Archive, connect):
    before = with_missing_rows(place, connect)
    for publisher in (3, 2):
        of_publisher = missing_of(place, publisher)
        assert all(of_publisher.values())
        assert erase_everywhere(place, publisher).problems == []
        before = {day: before[day] - of_publisher[day] for day in before}
        assert {day: record(place, day).missing for day in before} == before
        assert manifest(place, NEXT).missing == before[NEXT]
        assert_whole_without(place, publisher)


@pytest.mark.parametrize("publisher", [3, 4])
@pytest.mark.parametrize("moment", ["half", "file", "manifest", "deleting"])
def test_an_erasure_from_what_is_missing_that_is_interrupted_can_be_repeated(
    place: Archive, connect, monkeypatch, publisher: int, moment: str
):
    before = with_missing_rows(place, connect)
    write(connect(), [row(NOON, publisher=5)])
    refresh(place.db)
    archive(place)
    keys, of_publisher = {"publisher_id": publisher}, missing_of(place, publisher)
    erase(place.db, keys)
    assert [each.day for each in verify(place.db, [DAY, NEXT, LAST]).archive] == [DAY, NEXT, LAST]
    with monkeypatch.context() as patch:
        interrupt(patch, moment)
        with suppress(Killed):
            erase_archived(place, keys)
    assert set(count_archived(place, keys).rows) | {DAY, NEXT} <= {DAY, NEXT, LAST}
    assert erase_archived(place, keys).problems == []
    assert {day: record(place, day).missing for day in before} == {
        day: before[day] - of_publisher[day] for day in before
    }
    assert_whole_without(place, publisher)


def test_an_erasure_does_not_take_the_rows_of_another_that_was_interrupted_for_missing(place: Archive, connect):
    """Publisher 4 is still in a file: as many rows of the file are counted no more as there are missing ones."""
    with_missing_rows(place, connect)
    erase(place.db, {"publisher_id": 4})
    assert erase_everywhere(place, 3).problems == []
    (found, _, _) = verify(place.db, [DAY, NEXT, LAST]).archive
    assert str(found) == (
        f"{DAY} of the archive: the log rows and statistics of publisher_id 4 are erased, but not their archived rows: "
        "wait for an erasure that runs, or erase again"
    )
    assert set(different_days(place.db)) == {DAY, NEXT, LAST}
    assert 4 in {each[1] for each in archived_rows(folder(place), DAY)}
    assert erase_archived(place, {"publisher_id": 4}).problems == []
    assert_whole_without(place, 3)
    assert 4 not in {of for of, _ in stored(place.db)}


def test_an_interrupted_erasure_is_red_after_a_rebase_too(archived: Archive, owner):
    prune_all(archived)
    erase(archived.db, {"publisher_id": 3})
    rebase(replace(archived.db, engine=owner))
    archive(archived)
    assert {each.day for each in verify(archived.db, [DAY, NEXT, LAST]).archive} == {DAY, NEXT, LAST}


def test_an_interrupted_erasure_is_red_after_ten_minutes_even_if_nothing_compares_the_day(archived: Archive):
    erase(archived.db, {"publisher_id": 3})
    assert different_days(archived.db) == {}, "it may still run"
    execute(archived.db, "update rollup_archive set erased_at = erased_at - interval '11 minutes'")
    assert set(different_days(archived.db)) == {DAY, NEXT, LAST}
    execute(archived.db, "update rollup_days set verified_at = verified_at - interval '2 minutes'")
    assert oldest_proof(archived.db, different_first=True) in (DAY, NEXT, LAST)
    erase_archived(archived, {"publisher_id": 3})
    assert different_days(archived.db) == {}


def test_after_a_rebase_nothing_is_erased_of_a_day_until_it_is_known_which_rows_are_archived(
    archived: Archive, owner, connect
):
    """Of publisher 3 some rows are in the file, and others missing: those that are archived are to be told apart."""
    prune(replace(archived.db, archive_url=None), NEXT)
    write(connect(), [row(NOON, publisher=publisher) for publisher in (3, 3, 3, 4)])
    refresh(archived.db)
    archive(archived)
    rebase(replace(archived.db, engine=owner))
    rebuild(archived.db, [DAY, NEXT, LAST], decision=Decision.KEEP)
    report = erase(archived.db, {"publisher_id": 3})
    assert {(each.day, each.reason) for each in report.left} == {(day, "archive") for day in (DAY, NEXT, LAST)}
    assert "run 'calc-analytics archive', and erase again" in str(report.left[0])
    assert archive(archived).left == []
    assert erase_everywhere(archived, 3).problems == []
    assert_whole_without(archived, 3)


def test_a_difference_that_was_found_stays_red_while_it_cannot_be_compared(archived: Archive, owner):
    execute(archived.db, f"delete from calculation_logs where id = {log_rows(archived.db, DAY)[0][0]}")
    rebuild(archived.db, [DAY], decision=Decision.ALLOW_SHRINK)
    verify(archived.db, [DAY])
    rebase(replace(archived.db, engine=owner))
    (found,) = verify(archived.db, [DAY]).archive
    assert "cannot be compared now" in str(found)
    assert set(different_days(archived.db)) == {DAY}
    archive(archived)
    rebuild(archived.db, [DAY], decision=Decision.ALLOW_SHRINK)
    (found,) = verify(archived.db, [DAY]).archive
    assert "rows archived, 0 not yet" in str(found)
    assert set(different_days(archived.db)) == {DAY}


def test_a_record_that_is_not_its_manifests_is_red_even_if_its_numbers_add_up(archived: Archive):
    execute(archived.db, f"update rollup_archive set rows = rows - 5, missing = missing + 5 where date = '{DAY}'")
    (found,) = verify(archived.db, [DAY, NEXT]).archive
    assert "are not the numbers of its manifest" in str(found)
    assert str(found) in check(archived).problems
    assert set(prune_all(archived, NEXT).refused) == {DAY}


def test_an_unfinished_erasure_keeps_its_day_from_being_archived_and_is_named(archived: Archive, connect):
    erase(archived.db, {"publisher_id": 3})
    write(connect(), [row(NOON, publisher=4)])
    refresh(archived.db)
    left = {each.day: str(each) for each in archive(archived).left}
    assert left[DAY] == (
        f"{DAY} was not archived: rows of publisher_id 3 are erased from its statistics, and not from its files yet: "
        "erase again"
    )
    assert erase_archived(archived, {"publisher_id": 3}).problems == []
    assert [done.rows for done in archive(archived).archived] == [1]
    assert verify(archived.db, [DAY, NEXT, LAST]).archive == []


def test_an_old_comparison_is_not_recorded_over_a_newer_one(archived: Archive):
    with archived.db.engine.begin() as connection:
        old = ledger.balance(connection, archived.db, archived.window(connection, DAY))
    assert old is not None
    execute(archived.db, f"update rollup_archive set rows = rows - 2 where date = '{DAY}'")
    verify(archived.db, [DAY])
    with archived.db.engine.begin() as connection:
        ledger.record_balance(connection, archived.db.log, old)
    assert set(different_days(archived.db)) == {DAY}


def test_archiving_that_repairs_a_day_records_it(archived: Archive):
    wrong = log_rows(archived.db, DAY)[0][0]
    execute(archived.db, f"delete from calculation_logs where id = {wrong}")
    rebuild(archived.db, [DAY], decision=Decision.ALLOW_SHRINK)
    verify(archived.db, [DAY])
    assert set(different_days(archived.db)) == {DAY}
    assert len(archive(archived, [DAY], replacing=Replacing.ALLOW_SHRINK).archived) == 1
    assert different_days(archived.db) == {}


def test_a_file_of_which_every_row_is_erased_goes(archived: Archive, connect):
    write(connect(), [row(NOON, publisher=77)] * 3)
    refresh(archived.db)
    archive(archived)
    assert len(files_of(archived, DAY)) == 2
    assert erase_everywhere(archived, 77).rows == {DAY: 3}
    assert len(files_of(archived, DAY)) == 1
    assert check(archived).problems == []


@pytest.mark.parametrize("moment", ["manifest", "deleting"])
def test_an_interrupted_erasure_can_be_repeated(archived: Archive, monkeypatch, moment: str):
    keys = {"publisher_id": 3}
    erase(archived.db, keys)
    with monkeypatch.context() as patch:
        interrupt(patch, moment)
        with pytest.raises(Killed):
            erase_archived(archived, keys)
    erase_archived(archived, keys)
    for day in (DAY, NEXT, LAST):
        assert 3 not in {each[1] for each in archived_rows(folder(archived), day)}
        assert len(files_of(archived, day)) == 1
    assert verify(archived.db, [DAY, NEXT, LAST]).archive == []
    assert check(archived).problems == []


def test_old_files_with_erased_rows_are_a_problem_until_they_are_deleted(archived: Archive, monkeypatch):
    with monkeypatch.context() as patch:
        refuse_to_delete(patch)
        done = erase_everywhere(archived, 3)
    assert set(done.rows) == {DAY, NEXT, LAST}
    assert [problem[:10] for problem in done.problems] == [str(DAY), str(NEXT), str(LAST)]
    assert erase_archived(archived, {"publisher_id": 3}).problems == []
    assert [len(files_of(archived, day)) for day in (DAY, NEXT, LAST)] == [1, 1, 1]
    assert check(archived).problems == []


def test_a_day_whose_statistics_are_left_keeps_its_archived_rows(archived: Archive):
    execute(archived.db, f"update calculation_stats_daily set cache_hits = cache_hits + 1 where date = '{DAY}'")
    before = archived_rows(folder(archived), DAY)
    done = erase_everywhere(archived, 3)
    assert set(done.rows) == {NEXT, LAST}
    (problem,) = done.problems
    assert str(DAY) in problem
    assert archived_rows(folder(archived), DAY) == before


# The journal.


def test_the_journal_has_an_entry_per_archived_day(archived: Archive):
    entries = [entry for entry in history(archived.db) if entry.operation == "archive"]
    assert {day for entry in entries for day in entry.days} == {str(DAY), str(NEXT), str(LAST)}
    assert sum(entry.rows for entry in entries) == sum(measures[0] for measures in oracle(archived.db).values())
    assert {entry.detail for entry in entries} == {archived.store.address.shown}
