"""Engines that count archived rows: DuckDB in this process, or a Spark cluster. They read and reduce, nothing else.

`query.py` makes an engine's SQL from a rollup's declaration; `duckdb.py` and `spark.py` run it over the archive's
files. Which files hold a day, and whether they are what was written, is the archive's business; what becomes of the
result is the rebuild's.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Protocol

from calc_analytics.errors import CalcAnalyticsError

if TYPE_CHECKING:
    import pyarrow

    from calc_analytics.config import Settings
    from calc_analytics.rollup.declaration import Rollup


class NoEngine(CalcAnalyticsError):
    """The packages that count archived rows are not installed."""


class EngineFailed(CalcAnalyticsError):
    """The engine could not read or count archived rows; nothing was changed."""


class Engine(Protocol):
    """What counts archived rows. It has no session time zone that matters, and bounded memory."""

    name: str
    """The engine and its version, for reports: 'DuckDB 2.0.1'."""

    def reduce(self, rollup: "Rollup", files: Mapping[date, Sequence[str]]) -> "pyarrow.Table":
        """The rollup's rows of these days, with the columns of `query.result_schema`.

        `files` are each day's Parquet files, as names relative to ARCHIVE_URL: 'date=2026-03-01/….parquet'. Raises
        `CannotTranslate`, `EngineFailed`.
        """


def engine_for(settings: "Settings") -> Engine:
    """Spark where SPARK_REMOTE is set, else DuckDB, for the archive at ARCHIVE_URL, which must be set.

    Raises `NoEngine` with the command that installs it. Connects to nothing yet.
    """
    from calc_analytics.rollups import chosen_log

    assert settings.archive_url is not None, "without an archive there is nothing to read"
    log, address = chosen_log(settings.rollups), settings.archive_url
    try:
        if settings.spark_remote is not None:
            from calc_analytics.engines.spark import Spark

            return Spark(log, address, settings.spark_remote)
        from calc_analytics.engines.duckdb import DuckDB

        return DuckDB(log, address)
    except ImportError as error:
        extra = "archive" if settings.spark_remote is None else "spark"
        raise NoEngine(
            f"archived days are counted with the package {error.name}, which is not installed: run pip install "
            f"-c constraints.txt '.[{extra}]'"
        ) from error
