"""The processes of `calc-analytics up`: code server, webserver, daemon, HTTP service; watched, restarted, stopped.

One code server serves the other two (a `python_module` workspace would make the daemon start a new one every
minute). A process that dies is started again after a growing pause. Output goes to files in `.calc_analytics/logs`.
"""

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from calc_analytics.config import dagster_home, project_root
from calc_analytics.database import embedded
from calc_analytics.database.embedded import data_folder, writable
from calc_analytics.errors import CalcAnalyticsError

HOST = "127.0.0.1"
# All of it ends within ten seconds: these, and the embedded database's checkpoint.
STOP_SECONDS = 6.0
STARTED_SECONDS = 90.0
LONGEST_PAUSE_SECONDS = 30.0
DATABASE_RETRY_SECONDS = 5.0
# A day of streaming writes about 10 MB.
LOG_BYTES = 50_000_000


class PortTaken(CalcAnalyticsError):
    """Another program listens on a port that is needed."""


class AlreadyUp(CalcAnalyticsError):
    """Another `up` runs in this project folder: two daemons would share one history."""


class NotStarted(CalcAnalyticsError):
    """A process ended before it was ready; its log says why."""


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def is_listening(port: int) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex((HOST, port)) == 0


def require_free(port: int, option: str) -> None:
    """Raises `PortTaken`, naming the option that chooses another port."""
    if is_listening(port):
        raise PortTaken(
            f"port {port} is in use on {HOST}: end the program that has it, or choose another with {option}"
        )


def require_ports(ui_port: int, service_port: int) -> None:
    """Raises `PortTaken` unless these are two ports, and free."""
    if ui_port == service_port:
        raise PortTaken(f"--ui-port and --service-port are both {ui_port}: choose two ports")
    require_free(ui_port, "--ui-port")
    require_free(service_port, "--service-port")


_claims: list[IO[str]] = []


def claim(ui_port: int, service_port: int) -> None:
    """Makes sure that no other `up` runs in this folder, until the process ends, and that the ports are free."""
    lock = open(writable(data_folder()) / "up.lock", "a+")  # noqa: SIM115 (held until the process ends)
    try:
        _lock(lock)
        require_ports(ui_port, service_port)
    except CalcAnalyticsError:
        lock.close()
        raise
    _claims.append(lock)


def _lock(file: IO[str]) -> None:
    """Locks the file, which holds the number of the process that has it; `AlreadyUp` if another one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise AlreadyUp(
            f"already running (pid {file.read().strip() or 'unknown'}): 'calc-analytics up' (or demo) already runs in "
            f"{project_root()}: stop it first"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _writable_dagster_home() -> Path:
    """DAGSTER_HOME, or a copy of its configuration where Dagster can write the output of runs."""
    home = dagster_home()
    if os.access(home, os.W_OK):
        return home
    copy = writable(data_folder()) / "dagster_home"
    copy.mkdir(exist_ok=True)
    shutil.copyfile(home / "dagster.yaml", copy / "dagster.yaml")
    return copy


_LIBC = _libc()
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """In the child: on Linux it gets SIGTERM when `up` is killed, so that nothing is left running."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Service:
    """One process: its command, its log file, and how often it had to be started again."""

    name: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    pause_seconds: float = 0.0

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return writable(data_folder()) / "logs" / f"{self.name}.log"

    def start(self) -> None:
        """Starts it in a session of its own, so that Ctrl-C reaches only the supervisor."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                self.command, env=self.environment, cwd=project_root(), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        self.started_at = time.monotonic()

    def rotate_log(self) -> None:
        """Beyond LOG_BYTES the log begins afresh; what it had is kept once, beside it, as `….log.1`."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            shutil.copyfile(self.log, f"{self.log}.1")
            os.truncate(self.log, 0)

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def restart_if_dead(self) -> bool:
        """Starts it again if it died; the pause doubles while it keeps dying young."""
        if self.is_running():
            return False
        if self.process is not None:
            # Run workers that a killed code server left behind: nobody would end them.
            self.signal(signal.SIGKILL)
            self.process = None
        if time.monotonic() - self.started_at > STARTED_SECONDS:
            self.pause_seconds = 0.0
        if time.monotonic() - self.started_at < self.pause_seconds:
            return False
        self.pause_seconds = min(max(1.0, self.pause_seconds * 2), LONGEST_PAUSE_SECONDS)
        self.start()
        return True

    def signal(self, number: int) -> None:
        """Sends a signal to its whole process group, run workers included."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def terminate(self) -> None:
        """SIGTERM to the process itself."""
        if self.is_running() and self.process is not None:
            self.process.terminate()


@dataclass
class Supervisor:
    """All services, in the order in which they start. They stop in the same order: ticks end first."""

    ui_port: int
    service_port: int
    stop_asked: threading.Event = field(default_factory=threading.Event)
    code_port: int = field(default_factory=free_port)
    services: list[Service] = field(default_factory=list)
    database_retry_at: float = 0.0

    def start(self) -> None:
        """Starts everything and returns when the UI answers; raises `PortTaken` or `NotStarted`."""
        require_ports(self.ui_port, self.service_port)
        environment = self._environment()
        code = self._service(
            "code-server", environment,
            "calc_analytics.orchestration.code_server", "--host", HOST, "--port", str(self.code_port),
        )  # fmt: skip
        self._await(code, lambda: is_listening(self.code_port))
        if self.stop_asked.is_set():
            return
        workspace = ["--workspace", str(self._write_workspace())]
        web = self._service(
            "webserver", environment, "dagster_webserver", *workspace, "--host", HOST, "--port", str(self.ui_port)
        )
        self._service("daemon", environment, "dagster._daemon", "run", *workspace)
        service = self._service(
            "service", environment, "calc_analytics.cli", "serve",
            "--host", HOST, "--port", str(self.service_port), "--ui-port", str(self.ui_port),
        )  # fmt: skip
        self._await(web, lambda: is_listening(self.ui_port))
        self._await(service, lambda: is_listening(self.service_port))

    def watch(self) -> list[str]:
        """Starts what died again, the embedded database first, and returns a line for each; keeps the logs short."""
        for service in self.services:
            service.rotate_log()
        database = self._restart_database()
        services = [service.name for service in self.services if service.restart_if_dead()]
        return [*database, *(f"the {name} had died and was started again" for name in services)]

    def _restart_database(self) -> list[str]:
        """A server that recovers from its death counts as alive. A start that fails is tried again."""
        if not embedded.is_down() or time.monotonic() < self.database_retry_at:
            return []
        try:
            embedded.restart()
        except embedded.EmbeddedServerFailed as error:
            self.database_retry_at = time.monotonic() + DATABASE_RETRY_SECONDS
            return [f"error: {error}; trying again"]
        return ["the database had died and was started again"]

    def stop(self) -> None:
        """SIGTERM to all; whatever is left after a few seconds is killed, run workers included."""
        for service in self.services:
            service.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(service.is_running() for service in self.services):
            time.sleep(0.05)
        for service in self.services:
            service.signal(signal.SIGKILL)
            if service.process is not None:
                service.process.wait()

    def _service(self, name: str, environment: dict[str, str], module: str, *arguments: str) -> Service:
        service = Service(name, [sys.executable, "-m", module, *arguments], environment)
        self.services.append(service)
        service.start()
        return service

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DAGSTER_HOME": str(_writable_dagster_home()),
            "DAGSTER_GRPC_SHUTDOWN_GRACE_PERIOD": "1",
            # The materializations of a run's days are stored together.
            "DAGSTER_EVENT_BATCH_SIZE": os.environ.get("DAGSTER_EVENT_BATCH_SIZE", "100"),
            "PYTHONUNBUFFERED": "1",
        }

    def _write_workspace(self) -> Path:
        path = writable(data_folder()) / "workspace.yaml"
        path.write_text(
            f"load_from:\n  - grpc_server:\n      host: {HOST}\n      port: {self.code_port}\n"
            "      location_name: calc_analytics\n"
        )
        return path

    def _await(self, service: Service, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STARTED_SECONDS
        while not ready() and not self.stop_asked.is_set():
            if not service.is_running() or time.monotonic() > deadline:
                raise NotStarted(f"the {service.name} did not start: {_last_line(service.log)} (read {service.log})")
            time.sleep(0.1)


def _last_line(log: Path) -> str:
    """What it said last; one of the project's own errors, with its way on, if it said one."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = [found.group(1) for line in lines[-200:] if (found := re.match(r"calc_analytics[\w.]+: (.+)", line))]
    return (own or lines or ["it said nothing"])[-1][:300]
