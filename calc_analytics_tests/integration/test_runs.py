"""Which runs in Dagster's record are the project's: housekeeping deletes them, and health reports them."""

import pytest
from dagster import AssetCheckKey, AssetKey, DagsterInstance, DagsterRun
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test

from calc_analytics.orchestration.runs import is_ours
from calc_analytics.rollups import HOURS, LOG, STATS

OURS, OTHER = AssetKey(STATS.name), AssetKey("another_project")


def check(asset: AssetKey) -> AssetCheckKey:
    """A check of the asset."""
    return AssetCheckKey(asset, "a_check")


@pytest.mark.parametrize(
    ("job", "assets", "checks", "ours"),
    [
        ("rollup_job", set(), set(), True),
        ("housekeeping", set(), set(), True),
        ("their_job", set(), set(), False),
        ("__ASSET_JOB", {OURS, AssetKey(HOURS.name), AssetKey(LOG.name)}, set(), True),
        ("__ASSET_JOB", set(), {check(OURS)}, True),
        ("__ASSET_JOB", {OURS, OTHER}, set(), False),
        ("__ASSET_JOB", {OURS}, {check(OTHER)}, False),
        ("__ASSET_JOB", {OTHER}, {check(OTHER)}, False),
    ],
)
def test_of_a_run_without_a_location_its_job_decides_or_all_that_it_selects(
    instance: DagsterInstance, job: str, assets: set, checks: set, ours: bool
):
    run = create_run_for_test(instance, job_name=job, asset_selection=assets, asset_check_selection=checks)
    assert is_ours(run, ()) is ours
    assert is_ours(run, {"calc_analytics"}) is ours


def launched(instance: DagsterInstance, location: str, job: str) -> DagsterRun:
    """A run that the daemon or the UI launched."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), "__repository__")
    return create_run_for_test(instance, job_name=job, remote_job_origin=RemoteJobOrigin(repository, job))


def test_otherwise_its_location_decides_if_the_projects_is_known(instance: DagsterInstance):
    assert is_ours(launched(instance, "calc_analytics", "anything"), {"calc_analytics"})
    assert not is_ours(launched(instance, "theirs", "rollup_job"), {"calc_analytics"})
    assert is_ours(launched(instance, "theirs", "rollup_job"), ())
