"""A Spark cluster on this machine, for the benchmarks and the tests: a Connect server and two executors, each a JVM.

It comes with the package pyspark, and needs a Java runtime. Everything listens on 127.0.0.1.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from calc_analytics.processes.supervisor import free_port

TOKEN = "sc-token-of-a-test"
START_SECONDS = 180
_CLASS = "org.apache.spark.sql.connect.service.SparkConnectServer"
_EXECUTOR = "org.apache.spark.executor.CoarseGrainedExecutorBackend"


class Cluster:
    """A running server; `remote` is its address with its token."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder, self.port = folder, free_port()
        self.remote = f"sc://localhost:{self.port}/;token={TOKEN}"
        self._log = folder / "server.log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                _command(self.port, settings),
                cwd=folder, env=_environment(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        """What the server has logged."""
        return self._log.read_text(errors="replace")

    @property
    def executors(self) -> list[psutil.Process]:
        """The executors' processes, in the order of their ids."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return sorted(filter(_is_executor, children), key=executor_id)

    def await_start(self) -> "Cluster":
        """Returns when the server listens and both executors are there."""
        deadline = time.monotonic() + START_SECONDS
        while (log := self.log).count("Registered executor") < 2 or "server started at" not in log:
            assert self.process.poll() is None, log[-3_000:]
            assert time.monotonic() < deadline, log[-3_000:]
            time.sleep(0.2)
        return self

    def kill(self) -> None:
        """Kills the server and its executors."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _is_executor(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # one that has ended
        return _EXECUTOR in process.cmdline()
    return False


def executor_id(process: psutil.Process) -> str:
    """'0': the executor's id, as it is in the server's log."""
    command = process.cmdline()
    return command[command.index("--executor-id") + 1]


@contextmanager
def cluster(**settings: str) -> Iterator[Cluster]:
    """A new cluster with these settings of Spark, ended and removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    started = Cluster(folder, **settings)
    try:
        yield started.await_start()
    finally:
        started.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _command(port: int, settings: dict[str, str]) -> list[str]:
    import pyspark

    every = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "1g",
        "spark.executor.memory": "1g",
        "spark.sql.shuffle.partitions": "4",
        "spark.ui.enabled": "false",
        **settings,
    }
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    confs = [part for name, value in every.items() for part in ("--conf", f"{name}={value}")]
    return [str(submit), "--class", _CLASS, "--master", "local-cluster[2,1,1024]", *confs]


def _environment(folder: Path) -> dict[str, str]:
    import pyspark

    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPARK_")}
    return {
        **kept,
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "SPARK_CONNECT_AUTHENTICATE_TOKEN": TOKEN,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        "SPARK_WORKER_DIR": str(folder / "work"),
    }
