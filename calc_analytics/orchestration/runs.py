"""Which of the runs in Dagster's record are this project's; other code locations may share the storage."""

from collections.abc import Collection, Set

from dagster import AssetKey, DagsterRun, DagsterRunStatus

from calc_analytics.orchestration.names import ARCHIVE, JOBS, SUMMARY
from calc_analytics.rollups import LOG

FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
# Of all declared rollups: one that ROLLUPS leaves out now may have runs and events from before.
ASSETS = tuple(AssetKey(name) for name in (*LOG.names, LOG.name, SUMMARY, ARCHIVE))


def is_ours(run: DagsterRun, locations: Collection[str]) -> bool:
    """Whether the run is of one of these code locations.

    A run that was started on the command line has none, and the locations may be unknown (empty). Then its job's name
    decides, or that all assets that it rebuilds or checks are the project's.
    """
    from calc_analytics.orchestration.dagster_internals import location_of_run

    location = location_of_run(run)
    if location is not None and locations:
        return location in locations
    return run.job_name in JOBS or is_only_of(run, set(ASSETS))


def is_only_of(run: DagsterRun, assets: Set[AssetKey]) -> bool:
    """Whether the run rebuilds or checks some assets, and all of them are among these."""
    targets = {*(run.asset_selection or ()), *(key.asset_key for key in run.asset_check_selection or ())}
    return bool(targets) and targets <= assets
