"""Log rows as Arrow tables: which columns are archived, how they are read from PostgreSQL, how Parquet holds them.

Rows are read by COPY in its binary format. Null values are sent as zeros, with a bit for each, so that every record has
the same length and numpy takes a batch apart without a loop. Integers of any width become 64 bits: files written before
and after a column was widened have the same columns. Instants are microseconds in UTC.
"""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import numpy
import pyarrow
from pyarrow import parquet
from sqlalchemy import Boolean, Date, DateTime, Integer, text
from sqlalchemy.engine import Connection

from calc_analytics.archive.manifest import FORMAT
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.declaration import Log

# Rows of a row group, which is sorted by id, and of which a few are in memory at once.
GROUP_ROWS = 262_144
KEY = b"calc_analytics"
TRANSACTION = "xact_id"
# Of what PostgreSQL sends: the type in numpy, and the Arrow type. PostgreSQL counts from 2000-01-01.
_WIRE = {
    "smallint": ">i2",
    "integer": ">i4",
    "bigint": ">i8",
    "boolean": "i1",
    "date": ">i4",
    "timestamp with time zone": ">i8",
}
_ZEROS = {
    "boolean": "false",
    "date": "date '2000-01-01'",
    "timestamp with time zone": "timestamptz '2000-01-01 00:00Z'",
}
_EPOCH_DAYS, _EPOCH_MICROSECONDS = 10_957, 946_684_800_000_000
_INFINITE_DAYS = (-(2**31), 2**31 - 1)
# Values that differ little from one row to the next; the others repeat, and have a dictionary.
_DELTA = "DELTA_BINARY_PACKED"
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"


class CannotArchiveColumn(CalcAnalyticsError):
    """A column of the log has a type that its declaration does not: the archive would lose its values."""


def arrow_schema(log: Log) -> pyarrow.Schema:
    """The columns of the archive's files."""
    fields = [pyarrow.field(each.name, _arrow_type(each.type)) for each in log.table.columns]
    return pyarrow.schema([*fields, pyarrow.field(TRANSACTION, pyarrow.int64())])


def is_readable(schema: pyarrow.Schema, log: Log) -> bool:
    """Whether a file with these columns holds rows of the log as it is declared now.

    Columns may have been declared, or removed, since it was written.
    """
    shared = [each for each in arrow_schema(log) if each.name in schema.names]
    has_type = all(schema.field(each.name).type == each.type for each in shared)
    return has_type and {log.id_column, log.event_time, TRANSACTION} <= {each.name for each in shared}


def as_declared(table: pyarrow.Table, log: Log) -> pyarrow.Table:
    """The table with the columns that are declared now; one that was declared since is null, as in PostgreSQL."""
    columns = {name: table.column(name) for name in table.column_names}
    schema = arrow_schema(log)
    arrays = [columns.get(each.name, pyarrow.nulls(table.num_rows, each.type)) for each in schema]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def description(log: Log, day: date, timezone: str) -> dict[bytes, bytes]:
    """What a file holds, in its own metadata."""
    described = {"format": FORMAT, "log": log.name, "date": str(day), "timezone": timezone}
    return {KEY: json.dumps(described).encode()}


def _arrow_type(type_: Any) -> pyarrow.DataType:
    match type_:
        case Boolean():
            return pyarrow.bool_()
        case Date():
            return pyarrow.date32()
        case DateTime():
            return pyarrow.timestamp("us", "UTC")
        case Integer():
            return pyarrow.int64()
        case _:
            raise TypeError(f"columns of type {type_} have no form in the archive")


@dataclass(frozen=True)
class RowReader:
    """Reads the log's rows: `types` are those of its columns in PostgreSQL, of columns that exist."""

    log: Log
    types: Mapping[str, str]

    @classmethod
    def of(cls, connection: Connection, log: Log) -> "RowReader":
        """As the log table is now. Raises `CannotArchiveColumn`."""
        types = {row.name: row.type for row in connection.execute(_TYPES, {"log": log.name})}
        reader = cls(log, types)
        for name in reader.names:
            if name in types and types[name] not in _fitting(reader.schema.field(name).type):
                raise CannotArchiveColumn(
                    f"{log.name}.{name} is {types[name]}, which the archive cannot hold: give the column its declared "
                    "type. Nothing was archived"
                )
        return reader

    @cached_property
    def schema(self) -> pyarrow.Schema:
        """The archived columns."""
        return arrow_schema(self.log)

    @property
    def names(self) -> list[str]:
        """The archived columns; those that the log does not have are null."""
        return list(self.schema.names)

    @cached_property
    def _present(self) -> list[str]:
        return [name for name in self.names if name in self.types]

    @cached_property
    def _record(self) -> numpy.dtype:
        """A record: its number of fields; for each field its length and its value; last the bits of nulls."""
        wires = {**{name: _WIRE[self.types[name]] for name in self._present}, "": ">i8"}
        fields = [("fields", ">i2")]
        for name, wire in wires.items():
            fields += [(f"{name} length", ">i4"), (f"{name} value", wire)]
        return numpy.dtype(fields)

    def _select(self) -> str:
        zeros = {name: _ZEROS.get(type_, f"cast(0 as {type_})") for name, type_ in self.types.items()}
        values = [f"coalesce({name}, {zeros[name]})" for name in self._present]
        bits = " | ".join(
            f"case when {name} is null then cast({1 << n} as bigint) else 0 end" for n, name in enumerate(self._present)
        )
        return ", ".join([*values, bits])

    def tables(
        self, connection: Connection, condition: str, parameters: Mapping[str, Any], group_rows: int = GROUP_ROWS
    ) -> Generator[pyarrow.Table, None, None]:
        """The log's rows under that condition, each table sorted by id, with as many rows as a row group.

        To be closed before the transaction ends, if it is not read to its end.
        """
        statement = f"copy (select {self._select()} from {self.log.name} where {condition}) to stdout (format binary)"
        compiled = text(statement).bindparams(**parameters).compile(dialect=connection.dialect)
        driver: Any = connection.connection.driver_connection
        size, buffer = self._record.itemsize, bytearray()
        with driver.cursor() as cursor, cursor.copy(str(compiled), dict(compiled.params)) as copy:
            for data in copy:
                buffer += data
                if len(buffer) >= len(_HEADER) + size * group_rows + len(_TRAILER):
                    del buffer[: len(_HEADER)]
                    yield self._table(bytes(buffer[: size * group_rows]))
                    buffer = bytearray(_HEADER) + buffer[size * group_rows :]
        rest = bytes(buffer[len(_HEADER) :])
        assert buffer.startswith(_HEADER), "COPY has another header"
        assert rest.endswith(_TRAILER), "COPY ended in the middle"
        if len(rest) > len(_TRAILER):
            yield self._table(rest[: -len(_TRAILER)])

    def _table(self, records: bytes) -> pyarrow.Table:
        """The records, whose number is what their length says, as a table that is sorted by id."""
        rows = numpy.frombuffer(records, self._record)
        for name in [*self._present, ""]:
            expected = self._record[f"{name} value"].itemsize
            assert (rows[f"{name} length"] == expected).all(), f"{name or 'nulls'} has another length"
        order = numpy.argsort(rows[f"{self.log.id_column} value"].astype("i8"), kind="stable")
        bits = rows[" value"].astype("i8")[order]
        arrays = []
        for field in self.schema:
            if field.name not in self.types:
                arrays.append(pyarrow.nulls(len(rows), field.type))
                continue
            nulls = (bits >> self._present.index(field.name)) & 1 == 1
            values = rows[f"{field.name} value"].astype(_native(field.type))[order]
            arrays.append(_array(values, nulls if nulls.any() else None, field.type))
        return pyarrow.Table.from_arrays(arrays, schema=self.schema)


def _fitting(type_: pyarrow.DataType) -> tuple[str, ...]:
    """The types in PostgreSQL whose values that type holds."""
    if pyarrow.types.is_integer(type_):
        return ("smallint", "integer", "bigint")
    if pyarrow.types.is_boolean(type_):
        return ("boolean",)
    return ("date",) if pyarrow.types.is_date(type_) else ("timestamp with time zone",)


def _native(type_: pyarrow.DataType) -> str:
    return {pyarrow.bool_(): "?", pyarrow.date32(): "i4"}.get(type_, "i8")


def _array(values: numpy.ndarray, nulls: numpy.ndarray | None, type_: pyarrow.DataType) -> pyarrow.Array:
    if pyarrow.types.is_date(type_):
        values = numpy.where(numpy.isin(values, _INFINITE_DAYS), values, values + numpy.int32(_EPOCH_DAYS))
    elif pyarrow.types.is_timestamp(type_):
        values = values + _EPOCH_MICROSECONDS
    if pyarrow.types.is_temporal(type_):
        stored = pyarrow.array(values, pyarrow.int32() if pyarrow.types.is_date(type_) else pyarrow.int64(), mask=nulls)
        return stored.view(type_)
    return pyarrow.array(values, type_, mask=nulls)


def parquet_writer(file: Any, log: Log, schema: pyarrow.Schema | None = None) -> parquet.ParquetWriter:
    """Writes row groups to the file: zstd, a checksum for each page, less than 20 bytes a row where rows are many.

    `schema`: the columns of a file that is written anew; by default those that are declared.
    """
    schema = arrow_schema(log) if schema is None else schema
    delta = [log.id_column, log.event_time, TRANSACTION]
    return parquet.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=[name for name in schema.names if name not in delta],
        column_encoding=dict.fromkeys(delta, _DELTA),
        version="2.6",
        write_page_checksum=True,
        store_schema=False,
    )


_TYPES = text(
    """
    select a.attname as name,
           format_type(case t.typtype when 'd' then t.typbasetype else t.oid end, null) as type
    from pg_attribute a join pg_type t on t.oid = a.atttypid
    where a.attrelid = to_regclass(:log) and a.attnum > 0 and not a.attisdropped
    """
)
