"""Alerts from a service that outlives what it watches: daemon, code server, Dagster's storage and database are killed.

Real processes, two real clusters, a real webhook; only the monitor looks every two seconds instead of fifteen.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.running import eventually
from calc_analytics.processes.supervisor import free_port
from calc_analytics_tests.acceptance.conftest import Project, ask
from calc_analytics_tests.acceptance.test_service import process
from calc_analytics_tests.clusters import Cluster
from calc_analytics_tests.receiver import SECRET, Receiver, receiving

# `calc-analytics serve`, with a monitor that looks more often.
SERVE = """
import sys
from calc_analytics.operations import monitor
monitor.LOOK_SECONDS, monitor.START_SECONDS = 2.0, 0.0
from calc_analytics.cli.main import main
main(["serve", "--port", sys.argv[1]])
"""
PATIENCE = 180


class Deployment:
    """Everything in a process of its own, as in production, without a supervisor that starts it again."""

    def __init__(self, project: Project, stack: ExitStack, receiver: Receiver) -> None:
        self.project, self.stack, self.receiver = project, stack, receiver
        self.database, self.storage = self._cluster(), self._cluster()
        self.port, self.code_port = free_port(), free_port()
        self.settings = {
            "DATABASE_URL": self._address(self.database),
            "DAGSTER_POSTGRES_URL": self._address(self.storage),
            "DAGSTER_HOME": str(project.folder),
            "ALERT_WEBHOOK_URL": receiver.url,
        }
        migrated = project.cli("migrate", **self.settings)
        assert migrated.returncode == 0, migrated.stdout + migrated.stderr
        self.workspace = project.folder / "workspace_alerts.yaml"
        server = f"{{host: 127.0.0.1, port: {self.code_port}, location_name: calc_analytics}}"
        self.workspace.write_text(f"load_from:\n  - grpc_server: {server}\n")
        (project.folder / "fast_serve.py").write_text(SERVE)
        self.running: dict[str, Any] = {}
        for name in ("code_server", "serve", "daemon"):
            self.start(name)

    def _cluster(self) -> Cluster:
        folder = Path(tempfile.mkdtemp(prefix="ca-"))
        self.stack.callback(shutil.rmtree, folder)
        cluster = Cluster(folder).create().start()
        self.stack.callback(cluster.stop, "immediate")
        return cluster

    def _address(self, cluster: Cluster) -> str:
        return cluster.url().set(drivername="postgresql").render_as_string(hide_password=False)

    def start(self, name: str) -> None:
        """Starts it, unless it runs."""
        if name in self.running and self.running[name].poll() is None:
            return
        commands = {
            "code_server": (
                "calc_analytics.orchestration.code_server", "--host", "127.0.0.1", "--port", str(self.code_port)
            ),
            "serve": ("fast_serve", str(self.port)),
            "daemon": ("dagster._daemon", "run", "--workspace", str(self.workspace)),
        }  # fmt: skip
        self.running[name] = self.stack.enter_context(
            process(self.project, f"{name}.log", *commands[name], **self.settings)
        )

    def kill(self, name: str) -> None:
        """SIGKILL, or a crash of a cluster."""
        if name in ("database", "storage"):
            getattr(self, name).stop("immediate")
        else:
            self.running[name].kill()
            self.running[name].wait()

    def repair(self) -> None:
        """Starts every process that does not run."""
        for cluster in (self.database, self.storage):
            if cluster.run("pg_ctl", "-D", str(cluster.data), "status", check=False).returncode != 0:
                cluster.start()
        for name in ("code_server", "daemon"):
            self.start(name)

    def is_healthy(self) -> bool:
        return ask(self.port, "/health/rollup")[0] == 200

    def lines(self) -> list[str]:
        """All lines that were posted so far."""
        lines = [line for text in self.receiver.taken for line in text.split("\n• ")]
        return [line.removeprefix("calc_analytics: ") for line in lines if line != "calc_analytics:"]

    def open_alerts(self) -> set[str]:
        """The subjects that were posted as failed and not as resolved."""
        found: set[str] = set()
        for line in self.lines():
            word, _, rest = line.partition(": ")
            subjects = set(rest.partition(" (")[0].split(", "))
            found = found | subjects if word == "failed" else found - subjects
        return found


@pytest.fixture(scope="module")
def deployment(project: Project) -> Iterator[Deployment]:
    with ExitStack() as stack:
        running = Deployment(project, stack, stack.enter_context(receiving()))
        eventually(running.is_healthy, "healthy at first", PATIENCE)
        eventually(lambda: not running.open_alerts(), "everything of the start resolved", PATIENCE)
        yield running


@pytest.mark.parametrize(
    ("killed", "subject", "words"),
    [
        ("code_server", "sensor", "the sensor new_log_batches failed"),
        ("database", "database", "cannot connect to postgresql://"),
        ("storage", "daemon", "Dagster's storage: cannot connect to postgresql://"),
        ("daemon", "daemon", "last heartbeats: "),
    ],
)
def test_what_is_killed_is_posted_once_and_once_more_when_it_is_back(
    deployment: Deployment, killed: str, subject: str, words: str
):
    before = len(deployment.lines())
    deployment.kill(killed)
    eventually(lambda: subject in deployment.open_alerts(), f"an alert of the {killed}", PATIENCE)
    assert ask(deployment.port, "/health/live")[0] == 200
    (line,) = [line for line in deployment.lines()[before:] if line.startswith(f"failed: {subject} (")]
    assert words in line
    deployment.repair()
    eventually(lambda: not deployment.open_alerts(), f"its end, with the {killed} back", PATIENCE)
    eventually(deployment.is_healthy, "healthy again", PATIENCE)
    ends = [line for line in deployment.lines()[before:] if line.startswith("resolved: ") and subject in line]
    assert len(ends) == 1


def test_all_of_them_killed_together_are_posted_and_resolved(deployment: Deployment):
    before = len(deployment.lines())
    for name in ("daemon", "code_server", "storage", "database"):
        deployment.kill(name)
    eventually(lambda: {"database", "daemon"} <= deployment.open_alerts(), "both databases posted", PATIENCE)
    failed = [line for line in deployment.lines()[before:] if line.startswith("failed: ")]
    assert len(failed) == 2, failed
    deployment.repair()
    eventually(deployment.is_healthy, "healthy again", PATIENCE)
    eventually(lambda: not deployment.open_alerts(), "all resolved", PATIENCE)


def test_a_restarted_service_posts_again_what_is_still_wrong(deployment: Deployment):
    deployment.kill("storage")
    eventually(lambda: deployment.open_alerts(), "an alert of the storage", PATIENCE)
    before = len(deployment.lines())
    deployment.kill("serve")
    deployment.start("serve")
    eventually(lambda: len(deployment.lines()) > before, "the same again", PATIENCE)
    assert "failed: daemon (" in deployment.lines()[before]
    deployment.repair()
    eventually(lambda: not deployment.open_alerts(), "all resolved", PATIENCE)


def test_no_alert_and_no_log_holds_a_secret(deployment: Deployment):
    logs = "".join(path.read_text(errors="replace") for path in deployment.project.folder.glob("*.log"))
    assert SECRET not in logs + "".join(deployment.receiver.taken)
    assert {request["path"] for request in deployment.receiver.requests} == {f"/services/{SECRET}"}
