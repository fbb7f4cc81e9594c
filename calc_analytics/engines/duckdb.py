"""DuckDB: counts archived rows in this process, with 1 GB and a temporary folder. The result is in memory besides.

It reads a folder itself, and a bucket through the archive's own client, so that both are addressed and paid for alike.
A connection lives for one reduction. No extension is installed or loaded from elsewhere.
"""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date

import duckdb
import pyarrow
import sqlglot as sqlglot  # its absence is noticed before the work

from calc_analytics.addresses import ArchiveUrl
from calc_analytics.archive.rows import arrow_schema
from calc_analytics.archive.store import filesystem, is_of_client, reason_of
from calc_analytics.engines import EngineFailed
from calc_analytics.engines.query import DUCKDB, reduction, result_schema
from calc_analytics.rollup.declaration import Log, Rollup

MEMORY, _LINK = "1GB", "archive"
# The day is that of the folder. A folder above the archive may be called like a column, so that it must not be one.
# A column that a file does not have was declared later: it is null.
_ROWS = r"""(
    select *, cast(regexp_extract(filename, 'date=([0-9-]{{10}})/[^/]*$', 1) as date) as date
    from (
        select {nulls} where false
        union all by name
        select * from read_parquet($files, filename = true, hive_partitioning = false, union_by_name = true)
    )
)"""
_TYPES = {
    pyarrow.int64(): "bigint",
    pyarrow.bool_(): "boolean",
    pyarrow.date32(): "date",
    pyarrow.timestamp("us", "UTC"): "timestamptz",
}


class DuckDB:
    """Counts the rows of the archive at that address."""

    def __init__(self, log: Log, address: ArchiveUrl) -> None:
        self.log, self.address, self.name = log, address, f"DuckDB {duckdb.__version__}"

    def reduce(self, rollup: Rollup, files: Mapping[date, Sequence[str]]) -> pyarrow.Table:
        """The rollup's rows of these days; see `Engine`."""
        schema, names = result_schema(rollup, self.log), [name for each in files.values() for name in each]
        if not names:
            return schema.empty_table()
        query = reduction(rollup, self.log, DUCKDB, _ROWS.format(nulls=self._nulls()))
        with tempfile.TemporaryDirectory() as folder:
            root = self._root(folder)
            try:
                with self._connection(folder) as connection:
                    found = connection.sql(query, params={"files": [f"{root}/{name}" for name in names]})
                    return found.to_arrow_table().cast(schema)
            except Exception as error:
                if not (isinstance(error, duckdb.Error | pyarrow.ArrowException) or is_of_client(error)):
                    raise
                reason = reason_of(error, self.address).replace(root, self.address.path)
                raise EngineFailed(
                    f"{self.name} could not count the archived rows of {rollup.name}: {reason}. Nothing was changed"
                ) from error

    def _nulls(self) -> str:
        """SQL: a null for each column that is declared."""
        return ", ".join(f'cast(null as {_TYPES[each.type]}) as "{each.name}"' for each in arrow_schema(self.log))

    def _connection(self, folder: str) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(
            config={
                "memory_limit": MEMORY,
                "temp_directory": folder,
                "preserve_insertion_order": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )
        if self.address.protocol != "file":
            connection.register_filesystem(filesystem(self.address))
        return connection

    def _root(self, folder: str) -> str:
        """The archive's address, in which nothing is a pattern: DuckDB would read other files than those proven.

        That of a folder is a link to it, since not every name can be written as a pattern.
        """
        if self.address.protocol == "file":
            link = os.path.join(folder, _LINK)
            os.symlink(self.address.path, link)
            return link
        return f"{self.address.protocol}://" + re.sub(r"[*?\[]", r"[\g<0>]", self.address.path)
