"""The asset of the archive: one partition per archived day. It is there if ARCHIVE_URL is set."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetsDefinition,
    AssetSpec,
    BackfillPolicy,
    Failure,
    MaterializeResult,
    MetadataValue,
    PartitionsDefinition,
    multi_asset,
)

from calc_analytics import logs
from calc_analytics.orchestration.assets import DAYS_PER_RUN, GROUP
from calc_analytics.orchestration.cursor import Cursor
from calc_analytics.orchestration.names import ARCHIVE
from calc_analytics.orchestration.partitions import as_days, keys_of
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.retries import TRANSIENT_ERRORS, as_dagster_failure
from calc_analytics.plurals import number

if TYPE_CHECKING:
    from calc_analytics.archive.report import ArchiveReport, DayArchived
    from calc_analytics.rollup.database import Database
    from calc_analytics.rollup.declaration import Log

# Days archived on the command line that one tick reports.
ARCHIVED_ELSEWHERE_PER_TICK = 200


def archive_asset(log: "Log", partitions: PartitionsDefinition) -> AssetsDefinition:
    """The Parquet archive of the log over these daily partitions, downstream of its rollups."""

    @multi_asset(
        name="archive",
        specs=[_spec(log)],
        partitions_def=partitions,
        backfill_policy=BackfillPolicy.multi_run(max_partitions_per_run=DAYS_PER_RUN),
        retry_policy=TRANSIENT_ERRORS,
    )
    def archive(context: AssetExecutionContext, database: RollupDatabase) -> Iterator[MaterializeResult]:
        """Writes the counted log rows of the run's days that are not archived yet; a day that is archived whole stays.

        A day that is not over, not built, or differs from its log is left: the run logs why, and the partition is not
        materialized. Files or rows that are not what they should be fail the run, after the other days.
        """
        from calc_analytics.archive.place import Archive
        from calc_analytics.archive.writing import archive as archive_days

        with as_dagster_failure():
            db, run = database.db, context.run.run_id
            with logs.record_failures("archive", db=db, run=run):
                report = archive_days(Archive(db), as_days(context.partition_keys))
                _log(context, report)
                if wrong := [str(left) for left in report.left if left.is_wrong]:
                    raise Failure("; ".join(wrong), allow_retries=False)
        # No result for the whole run: the partitions that were archived have their own events.
        yield from ()

    return archive


def _spec(log: "Log") -> AssetSpec:
    return AssetSpec(
        ARCHIVE,
        deps=[AssetKey(name) for name in log.names],
        group_name=GROUP,
        skippable=True,
        kinds={"parquet"},
        owners=["team:analytics"],
        tags={"layer": "archive"},
        description=f"The counted rows of {log.name} in Parquet files, one folder per day, at ARCHIVE_URL.\n\nA day is "
        "archived when it is over and built in every rollup. Late rows become a further file when the partition is "
        "materialized again. `calc-analytics prune` deletes archived rows only.",
    )


def report_archived(
    db: "Database", cursor: Cursor, partitions: PartitionsDefinition
) -> tuple[list[AssetMaterialization], Cursor]:
    """Materializations of the days that the command line archived, or erased rows of, since the last tick."""
    from calc_analytics.database.engine import transaction
    from calc_analytics.rollup import ledger

    if db.archive_url is None:
        return [], cursor
    since = cursor.archived_elsewhere_until
    with transaction(db.engine) as connection:
        found = ledger.days_archived_by_others(
            connection, db.log, datetime.fromisoformat(since) if since else None, ARCHIVED_ELSEWHERE_PER_TICK
        )
    keys, place = set(keys_of([record.day for record, _ in found], partitions)), db.archive_url.shown
    events = [
        AssetMaterialization(
            ARCHIVE,
            partition=str(record.day),
            metadata={
                "rows": record.rows,
                **({"rows_missing": record.missing} if record.missing else {}),
                "path": MetadataValue.path(f"{place}/date={record.day}"),
            },
        )
        for record, _ in found
        if str(record.day) in keys
    ]
    return events, replace(cursor, archived_elsewhere_until=found[-1][1].isoformat() if found else since)


def _log(context: AssetExecutionContext, report: "ArchiveReport") -> None:
    """A materialization of each day that is archived now, and a line for each that was left."""
    described: dict[date, dict[str, Any]] = {
        day: {"rows_written": 0, "path": MetadataValue.path(report.place)} for day in report.unchanged
    }
    described.update({each.day: _metadata(each, report.place) for each in report.archived})
    for day, metadata in sorted(described.items()):
        context.log_event(AssetMaterialization(ARCHIVE, partition=str(day), metadata=metadata))
    for left in report.left:
        context.log.warning(str(left))
    rows, days = number(report.rows, "row"), number(len(report.archived), "day")
    context.log.info(f"archived {rows} of {days} in {report.seconds:.2f} s to {report.place}")


def _metadata(done: "DayArchived", place: str) -> dict[str, Any]:
    return {
        "rows_written": done.rows,
        "bytes_written": done.bytes,
        "rows": done.total,
        "files": done.files,
        **({"rows_missing": done.missing} if done.missing else {}),
        "duration_seconds": round(done.seconds, 4),
        "path": MetadataValue.path(f"{place}/date={done.day}"),
    }
