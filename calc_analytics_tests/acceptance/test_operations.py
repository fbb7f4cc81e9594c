"""What keeps a deployment going for years: alerts that reach a webhook, and a history that is pruned unnoticed."""

import tempfile
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from benchmarks.running import eventually
from calc_analytics import days
from calc_analytics.config import with_driver
from calc_analytics.database.engine import engine_for
from calc_analytics_tests.acceptance.conftest import Project, Up
from calc_analytics_tests.acceptance.test_up import all_runs_ended, write_day
from calc_analytics_tests.logs import FORMS
from calc_analytics_tests.receiver import SECRET, Receiver, receiving

LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}
"""
SCHEDULES = """
{ schedulesOrError(repositorySelector: {repositoryName: "__repository__", repositoryLocationName: "calc_analytics"}) {
    ... on Schedules { results { name scheduleState { status } } }
} }
"""
RUN = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
SHOWN = """
query ($asset: String!, $days: [String!]) {
  assetNodeOrError(assetKey: {path: [$asset]}) { ... on AssetNode {
    partitionStats { numMaterialized numPartitions numFailed }
    assetPartitionStatuses { ... on TimePartitionStatuses { ranges { status startKey endKey } } }
    latestMaterializationByPartition(partitions: $days) { runId partition timestamp }
    freshnessStatusInfo { freshnessStatus }
    assetChecksOrError { ... on AssetChecks { checks {
      name
      executionForLatestMaterialization { id runId status evaluation { success partition description timestamp } }
      partitionStatuses { ... on AssetCheckTimePartitionStatuses { ranges { status startKey endKey } } }
    } } }
  } }
  assetOrError(assetKey: {path: ["calculation_logs"]}) { ... on Asset { assetObservations(limit: 1) { timestamp } } }
}
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """A webhook that fails twice and then takes what is posted."""
    with receiving(500, 503) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def up(receiver: Receiver) -> Iterator[Up]:
    """A copy of the project, running, with alerts."""
    with tempfile.TemporaryDirectory(prefix="ca-", ignore_cleanup_errors=True) as folder:
        with Project(Path(folder)).up(ALERT_WEBHOOK_URL=receiver.url) as running:
            yield running


@pytest.fixture(scope="module")
def dagster_database(up: Up) -> Iterator[Engine]:
    engine = engine_for(with_driver(up.database_url, "psycopg").set(database="dagster"))
    yield engine
    engine.dispose()


def execute(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def one(engine: Engine, query: str) -> int:
    with engine.begin() as connection:
        return int(connection.execute(text(query)).scalar_one())


def write(up: Up, rows: int) -> None:
    done = up.project.cli("simulate", "--rows", str(rows), "--rate", "1000", "--late-share", "0")
    assert done.returncode == 0, done.stderr


def test_a_failed_check_reaches_the_webhook_once_and_so_does_its_end(up: Up, receiver: Receiver):
    eventually(lambda: all_runs_ended(up), "the first runs to end")
    engine, today = up.engine(), str(days.today("UTC"))
    write(up, 300)
    total = "select coalesce(sum(total_calculations), 0) from calculation_stats_daily"
    eventually(lambda: one(engine, total) == 300, "the rows counted")
    execute(engine, "update calculation_stats_daily set cache_hits = cache_hits + 1000000")
    write(up, 100)
    checks = [f"check {name} of {today}" for name in ("cache_hits_within_total", "stats_match_logs")]
    eventually(lambda: times_posted(receiver, "failed", checks) == [1, 1], "an alert of each check")
    posted = len(receiver.taken)
    assert [request["path"] for request in receiver.requests] == [f"/services/{SECRET}"] * (posted + 2)
    assert up.project.cli("rollup").returncode == 0
    eventually(lambda: times_posted(receiver, "resolved", checks) == [1, 1], "the end of each check's failure")
    assert times_posted(receiver, "failed", checks) == [1, 1]
    logs = "".join(path.read_text() for path in (up.project.folder / ".calc_analytics" / "logs").glob("*.log"))
    assert SECRET not in logs
    engine.dispose()


def times_posted(receiver: Receiver, word: str, subjects: list[str]) -> list[int]:
    """How often the webhook took a line with that word about each of these."""
    lines = [line for text in receiver.taken for line in text.splitlines() if f"{word}: " in line]
    named = [line.partition(f"{word}: ")[2].partition(" (since")[0].partition(" (failed")[0] for line in lines]
    return [sum(subject in each.split(", ") for each in named) for subject in subjects]


def launch(up: Up, job: str, partition: date | None = None, config: dict[str, Any] | None = None) -> str:
    """Launches a run, waits for its end, and returns its status."""
    selector = {"repositoryName": "__repository__", "repositoryLocationName": "calc_analytics", "jobName": job}
    tags = [{"key": "dagster/partition", "value": str(partition)}] if partition else []
    params = {"selector": selector, "runConfigData": config or {}, "executionMetadata": {"tags": tags}}
    launched = up.graphql(LAUNCH, params=params)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched

    def ended() -> str | None:
        status = up.graphql(RUN, id=launched["run"]["runId"])["runOrError"]["status"]
        return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

    return str(eventually(ended, f"the end of {job}"))


def test_housekeeping_leaves_what_the_ui_shows(up: Up, dagster_database: Engine):
    engine, day = up.engine(), days.today("UTC") - timedelta(days=3)
    write_day(up, day, 200)
    assert launch(up, "rollup_job", day) == "SUCCESS"
    execute(engine, f"delete from calculation_logs where created_at < '{day + timedelta(days=1)} 00:00Z'")
    # A day that is left alone fails its check; a run fails where the config makes no sense.
    assert [launch(up, "rollup_job", day) for _ in range(2)] == ["SUCCESS", "SUCCESS"]
    broken, both = day - timedelta(days=1), {"keep": True, "allow_shrink": True}
    config = {"ops": {"rebuild": {"config": both}}}
    assert [launch(up, "rollup_job", broken, config) for _ in range(2)] == ["FAILURE", "FAILURE"]
    for _ in range(2):
        assert launch(up, "rollup_job", days.today("UTC")) == "SUCCESS"
    shown = [str(days.today("UTC") - timedelta(days=n)) for n in (0, 1, 3)]
    eventually(lambda: all_runs_ended(up), "the runs of the sensor to end")

    def in_the_ui() -> dict[str, Any]:
        execute(dagster_database, "update asset_keys set cached_status_data = null")
        return {asset: up.graphql(SHOWN, asset=asset, days=shown) for asset in FORMS}

    before = in_the_ui()
    for asset in FORMS:
        node = before[asset]["assetNodeOrError"]
        assert {"status": "FAILED", "startKey": str(broken), "endKey": str(broken)} in (
            node["assetPartitionStatuses"]["ranges"]
        )
        statuses = {c["name"]: c["partitionStatuses"]["ranges"] for c in node["assetChecksOrError"]["checks"]}
        (match,) = (ranges for name, ranges in statuses.items() if name.endswith("match_logs"))
        assert {"status": "FAILED", "startKey": str(day), "endKey": str(day)} in match
    for table, column in (
        ("event_logs", "timestamp"),
        ("asset_check_executions", "evaluation_event_timestamp"),
        ("runs", "update_timestamp"),
    ):
        execute(dagster_database, f"update {table} set {column} = {column} - interval '40 days'")
    rows = one(dagster_database, "select count(*) from event_logs")
    runs = one(dagster_database, "select count(*) from runs")
    assert launch(up, "housekeeping") == "SUCCESS"
    assert one(dagster_database, "select count(*) from event_logs") < rows
    assert one(dagster_database, "select count(*) from runs") < runs
    assert in_the_ui() == before
    engine.dispose()


def test_the_schedule_of_the_housekeeping_is_on(up: Up):
    found = {s["name"]: s["scheduleState"]["status"] for s in up.graphql(SCHEDULES)["schedulesOrError"]["results"]}
    assert found["daily_housekeeping"] == "RUNNING"
