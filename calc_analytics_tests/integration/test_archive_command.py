"""The commands `archive`, `prune`, `erase` and `verify` with an archive, and the asset of the archive."""

import json
import re
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from dagster import (
    AssetCheckSeverity,
    AssetKey,
    AssetRecordsFilter,
    DagsterEventType,
    DagsterInstance,
    ExecuteInProcessResult,
    materialize,
)
from pyarrow import parquet
from sqlalchemy.engine import URL

from calc_analytics.archive.place import Archive
from calc_analytics.cli.main import main
from calc_analytics.definitions import defs
from calc_analytics.orchestration.checks import evaluate, match_key
from calc_analytics.orchestration.names import ARCHIVE
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.status import different_days, ledger_report
from calc_analytics.rollups import LOG
from calc_analytics_tests.archives import archive_in, archived_rows, files_of, record
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import execute, row, stored, utc, write

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)
STATS = AssetKey("calculation_stats_daily")


@pytest.fixture
def calc(database: URL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs `calc-analytics` with these words and an ARCHIVE_URL."""
    monkeypatch.setenv("ARCHIVE_URL", str(tmp_path / "archive"))

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, words)

    return run


@pytest.fixture
def place(calc, db: Database, connect, tmp_path: Path) -> Archive:
    """Two built days, and a folder for the archive."""
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    for hour in range(2, 30):
        write(connect(), [row(utc(2026, 3, 1 + hour // 24, hour % 24), publisher=1 + hour % 3)] * 2)
    rebuild(db, [DAY, NEXT])
    return archive_in(db, tmp_path / "archive")


def test_archive_prints_a_line_per_day_and_counts_what_is_new_first(calc, place: Archive, connect):
    write(connect(), [row(NOON, publisher=9)])
    result = calc("archive")
    assert result.exit_code == 0, result.output
    first, second, total = result.stdout.splitlines()
    assert first.startswith(f"  {DAY}  45 rows, ")
    assert first.endswith("45 in 1 file")
    assert second.startswith(f"  {NEXT}  12 rows, ")
    assert total.startswith("2 days archived, 57 rows in ")
    assert total.endswith(f" to {place.store.address.shown}")
    again = calc("archive", "--day", str(DAY))
    assert again.stdout.endswith(f"to {place.store.address.shown}; 1 day unchanged\n")
    assert again.stdout.startswith("0 days archived, 0 rows in ")


def test_archive_as_json_and_by_range(calc, place: Archive):
    report = json.loads(calc("archive", "--from", str(DAY), "--to", str(NEXT), "--json").stdout)
    assert report["place"] == place.store.address.shown
    assert {day: each["rows"] for day, each in report["days"].items()} == {str(DAY): 44, str(NEXT): 12}
    assert report["bytes"] == sum(size for name, size in place.store.sizes().items() if name.endswith(".parquet"))


def test_a_day_that_is_left_is_an_error_with_its_reason(calc, place: Archive, connect):
    now = datetime.now(timezone.utc)
    write(connect(), [row(now)])
    result = calc("archive", "--day", str(now.date()))
    assert result.exit_code == 1
    assert result.stderr == f"error: {now.date()} was not archived: the day is not over\n"


def test_without_an_address_it_is_one_line(calc, place: Archive, monkeypatch):
    monkeypatch.delenv("ARCHIVE_URL")
    result = calc("archive")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "ARCHIVE_URL is not set" in result.stderr


@pytest.mark.parametrize(
    "words",
    [("--to", "2026-03-01"), ("--check", "--replace", "--day", "2026-03-01"), ("--replace",), ("--allow-shrink",)],
)
def test_wrong_usage_is_exit_code_2(calc, place: Archive, words: tuple[str, ...]):
    assert calc("archive", *words).exit_code == 2


def test_the_only_copy_of_rows_is_dropped_only_if_that_is_confirmed(calc, place: Archive):
    calc("archive")
    calc("prune", "--older-than", "5", "--yes")
    before = archived_rows(_folder(place), DAY)
    words = ("archive", "--replace", "--allow-shrink", "--day", str(DAY), "--day", str(NEXT))
    result = calc(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no terminal to answer")
    assert f"'Drop 56 archived rows of {DAY}, {NEXT} for good?': add --yes" in result.stderr
    assert result.stderr.count("\n") == 1
    assert archived_rows(_folder(place), DAY) == before
    assert calc(*words, "--yes").exit_code == 0
    assert files_of(place, DAY) == []


def test_nothing_is_asked_if_the_log_has_all_archived_rows(calc, place: Archive):
    calc("archive")
    result = calc("archive", "--replace", "--allow-shrink", "--day", str(DAY))
    assert result.exit_code == 0, result.output
    assert len(archived_rows(_folder(place), DAY)) == 44


def test_check_names_the_file_that_is_damaged(calc, place: Archive):
    calc("archive")
    assert calc("archive", "--check").exit_code == 0
    (name,) = files_of(place, DAY)
    file = Path(place.store.path(name))
    file.write_bytes(file.read_bytes()[:-1])
    result = calc("archive", "--check")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {file} is damaged")
    assert "1 day with 12 rows proven" in result.stdout
    assert json.loads(calc("archive", "--check", "--json").stdout)["days"] == [str(NEXT)]


def test_prune_asks_only_for_archived_days_and_names_the_others(calc, place: Archive, connect):
    calc("archive", "--day", str(DAY))
    result = calc("prune", "--older-than", "5", "--yes")
    assert result.exit_code == 0, result.output
    assert f"{DAY}  44 rows deleted, statistics kept" in result.stdout
    assert f"{NEXT}  not archived, so its log rows stay: run 'calc-analytics archive --day {NEXT}'" in result.stdout
    report = json.loads(calc("prune", "--older-than", "5", "--yes", "--json").stdout)
    assert (report["rows"], report["not_archived_days"]) == (0, [str(NEXT)])


def test_prune_refuses_a_day_whose_files_are_gone(calc, place: Archive):
    calc("archive")
    (name,) = files_of(place, DAY)
    Path(place.store.path(name)).unlink()
    result = calc("prune", "--older-than", "5", "--yes")
    assert result.exit_code == 1
    assert f"{DAY}  its log rows stay: {place.store.path(name)} is missing" in result.stdout
    assert f"{NEXT}  12 rows deleted" in result.stdout


def test_verify_fails_for_an_archive_that_does_not_add_up(calc, place: Archive):
    calc("archive")
    assert calc("verify").exit_code == 0
    execute(place.db, f"update rollup_archive set rows = 43 where date = '{DAY}'")
    result = calc("verify")
    assert result.exit_code == 1
    assert f"{DAY} of the archive: 43 rows archived" in result.stdout
    assert json.loads(calc("verify", "--json").stdout)["archive"][str(DAY)]["counted_rows"] == 44


def test_the_check_of_a_day_whose_archive_does_not_add_up_fails(calc, place: Archive):
    calc("archive")
    key = match_key(LOG.rollups[0])
    execute(place.db, f"update rollup_archive set rows = 43 where date = '{DAY}'")
    assert different_days(place.db) == {}
    found = evaluate(place.db, [key], [DAY, NEXT])[key]
    assert (found[DAY].passed, found[DAY].severity) == (False, AssetCheckSeverity.ERROR)
    assert f"{DAY} of the archive: 43 rows archived" in found[DAY].description
    assert found[NEXT].passed
    assert different_days(place.db) == {DAY: LOG.names}
    assert ledger_report(place.db).unbalanced == [DAY]
    execute(place.db, f"update rollup_archive set rows = 44 where date = '{DAY}'")
    assert evaluate(place.db, [key], [DAY])[key][DAY].passed
    assert different_days(place.db) == {}


def test_erase_takes_the_publisher_out_of_the_archive_and_may_be_repeated(calc, place: Archive, monkeypatch):
    calc("archive")
    calc("prune", "--older-than", "5", "--yes")
    plan = calc("erase", "--publisher", "2", "--dry-run")
    assert "the archive" in plan.stdout
    held = len([each for day in (DAY, NEXT) for each in archived_rows(_folder(place), day) if each[1] == 2])
    assert json.loads(calc("erase", "--publisher", "2", "--dry-run", "--json").stdout)["archive"]
    with monkeypatch.context() as patch:
        patch.setattr("calc_analytics.cli.deleting.erase_archived", _killed)
        assert isinstance(calc("erase", "--publisher", "2", "--yes").exception, SystemExit)
    assert 2 not in {publisher for publisher, _ in stored(place.db)}
    result = calc("erase", "--publisher", "2", "--yes")
    assert result.exit_code == 0, result.output
    assert f"archive: {held} rows of 2 days erased" in result.stdout
    assert all(each[1] != 2 for day in (DAY, NEXT) for each in archived_rows(_folder(place), day))
    assert calc("archive", "--check").exit_code == 0
    assert calc("verify").exit_code == 0
    assert "nothing was erased" in calc("erase", "--publisher", "2", "--yes").stderr
    assert "of archive" in calc("history").stdout


def test_a_publisher_that_is_only_among_what_is_missing_is_erased_after_a_kill(calc, place: Archive, monkeypatch):
    monkeypatch.delenv("ARCHIVE_URL")
    calc("prune", "--older-than", "5", "--yes")
    monkeypatch.setenv("ARCHIVE_URL", place.store.address.path)
    assert calc("archive").exit_code == 0
    assert (record(place, DAY).missing, record(place, NEXT).missing) == (44, 12)
    with monkeypatch.context() as patch:
        patch.setattr("calc_analytics.cli.deleting.erase_archived", _killed)
        assert isinstance(calc("erase", "--publisher", "2", "--yes").exception, SystemExit)
    red = calc("verify")
    assert red.exit_code == 1
    assert "the log rows and statistics of publisher_id 2 are erased, but not their archived rows" in red.stdout
    assert calc("erase", "--publisher", "2", "--dry-run").exit_code == 0
    result = calc("erase", "--publisher", "2", "--yes")
    assert result.exit_code == 0, result.output
    assert calc("verify").exit_code == 0
    assert calc("archive", "--check").exit_code == 0
    assert record(place, DAY).missing == sum(rows[0] for (_, day), rows in stored(place.db).items() if day == DAY)
    assert "nothing was erased" in calc("erase", "--publisher", "2", "--yes").stderr


def test_days_are_archived_anew_at_another_place_after_they_were_forgotten(
    calc, place: Archive, monkeypatch, tmp_path: Path
):
    calc("archive")
    assert calc("archive", "--forget").exit_code == 1
    assert record(place, DAY).rows == 44
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("ARCHIVE_URL", str(elsewhere))
    assert "is missing" in calc("archive", "--check").stderr
    monkeypatch.delenv("ARCHIVE_URL")
    before = place.store.sizes()
    result = calc("archive", "--forget", "--yes")
    assert (result.exit_code, result.stdout) == (
        0,
        "2 days forgotten; their files stay. Set ARCHIVE_URL to another place, and run 'calc-analytics archive'\n",
    )
    assert place.store.sizes() == before
    assert "forget" in calc("history").stdout
    assert calc("archive", "--forget").stdout == "no day is archived: nothing was forgotten\n"
    monkeypatch.setenv("ARCHIVE_URL", str(elsewhere))
    assert "2 days archived, 56 rows" in calc("archive").stdout
    assert calc("archive", "--check").exit_code == 0
    assert calc("verify").exit_code == 0
    monkeypatch.setenv("ARCHIVE_URL", place.store.address.path)
    assert f"{DAY}/_manifest.json is not the manifest that this database holds" in calc("archive", "--check").stderr


def test_the_question_before_days_are_forgotten_names_what_may_be_the_only_copy(calc, place: Archive, monkeypatch):
    calc("archive")
    calc("prune", "--older-than", "5", "--yes")
    asked: list[str] = []
    monkeypatch.setattr("calc_analytics.cli.archive.confirm", lambda question, *_: asked.append(question))
    report = json.loads(calc("archive", "--forget", "--day", str(DAY), "--json").stdout)
    assert report["days"] == {str(DAY): 44}
    assert report["days_with_deleted_log_rows"] == [str(DAY)]
    assert asked == [
        "The files stay, but erase and rollup will not use them any more. Log rows of 1 day were deleted, so the files "
        "may have the only copy. Forget 44 archived rows of 1 day?"
    ]
    assert (record(place, DAY).manifest, record(place, NEXT).rows) == (None, 12)


@pytest.mark.parametrize("damage", ["missing", "cut", "flip"])
def test_a_file_that_is_not_what_was_written_blocks_the_erasure_of_its_day_alone(calc, place: Archive, damage: str):
    calc("archive")
    calc("prune", "--older-than", "5", "--yes")
    (name,) = files_of(place, DAY)
    file = Path(place.store.path(name))
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        # The last byte; or one of a page of publisher_id, whose checksum is then another.
        file.write_bytes(content[:-1] if damage == "cut" else _flipped(file, content))
    assert calc("erase", "--publisher", "2", "--dry-run").exit_code == 0
    result = calc("erase", "--publisher", "2", "--yes")
    assert result.exit_code == 1, result.output
    (problem,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert problem.startswith(f"error: {DAY} of the archive was not erased: {file} is ")
    assert 2 not in {publisher for publisher, _ in stored(place.db)}
    assert 2 not in {each[1] for each in archived_rows(_folder(place), NEXT)}
    assert calc("erase", "--publisher", "2", "--yes").exit_code == 1
    file.write_bytes(content)
    assert calc("erase", "--publisher", "2", "--yes").exit_code == 0
    assert 2 not in {each[1] for each in archived_rows(_folder(place), DAY)}
    assert calc("archive", "--check").exit_code == 0


def _flipped(file: Path, content: bytes) -> bytes:
    """The content with one bit changed at the end of publisher_id's pages."""
    group = parquet.ParquetFile(file).metadata.row_group(0)
    column = next(each for n in range(group.num_columns) if (each := group.column(n)).path_in_schema == "publisher_id")
    start = column.dictionary_page_offset or column.data_page_offset
    at = start + column.total_compressed_size - 1
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_erase_needs_the_address_once_days_are_archived(calc, place: Archive, monkeypatch):
    calc("archive")
    before = stored(place.db)
    monkeypatch.delenv("ARCHIVE_URL")
    result = calc("erase", "--publisher", "2", "--yes")
    assert result.exit_code == 1
    assert "2 days of calculation_logs are archived, but ARCHIVE_URL is not set" in result.stderr
    assert stored(place.db) == before


def test_prune_needs_the_address_once_days_are_archived(calc, place: Archive, monkeypatch):
    assert calc("archive", "--day", str(DAY)).exit_code == 0
    monkeypatch.delenv("ARCHIVE_URL")
    result = calc("prune", "--older-than", "5", "--yes")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "1 day of calculation_logs are archived, but ARCHIVE_URL is not set" in result.stderr
    assert result.stderr.endswith("or add --even-if-not-archived. Nothing was deleted\n")
    assert calc("verify").exit_code == 0
    result = calc("prune", "--older-than", "5", "--yes", "--even-if-not-archived")
    assert result.exit_code == 0, result.output
    assert f"{NEXT}  12 rows deleted, statistics kept" in result.stdout


def _folder(place: Archive) -> Path:
    return Path(place.store.address.path)


def _killed(*_: object, **__: object) -> None:
    raise RuntimeError("the process ends here")


def test_history_shows_what_was_archived_and_where(calc, place: Archive):
    calc("archive")
    assert re.search(r"archive +2026-03-01 +44 ", calc("history", "--day", str(DAY)).stdout)
    assert re.search(r"archived: 44 rows, [0-9,]+ bytes; 1 file", calc("history").stdout)
    entries = json.loads(calc("history", "--json").stdout)["entries"]
    assert {each["detail"] for each in entries if each["operation"] == "archive"} == {place.store.address.shown}


def test_rollup_recounts_a_pruned_day_from_the_archive_and_says_so(calc, place: Archive):
    calc("archive")
    calc("prune", "--older-than", "5", "--yes")
    before = stored(place.db)
    execute(place.db, f"delete from calculation_stats_daily where date = '{DAY}'")
    result = calc("rollup", "--day", str(DAY), "--day", str(NEXT))
    assert result.exit_code == 0, result.output
    first, second, third, total = result.stdout.splitlines()
    assert re.fullmatch(
        rf"  {DAY}  44 rows in calculation_stats_daily \(0 before\), from archive by DuckDB [\d.]+", first
    )
    assert re.fullmatch(rf"  {DAY}  44 rows in 3 rollups, from archive by DuckDB [\d.]+", second)
    assert re.fullmatch(rf"  {NEXT}  12 rows in 4 rollups, from archive by DuckDB [\d.]+", third)
    assert total.startswith("2 days rebuilt, 56 rows in ")
    assert stored(place.db) == before
    report = json.loads(calc("rollup", "--day", str(DAY), "--json").stdout)
    assert report["sources"][str(DAY)]["source"] == "archive"
    assert re.search(r"recounted: 44 rows, as before; from archive\s+by DuckDB", calc("history").stdout)
    assert calc("verify").exit_code == 0


def test_rollup_names_the_file_that_keeps_a_day_from_being_recounted(calc, place: Archive):
    calc("archive")
    calc("prune", "--older-than", "5", "--yes")
    (name,) = files_of(place, DAY)
    Path(place.store.path(name)).unlink()
    result = calc("rollup", "--day", str(DAY))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {DAY} of 4 rollups was not rebuilt: {place.store.path(name)} is missing")
    assert "not rebuilt" in calc("history", "--day", str(DAY)).stdout


# The asset.


def materialize_archive(instance: DagsterInstance, first: date, last: date) -> ExecuteInProcessResult:
    """One run of the asset over a range of days, as a backfill starts it."""
    location = defs()
    (asset,) = [each for each in location.assets or [] if getattr(each, "keys", None) == {AssetKey(ARCHIVE)}]
    tags = {"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(last)}
    return materialize([asset], instance=instance, resources=location.resources, tags=tags, raise_on_error=False)


def materialized(instance: DagsterInstance) -> dict[str, dict[str, Any]]:
    """The metadata of each partition's latest materialization."""
    records = instance.fetch_materializations(AssetRecordsFilter(AssetKey(ARCHIVE)), limit=100).records
    found = [record.asset_materialization for record in reversed(records)]
    return {each.partition: {key: value.value for key, value in each.metadata.items()} for each in found}


def test_a_range_of_the_asset_is_archived_in_one_run_with_its_figures(calc, place: Archive, instance: DagsterInstance):
    assert materialize_archive(instance, DAY, NEXT).success
    found = materialized(instance)
    for day, rows in ((DAY, 44), (NEXT, 12)):
        metadata = found[str(day)]
        assert (metadata["rows"], metadata["rows_written"], metadata["files"]) == (rows, rows, 1)
        assert metadata["bytes_written"] == sum(place.store.sizes()[name] for name in files_of(place, day))
        assert metadata["path"] == f"{place.store.address.shown}/date={day}"
        assert metadata["duration_seconds"] > 0
    assert record(place, DAY).rows == 44
    assert materialize_archive(instance, DAY, NEXT).success
    assert materialized(instance)[str(DAY)]["rows_written"] == 0


def test_a_day_that_is_left_is_not_materialized_and_one_whose_file_is_gone_is_a_red_run(
    calc, place: Archive, connect, instance: DagsterInstance
):
    execute(place.db, f"update rollup_days set status = 'stale' where date = '{DAY}'")
    assert materialize_archive(instance, DAY, NEXT).success
    assert set(materialized(instance)) == {str(NEXT)}
    (name,) = files_of(place, NEXT)
    Path(place.store.path(f"date={NEXT}/_manifest.json")).unlink()
    result = materialize_archive(instance, DAY, NEXT)
    assert not result.success
    (failure,) = [each for each in result.all_events if each.event_type == DagsterEventType.STEP_FAILURE]
    assert "_manifest.json is missing" in failure.step_failure_data.user_failure_data.description
    entries = json.loads(calc("history", "--json").stdout)["entries"]
    assert {each["operation"] for each in entries if each["failed"]} == {"archive"}
    assert name in files_of(place, NEXT)


def test_a_partition_of_a_pruned_day_is_rebuilt_from_the_archive(calc, place: Archive, instance: DagsterInstance):
    calc("archive")
    calc("prune", "--older-than", "5", "--yes")
    before = stored(place.db)
    execute(place.db, f"delete from calculation_stats_daily where date = '{DAY}'")
    location = defs()
    (assets,) = [each for each in location.assets or [] if STATS in getattr(each, "keys", [])]
    tags = {"dagster/asset_partition_range_start": str(DAY), "dagster/asset_partition_range_end": str(NEXT)}
    assert materialize([assets], instance=instance, resources=location.resources, tags=tags).success
    assert stored(place.db) == before
    records = instance.fetch_materializations(AssetRecordsFilter(STATS), limit=10).records
    for record_ in records:
        metadata = record_.asset_materialization.metadata
        assert metadata["source"].value == "archive"
        assert metadata["engine"].value.startswith("DuckDB ")
    assert {each.partition_key for each in records} == {str(DAY), str(NEXT)}


def test_without_an_address_there_is_no_asset(database: URL, monkeypatch):
    monkeypatch.delenv("ARCHIVE_URL", raising=False)
    keys = {key for each in defs().assets or [] for key in getattr(each, "keys", [])}
    assert AssetKey(ARCHIVE) not in keys
