"""Nothing wrong becomes green automatically, with everything running and writers writing: statistics that another
program changes, and log rows that it deletes, stay red in health and in Dagster until they are right or a person
has decided.
"""

import json
import signal
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pytest

from benchmarks.running import eventually
from calc_analytics import days
from calc_analytics_tests.acceptance.comparisons import DAY
from calc_analytics_tests.acceptance.conftest import PATIENCE_SECONDS, Project, Up
from calc_analytics_tests.acceptance.load import (
    answered,
    built_everywhere,
    launch_a_run,
    runs,
    scalar,
    unfinished_runs,
)
from calc_analytics_tests.acceptance.test_up import write_day
from calc_analytics_tests.logs import FORMS

MATCH_CHECKS = {
    name: "stats_match_logs" if name == "calculation_stats_daily" else f"{name}_match_logs" for name in FORMS
}
EXECUTIONS = """
query ($asset: String!, $check: String!, $day: String!) {
  assetCheckExecutions(assetKey: {path: [$asset]}, checkName: $check, partition: $day, limit: 1) {
    status runId evaluation { success severity description }
  }
}
"""
TAGS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status tags { key value } } } }"
# Audits of today and yesterday are a minute apart.
NOTICED_WITHIN_SECONDS = 90
ROWS = 500
OLD_DAYS, PRUNED_DAYS = 100, 110


@pytest.fixture(scope="module")
def up(project: Project) -> Iterator[Up]:
    """The copy, running, with the trigger open."""
    with project.up(ENABLE_TEST_ENDPOINTS="true") as running:
        yield running


@pytest.fixture(scope="module")
def yesterday() -> date:
    return days.today("UTC") - timedelta(days=1)


@pytest.fixture(scope="module")
def old(up: Up, yesterday: date) -> date:
    """A day 100 days ago, built, as yesterday is; and a day before it, built and pruned."""
    old_day, pruned = (days.today("UTC") - timedelta(days=number) for number in (OLD_DAYS, PRUNED_DAYS))
    for day in (pruned, old_day, yesterday):
        write_day(up, day, ROWS)
    db = up.db()
    eventually(lambda: built_everywhere(db) >= {pruned, old_day, yesterday}, "the days built by the sensor's runs")
    db.engine.dispose()
    done = up.project.cli("prune", "--older-than", str(OLD_DAYS + 5), "--yes")
    assert done.returncode == 0, done.stderr
    assert log_rows(up, pruned) == 0
    eventually(lambda: runs(up) and unfinished_runs(up) == [], "the first runs to end")
    return old_day


@pytest.fixture(scope="module")
def pruned(old: date) -> date:
    return old - timedelta(days=PRUNED_DAYS - OLD_DAYS)


@pytest.fixture(scope="module", autouse=True)
def writers(up: Up, old: date) -> Iterator[None]:
    """Traffic all the time, with late rows for yesterday and the day before."""
    writing = up.project.start("calc_analytics.cli", "simulate", "--rate", "100", "--late-share", "0.05")
    yield
    assert writing.poll() is None, "the writers gave up"
    writing.send_signal(signal.SIGTERM)
    writing.wait(PATIENCE_SECONDS)
    assert writing.stdout
    writing.stdout.close()


def log_rows(up: Up, day: date) -> int:
    return int(scalar(up, f"select count(*) from calculation_logs where {DAY} = :day", day=day))


def surplus(up: Up, day: date) -> dict[str, int]:
    """By how many rows each live view holds more of the day than the log does, each at one instant."""
    return {
        name: int(
            scalar(
                up,
                f"select (select coalesce(sum({measures[0]}), 0) from {name}_live where date = :day)"
                f" - (select count(*) from calculation_logs where {DAY} = :day)",
                day=day,
            )
        )
        for name, (_, measures) in FORMS.items()
    }


def add_to_statistics(up: Up, day: date, rows: int) -> None:
    """Changes a single row of the day, as a person with psql does."""
    engine = up.engine()
    with engine.begin() as connection:
        changed = connection.exec_driver_sql(
            f"update calculation_stats_daily set total_calculations = total_calculations + {rows} "
            f"where date = '{day}' and publisher_id = 3"
        )
        assert changed.rowcount == 1
    engine.dispose()


def delete_log_rows(up: Up, day: date, rows: int) -> None:
    engine = up.engine()
    with engine.begin() as connection:
        chosen = f"select id from calculation_logs where {DAY} = '{day}' order by id limit {rows}"
        assert connection.exec_driver_sql(f"delete from calculation_logs where id in ({chosen})").rowcount == rows
    engine.dispose()


def red(up: Up) -> str:
    """The finding of the probe of the proofs while health is 503; nothing while it is 200."""
    status, answer = up.get("/health/rollup")
    probes = {probe["name"]: probe for probe in answer["data"]["probes"]}
    return "" if status == 200 or probes["proofs"]["ok"] else probes["proofs"]["compared"]


def is_healthy(up: Up) -> bool:
    return up.get("/health/rollup")[0] == 200


def checked(up: Up, day: date, rollup: str = "calculation_stats_daily") -> dict[str, Any]:
    """The last evaluation of the comparison with the log, for that day, in Dagster."""
    found = up.graphql(EXECUTIONS, asset=rollup, check=MATCH_CHECKS[rollup], day=str(day))["assetCheckExecutions"]
    return found[0] if found else {"status": "NONE"}


def passes(up: Up, day: date) -> bool:
    """Whether the last evaluation of each rollup's comparison passed for that day."""
    return all(checked(up, day, name)["status"] == "SUCCEEDED" for name in FORMS)


def launched_by(up: Up, run_id: str) -> str | None:
    """The sensor that requested the run; the run ended well."""
    run = up.graphql(TAGS, id=run_id)["runOrError"]
    assert run["status"] in ("STARTED", "SUCCESS"), run
    return {tag["key"]: tag["value"] for tag in run["tags"]}.get("dagster/sensor_name")


def trigger(up: Up) -> dict[str, Any]:
    """What the schedule does: today and yesterday, without a decision."""
    status, answer = up.get("/internal/rollup/trigger", "POST")
    assert status == 200, answer
    return answer["data"]


def rebuild_in_dagster(up: Up, day: date) -> None:
    """A run of that day, as an operator starts it; it succeeds whether or not the day is rebuilt."""
    run_id = launch_a_run(up, day, PATIENCE_SECONDS)

    def status() -> str | None:
        return next((run["status"] for run in runs(up) if run["runId"] == run_id), None)

    eventually(lambda: answered(status) in ("SUCCESS", "FAILURE"), "the run to end")
    assert status() == "SUCCESS"


def test_statistics_changed_by_another_program_are_red_until_they_are_right(
    up: Up, yesterday: date, old: date, pruned: date
):
    eventually(lambda: is_healthy(up), "healthy before anything is changed")
    for day in (yesterday, old, pruned):
        add_to_statistics(up, day, 1000)
    eventually(lambda: str(yesterday) in red(up), "503 for yesterday", NOTICED_WITHIN_SECONDS)
    proof = up.project.cli("verify", "--json")
    assert proof.returncode == 1
    found = json.loads(proof.stdout)
    assert found["difference"] == 3000
    for day in (yesterday, old, pruned):
        assert found["days"][str(day)]["calculation_stats_daily"]["finding"] == "statistics_changed"
        eventually(lambda day=day: checked(up, day)["status"] == "FAILED", f"a failed check of {day}")
        assert launched_by(up, checked(up, day)["runId"]) == "new_log_batches"
        evaluation = checked(up, day)["evaluation"]
        assert (evaluation["success"], evaluation["severity"]) == (False, "ERROR")
        assert "another program changed the statistics" in evaluation["description"]

    trigger(up)
    rebuild_in_dagster(up, old)
    for day in (yesterday, old):
        assert surplus(up, day) == dict.fromkeys(FORMS, 0)
        eventually(lambda day=day: passes(up, day), f"passed checks of {day}")
    for _ in range(2):
        trigger(up)
        rebuild_in_dagster(up, pruned)
        assert checked(up, pruned)["status"] == "FAILED"
        assert str(pruned) in red(up)
        assert surplus(up, pruned)["calculation_stats_daily"] == ROWS + 1000, "left as it is"
    assert up.project.cli("verify", "--day", str(pruned)).returncode == 1

    add_to_statistics(up, pruned, -1000)
    assert up.project.cli("verify").returncode == 0
    eventually(lambda: is_healthy(up), "healthy when the number was set right")
    assert passes(up, pruned)


def test_deleted_log_rows_are_red_through_every_automatic_rebuild_until_a_person_decides(up: Up, yesterday: date):
    assert surplus(up, yesterday) == dict.fromkeys(FORMS, 0)
    statement = (
        "delete from calculation_logs where id in (select id from calculation_logs where {} order by id limit 50)"
    )
    engine = up.engine()
    with engine.begin() as connection:
        connection.exec_driver_sql(statement.format(f"{DAY} = '{yesterday}'"))
    engine.dispose()
    proof = up.project.cli("verify", "--day", str(yesterday), "--json")
    assert proof.returncode == 1
    for found in json.loads(proof.stdout)["days"][str(yesterday)].values():
        assert found["finding"] == "logs_missing"
    assert str(yesterday) in red(up)
    eventually(lambda: checked(up, yesterday)["status"] == "FAILED", "a failed check of yesterday")
    for _ in range(3):
        done = trigger(up)
        assert f"left alone: {yesterday}" in done["message"]
        assert str(yesterday) in red(up)
        assert checked(up, yesterday)["status"] == "FAILED"
        assert surplus(up, yesterday) == dict.fromkeys(FORMS, 50), "neither lowered nor counted twice"

    kept = up.project.cli("rollup", "--day", str(yesterday), "--keep")
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert up.project.cli("verify").returncode == 0
    eventually(lambda: is_healthy(up), "healthy when a person has decided")
    eventually(lambda: passes(up, yesterday), "passed checks of yesterday")
    assert surplus(up, yesterday) == dict.fromkeys(FORMS, 50), "the statistics are kept"
