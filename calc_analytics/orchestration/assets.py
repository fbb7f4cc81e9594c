"""The assets: the API's log table (external, observed) and the daily statistics that this project keeps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagster import (
    AssetExecutionContext,
    AssetMaterialization,
    AssetObservation,
    AssetsDefinition,
    AssetSpec,
    BackfillPolicy,
    Config,
    Failure,
    FreshnessPolicy,
    PartitionsDefinition,
    RunRequest,
    asset,
)
from pydantic import Field

from calc_analytics import rollup, telemetry
from calc_analytics.orchestration.metadata import day_metadata, kept_metadata, log_metadata, previews
from calc_analytics.orchestration.partitions import as_days
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.retries import TRANSIENT_ERRORS, failing_in_one_line

if TYPE_CHECKING:
    from calc_analytics.rollup.reports import RebuildReport

GROUP = "calculations"
# A run rebuilds up to this many days in one pass: starting a run takes longer than rebuilding a quarter.
DAYS_PER_RUN = 100

calculation_logs = AssetSpec(
    "calculation_logs",
    group_name=GROUP,
    kinds={"postgres"},
    description="One row per calculation, written by the API in batches. Not ours: observed with its size and with "
    "the rows that the statistics have not counted yet.",
)


class RebuildConfig(Config):
    """What an operator may set when materializing."""

    allow_shrink: bool = Field(
        default=False,
        description="Rebuild days even if raw logs were deleted, which lowers their statistics for good.",
    )
    keep_pruned: bool = Field(
        default=False,
        description="Leave days whose raw logs were deleted as they are, without failing. Schedule and sensor set it.",
    )


def automatic(keys: Sequence[str], at: str | None = None) -> list[RunRequest]:
    """A run for each of these partitions, once per `at`; days whose logs were deleted are no failure of it."""
    config = {"ops": {"calculation_stats_daily": {"config": {"keep_pruned": True}}}}
    return [RunRequest(run_key=f"{key}@{at}" if at else None, partition_key=key, run_config=config) for key in keys]


def stats_asset(partitions: PartitionsDefinition, freshness: FreshnessPolicy) -> AssetsDefinition:
    """`calculation_stats_daily` over these daily partitions, stale when the policy says so."""

    @asset(
        partitions_def=partitions,
        deps=[calculation_logs],
        backfill_policy=BackfillPolicy.multi_run(max_partitions_per_run=DAYS_PER_RUN),
        retry_policy=TRANSIENT_ERRORS,
        freshness_policy=freshness,
        group_name=GROUP,
        kinds={"postgres"},
    )
    def calculation_stats_daily(
        context: AssetExecutionContext, database: RollupDatabase, config: RebuildConfig
    ) -> None:
        """Statistics per publisher and day, where the day is that of `created_at` in the reporting time zone.

        Materializing a partition recounts that day from the raw logs; between runs the sensor keeps built days exact
        within about a second. A day is never final: late rows are added to the day they belong to. A day whose logs
        were deleted is left as it is, and the run fails and says so, unless `allow_shrink` or `keep_pruned` is set.
        """
        days = as_days(context.partition_keys)
        with failing_in_one_line():
            with telemetry.failures_noted("rebuild", run=context.run.run_id):
                report = rollup.rebuild.rebuild(
                    database.engine,
                    database.rollup,
                    database.timezone,
                    days,
                    allow_shrink=config.allow_shrink,
                    progress=lambda chunk: _log_chunk(context, chunk),
                )
            telemetry.rebuilt(report, run=context.run.run_id)
            _attach(context, database, report, config.keep_pruned)
            context.log_event(AssetObservation(calculation_logs.key, metadata=log_metadata(database)))

    return calculation_stats_daily


def _log_chunk(context: AssetExecutionContext, chunk: "RebuildReport") -> None:
    if chunk.rebuilt:
        span = f"{chunk.rebuilt[0].day} to {chunk.rebuilt[-1].day}"
        context.log.info(f"{span}: {len(chunk.rebuilt)} days rebuilt, {chunk.rows:,} rows in {chunk.seconds:.2f} s")
    for refused in chunk.refused:
        context.log.warning(str(refused))


def _attach(
    context: AssetExecutionContext, database: RollupDatabase, report: "RebuildReport", keep_pruned: bool
) -> None:
    """Metadata for every rebuilt day. If some were refused, the others are on record before the run fails."""
    seconds = report.seconds / max(len(report.rebuilt), 1)
    tables = previews(database, [day.day for day in report.rebuilt])
    described = {
        day.day: {**day_metadata(day.measures, day.keys, seconds), "top_publishers": tables[day.day]}
        for day in report.rebuilt
    }
    if keep_pruned:
        described.update(kept_metadata(database, report.shrunk))
    failed = [*report.overflowed, *([] if keep_pruned else report.shrunk)]
    for day, metadata in described.items():
        if failed:
            context.log_event(AssetMaterialization(context.asset_key, partition=str(day), metadata=metadata))
        else:
            context.add_asset_metadata(metadata, partition_key=str(day))
    if failed:
        raise Failure("; ".join(str(day) for day in failed), allow_retries=False)
