"""The HTTP service and `status` with real processes: killed daemons and databases, a transaction that is held."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import psycopg
import pytest
from sqlalchemy.engine import URL

from benchmarks.running import eventually
from calc_analytics.processes.supervisor import free_port
from calc_analytics_tests.acceptance.conftest import Project, Up, ask
from calc_analytics_tests.logs import FORMS

TOKEN = "correct-horse"
TRIGGER = "/internal/rollup/trigger"
# What Dagster's sensor daemon may miss before it counts as dead: two heartbeats of 30 seconds each.
TWO_INTERVALS_SECONDS = 60


@pytest.fixture(scope="module")
def up(project: Project) -> Iterator[Up]:
    """The copy, running as a test environment has it."""
    settings = {"ENABLE_TEST_ENDPOINTS": "true", "ROLLUP_TRIGGER_TOKEN": TOKEN, "LOG_FORMAT": "json"}
    with project.up(**settings) as running:
        yield running


def probes(port: int) -> dict[str, dict[str, Any]]:
    """The probes of the health report by name; none without an answer."""
    status, answer = ask(port, "/health/rollup")
    return {probe["name"]: probe for probe in answer["data"]["probes"]} if status else {}


def healthy(up: Up) -> bool:
    return up.get("/health/rollup")[0] == 200


def lines(up: Up, log: str, event: str) -> list[dict[str, Any]]:
    """The JSON lines of that event in a log of `up`."""
    text = (up.project.folder / ".calc_analytics" / "logs" / f"{log}.log").read_text()
    found = [json.loads(line) for line in text.splitlines() if line.startswith('{"at"')]
    return [line for line in found if line["event"] == event]


def samples(up: Up) -> dict[str, float]:
    """What /metrics says, without labels."""
    text = up.get("/metrics")[1]
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.M)}


def test_up_says_where_the_service_is_and_it_becomes_healthy(up: Up):
    assert f"service   http://127.0.0.1:{up.service_port}/health/rollup" in up.output
    eventually(lambda: healthy(up), "200 from /health/rollup")
    status, answer = up.get("/health/rollup")
    assert (status, answer["data"]["running"], answer["data"]["healthy"]) == (200, True, True)
    assert answer["data"]["last_run"]
    assert up.get("/health/live")[0] == 200
    # A rebuild counts the new rows that it finds, so rows written during one are not counted by a refresh.
    rebuilds = "calc_analytics_rebuild_duration_seconds_count"
    eventually(lambda: samples(up).get(rebuilds, 0) >= 1, "the sensor's run of two days, of a first start")


def test_the_trigger_wants_its_token_and_counts_what_was_written(up: Up):
    assert up.get(TRIGGER, "POST")[0] == 401
    assert up.get(TRIGGER, "POST", Authorization="Bearer wrong")[0] == 401
    up.project.cli("simulate", "--rows", "300", "--rate", "3000", "--late-share", "0")
    status, answer = up.get(TRIGGER, "POST", Authorization=f"Bearer {TOKEN}")
    assert (status, answer["data"]["status"]) == (200, "triggered")
    days = answer["data"]["rebuild"]["days"]
    for name, (_, measures) in FORMS.items():
        assert sum(day[name][measures[0]] for day in days.values()) == 300


def test_metrics_add_up_what_ticks_runs_the_trigger_and_commands_counted(up: Up):
    before = samples(up)
    up.project.cli("simulate", "--rows", "400", "--rate", "2000", "--late-share", "0")
    eventually(lambda: samples(up)["calc_analytics_lag_rows"] == 0, "all rows counted")
    # The run compared two days of each rollup.
    compared = 2 * len(FORMS)
    wanted = {
        "rows_counted_total": 700,
        "rebuild_duration_seconds_count": 2,
        "verify_duration_seconds_count": compared,
        "audit_duration_seconds_count": 1,
    }

    def all_there() -> dict[str, float] | None:
        found = samples(up)
        return found if all(found[f"calc_analytics_{name}"] >= count for name, count in wanted.items()) else None

    after = eventually(all_there, "rows that ticks counted, the sensor's run with its checks, and the trigger")
    assert after["calc_analytics_rows_counted_total"] == 700
    refreshes = "calc_analytics_refresh_duration_seconds_count"
    assert after[refreshes] > before[refreshes]
    up.project.cli("verify")
    assert samples(up)["calc_analytics_partitions_verified_total"] > after["calc_analytics_partitions_verified_total"]
    assert after["calc_analytics_up"] == after["calc_analytics_healthy"] == 1


def test_each_refresh_is_one_json_line_and_idle_ticks_are_silent(up: Up):
    found = lines(up, "code-server", "refresh")
    assert sum(line["rows"] for line in found) >= 400
    assert {"at", "level", "days", "seconds"} <= set(found[-1])
    assert lines(up, "code-server", "rebuild")
    count = len(lines(up, "code-server", "refresh"))
    ticks = probes(up.service_port)["sensor"]["compared"]
    eventually(lambda: probes(up.service_port)["sensor"]["compared"] != ticks, "another tick")
    assert len(lines(up, "code-server", "refresh")) == count


def test_status_names_the_session_of_an_open_transaction_which_delays_no_other_row(up: Up):
    url = up.engine().url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, application_name="calc-api-3") as writer:
        writer.execute(
            "insert into calculation_logs (publisher_id, locality_id, date_calculated, source) values (1, 1, now(), 1)"
        )
        up.project.cli("simulate", "--rows", "100", "--rate", "2000", "--late-share", "0")
        eventually(lambda: samples(up)["calc_analytics_lag_rows"] == 0, "the others' rows counted")
        result = up.project.cli("status")
        assert result.returncode == 0, result.stdout + result.stderr
        assert re.search(rf"{writer.info.backend_pid} .*calc-api-3 .*log rows", result.stdout)
        assert "They delay no other rows" in result.stdout
        assert samples(up)["calc_analytics_oldest_writer_age_seconds"] > 0
        assert healthy(up)


def test_status_watches_until_it_is_stopped(up: Up):
    watching = up.project.start("calc_analytics.cli", "status", "--watch", "--json")
    first, second = (json.loads(watching.stdout.readline()) for _ in range(2))
    watching.terminate()
    watching.wait(20)
    watching.stdout.close()
    assert first["health"]["healthy"]
    assert second["at"] > first["at"]


def test_doctor_finds_nothing_wrong_with_what_up_runs(up: Up):
    ports = ("--ui-port", str(up.port), "--service-port", str(up.service_port))
    result = up.project.cli("doctor", *ports)
    assert result.returncode == 0, result.stdout
    assert f"the Dagster UI answers on port {up.port}" in result.stdout
    assert f"the HTTP service answers on port {up.service_port}" in result.stdout


def test_a_sensor_that_is_turned_off_is_unhealthy_and_the_named_command_fixes_it(up: Up):
    environment = {"DAGSTER_HOME": str(up.project.folder)}
    assert up.project.run("dagster", "sensor", "stop", "new_log_batches", **environment).returncode == 0
    probe = eventually(
        lambda: None if (found := probes(up.service_port)["sensor"])["ok"] else found, "the sensor's probe turns"
    )
    assert "is turned off" in probe["compared"]
    assert up.get("/health/rollup")[0] == 503
    command, *words = probe["next_command"].split()
    done = up.project.run(command, *words, **environment)
    assert done.returncode == 0, done.stderr
    eventually(lambda: healthy(up), "healthy again")


def test_a_killed_database_is_503_with_details_and_then_healthy_again(up: Up):
    (postmaster,) = up.project.postmasters()
    postmaster.suspend()
    try:
        status, answer = up.get("/health/rollup")
        assert status == 503
        (database,) = (probe for probe in answer["data"]["probes"] if probe["name"] == "database")
        # The second one where the monitor had asked before: its attempt to connect ends while this answer is awaited.
        assert not database["ok"]
        assert database["compared"] in {"no answer within 3 s", "the database is unreachable"}
        assert up.get("/health/live")[0] == 200
    finally:
        postmaster.kill()
    eventually(lambda: healthy(up), "healthy again, with a database that was started again")
    statuses = {"ok", "unhealthy"}
    eventually(lambda: {line["status"] for line in lines(up, "service", "health")} == statuses, "a look for each")


def test_a_service_that_dies_is_started_again(up: Up):
    (service,) = up.living("serve")
    before = samples(up)
    service.kill()
    eventually(lambda: up.get("/health/live")[0] == 200, "the service again", 60)
    after = samples(up)
    counters = [name for name in before if name.endswith(("_total", "_count", "_sum"))]
    assert "calc_analytics_rows_counted_total" in counters
    assert [name for name in counters if after[name] < before[name]] == [], "counters survive"
    assert not (up.project.folder / ".calc_analytics" / "metrics").exists()


@contextmanager
def process(project: Project, log: str, *command: str, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the project, ended afterwards; its output goes to a file."""
    with open(project.folder / log, "ab") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=project.folder, env=project.environment(**settings),
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield started
    finally:
        everything = psutil.Process(started.pid).children(recursive=True) if started.poll() is None else []
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        for child in psutil.wait_procs(everything, timeout=20)[1]:
            child.kill()


def test_health_turns_within_two_intervals_of_the_daemons_death_and_back_by_itself(
    project: Project, url: URL, empty_url: URL
):
    plain = {"DATABASE_URL": url, "DAGSTER_POSTGRES_URL": empty_url}
    settings = {
        name: value.set(drivername="postgresql").render_as_string(hide_password=False) for name, value in plain.items()
    }
    settings["DAGSTER_HOME"] = str(project.folder)
    port, code_port = free_port(), free_port()
    workspace = project.folder / "workspace_test.yaml"
    workspace.write_text(f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {code_port}, location_name: ours}}\n")
    serve = ("calc_analytics.cli", "serve", "--port", str(port))
    code = ("calc_analytics.orchestration.code_server", "--host", "127.0.0.1", "--port", str(code_port))
    daemon = ("dagster._daemon", "run", "--workspace", str(workspace))

    def is_healthy() -> bool:
        return ask(port, "/health/rollup")[0] == 200

    with process(project, "serve.log", *serve, **settings), process(project, "code.log", *code, **settings):
        eventually(lambda: ask(port, "/health/live")[0] == 200, "the service")
        assert not is_healthy()
        with process(project, "daemon.log", *daemon, **settings) as running:
            eventually(is_healthy, "healthy with a daemon")
            running.kill()
            running.wait()
            died = time.monotonic()
            eventually(lambda: not is_healthy(), "unhealthy without a daemon", TWO_INTERVALS_SECONDS + 30)
            assert time.monotonic() - died < TWO_INTERVALS_SECONDS + 15
        found = probes(port)
        assert not found["daemon"]["ok"] or not found["sensor"]["ok"]
        assert found["database"]["ok"]
        with process(project, "daemon.log", *daemon, **settings):
            eventually(is_healthy, "healthy again with a new daemon")
