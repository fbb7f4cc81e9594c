"""The supervisor of `up`: its lock, its ports, and the logs of its services."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.running import eventually
from calc_analytics.processes import supervisor
from calc_analytics.processes.supervisor import AlreadyUp, PortTaken, Service, claim, free_port

WRITES = "import itertools, time\nfor n in itertools.count(): print('line', n, flush=True); time.sleep(0.01)"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A process that writes a line every hundredth of a second."""
    monkeypatch.setattr(supervisor, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(supervisor, "LOG_BYTES", 200)
    service = Service("writer", [sys.executable, "-c", WRITES], {})
    service.start()
    yield service
    service.signal(signal.SIGKILL)
    service.process.wait()


def test_the_ui_and_the_service_need_two_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "data_folder", lambda: tmp_path)
    with pytest.raises(PortTaken, match="choose two ports"):
        claim(port := free_port(), port)


def test_a_port_that_another_program_has_is_named_and_the_folder_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "data_folder", lambda: tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for _ in range(2):
            with pytest.raises(PortTaken, match=f"port {port} is in use .* choose another with --ui-port"):
                claim(port, free_port())
    claim(free_port(), free_port())
    with pytest.raises(AlreadyUp, match=rf"already running \(pid {os.getpid()}\)"):
        claim(free_port(), free_port())


def test_a_killed_up_leaves_no_lock_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "data_folder", lambda: tmp_path)
    program = f"""
import pathlib, time
from calc_analytics.processes import supervisor
supervisor.data_folder = lambda: pathlib.Path({str(tmp_path)!r})
supervisor.claim(supervisor.free_port(), supervisor.free_port())
print("locked", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(AlreadyUp, match=rf"already running \(pid {other.pid}\)"):
            claim(free_port(), free_port())
        other.kill()
        other.wait()
    claim(free_port(), free_port())


def test_a_lock_file_that_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "data_folder", lambda: tmp_path)
    (tmp_path / "up.lock").mkdir()
    with pytest.raises(AlreadyUp, match=f"cannot lock {tmp_path}: .*; is it another user's") as refused:
        claim(free_port(), free_port())
    assert "\n" not in str(refused.value)


def test_a_long_log_is_emptied_and_its_content_is_kept_in_a_second_file(service: Service):
    service.rotate_log()
    eventually(lambda: service.log.stat().st_size > 200, "a long log")
    assert service.log.read_text().startswith("line 0\n")
    service.rotate_log()
    assert Path(f"{service.log}.1").read_text().startswith("line 0\n")
    eventually(lambda: service.log.read_text().startswith("line "), "a line in the new log")
    assert not service.log.read_text().startswith("line 0\n")


def test_the_code_server_has_the_port_of_the_last_start_unless_that_is_taken(tmp_path: Path):
    """A killed run names it, and is marked as failed and repeated once it answers there."""
    workspace = tmp_path / "workspace.yaml"
    first = supervisor.code_port(workspace)
    assert first in supervisor.CODE_PORTS
    workspace.write_text(f"load_from:\n  - grpc_server:\n      host: 127.0.0.1\n      port: {first}\n")
    assert supervisor.code_port(workspace) == first
    with socket.socket() as other:
        other.bind((supervisor.HOST, first))
        other.listen()
        assert supervisor.code_port(workspace) not in (first, 0)
    workspace.write_text("load_from: []\n")
    assert supervisor.code_port(workspace) in supervisor.CODE_PORTS
