"""The contract with Dagster's insides: each name, signature and behaviour that the project relies on.

A failure here after an upgrade of Dagster names the part of `dagster_internals` to look at.
"""

import inspect
import json
from importlib.metadata import entry_points, version
from importlib.util import find_spec

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    AssetMaterialization,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DefaultRunLauncher,
)
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus
from dagster._core.test_utils import create_run_for_test
from dagster._grpc.server import DagsterApiServer
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from sqlalchemy import inspect as inspect_database
from sqlalchemy import text

from calc_analytics.database import dagster_tables
from calc_analytics.orchestration import dagster_internals, evaluations, event_log
from calc_analytics.orchestration.launcher import WatchfulRunLauncher
from calc_analytics.processes.supervisor import free_port

ASSET, DAY = AssetKey("calculation_stats_daily"), "2026-03-01"
CHECK = AssetCheckKey(ASSET, "stats_match_logs")


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_it_is_the_version_that_this_was_tested_with():
    assert version("dagster") == dagster_internals.TESTED_WITH


def test_every_name_is_there():
    lazy = {"DagsterGrpcClient", "InstigatorState"}
    assert [
        name for name in dagster_internals.__all__ if name not in lazy and not hasattr(dagster_internals, name)
    ] == []
    from dagster._grpc.client import DagsterGrpcClient

    assert parameters(DagsterGrpcClient.get_server_id) == ["self", "timeout"]
    assert {"instigator_name", "instigator_origin_id", "selector_id", "is_running"} <= set(dir(InstigatorState))


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (
            dagster_internals.SqlEventLogStorageTable,
            {"id", "run_id", "event", "dagster_event_type", "timestamp", "asset_key", "partition"},
        ),
        (dagster_internals.AssetEventTagsTable, {"event_id", "asset_key", "key", "value"}),
        (
            dagster_internals.AssetCheckExecutionsTable,
            {
                "id",
                "asset_key",
                "check_name",
                "partition",
                "run_id",
                "execution_status",
                "evaluation_event",
                "evaluation_event_timestamp",
                "evaluation_event_storage_id",
                "materialization_event_storage_id",
            },
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_its_tables_have_these_columns_in_the_database_too(stored_instance: DagsterInstance, table, columns: set[str]):
    assert columns <= set(table.columns.keys())
    with stored_instance.event_log_storage.index_connection() as connection:
        there = {each["name"] for each in inspect_database(connection).get_columns(table.name)}
    assert set(table.columns.keys()) <= there


def test_an_event_without_a_run_has_an_empty_run_id_and_its_kind_in_the_event_log(stored_instance: DagsterInstance):
    stored_instance.report_runless_asset_event(AssetMaterialization(ASSET, partition=DAY))
    storage = stored_instance.event_log_storage
    assert isinstance(storage, PostgresEventLogStorage)
    assert isinstance(storage, dagster_internals.SqlEventLogStorage)
    table = dagster_internals.SqlEventLogStorageTable
    with storage.index_connection() as connection:
        (stored,) = connection.execute(table.select().where(table.c.asset_key == ASSET.to_string())).all()
    assert (stored.run_id, stored.partition) == (event_log.NO_RUN, DAY)
    assert stored.dagster_event_type == DagsterEventType.ASSET_MATERIALIZATION.value
    assert parameters(storage.index_transaction) == []


def evaluate(instance: DagsterInstance, passed: bool) -> None:
    """Reports an evaluation of the latest materialization of the day."""
    target = evaluations.latest_materializations(instance, ASSET, [DAY])[DAY]
    instance.report_runless_asset_event(
        AssetCheckEvaluation(
            asset_key=ASSET,
            check_name=CHECK.name,
            passed=passed,
            severity=AssetCheckSeverity.ERROR,
            partition=DAY,
            target_materialization_data=target,
            metadata={},
        )
    )


def test_an_evaluation_is_current_until_its_partition_is_materialized_again(stored_instance: DagsterInstance):
    stored_instance.report_runless_asset_event(AssetMaterialization(ASSET, partition=DAY))
    evaluate(stored_instance, passed=False)
    result = evaluations.results_of_partitions(stored_instance, [CHECK], [DAY])[CHECK, DAY]
    assert (result.passed, result.is_ended, result.is_current) == (False, True, True)
    found = event_log.results_of_checks(stored_instance, [CHECK])[CHECK]
    assert (found.failed_partitions, found.failed[0][1].partition) == (1, DAY)
    stored_instance.report_runless_asset_event(AssetMaterialization(ASSET, partition=DAY))
    assert not evaluations.results_of_partitions(stored_instance, [CHECK], [DAY])[CHECK, DAY].is_current


def test_the_statuses_of_executions_are_stored_by_these_names():
    status = dagster_internals.AssetCheckExecutionRecordStatus
    assert {each.value for each in status} == {"PLANNED", "SUCCEEDED", "FAILED"}


def test_pruning_finds_the_attempts_that_never_materialized(stored_instance: DagsterInstance):
    storage = stored_instance.event_log_storage
    assert storage.get_latest_asset_partition_materialization_attempts_without_materializations(ASSET) == {}


def test_the_launcher_finds_the_code_server_by_the_runs_tag(instance: DagsterInstance):
    launcher = WatchfulRunLauncher()
    launcher.register_instance(instance)
    run = create_run_for_test(instance)
    assert dagster_internals.instance_of(launcher) is instance
    assert dagster_internals.code_server_of(launcher, run.run_id) is None
    address = json.dumps({"host": "127.0.0.1", "port": free_port()})
    run = create_run_for_test(instance, tags={dagster_internals.GRPC_INFO_TAG: address})
    client = dagster_internals.code_server_of(launcher, run.run_id)
    with pytest.raises(dagster_internals.DagsterUserCodeUnreachableError):
        client.get_server_id(timeout=1)
    with pytest.raises(dagster_internals.DagsterUserCodeUnreachableError):
        dagster_internals.works_on_run(client, run.run_id, 1)


def test_run_monitoring_asks_the_launcher():
    assert parameters(DefaultRunLauncher.check_run_worker_health) == ["self", "run"]
    assert parameters(DefaultRunLauncher.__init__) == ["self", "inst_data"]
    assert parameters(dagster_internals.CheckRunHealthResult)[:2] == ["status", "msg"]
    assert {"RUNNING", "FAILED"} <= {each.name for each in dagster_internals.WorkerStatus}


def test_the_code_servers_thread_looks_for_orphaned_runs_by_the_method_that_is_wrapped(monkeypatch):
    original = DagsterApiServer._check_for_orphaned_runs
    assert parameters(original) == ["self"]
    assert "self._check_for_orphaned_runs()" in inspect.getsource(DagsterApiServer)
    monkeypatch.setattr(DagsterApiServer, "_check_for_orphaned_runs", original)
    dagster_internals.wrap_check_for_orphaned_runs(lambda check: ("wrapped", check))
    assert DagsterApiServer._check_for_orphaned_runs == ("wrapped", original)


def test_the_daemon_is_started_by_this_module_and_known_by_its_path_and_that_of_its_script():
    assert dagster_internals.is_daemon(find_spec("dagster._daemon.__main__").origin)
    (script,) = [
        each.name for each in entry_points(group="console_scripts") if each.value == "dagster._daemon.cli:main"
    ]
    assert dagster_internals.is_daemon(f"/somewhere/bin/{script}")
    assert not dagster_internals.is_daemon(find_spec("dagster.__main__").origin)


def test_a_stored_state_and_a_launched_run_name_their_code_location():
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
    origin = RemoteInstigatorOrigin(repository, "a_sensor")
    state = InstigatorState(origin, dagster_internals.InstigatorType.SENSOR, InstigatorStatus.RUNNING)
    assert dagster_internals.location_of_instigator(state) == "here"
    launched = DagsterRun(job_name="a_job", remote_job_origin=RemoteJobOrigin(repository, "a_job"))
    assert dagster_internals.location_of_run(launched) == "here"
    assert dagster_internals.location_of_run(DagsterRun(job_name="a_job")) is None


def test_dagsters_tables_have_the_names_and_columns_by_which_a_database_is_examined(stored_instance: DagsterInstance):
    with stored_instance.event_log_storage.index_connection() as connection:
        found = inspect_database(connection)
        there = {name: {each["name"] for each in found.get_columns(name)} for name in found.get_table_names()}
        revisions = set(connection.execute(text(f"select * from {dagster_tables.REVISIONS}")).scalars())
    assert there.keys() - {dagster_tables.REVISIONS} == dagster_tables.COLUMNS.keys()
    for name, columns in dagster_tables.COLUMNS.items():
        assert columns <= there[name], name
    assert revisions
    assert revisions <= dagster_tables._revisions()


def test_the_storage_is_made_from_a_url_and_may_be_optimized_for_the_webserver(stored_instance: DagsterInstance):
    assert parameters(DagsterPostgresStorage.__init__)[:2] == ["self", "postgres_url"]
    assert parameters(DagsterPostgresStorage.from_config_value) == ["inst_data", "config_value"]
    for storage in (PostgresEventLogStorage, type(stored_instance.run_storage), type(stored_instance.schedule_storage)):
        assert "statement_timeout" in parameters(storage.optimize_for_webserver)


def test_retention_is_asked_by_the_type_of_instigator(stored_instance: DagsterInstance):
    settings = stored_instance.get_tick_retention_settings(dagster_internals.InstigatorType.SENSOR)
    assert {status.value for status in settings} >= {"SKIPPED", "SUCCESS", "FAILURE"}
