"""Which log rows of which day are in the Parquet archive (`rollup_archive`), as the database knows it.

The database decides which files belong to the archive: it holds each day's manifest as it was published. A file that
is being written, or is to be deleted, is among the day's `leftovers`. So after a kill at any moment the last state that
was committed is valid, and only files that the project itself has named here are ever deleted. For each archived day:

    rows in the archive + visible log rows that are not archived + missing == counted

An erasure lowers the right side first, and the left side when it writes the day's files anew. Until then `erased` has
how many rows that are.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log
from calc_analytics.rollup.snapshot import Snapshot, visible
from calc_analytics.rollup.windows import Window, of_day

ARCHIVE_LOCK = 724_410_051


@dataclass(frozen=True)
class ArchivedDay:
    """A row of `rollup_archive`. `snapshot` is None where it is not known which log rows are archived."""

    day: date
    rows: int = 0
    missing: int = 0
    snapshot: Snapshot | None = None
    manifest: str | None = None
    leftovers: tuple[str, ...] = ()
    erased: Mapping[str, int] = field(default_factory=dict)
    """By keys ('publisher_id 7'): counted rows that log and statistics have no more, and that are in the files or
    missing."""
    difference: int = 0
    """By how many rows it differed from what was counted, when last compared."""
    version: str = ""
    """Changes with the record."""

    @property
    def may_have_files(self) -> bool:
        """Whether there may be files of the day, of the archive or left over."""
        return self.manifest is not None or bool(self.leftovers)

    @property
    def accounted(self) -> int:
        """The counted rows that are in the archive, or were deleted before they could be."""
        return self.rows + self.missing


@dataclass(frozen=True)
class CountedDay:
    """What the ledger holds of a day at the stored snapshot: log rows counted and deleted, per rollup that is built."""

    snapshot: Snapshot
    counted: dict[str, int]
    deleted: dict[str, int]
    unbuilt: tuple[str, ...]
    """The rollups in which the day is not built, unless none has it on record."""
    differing: tuple[str, ...]
    """The rollups in which it differed when it was last compared or audited."""


@dataclass(frozen=True)
class ArchiveBalance:
    """The two sides of an archived day's equation; `unarchived` is None where they cannot be compared: since a rebase,
    or while the day is not built."""

    day: date
    archived: int
    unarchived: int | None
    missing: int
    counted: int | None
    erased: Mapping[str, int]
    recorded: int
    """The difference when the sides were last compared."""
    is_as_published: bool
    """Whether the record has the numbers of its own manifest."""
    version: str

    @property
    def is_known(self) -> bool:
        """Whether the sides could be compared, or something else is wrong."""
        return self.unarchived is not None or bool(self.erased) or not self.is_as_published

    @property
    def difference(self) -> int:
        """In rows: by how many the sides differ, or what was recorded if that is not known; at least 1 if
        anything else is wrong."""
        sides = self.recorded
        if self.unarchived is not None and self.counted is not None:
            sides = abs(self.archived + self.unarchived + self.missing - self.counted)
        return max(sides, 1) if self.erased or not self.is_as_published else sides

    def __str__(self) -> str:
        if self.erased:
            return (
                f"{self.day} of the archive: the log rows and statistics of {' and of '.join(self.erased)} are erased, "
                "but not their archived rows: wait for an erasure that runs, or erase again"
            )
        if not self.is_as_published:
            return (
                f"{self.day} of the archive: {self.archived:,} rows archived and {self.missing:,} deleted before they "
                "were archived are not the numbers of its manifest: another program changed rollup_archive. Put back "
                "rows and missing as its column manifest has them"
            )
        if self.unarchived is None:
            return (
                f"{self.day} of the archive: its rows did not add up to what was counted, and cannot be compared now. "
                f"Run 'calc-analytics archive', then 'calc-analytics verify --day {self.day}'"
            )
        return (
            f"{self.day} of the archive: {self.archived:,} rows archived, {self.unarchived:,} not yet, "
            f"{self.missing:,} deleted before they were archived, but {self.counted or 0:,} counted. If an erasure was "
            "interrupted, repeat it; if log rows were corrected or deleted, see 'When log rows were corrected' in "
            "docs/archive.md"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for what is not known."""
        return {
            "archived_rows": self.archived,
            "unarchived_rows": self.unarchived,
            "missing_rows": self.missing,
            "counted_rows": self.counted,
            "rows_to_erase": dict(self.erased),
            "message": str(self),
        }


def take_turn_archiving(connection: Connection, log: Log) -> None:
    """Waits until no other process archives or erases in the archive; the others wait until the transaction ends.

    The transaction may be idle while files are written: a client that died is noticed all the same.
    """
    connection.execute(_NO_LIMITS)
    connection.execute(
        text("select pg_advisory_xact_lock(:lock, hashtext(:log))"), {"lock": ARCHIVE_LOCK, "log": log.name}
    )


def archived_days(connection: Connection, log: Log, days: Iterable[date] | None = None) -> dict[date, ArchivedDay]:
    """The days on record (of these), oldest first."""
    parameters = {"log": log.name, "days": None if days is None else list(days)}
    return {row.date: _archived(row) for row in connection.execute(_ARCHIVED, parameters)}


def days_archived_by_others(
    connection: Connection, log: Log, since: datetime | None, limit: int
) -> list[tuple[ArchivedDay, datetime]]:
    """The first days archived after `since` by another application than this engine's, and when; oldest first.

    One process archives at a time, so none that commits later has an earlier time.
    """
    rows = connection.execute(_ARCHIVED_BY_OTHERS, {"log": log.name, "since": since, "limit": limit})
    return [(_archived(row), row.archived_at) for row in rows]


def count_by_zone(connection: Connection, db: Database) -> tuple[int, int]:
    """How many days are archived as those of the database's time zone, and as those of others."""
    row = connection.execute(_BY_ZONE, {"log": db.log.name, "timezone": db.timezone}).one()
    return row.here, row.elsewhere


def counted_day(connection: Connection, db: Database, day: date) -> CountedDay:
    """The stored snapshot, and what is counted of the day in it, read in one statement."""
    rows = connection.execute(text(_COUNTED_DAY), {"log": db.log.name, "rollups": db.log.names, "day": day}).all()
    counts = {each.name: each.count for each in db.log.rollups}
    built = [row for row in rows if row.status == "built"]
    return CountedDay(
        snapshot=Snapshot.parse(rows[0].snapshot),
        counted={row.rollup: int((row.counted or {}).get(counts[row.rollup], 0)) for row in built},
        deleted={row.rollup: int((row.deleted or {}).get(counts[row.rollup], 0)) for row in built},
        unbuilt=tuple(row.rollup for row in rows if row.status != "built") if any(row.status for row in rows) else (),
        differing=tuple(row.rollup for row in rows if row.is_different),
    )


def days_to_archive(connection: Connection, log: Log, before: date) -> list[date]:
    """Days before that one, built in every rollup, whose counted rows are not those archived; and leftovers."""
    parameters = {"log": log.name, "rollups": log.names, "number": len(log.names), "before": before}
    statement = text(_TO_ARCHIVE.format(count=log.rollups[0].count))
    return list(connection.execute(statement, {**parameters, "first": log.names[0]}).scalars())


def count_visible_rows(connection: Connection, db: Database, span: Window, snapshot: Snapshot) -> int:
    """Log rows of the day that are visible in the snapshot. Cost: the day's log rows."""
    statement = f"""
        select count(*) from {db.log.name} where {of_day(db.log.event_time, span)} and {visible("s1")}
    """
    parameters = {**span.parameters(), "tz": db.timezone, **snapshot.bind("s1")}
    return int(connection.execute(text(statement), parameters).scalar_one())


def unarchived_rows(connection: Connection, db: Database, span: Window, counted: Snapshot, archived: Snapshot) -> int:
    """Log rows of the day that are counted and not archived. Cost: the day's log rows."""
    statement = f"""
        select count(*) from {db.log.name}
        where {of_day(db.log.event_time, span)} and {visible("s1")} and not ({visible("s0")})
    """
    parameters = {**span.parameters(), "tz": db.timezone, **counted.bind("s1"), **archived.bind("s0")}
    return int(connection.execute(text(statement), parameters).scalar_one())


def balance(connection: Connection, db: Database, span: Window) -> ArchiveBalance | None:
    """The equation of that day; None if it is not archived. Cost: the day's log rows.

    Takes one snapshot after the other: call it where nothing is counted or deleted meanwhile, or ask again.
    """
    archived = archived_days(connection, db.log, [span.day]).get(span.day)
    if archived is None or archived.manifest is None:
        return None
    state = counted_day(connection, db, span.day)
    counted, rows = state.counted.get(db.log.names[0]), None
    if counted is not None and archived.snapshot is not None:
        rows = unarchived_rows(connection, db, span, state.snapshot, archived.snapshot)
    sides = (archived.rows, rows, archived.missing, counted)
    published = json.loads(archived.manifest)
    is_as_published = (published["rows"], published["missing"]) == (archived.rows, archived.missing)
    return ArchiveBalance(span.day, *sides, archived.erased, archived.difference, is_as_published, archived.version)


def record_balance(connection: Connection, log: Log, found: ArchiveBalance) -> None:
    """Records by how many rows the day differs, unless that is not known, or its record changed since it was read."""
    if found.is_known:
        parameters = {"log": log.name, "day": found.day, "difference": found.difference, "version": found.version}
        connection.execute(_BALANCE, parameters)


def unbalanced_days(connection: Connection, log: Log) -> list[date]:
    """The archived days whose rows did not add up when they were last compared, oldest first; and those of which rows
    are to be erased for longer than an erasure takes."""
    return list(connection.execute(_UNBALANCED, {"log": log.name}).scalars())


def owe_erasure(connection: Connection, log: Log, day: date, keys: str, rows: int) -> None:
    """So many counted rows of the keys are no more in log and statistics, and are in the day's files or missing."""
    if rows:
        connection.execute(_OWE, {"log": log.name, "day": day, "keys": keys, "rows": rows})


def note_leftovers(connection: Connection, log: Log, day: date, names: Sequence[str]) -> None:
    """Files with these names may exist from now on, and are not part of the archive."""
    connection.execute(_NOTE_LEFTOVERS, {"log": log.name, "day": day, "names": list(names)})


def forget_leftovers(connection: Connection, log: Log, day: date) -> None:
    """The day's leftovers are deleted."""
    connection.execute(_FORGET_LEFTOVERS, {"log": log.name, "day": day})


def record_archived(connection: Connection, log: Log, archived: ArchivedDay) -> None:
    """The day's manifest was published; its leftovers are those given."""
    parameters = {
        "log": log.name,
        "day": archived.day,
        "rows": archived.rows,
        "missing": archived.missing,
        "snapshot": None if archived.snapshot is None else archived.snapshot.text,
        "manifest": archived.manifest,
        "leftovers": list(archived.leftovers),
        "erased": json.dumps(dict(archived.erased)),
    }
    connection.execute(_RECORD, parameters)


def record_snapshot(connection: Connection, log: Log, day: date, snapshot: Snapshot) -> None:
    """The day's archived log rows are those that are visible in the snapshot; its files stay as they are."""
    connection.execute(_SNAPSHOT, {"log": log.name, "day": day, "snapshot": snapshot.text})


def forget_archived(connection: Connection, log: Log, day: date) -> None:
    """Nothing of the day is archived any more, as far as the database knows."""
    connection.execute(_FORGET, {"log": log.name, "day": day})


def forget_archived_snapshots(connection: Connection, log: Log) -> None:
    """Transaction ids mean something else from now on: which log rows are archived has to be found by their ids."""
    connection.execute(text("update rollup_archive set snapshot = null where log = :log"), {"log": log.name})


def _archived(row: Any) -> ArchivedDay:
    snapshot = None if row.snapshot is None else Snapshot.parse(row.snapshot)
    return ArchivedDay(
        day=row.date,
        rows=int(row.rows),
        missing=int(row.missing),
        snapshot=snapshot,
        manifest=row.manifest,
        leftovers=tuple(row.leftovers),
        erased=row.erased,
        difference=int(row.difference),
        version=row.version,
    )


_NO_LIMITS = text(
    "select set_config('lock_timeout', '0', true), set_config('statement_timeout', '0', true), "
    "set_config('idle_in_transaction_session_timeout', '0', true)"
)
_COLUMNS = """date, rows, missing, cast(snapshot as text) as snapshot, manifest, leftovers, erased, difference,
           cast(xmin as text) as version"""
_ARCHIVED = text(
    f"""
    select {_COLUMNS} from rollup_archive
    where log = :log and (cast(:days as date[]) is null or date = any(cast(:days as date[]))) order by date
    """
)
_ARCHIVED_BY_OTHERS = text(
    f"""
    select {_COLUMNS}, archived_at from rollup_archive
    where log = :log and manifest is not null and archived_by <> current_setting('application_name')
      and (cast(:since as timestamptz) is null or archived_at > :since)
    order by archived_at, date limit :limit
    """
)
_BY_ZONE = text(
    """
    select count(*) filter (where zone = :timezone) as here, count(*) filter (where zone <> :timezone) as elsewhere
    from (select cast(manifest as json) ->> 'timezone' as zone from rollup_archive where log = :log) archived
    """
)
_COUNTED_DAY = """
    select r.rollup, cast(s.snapshot as text) as snapshot, d.status, d.counted, d.deleted,
           coalesce(d.difference, 0) <> 0 or coalesce(d.audit_difference, 0) <> 0 as is_different
    from rollup_state s cross join unnest(cast(:rollups as text[])) as r (rollup)
    left join rollup_days d on d.rollup = r.rollup and d.date = :day
    where s.log = :log
"""
_TO_ARCHIVE = """
    select d.date from rollup_days d left join rollup_archive a on a.log = :log and a.date = d.date
    where rollup = any(cast(:rollups as text[])) and d.date < :before
    group by d.date, a.log, a.date
    having count(*) filter (where status = 'built') = :number and (
        sum(cast(counted ->> '{count}' as numeric)) filter (where rollup = :first)
            <> coalesce(a.rows + a.missing, 0)
        or (a.manifest is not null and a.snapshot is null) or a.leftovers <> '{{}}')
    order by d.date
"""
_NOTE_LEFTOVERS = text(
    """
    insert into rollup_archive as a (log, date, leftovers) values (:log, :day, cast(:names as text[]))
    on conflict (log, date) do update set leftovers = a.leftovers || excluded.leftovers
    """
)
_FORGET_LEFTOVERS = text("update rollup_archive set leftovers = '{}' where log = :log and date = :day")
_RECORD = text(
    """
    insert into rollup_archive as a (log, date, rows, missing, snapshot, manifest, leftovers, erased, archived_at,
                                archived_by)
    values (:log, :day, :rows, :missing, cast(:snapshot as pg_snapshot), :manifest, cast(:leftovers as text[]),
            cast(:erased as jsonb), clock_timestamp(), current_setting('application_name'))
    on conflict (log, date) do update
    set rows = excluded.rows, missing = excluded.missing, snapshot = excluded.snapshot, manifest = excluded.manifest,
        leftovers = excluded.leftovers, erased = excluded.erased, archived_at = excluded.archived_at,
        archived_by = excluded.archived_by,
        erased_at = case when excluded.erased <> '{}' then coalesce(a.erased_at, clock_timestamp()) end
    """
)
_UNBALANCED = text(
    """
    select date from rollup_archive
    where log = :log and (difference <> 0 or erased_at < clock_timestamp() - interval '10 minutes') order by date
    """
)
_SNAPSHOT = text("update rollup_archive set snapshot = cast(:snapshot as pg_snapshot) where log = :log and date = :day")
_FORGET = text(
    """
    update rollup_archive
    set rows = 0, missing = 0, snapshot = null, manifest = null, leftovers = '{}', archived_at = null,
        archived_by = null, erased = '{}', erased_at = null, difference = 0
    where log = :log and date = :day
    """
)
_OWE = text(
    """
    update rollup_archive
    set erased = erased || jsonb_build_object(
        cast(:keys as text), coalesce(cast(erased ->> cast(:keys as text) as bigint), 0) + cast(:rows as bigint)),
        erased_at = coalesce(erased_at, clock_timestamp())
    where log = :log and date = :day and manifest is not null
    """
)
_BALANCE = text(
    """
    update rollup_archive set difference = :difference
    where log = :log and date = :day and cast(xmin as text) = :version and difference <> :difference
    """
)
