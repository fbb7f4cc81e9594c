"""Days of which log rows were deleted are recounted from the archive, together with the log rows that are not in it.

An engine outside of PostgreSQL reduces the archived rows before the transaction begins (`ArchivedRows`). The result is
copied into a temporary table beside the recounted log rows. Under the state's lock it is used only if the archive is
the one that was reduced, and the books balance: rows in the archive + log rows that are not in it == counted. So an
erasure, or a file that was added meanwhile, is noticed.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import NEW_ROWS, WHOLE_DAYS, transaction
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.judge import LedgerDays, recount_table
from calc_analytics.rollup.ledger import ArchivedDay
from calc_analytics.rollup.recount import add_since, day_sql
from calc_analytics.rollup.reports import SkippedDay
from calc_analytics.rollup.snapshot import Snapshot, visible
from calc_analytics.rollup.totals import no_totals, totals_by_day
from calc_analytics.rollup.windows import Window, local_date, within_hours

if TYPE_CHECKING:
    import pyarrow

# Days that an engine reduces at once: their result is in memory.
BATCH_DAYS, BATCH_ROWS = 100, 3_000_000
ARCHIVE, BOTH = "archive", "archive and log rows"
_TYPES = {"int64": "bigint", "bool": "boolean", "date32[day]": "date", "timestamp[us, tz=UTC]": "timestamptz"}


class ArchiveChanged(Exception):
    """The archive of a day is not the one that was reduced: rows were archived or erased meanwhile."""


@dataclass(frozen=True)
class Reduction:
    """What an engine made of days of the archive: `tables` has the rows of each rollup, `records` what was read.

    `refused` are days, per rollup, that could not be read or reduced; nothing of them is in the tables.
    """

    engine: str
    tables: "Mapping[str, pyarrow.Table]"
    records: Mapping[date, ArchivedDay]
    refused: list[SkippedDay] = field(default_factory=list)

    def of_days(self, rollup: Rollup, days: Sequence[date]) -> "pyarrow.Table":
        """The rows of these days."""
        import pyarrow.compute

        table = self.tables[rollup.name]
        return table.filter(pyarrow.compute.is_in(table.column("date"), pyarrow.array(days, pyarrow.date32())))


class ArchivedRows(Protocol):
    """The rows in the archive, which an engine reduces to rows of rollups."""

    def reduce(self, rollups: Sequence[Rollup], records: Mapping[date, ArchivedDay]) -> Reduction:
        """Proves the days' files, and reduces them. Days that it refuses are in the result; it raises nothing."""


def days_in_archive(db: Database, days: Sequence[date]) -> dict[date, ArchivedDay]:
    """Those of the days of which log rows were deleted, and of which the archive has every row that was counted."""
    with transaction(db.engine) as connection:
        known = LedgerDays.read(connection, db, days) if days else None
        records = ledger.archived_days(connection, db.log, days)
    return {day: each for day, each in records.items() if known is not None and _is_usable(known, each)}


def _is_usable(known: LedgerDays, record: ArchivedDay) -> bool:
    is_whole = record.manifest is not None and not record.missing
    return is_whole and known.has_gaps(record.day) and known.counted_whole(record.day) is not None


def batches(records: Mapping[date, ArchivedDay]) -> Iterator[dict[date, ArchivedDay]]:
    """The days in parts that are reduced at once, oldest first."""
    part, rows = dict[date, ArchivedDay](), 0
    for day, record in sorted(records.items()):
        if part and (len(part) == BATCH_DAYS or rows + record.rows > BATCH_ROWS):
            yield part
            part, rows = {}, 0
        part[day], rows = record, rows + record.rows
    if part:
        yield part


def days_with_rows(connection: Connection, db: Database, spans: Sequence[Window], at: Snapshot) -> set[date]:
    """Those of the days that have visible log rows. Cost: one scan of each span of consecutive days."""
    if not spans:
        return set()
    begins = [spans[0], *(after for before, after in pairwise(spans) if after.begin > before.end)]
    ends = [*(before for before, after in pairwise(spans) if after.begin > before.end), spans[-1]]
    event_time, days = db.log.event_time, [span.day for span in spans]
    parameters: dict[str, Any] = {"tz": db.timezone, **at.bind("sa")}
    parts = []
    for n, (first, last) in enumerate(zip(begins, ends, strict=True)):
        parameters.update({f"begin_{n}": first.begin, f"end_{n}": last.end})
        between = within_hours(event_time, f":begin_{n}", f":end_{n}")
        parts.append(
            f"select distinct {local_date(event_time, ':tz')} as date from {db.log.name} where {between} "
            f"and {visible('sa')}"
        )
    return set(connection.execute(text(" union ".join(parts)), parameters).scalars()) & set(days)


def log_table(rollup: Rollup) -> str:
    """The temporary table of the days' log rows, where `recount_table` has those of the archive as well."""
    return f"log_{rollup.name}"


@dataclass(frozen=True)
class Part:
    """The days of a chunk that come from the archive, in the transaction that replaces them."""

    connection: Connection
    db: Database
    rollups: Sequence[Rollup]
    spans: Sequence[Window]
    reduction: Reduction

    @property
    def days(self) -> list[date]:
        """The days."""
        return [span.day for span in self.spans]

    def load(self, at: Snapshot, in_log: set[date]) -> None:
        """Makes a table for each rollup: its archived rows, and the log rows that are not archived as of `at`."""
        for rollup in self.rollups:
            rows = _as_integers(self.reduction.of_days(rollup, self.days))
            columns = ", ".join(f"{each.name} {_TYPES.get(str(each.type), 'numeric')}" for each in rows.schema)
            self.connection.execute(text(f"create temporary table {_table(rollup)} ({columns}) on commit drop"))
            _copy(self.connection, rows, _table(rollup))
        if spans := [span for span in self.spans if span.day in in_log]:
            self._add_unarchived(spans, at)

    def _add_unarchived(self, spans: Sequence[Window], at: Snapshot) -> None:
        parameters: dict[str, Any] = {"tz": self.db.timezone, **at.bind("sa")}
        conditions = []
        for n, span in enumerate(spans):
            archived = self.reduction.records[span.day].snapshot
            parameters.update(span.parameters(f"_{n}"))
            parameters.update({} if archived is None else archived.bind(f"archived_{n}"))
            conditions.append("true" if archived is None else f"not ({visible(f'archived_{n}')})")
        self.connection.execute(WHOLE_DAYS)
        for rollup in self.rollups:
            counts = [day_sql(self.db, rollup, n, span, conditions[n]) for n, span in enumerate(spans)]
            insert = f"insert into {_table(rollup)} ({', '.join([*rollup.keys, 'date', *rollup.measure_names])})"
            self.connection.execute(text(f"{insert} {' union all '.join(counts)}"), parameters)
        self.connection.execute(NEW_ROWS)

    def add_since(self, rollup: Rollup, then: Snapshot, now: Snapshot) -> int:
        """Adds the days' rows that became visible between the two snapshots; returns how many rows of the rollup."""
        return add_since(self.connection, self.db, rollup, self.days, then, now, _table(rollup))

    def put_in_place(self, known: LedgerDays, may_shrink: bool) -> tuple[dict[date, str], list[SkippedDay]]:
        """Makes these rows the recounted ones: from now on `recount_table` has them, and `log_table` the log rows.

        Returns the source of each day that is whole, and the days that are not. Days of which it is not known which
        log rows are archived keep their log rows only; if a person accepts fewer rows (`may_shrink`), so do those that
        are not whole. Raises `ArchiveChanged`.
        """
        self._require_unchanged()
        sources, refused = dict[date, str](), list[SkippedDay]()
        for books in self._books(known):
            if books.is_balanced or (may_shrink and books.is_what_is_left):
                sources[books.day] = BOTH if books.rows > books.archived else ARCHIVE
            elif not may_shrink or not books.is_consistent:
                refused += [books.refuse(rollup) for rollup in self.rollups]
        for rollup in self.rollups:
            self._swap(rollup, [day for day in self.days if day not in sources])
        return sources, refused

    def _books(self, known: LedgerDays) -> Iterator["_Books"]:
        """Those of the days of which it is known which log rows are archived."""
        log = self._rows(self.rollups[0], recount_table(self.rollups[0]))
        all_rows = [self._rows(rollup, _table(rollup)) for rollup in self.rollups]
        for day in self.days:
            record = self.reduction.records[day]
            if record.snapshot is not None or not log[day]:
                yield _Books(
                    day,
                    record.rows,
                    log[day],
                    [rows[day] for rows in all_rows],
                    known.counted_whole(day) or 0,
                    known.deleted_by_log(day),
                    known.is_built(day),
                    tuple(record.erased),
                )

    def _require_unchanged(self) -> None:
        now = ledger.archived_days(self.connection, self.db.log, self.days)
        if any(not is_same(now.get(day), self.reduction.records[day]) for day in self.days):
            raise ArchiveChanged

    def _rows(self, rollup: Rollup, table: str) -> dict[date, int]:
        totals = totals_by_day(self.connection, rollup, self.days, table)
        return {day: totals.get(day, no_totals(rollup)).measures[rollup.count] for day in self.days}

    def _swap(self, rollup: Rollup, others: Sequence[date]) -> None:
        columns, recounted, whole = rollup.columns, recount_table(rollup), _table(rollup)
        statements = (
            f"delete from {whole} where date = any(:others)",
            f"insert into {whole} ({columns}) select {columns} from {recounted} where date = any(:others)",
            f"alter table {recounted} rename to {log_table(rollup)}",
            f"alter table {whole} rename to {recounted}",
        )
        for statement in statements[0 if others else 2 :]:
            self.connection.execute(text(statement), {"others": list(others)} if ":others" in statement else {})


@dataclass(frozen=True)
class _Books:
    """A day's log rows: archived, in the log, all of them (by each rollup), counted, and known to be deleted."""

    day: date
    archived: int
    log: int
    by_rollup: Sequence[int]
    counted: int
    deleted: int
    is_added_to: bool
    """Whether some rollup has the day built, so that late rows are counted as they come."""
    to_be_erased: Sequence[str]
    """The keys of which rows are erased from log and statistics, and not from the archive yet."""

    @property
    def rows(self) -> int:
        """All rows."""
        return self.by_rollup[0]

    @property
    def is_consistent(self) -> bool:
        """Whether the rollups agree: each counts every log row."""
        return len(set(self.by_rollup)) == 1

    @property
    def is_balanced(self) -> bool:
        """Whether all rows are those that were counted, or those and late ones that no rollup could add."""
        if not self.is_consistent:
            return False
        is_late = not self.is_added_to and self.archived <= self.counted < self.rows
        return self.rows == self.counted or (is_late and self.is_what_is_left)

    @property
    def is_what_is_left(self) -> bool:
        """Whether the log lacks as many of all rows as were deleted: so none that was erased is in the archive."""
        return self.is_consistent and self.rows - self.log == self.deleted

    def _describe_refusal(self) -> str:
        if not self.is_consistent:
            return (
                f"one rollup has {min(self.by_rollup):,} of its rows and another {max(self.by_rollup):,}, but each "
                "counts all: the engine or the declaration of a rollup is wrong. Nothing was changed"
            )
        if self.to_be_erased:
            return (
                f"rows of {' and of '.join(self.to_be_erased)} are erased from its statistics, and not from its files "
                f"yet: run 'calc-analytics rollup --day {self.day} --keep' if it waits for a rebuild, then erase again"
            )
        return (
            f"{self.archived:,} rows in the archive and {self.rows - self.archived:,} log rows that are not in it, but "
            f"{self.counted:,} counted. If an erasure was interrupted, repeat it; else run 'calc-analytics verify' and "
            "'calc-analytics archive --check'"
        )

    def refuse(self, rollup: Rollup) -> SkippedDay:
        """The day stays as it is."""
        return refusal(rollup, self.day, self._describe_refusal())


def is_same(one: ArchivedDay | None, other: ArchivedDay) -> bool:
    """Whether the same rows are archived."""
    return one is not None and (one.manifest, one.snapshot) == (other.manifest, other.snapshot)


def refusal(rollup: Rollup, day: date, message: str) -> SkippedDay:
    """The day stays as it is, for that reason."""
    return SkippedDay(rollup.name, day, "archive", 0, 0, 0, message)


def changed(rollup: Rollup, day: date) -> SkippedDay:
    """The day stays as it is, because others archived or erased it all the time."""
    return refusal(rollup, day, _describe_refusal())


def _describe_refusal() -> str:
    return "its archive was changed while it was read, repeat the command"


def _table(rollup: Rollup) -> str:
    return f"archived_{rollup.name}"


def _as_integers(rows: "pyarrow.Table") -> "pyarrow.Table":
    """The rows with sums of 64 bits, which PostgreSQL handles faster, if all of them fit."""
    import pyarrow

    narrow = [each.with_type(pyarrow.int64()) if pyarrow.types.is_decimal(each.type) else each for each in rows.schema]
    try:
        return rows.cast(pyarrow.schema(narrow))
    except pyarrow.ArrowInvalid:
        return rows


def _copy(connection: Connection, rows: "pyarrow.Table", table: str) -> None:
    """Copies the rows into the table, a part at a time."""
    from pyarrow import csv

    driver: Any = connection.connection.driver_connection
    names = ", ".join(rows.column_names)
    with driver.cursor() as cursor, cursor.copy(f"copy {table} ({names}) from stdin (format csv)") as copy:
        for part in rows.to_batches(max_chunksize=65_536):
            buffer = io.BytesIO()
            csv.write_csv(part, buffer, csv.WriteOptions(include_header=False))
            copy.write(buffer.getvalue())
