"""The assets: the API's log table (external, observed) and one for each rollup of it.

The rollups are one multi-asset: a run recounts the selected ones of its days in one pass.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetObservation,
    AssetsDefinition,
    AssetSpec,
    BackfillPolicy,
    Config,
    Failure,
    FreshnessPolicy,
    MaterializeResult,
    PartitionsDefinition,
    RunRequest,
    multi_asset,
)
from pydantic import Field

from calc_analytics import logs
from calc_analytics.orchestration.metadata import (
    day_metadata,
    describe_left,
    further_figures,
    left_metadata,
    log_metadata,
    newest_day,
    previews,
    runbook_reference,
    table_metadata,
)
from calc_analytics.orchestration.partitions import as_days
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.retries import TRANSIENT_ERRORS, as_dagster_failure
from calc_analytics.plurals import number
from calc_analytics.rollups import LOG

if TYPE_CHECKING:
    from calc_analytics.rollup.database import Database
    from calc_analytics.rollup.declaration import Log, Rollup
    from calc_analytics.rollup.judge import Decision
    from calc_analytics.rollup.reports import DayCount, RebuildReport

GROUP = "calculations"
# The name of the step, and of its section in a run's config.
REBUILD = "rebuild"
# A run rebuilds up to this many days in one pass: starting a run takes longer than rebuilding a quarter.
DAYS_PER_RUN = 100

calculation_logs = AssetSpec(
    LOG.name,
    group_name=GROUP,
    kinds={"postgres"},
    owners=["team:api"],
    tags={"layer": "log"},
    metadata=table_metadata(LOG.table),
    description=f"{LOG.table.comment} The API owns the table; this project observes its size and the rows that the "
    "statistics have not counted yet.",
)


class RebuildConfig(Config):
    """What an operator may set when materializing."""

    allow_shrink: bool = Field(
        default=False,
        description="Recount days whose log rows were deleted from the rows that are left. This lowers their "
        "statistics and cannot be undone.",
    )
    keep: bool = Field(
        default=False,
        description="Keep the statistics of days whose log rows were deleted, and note these rows as deleted.",
    )
    automatic: bool = Field(
        default=False,
        description="Do not change days whose log is not what was counted. Schedule and sensor set it.",
    )

    @property
    def decision(self) -> "Decision":
        """What the rebuild may do to a day whose log is not what was counted."""
        from calc_analytics.rollup.judge import Decision

        if self.allow_shrink and self.keep:
            raise Failure("keep and allow_shrink exclude each other: set one of them", allow_retries=False)
        if self.allow_shrink or self.keep:
            return Decision.ALLOW_SHRINK if self.allow_shrink else Decision.KEEP
        return Decision.AUTOMATIC if self.automatic else Decision.NONE


# The config of runs that never decide about a day.
AUTOMATIC = {"ops": {REBUILD: {"config": {"automatic": True}}}}


def automatic(keys: Sequence[str], rollups: Sequence[str], at: str | None = None) -> list[RunRequest]:
    """A run of these rollups for each of these partitions, once per `at`; these runs never decide about a day.

    That of the last one is of all assets: what is computed from the rollups is computed once.
    """
    return [
        RunRequest(
            run_key=f"{key}@{at}" if at else None,
            partition_key=key,
            run_config=AUTOMATIC,
            asset_selection=None if key == keys[-1] else [AssetKey(name) for name in rollups],
        )
        for key in keys
    ]


def automatic_range(keys: Sequence[str], assets: Sequence[str]) -> RunRequest:
    """One run of these assets for consecutive partitions, as a backfill starts it.

    A request has no field for a range of partitions; the two tags are how Dagster's documentation does it.
    """
    tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
    return RunRequest(
        partition_key=keys[0] if len(keys) == 1 else None,
        tags=tags if len(keys) > 1 else {},
        run_config=AUTOMATIC,
        asset_selection=[AssetKey(name) for name in assets],
    )


def rollup_assets(log: "Log", partitions: PartitionsDefinition, freshness: FreshnessPolicy) -> AssetsDefinition:
    """An asset for each rollup of the log over these daily partitions, stale when the policy says so."""

    @multi_asset(
        name=REBUILD,
        specs=[_spec(log, declared, freshness) for declared in log.rollups],
        partitions_def=partitions,
        can_subset=True,
        backfill_policy=BackfillPolicy.multi_run(max_partitions_per_run=DAYS_PER_RUN),
        retry_policy=TRANSIENT_ERRORS,
    )
    def rebuild(
        context: AssetExecutionContext, database: RollupDatabase, config: RebuildConfig
    ) -> Iterator[MaterializeResult]:
        """Recounts the days of the run from the log, or the archive, in the selected rollups.

        A day whose log is not what was counted, or whose log rows were deleted, is not changed: the run logs the reason
        in one line, and the day's check reports what is wrong and what to do.
        """
        with as_dagster_failure():
            days, db = as_days(context.partition_keys), database.db
            chosen = [each for each in db.log.rollups if AssetKey(each.name) in context.selected_asset_keys]
            report = _rebuild(context, database, days, chosen, config.decision)
            for declared in chosen:
                _attach(context, db, declared, len(days), report)
            context.log_event(AssetObservation(calculation_logs.key, metadata=log_metadata(db)))
        for declared in chosen:
            yield MaterializeResult(asset_key=AssetKey(declared.name))

    return rebuild


def _spec(log: "Log", declared: "Rollup", freshness: FreshnessPolicy) -> AssetSpec:
    return AssetSpec(
        declared.name,
        deps=[calculation_logs],
        description=_description(log, declared),
        group_name=GROUP,
        kinds={"postgres"},
        owners=["team:analytics"],
        tags={"layer": "statistics"},
        metadata={**table_metadata(declared.target), **runbook_reference()},
        code_version=declared.version,
        freshness_policy=freshness,
    )


def _description(log: "Log", declared: "Rollup") -> str:
    """Grain, source, and when a partition is final."""
    return (
        f"{declared.description}\n\nGrain: one row per date, {', '.join(declared.keys)}. Source: {log.name}; the date "
        f"is that of {log.event_time} in the reporting time zone. Materializing a partition recounts that day from "
        "the log; between runs the sensor keeps built days exact within a second. A day is never final: late rows are "
        "added to the day they belong to. A day whose log is not what was counted is not changed until a person "
        "decides (`keep` or `allow_shrink` in the launchpad)."
    )


def _rebuild(
    context: AssetExecutionContext,
    database: RollupDatabase,
    days: list[date],
    chosen: "Sequence[Rollup]",
    decision: "Decision",
) -> "RebuildReport":
    from calc_analytics.engines.archived import archived_rows
    from calc_analytics.rollup.rebuild import rebuild

    run, db = context.run.run_id, database.db
    with logs.record_failures("rebuild", db=db, run=run):
        report = rebuild(
            db,
            days,
            [declared.name for declared in chosen],
            decision=decision,
            archived=archived_rows(db, database.settings),
            progress=lambda chunk: _log_chunk(context, chunk),
        )
    logs.log_rebuild(report, run=run)
    return report


def _source(rebuilt: "DayCount") -> dict[str, str]:
    """Where the rows came from."""
    return {"source": rebuilt.source, **({"engine": rebuilt.engine} if rebuilt.engine else {})}


def _log_chunk(context: AssetExecutionContext, chunk: "RebuildReport") -> None:
    from calc_analytics.rollup.reports import refusals

    days = chunk.days
    if days:
        rows, number_of_days = number(chunk.rows, "log row"), number(len(days), "day")
        span = f"{days[0]} to {days[-1]}" if len(days) > 1 else str(days[0])
        source = "".join(sorted({f", from {each.source} by {each.engine}" for each in chunk.rebuilt if each.engine}))
        context.log.info(f"rebuilt {number_of_days} ({span}), {rows} in {chunk.seconds:.2f} s{source}")
    for line in refusals(chunk.refused):
        context.log.warning(line)
    for kept in chunk.kept:
        context.log.info(describe_left(kept))


def _attach(
    context: AssetExecutionContext,
    db: "Database",
    declared: "Rollup",
    days: int,
    report: "RebuildReport",
) -> None:
    """Metadata for every day of the run: the new figures, or the reason why it was not rebuilt."""
    from calc_analytics.rollup.figures import day_ratios

    rebuilt = [each for each in report.rebuilt if each.rollup == declared.name]
    left = [each for each in [*report.refused, *report.kept] if each.rollup == declared.name]
    seconds = report.seconds / days
    tables = previews(db, declared, [each.day for each in rebuilt])
    ratios = day_ratios(db, declared, {each.day: each.measures for each in rebuilt})
    further = further_figures(db, declared, [each.day for each in rebuilt], context.log.warning)
    described = left_metadata(db, declared, left)
    for each in rebuilt:
        totals = day_metadata(declared, each.measures, each.keys, ratios[each.day], seconds)
        described[each.day] = {**totals, **_source(each), **further[each.day], **tables[each.day]}
    if rebuilt:
        newest = max(each.day for each in rebuilt)
        described[newest].update(newest_day(db, declared, newest, context.log.warning))
    for day, metadata in described.items():
        context.add_asset_metadata(metadata, asset_key=declared.name, partition_key=str(day))
