"""Two who run the same project at once: a second `up` or `demo` names the first, a second daemon is red in health."""

import os
import signal
import subprocess
import sys
from typing import Any

from benchmarks.running import eventually
from calc_analytics.operations.health import TWO_DAEMONS
from calc_analytics_tests.acceptance.conftest import Up, free_ports


def daemon_probe(up: Up) -> dict[str, Any]:
    data = up.get("/health/rollup")[1]["data"]
    return next(probe for probe in data["probes"] if probe["name"] == "daemon")


def test_a_second_up_or_demo_names_the_process_that_runs(up: Up):
    same_ports = ("--ui-port", str(up.port), "--service-port", str(up.service_port))
    for command, ports in (("up", same_ports), ("demo", same_ports), ("up", free_ports())):
        second = up.project.cli(command, *ports)
        assert second.returncode == 1
        assert second.stderr.startswith(f"error: already running (pid {up.process.pid}): ")
        assert second.stderr.count("\n") == 1


def end(dev: "subprocess.Popen[bytes]") -> None:
    """`dagster dev` and its processes, however long they would take by themselves."""
    os.killpg(dev.pid, signal.SIGTERM)
    try:
        dev.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(dev.pid, signal.SIGKILL)
        dev.wait()


def test_dagster_dev_while_up_runs_is_red_until_it_ends(up: Up):
    eventually(lambda: daemon_probe(up)["ok"], "the daemon's heartbeats")
    command = [sys.executable, "-m", "dagster", "dev", "--port", free_ports()[1]]
    environment = up.project.environment(DAGSTER_HOME=str(up.project.folder))
    with open(up.project.folder / "dev.log", "w") as log:
        dev = subprocess.Popen(
            command, cwd=up.project.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        eventually(lambda: daemon_probe(up)["code"] == "two_daemons", "the second daemon in health")
        assert up.get("/health/rollup")[0] == 503
        message = " ".join(up.project.cli("doctor").stdout.split())
        assert f"{TWO_DAEMONS}: dagster daemon " in message
    finally:
        end(dev)
    eventually(lambda: daemon_probe(up)["ok"], "health without it", 240)
