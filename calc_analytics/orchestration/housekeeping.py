"""Housekeeping, once a day: old records of this project in Dagster's storage are deleted, old minutes of the journal
are summed up per day.

Streaming leaves up to about 450 rows an hour in Dagster's event log, and each run about a hundred. Ticks are not part
of it: Dagster itself deletes them (`retention` in dagster.yaml). The two parts need two databases, so each is an op
that runs whether or not the other failed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from dagster import (
    Config,
    DagsterInstance,
    DefaultScheduleStatus,
    OpExecutionContext,
    RunsFilter,
    ScheduleDefinition,
    job,
    op,
)
from pydantic import Field

from calc_analytics.config import Settings
from calc_analytics.orchestration.names import HOUSEKEEPING, HOUSEKEEPING_JOB
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.retries import as_dagster_failure
from calc_analytics.orchestration.runs import ASSETS, FINISHED, is_ours

if TYPE_CHECKING:
    from calc_analytics.orchestration.event_log import RetainedIds

# Outside the hours that clocks skip or repeat.
CRON = "40 4 * * *"
RUNS_PER_PAGE = 500


class HousekeepingConfig(Config):
    """How long Dagster's records are kept."""

    keep_events_days: int = Field(
        default=7, ge=1, description="Days for which materializations from streaming, and check results, are kept."
    )
    keep_runs_days: int = Field(
        default=30, ge=1, description="Days for which finished runs are kept, with their events and logs."
    )


@dataclass(frozen=True)
class PruneCounts:
    """The numbers of deleted event-log rows and check executions, and runs (with all of their rows)."""

    rows: int
    runs: int


@op(name="prune_event_log")
def _prune_event_log(context: OpExecutionContext, config: HousekeepingConfig) -> None:
    from calc_analytics.orchestration.dagster_internals import location_of_run

    with as_dagster_failure():
        location = location_of_run(context.run)
        pruned = prune(context.instance, config.keep_events_days, config.keep_runs_days, location)
    context.log.info(f"deleted {pruned.rows:,} rows of the event log and {pruned.runs:,} runs")
    context.add_output_metadata({"rows_deleted": pruned.rows, "runs_deleted": pruned.runs})


@op(name="compact_journal")
def _compact_journal(context: OpExecutionContext, database: RollupDatabase) -> None:
    from calc_analytics.rollup import journal

    with as_dagster_failure():
        rows = journal.compact(database.db)
    context.log.info(f"summed up {rows:,} rows of the journal")
    context.add_output_metadata({"rows_summed_up": rows})


@job(
    name=HOUSEKEEPING_JOB,
    description="Deletes old rows of Dagster's event log that belong to this project (after 7 days) and old finished "
    "runs (after 30 days; both can be set in the launchpad), and sums up old minutes of the journal per day. Each "
    "partition's latest materialization and status stay, and the latest results of its checks. Safe to repeat.",
)
def housekeeping_job() -> None:
    """Two ops, neither of which waits for the other; both work in small transactions."""
    _prune_event_log()
    _compact_journal()


def daily_housekeeping(settings: Settings) -> ScheduleDefinition:
    """`daily_housekeeping`: on by default, in the small hours of the reporting time zone."""
    return ScheduleDefinition(
        name=HOUSEKEEPING,
        job=housekeeping_job,
        cron_schedule=CRON,
        execution_timezone=settings.timezone,
        default_status=DefaultScheduleStatus.RUNNING,
        description="Runs `housekeeping` once a day, at 04:40 in the reporting time zone: without it Dagster's event "
        "log grows by up to about 450 rows an hour. One run per tick.",
    )


def prune(
    instance: DagsterInstance, keep_events_days: int, keep_runs_days: int, location: str | None = None
) -> PruneCounts:
    """Deletes what is older, in transactions of a few thousand rows; safe to repeat and while everything runs.

    Runs of other code locations than `location` stay. Raises `UnknownEventLog` before anything is deleted.
    """
    from calc_analytics.orchestration import event_log

    storage, now = event_log.storage_of(instance), datetime.now(timezone.utc)
    keep = event_log.find_retained(storage, ASSETS)
    before = (now - timedelta(days=keep_events_days)).replace(tzinfo=None)
    rows = sum(event_log.prune_executions(storage, ASSETS, before, keep))
    rows += sum(event_log.prune_events(storage, ASSETS, before, keep))
    # All runs are listed before the first is deleted: Dagster finds a page by the last run of the page before.
    runs = list(_old_runs(instance, now - timedelta(days=max(keep_runs_days, keep_events_days)), keep, location))
    for run_id in runs:
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        instance.delete_run(run_id)
    return PruneCounts(rows, len(runs))


def _old_runs(instance: DagsterInstance, before: datetime, keep: "RetainedIds", location: str | None) -> Iterator[str]:
    """Finished runs of this project that hold nothing that must stay."""
    cursor, finished = None, RunsFilter(statuses=FINISHED, updated_before=before)
    locations = () if location is None else (location,)
    while runs := instance.get_runs(finished, cursor, RUNS_PER_PAGE):
        yield from (run.run_id for run in runs if run.run_id not in keep.runs and is_ours(run, locations))
        cursor = runs[-1].run_id
