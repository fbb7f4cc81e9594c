"""Failed runs whose repetition Dagster's daemon could not request are requested by the sensor, once."""

import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.events import DagsterEvent, DagsterEventType, JobFailureData, RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import consume_new_runs_for_automatic_reexecution

from calc_analytics.orchestration.checks import check_keys
from calc_analytics.orchestration.repetitions import request_repetitions
from calc_analytics.rollups import LOG
from calc_analytics_tests.integration.test_sensor import tick

DAY = "2026-03-01"
STATS = AssetKey("calculation_stats_daily")
Fail = Callable[..., DagsterRun]


def lose_repetition(instance: DagsterInstance, run: DagsterRun) -> None:
    """What Dagster's daemon does with the failed run while the code server does not answer."""
    workspace = Mock(instance=instance)
    workspace.create_request_context.side_effect = DagsterUserCodeUnreachableError("no answer")
    records = instance.get_run_records(RunsFilter(run_ids=[run.run_id]))
    list(consume_new_runs_for_automatic_reexecution(workspace, records, logging.getLogger(__name__)))


@pytest.fixture
def fail(stored_instance: DagsterInstance) -> Fail:
    """Makes a run and lets it fail, as its killed worker does; options are the run's."""

    def failed(
        job: str = "rollup_job", reason: RunFailureReason = RunFailureReason.UNEXPECTED_TERMINATION, **options: Any
    ) -> DagsterRun:
        run = create_run_for_test(stored_instance, job, **{"tags": {"dagster/partition": DAY}, **options})
        event = DagsterEvent(
            event_type_value=DagsterEventType.RUN_FAILURE.value,
            job_name=job,
            event_specific_data=JobFailureData(error=None, failure_reason=reason),
        )
        stored_instance.report_dagster_event(event, run.run_id)
        found = stored_instance.get_run_by_id(run.run_id)
        assert found
        assert found.status == DagsterRunStatus.FAILURE
        return found

    return failed


def test_a_lost_repetition_is_requested_as_the_run_was(stored_instance, fail):
    config = {"ops": {"rebuild": {"config": {"automatic": True}}}}
    run = fail(asset_selection=frozenset([STATS]), run_config=config)
    assert run.tags["dagster/will_retry"] == "true"
    assert request_repetitions(stored_instance, None) == []
    lose_repetition(stored_instance, run)
    (request,) = request_repetitions(stored_instance, None)
    assert request.partition_key == DAY
    assert request.asset_selection == [STATS]
    assert request.asset_check_keys is None
    assert request.run_config == config
    assert run.run_id in request.run_key


def test_a_tick_requests_it(location, stored_instance, fail):
    run = fail()
    lose_repetition(stored_instance, run)
    (request,) = tick(location, stored_instance).run_requests
    assert request.run_key == f"repeats {run.run_id}"
    assert request.asset_selection is None


def test_a_range_and_a_run_of_checks_keep_what_they_were_for(stored_instance, fail):
    checks = check_keys(LOG, LOG.names)
    span = {"dagster/asset_partition_range_start": DAY, "dagster/asset_partition_range_end": "2026-03-05"}
    run = fail(tags=span, asset_selection=frozenset(), asset_check_selection=frozenset(checks))
    lose_repetition(stored_instance, run)
    (request,) = request_repetitions(stored_instance, None)
    assert request.partition_key is None
    assert request.tags == span
    assert request.asset_selection == []
    assert set(request.asset_check_keys) == set(checks)


@pytest.mark.parametrize("tag", ["dagster/run_key", "dagster/parent_run_id"])
def test_one_that_was_requested_or_that_a_person_repeated_is_not_requested_again(stored_instance, fail, tag):
    run = fail()
    lose_repetition(stored_instance, run)
    (request,) = request_repetitions(stored_instance, None)
    value = request.run_key if tag == "dagster/run_key" else run.run_id
    create_run_for_test(stored_instance, "rollup_job", tags={tag: value})
    assert request_repetitions(stored_instance, None) == []


def test_a_run_that_failed_by_itself_or_too_often_is_left_for_a_person(stored_instance, fail):
    of_itself = fail(reason=RunFailureReason.STEP_FAILURE)
    lose_repetition(stored_instance, of_itself)
    root = of_itself.run_id
    group = {"dagster/root_run_id": root, "dagster/parent_run_id": root, "dagster/partition": DAY}
    runs = [fail(tags=group, root_run_id=root, parent_run_id=root) for _ in range(3)]
    for run in runs:
        lose_repetition(stored_instance, run)
    assert not auto_reexecution_should_retry_run(stored_instance, runs[-1], None)
    assert request_repetitions(stored_instance, None) == []


def test_other_jobs_and_other_code_locations_are_not_repeated(stored_instance, fail):
    for run in (
        fail("somebody_elses"),
        fail("housekeeping"),
        fail("x", asset_selection=frozenset([AssetKey("other")])),
    ):
        lose_repetition(stored_instance, run)
    assert request_repetitions(stored_instance, None) == []


def test_a_run_of_a_backfill_is_of_another_job_and_repeated(stored_instance, fail):
    lose_repetition(stored_instance, fail("__ASSET_JOB", asset_selection=frozenset([STATS])))
    assert len(request_repetitions(stored_instance, None)) == 1
