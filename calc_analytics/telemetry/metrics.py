"""Counts and durations of the operations, kept by every process in files of its own, summed up by the HTTP service.

prometheus-client's multiprocess mode: each process maps two small files in `.calc_analytics/metrics` (or
PROMETHEUS_MULTIPROC_DIR), named after host and process. What dead processes left is added to one pair of files per
host whenever a process begins, so that a worker per run does not pile up files and no count is lost.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram, Metric, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from calc_analytics.config import metrics_folder
from calc_analytics.database.embedded import data_folder

if TYPE_CHECKING:
    from calc_analytics.rollup.reports import PruneReport, RebuildReport, RefreshReport, VerifyReport

PREFIX = "calc_analytics"
OPERATIONS = ("refresh", "rebuild", "verify")
MERGED = "ended"
# From a refresh of one batch to a rebuild of a quarter.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def _process() -> str:
    """Names a process among those of all hosts that share the folder (containers have process ids of their own)."""
    return f"{socket.gethostname()}~{os.getpid()}"


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Files are merged by one process at a time, and not while another opens or reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, how)
        yield


def merge_ended(folder: Path) -> None:
    """Adds the files of this host's dead processes to one file per type, and removes them."""
    for path in sorted(folder.glob(f"*_{socket.gethostname()}~*.db")):
        kind, owner = path.stem.split("_", 1)
        if not owner.endswith(f"~{MERGED}") and not _lives(int(owner.rpartition("~")[2])):
            _add(path, folder / f"{kind}_{socket.gethostname()}~{MERGED}.db")


def _add(path: Path, total: Path) -> None:
    into = MmapedDict(str(total))
    try:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
            into.write_value(key, into.read_value(key)[0] + value, 0.0)
    finally:
        into.close()
    path.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _histogram(operation: str) -> Histogram:
    name = f"{PREFIX}_{operation}_duration_seconds"
    return Histogram(name, f"How long each {operation} took.", buckets=BUCKETS, registry=None)


def _counter(name: str, help_text: str, labels: tuple[str, ...] = ()) -> Counter:
    return Counter(f"{PREFIX}_{name}", help_text, labels, registry=None)


class Counts:
    """This process's counts; making them opens its files."""

    def __init__(self, folder: Path) -> None:
        with _locked(folder, fcntl.LOCK_EX):
            merge_ended(folder)
            values.ValueClass = values.MultiProcessValue(_process)
            self.durations = {operation: _histogram(operation) for operation in OPERATIONS}
            self.rows = _counter("rows_counted", "Log rows that refreshes added to the statistics.")
            self.rebuilt_rows = _counter("rows_rebuilt", "Log rows in the days that rebuilds recounted.")
            self.rebuilt_days = _counter("partitions_rebuilt", "Days that rebuilds recounted.")
            self.refused_days = _counter("partitions_refused", "Days a rebuild left alone, not known to be pruned.")
            self.pruned_rows = _counter("rows_pruned", "Counted log rows that were deleted by prune.")
            self.verified_days = _counter("partitions_verified", "Days that were compared with the logs.")
            self.different_days = _counter("differences_found", "Days that differed from their logs.")
            failures = _counter("failures", "Operations that ended in an error.", ("operation",))
            self.failures = {operation: failures.labels(operation) for operation in OPERATIONS}

    def refreshed(self, report: "RefreshReport") -> None:
        """Counts one refresh."""
        self.durations["refresh"].observe(report.seconds)
        self.rows.inc(report.rows)

    def rebuilt(self, report: "RebuildReport", refused: int) -> None:
        """Counts one rebuild, and the days it left alone for no known reason."""
        self.durations["rebuild"].observe(report.seconds)
        self.rebuilt_rows.inc(report.rows)
        self.rebuilt_days.inc(len(report.rebuilt))
        self.refused_days.inc(refused)

    def pruned(self, report: "PruneReport") -> None:
        """Counts deleted log rows."""
        self.pruned_rows.inc(report.rows)

    def verified(self, report: "VerifyReport") -> None:
        """Counts one comparison."""
        self.durations["verify"].observe(report.seconds)
        self.verified_days.inc(len(report.days))
        self.different_days.inc(len(report.different))

    def failed(self, operation: str) -> None:
        """Counts one error."""
        self.failures[operation].inc()


def folder() -> Path:
    """Where the files are."""
    return metrics_folder(data_folder() / "metrics")


@lru_cache(maxsize=1)
def counts() -> Counts:
    """The process's one set of counts."""
    return Counts(folder())


class AllProcesses:
    """A collector of what all processes, living and ended, have counted."""

    def collect(self) -> Iterator[Metric]:
        """The sums over all files."""
        with _locked(folder(), fcntl.LOCK_SH):
            yield from MultiProcessCollector(None, str(folder())).collect()
