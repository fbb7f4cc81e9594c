"""Spark: counts archived rows on an existing cluster, through Spark Connect (`SPARK_REMOTE`).

The cluster reads the files itself, so it needs its own access to them. It only reads and reduces: the result comes back
as Arrow, nothing is written. The client alone repeats for ten minutes what fails, in several ways; here a server that
cannot be reached, or is lost in the middle of a query, is an error within a minute.
"""

import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any
from urllib.parse import urlsplit

import pyarrow
import sqlglot as sqlglot  # its absence is noticed before the work

from calc_analytics.addresses import ArchiveUrl
from calc_analytics.archive.rows import arrow_schema
from calc_analytics.engines import EngineFailed
from calc_analytics.engines.query import SPARK, reduction, result_schema
from calc_analytics.rollup.declaration import Log, Rollup

# gRPC writes each failed attempt to stderr, in lines of its own.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
with warnings.catch_warnings():
    # It warns of pandas 3, which is not used here.
    warnings.simplefilter("ignore")
    import grpc
    from pyspark.errors import PySparkException
    from pyspark.sql.connect.client import DefaultChannelBuilder
    from pyspark.sql.connect.client.retries import DefaultPolicy
    from pyspark.sql.connect.session import SparkSession

# How long a connection that failed is tried again. With an attempt, and the two waits below, less than a minute.
PATIENCE_SECONDS = 10
# How long a server that could not be reached is not asked again.
MEMORY_SECONDS = 60
_ATTEMPT_MS, _PING_MS, _PING_TIMEOUT_MS = 5_000, 15_000, 15_000
_CHANNEL = [
    ("grpc.min_reconnect_backoff_ms", _ATTEMPT_MS),
    ("grpc.max_reconnect_backoff_ms", _ATTEMPT_MS),
    # A server that is cut off, or stands still, does not close its connection.
    ("grpc.keepalive_time_ms", _PING_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
]
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
# Whatever the cluster's own settings are: an overflow is an error, and so is a file that is not there, or damaged.
_SESSION = {"spark.sql.ansi.enabled": "true"}
_READER = {"ignoreMissingFiles": "false", "ignoreCorruptFiles": "false", "datetimeRebaseMode": "CORRECTED"}
_TYPES = {
    pyarrow.int64(): "BIGINT",
    pyarrow.bool_(): "BOOLEAN",
    pyarrow.date32(): "DATE",
    pyarrow.timestamp("us", "UTC"): "TIMESTAMP_LTZ",
}
# Hadoop's names of file systems.
_SCHEMES = {"s3": "s3a"}
# What stands for other characters in the names of files to read, unless a backslash precedes it.
_PATTERN = re.compile(r"[\\*?\[\]{}]")
_REASON_LENGTH = 300


class Spark:
    """Counts the rows of the archive at that address; `remote` is 'sc://host:port' and parameters, of which none is
    ever shown. The server's version is in the name after the first reduction."""

    def __init__(self, log: Log, address: ArchiveUrl, remote: str) -> None:
        self.log, self.address, self._remote = log, address, remote
        self.name, self._shown = "Spark", f"Spark at sc://{urlsplit(remote).netloc}"
        self._lost_at, self._lost = float("-inf"), ""

    def reduce(self, rollup: Rollup, files: Mapping[date, Sequence[str]]) -> pyarrow.Table:
        """The rollup's rows of these days; see `Engine`."""
        schema, names = result_schema(rollup, self.log), [name for each in files.values() for name in each]
        if not names:
            return schema.empty_table()
        query = reduction(rollup, self.log, SPARK, "{rows}")
        with self._translate_errors(rollup), self._session() as session:
            found = session.sql(query, rows=self._rows(session, rollup, names)).toArrow()
        return found.select(schema.names).cast(schema)

    def _rows(self, session: SparkSession, rollup: Rollup, names: Sequence[str]) -> Any:
        """The archive's rows in these files; `date` is that of the folder, which the files do not hold."""
        wanted = [each for each in arrow_schema(self.log) if each.name in rollup.reads]
        columns = [*(f"`{each.name}` {_TYPES[each.type]}" for each in wanted), "`date` DATE"]
        root = f"{_SCHEMES.get(self.address.protocol, self.address.protocol)}://{self.address.path}/"
        reader = session.read.schema(", ".join(columns)).options(**_READER, basePath=root)
        return reader.parquet(*(_PATTERN.sub(r"\\\g<0>", f"{root}{name}") for name in names))

    @contextmanager
    def _session(self) -> Iterator[SparkSession]:
        """A session on the cluster. Its end stops a query that still runs."""
        session = SparkSession(DefaultChannelBuilder(self._remote, _CHANNEL))
        session.client.set_retry_policies([_Patience()])
        try:
            self.name = f"Spark {session.version}"
            for name, value in _SESSION.items():
                session.conf.set(name, value)
            yield session
        finally:
            session.stop()

    @contextmanager
    def _translate_errors(self, rollup: Rollup) -> Iterator[None]:
        """Errors leave as `EngineFailed`. After a loss of the server, the next reductions fail at once for a while."""
        if time.monotonic() - self._lost_at < MEMORY_SECONDS:
            raise EngineFailed(self._lost)
        try:
            yield
        except (PySparkException, grpc.RpcError) as error:
            call = next((each for each in (error, error.__context__) if isinstance(each, grpc.RpcError)), None)
            reason = _first_line(str(error) if call is None else str(call.details()))
            if call is None or call.code() not in _UNREACHABLE:
                raise self._failed(rollup, reason) from None
            self._lost = str(self._unreachable(reason))
            self._lost_at = time.monotonic()
            raise EngineFailed(self._lost) from None

    def _failed(self, rollup: Rollup, reason: str) -> EngineFailed:
        return EngineFailed(
            f"{self._shown} could not count the archived rows of {rollup.name}: {reason}. Nothing was changed"
        )

    def _unreachable(self, reason: str) -> EngineFailed:
        return EngineFailed(
            f"{self._shown} cannot be reached: {reason}. Start its Connect server, or correct SPARK_REMOTE, and "
            "repeat. Nothing was changed"
        )


class _Patience(DefaultPolicy):
    """Repeats what the client may repeat, for that many seconds after a connection was lost."""

    def __init__(self) -> None:
        super().__init__(max_retries=None, initial_backoff=250, backoff_multiplier=2, max_backoff=2_000)
        self._began = self._last = float("-inf")

    def can_retry(self, error: BaseException) -> bool:
        """Failures that follow one another belong to one loss."""
        now = time.monotonic()
        if now - self._last > PATIENCE_SECONDS:
            self._began = now
        self._last = now
        return bool(super().can_retry(error)) and now - self._began < PATIENCE_SECONDS


def _first_line(text: str) -> str:
    """The reason without the server's stack trace and gRPC's preamble, in one line."""
    reason = re.split(r"\n\s*(?:JVM stacktrace|Driver stacktrace|at )", text)[0]
    reason = re.sub(r".*last error: (?:UNKNOWN: )?", "", " ".join(reason.split())).rstrip(".")
    return reason if len(reason) <= _REASON_LENGTH else f"{reason[:_REASON_LENGTH]}…"
