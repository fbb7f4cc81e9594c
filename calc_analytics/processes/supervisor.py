"""Starts, watches, restarts and stops the processes of `up`: code server, webserver, daemon, HTTP service.

Webserver and daemon share one code server: with a `python_module` workspace the daemon would start a new one every
minute. A process that dies is started again after a growing pause. Output goes to files in `.calc_analytics/logs`.
"""

import ctypes
import errno
import os
import random
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
from datetime import date
from pathlib import Path

from filelock import FileLock, Timeout

from calc_analytics.config import dagster_home, project_root
from calc_analytics.database import embedded
from calc_analytics.database.embedded import data_folder, writable
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.ports import HOST, is_listening

# Stopping takes ten seconds at most: these, and the checkpoint of the embedded database.
STOP_SECONDS = 6.0
STARTED_SECONDS = 90.0
LONGEST_PAUSE_SECONDS = 30.0
DATABASE_RETRY_SECONDS = 5.0
# Streaming writes about 10 MB a day.
LOG_BYTES = 50_000_000
CODE_PORTS = range(20_000, 32_000)


class PortTaken(CalcAnalyticsError):
    """Another program listens on a port that is needed."""


class CannotListen(CalcAnalyticsError):
    """The address is not of this machine, is unknown, or needs a right that the user does not have."""


class AlreadyUp(CalcAnalyticsError):
    """Another `up` runs in this project folder (two daemons would share one history), or it cannot be locked."""


class NotStarted(CalcAnalyticsError):
    """A process ended before it was ready. Its log holds the reason."""


def free_port() -> int:
    """A port that is free at this moment."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def code_port(workspace: Path) -> int:
    """The code server's port: that of the last start, by its workspace file, if it is free; else another free one.

    A run that was killed together with `up` names the code server by its port, and Dagster repeats it only once that
    one answers. So a new port is below those that outgoing connections take.
    """
    found = re.search(r"^ +port: (\d+)$", workspace.read_text(), re.MULTILINE) if workspace.exists() else None
    last = [int(found[1])] if found else []
    for port in [*last, *random.sample(CODE_PORTS, 100)]:
        with suppress(OSError):
            _listen_briefly(port, HOST)
            return port
    return free_port()


def _workspace_file() -> Path:
    return writable(data_folder()) / "workspace.yaml"


def _listen_briefly(port: int, host: str) -> None:
    """Raises `OSError` unless this process could listen there."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen()


def require_free(port: int, option: str, host: str = HOST) -> None:
    """Raises `PortTaken` or `CannotListen` unless this process could listen there; names the option to change."""
    try:
        _listen_briefly(port, host)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"port {port} is in use on {host}: end the program that has it, or choose another with {option}"
            ) from None
        raise CannotListen(f"cannot listen on port {port} of {host}: {error.strerror}") from None


def require_ports(ui_port: int, service_port: int) -> None:
    """Raises `PortTaken` or `CannotListen` unless these are two ports that are free."""
    if ui_port == service_port:
        raise PortTaken(f"--ui-port and --service-port are both {ui_port}: choose two ports")
    require_free(ui_port, "--ui-port")
    require_free(service_port, "--service-port")


_claims: list[FileLock] = []


def claim(ui_port: int, service_port: int) -> None:
    """Locks this project folder for one `up`, until the process ends; requires that the ports are free.

    Raises `AlreadyUp`, `PortTaken` or `CannotListen`.
    """
    folder = writable(data_folder())
    lock, owner = FileLock(folder / "up.lock"), folder / "up.pid"
    try:
        lock.acquire(blocking=False)
        owner.write_text(f"{os.getpid()}\n")
    except Timeout:
        raise AlreadyUp(
            f"already running (pid {_text(owner) or 'unknown'}): 'calc-analytics up' (or demo) already runs in "
            f"{project_root()}: stop it first"
        ) from None
    except OSError as error:
        raise AlreadyUp(f"cannot lock {folder}: {error.strerror}; is it another user's?") from None
    try:
        require_ports(ui_port, service_port)
    except CalcAnalyticsError:
        lock.release()
        raise
    _claims.append(lock)


def _text(file: Path) -> str:
    """What the file holds, or nothing."""
    with suppress(OSError):
        return file.read_text().strip()
    return ""


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _writable_dagster_home() -> Path:
    """DAGSTER_HOME if it is writable, else a copy of its configuration in a folder that is: Dagster writes there."""
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
    """Runs in the child: on Linux it gets SIGTERM when `up` is killed, so that nothing is left running."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Service:
    """One process: its command, its log file, and the pause before its next start."""

    name: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    pause_seconds: float = 0.0

    @property
    def log(self) -> Path:
        """The file that gets its output."""
        return writable(data_folder()) / "logs" / f"{self.name}.log"

    def start(self) -> None:
        """Starts the process in a session of its own, so that Ctrl-C reaches only the supervisor."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                self.command, env=self.environment, cwd=project_root(), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        self.started_at = time.monotonic()

    def rotate_log(self) -> None:
        """Empties a log of more than LOG_BYTES, after copying it to `….log.1`."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            shutil.copyfile(self.log, f"{self.log}.1")
            os.truncate(self.log, 0)

    def is_running(self) -> bool:
        """Whether the process is alive."""
        return self.process is not None and self.process.poll() is None

    def restart_if_dead(self) -> bool:
        """Starts a dead process again, and returns whether it did. The pause doubles while starts fail soon."""
        if self.is_running():
            return False
        if self.process is not None:
            # Also ends the run workers that a killed code server left behind.
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
        """Sends a signal to the process group, run workers included."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def terminate(self) -> None:
        """Sends SIGTERM to the process itself."""
        if self.is_running() and self.process is not None:
            self.process.terminate()


@dataclass
class Supervisor:
    """All services, in the order of starting and stopping: the code server stops first, so that ticks end."""

    ui_port: int
    service_port: int
    stop_asked: threading.Event = field(default_factory=threading.Event)
    start_date: date | None = None
    code_port: int = field(default_factory=lambda: code_port(_workspace_file()))
    services: list[Service] = field(default_factory=list)
    database_retry_at: float = 0.0

    def start(self) -> None:
        """Starts everything and returns when the UI answers; raises `PortTaken`, `CannotListen` or `NotStarted`."""
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
        """Restarts dead processes, the embedded database first, and shortens logs. Returns a line for each restart."""
        for service in self.services:
            service.rotate_log()
        database = self._restart_database()
        services = [service.name for service in self.services if service.restart_if_dead()]
        return [*database, *(f"the {name} died and was started again" for name in services)]

    def _restart_database(self) -> list[str]:
        """Restarts a dead embedded server; one in recovery counts as alive. A failed start is retried later."""
        if not embedded.is_down() or time.monotonic() < self.database_retry_at:
            return []
        try:
            embedded.restart()
        except embedded.EmbeddedServerFailed as error:
            self.database_retry_at = time.monotonic() + DATABASE_RETRY_SECONDS
            return [f"error: {error}; trying again"]
        return ["the database died and was started again"]

    def stop(self) -> None:
        """Sends SIGTERM to all, and kills what is left after STOP_SECONDS, run workers included."""
        for service in self.services:
            service.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in [service.process for service in self.services if service.process is not None]:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))
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
            # A run's materializations are stored in batches.
            "DAGSTER_EVENT_BATCH_SIZE": os.environ.get("DAGSTER_EVENT_BATCH_SIZE", "100"),
            "PYTHONUNBUFFERED": "1",
            **({} if self.start_date is None else {"ROLLUP_START_DATE": str(self.start_date)}),
        }

    def _write_workspace(self) -> Path:
        path = _workspace_file()
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
    """The last line of the log; preferably the last error of this project, which names the command to run."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = [found.group(1) for line in lines[-200:] if (found := re.match(r"calc_analytics[\w.]+: (.+)", line))]
    return (own or lines or ["its log is empty"])[-1][:300]
