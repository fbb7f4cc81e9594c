"""Requests the repetitions of failed runs that Dagster lost.

Dagster's daemon repeats a run whose process was killed, by asking the run's code server once. If that is away at this
moment, the run's log says "Failed to retry run", and Dagster never repeats it.
"""

from collections.abc import Collection
from datetime import datetime, timedelta, timezone

from dagster import AssetKey, DagsterInstance, DagsterRun, DagsterRunStatus, RunRequest, RunsFilter

from calc_analytics.orchestration.names import ROLLUP_JOB, SUMMARY
from calc_analytics.orchestration.runs import is_only_of, is_ours
from calc_analytics.rollups import LOG

RECENT_SECONDS = 3600
RUNS_PER_TICK = 10
RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
# What the sensor's job consists of.
TARGETS = {AssetKey(name) for name in (*LOG.names, SUMMARY)}


def request_repetitions(instance: DagsterInstance, location: str | None) -> list[RunRequest]:
    """A run like each failed one of this code location that lost its repetition within the last hour, once."""
    from calc_analytics.orchestration.dagster_internals import WILL_RETRY_TAG, lost_its_repetition

    since = datetime.now(timezone.utc) - timedelta(seconds=RECENT_SECONDS)
    tags = {WILL_RETRY_TAG: "false"}
    failed = RunsFilter(statuses=[DagsterRunStatus.FAILURE], tags=tags, updated_after=since)
    locations = [location] if location else []
    lost = [
        run
        for run in instance.get_runs(failed)
        if _is_of_the_job(run, locations) and lost_its_repetition(instance, run) and not _is_repeated(instance, run)
    ]
    return [_repetition(run) for run in lost[:RUNS_PER_TICK]]


def _is_of_the_job(run: DagsterRun, locations: Collection[str]) -> bool:
    """Whether the sensor's job can do what the run was to do, which another job may have started."""
    return is_ours(run, locations) and (run.job_name == ROLLUP_JOB or is_only_of(run, TARGETS))


def _is_repeated(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Whether a request of this module or a person has repeated the run."""
    tags = ({"dagster/run_key": _key(run)}, {"dagster/parent_run_id": run.run_id})
    return any(instance.get_runs_count(RunsFilter(tags=each)) for each in tags)


def _key(run: DagsterRun) -> str:
    return f"repeats {run.run_id}"


def _repetition(run: DagsterRun) -> RunRequest:
    assets, checks = run.asset_selection, run.asset_check_selection
    return RunRequest(
        run_key=_key(run),
        partition_key=run.tags.get("dagster/partition"),
        tags={name: run.tags[name] for name in RANGE if name in run.tags},
        run_config=dict(run.run_config),
        asset_selection=None if assets is None and checks is None else sorted(assets or ()),
        asset_check_keys=None if checks is None else sorted(checks),
    )
