"""The partitions of the log table: their ranges, and what keeps one from being dropped. And the lock and the drop.

Only direct partitions of a table that is partitioned by range of its event time, and nothing else, have a range here.
PostgreSQL writes bounds as text; the project's transactions show them in UTC.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from calc_analytics.database.engine import LOCAL_SETTINGS, transaction
from calc_analytics.database.errors import DatabaseError, sqlstate
from calc_analytics.database.locks import describe_holders

# A request for a lock that waits makes all later ones wait, so it waits this long, and is repeated after a pause.
# Shorter than deadlock_timeout (one second): no other transaction is ever ended.
BRIEF_MS, PAUSE_SECONDS, ATTEMPTS = 300, 0.7, 20
BUSY, GONE = ("55P03", "40P01"), ("42P01", "XX000")
CHANGED = "it is not the partition that it was"


@dataclass(frozen=True)
class Partition:
    """A direct partition. `lower` and `upper` are instants, half-open; None is no limit, or no range at all.

    `obstacle` is why it may not be dropped in place of deleting its rows, if there is a reason in the catalogs.
    """

    oid: int
    parent_oid: int
    name: str
    path: str
    parent_path: str
    schema: str
    relname: str
    is_plain: bool
    """Whether it is a table, without partitions of its own."""
    is_default: bool
    is_ranged: bool
    """Whether its range is one of the event time: its rows, and no others, lie in it."""
    lower: datetime | None
    upper: datetime | None
    obstacle: str | None

    def holds(self, at: datetime) -> bool:
        """Whether the instant lies in its range."""
        return (self.lower is None or self.lower <= at) and (self.upper is None or at < self.upper)

    def overlaps(self, begin: datetime, end: datetime) -> bool:
        """Whether the two ranges have an instant in common."""
        return (self.lower is None or self.lower < end) and (self.upper is None or begin < self.upper)


@dataclass(frozen=True)
class Layout:
    """The direct partitions of the log table, by their ranges. `is_by_time`: by range of the event time alone."""

    is_by_time: bool
    partitions: list[Partition]

    @property
    def default(self) -> Partition | None:
        """The default partition, if there is one."""
        return next((each for each in self.partitions if each.is_default), None)

    def partition_at(self, at: datetime) -> Partition | None:
        """The partition of a row of that instant, other than the default one."""
        return next((each for each in self.partitions if each.is_ranged and each.holds(at)), None)

    def covered_until(self, at: datetime) -> datetime | None:
        """Up to when rows of that instant and of later ones have a partition, without a gap; None is for ever."""
        while found := self.partition_at(at):
            if found.upper is None:
                return None
            at = found.upper
        return at


def read_layout(connection: Connection, log: str, event_time: str) -> Layout | None:
    """The partitions of the log table; None if it is not partitioned. Reads the catalogs only."""
    parameters = {"source": log, "event_time": event_time}
    is_by_time = connection.execute(text(_IS_BY_TIME), parameters).scalar()
    if is_by_time is None:
        return None
    rows = connection.execute(text(_PARTITIONS), parameters).mappings()
    return Layout(is_by_time, [Partition(**row) for row in rows])


def escaped(path: str) -> str:
    """The quoted name for `sqlalchemy.text`, which takes :word for a parameter."""
    return path.replace(":", r"\:")


def is_unchanged(connection: Connection, partition: Partition) -> bool:
    """Whether the table of that name is still this partition, with this range. For a transaction that has locked it."""
    parameters = {"path": partition.path, "lower": partition.lower, "upper": partition.upper, "oid": partition.oid}
    return bool(connection.execute(text(_IS_UNCHANGED), {**parameters, "parent": partition.parent_oid}).scalar())


def is_empty(connection: Connection, partition: Partition) -> bool:
    """Whether it has no row that the statement sees."""
    statement = f"select not exists (select from only {escaped(partition.path)})"
    return bool(connection.execute(text(statement)).scalar())


def oldest_running(connection: Connection) -> str:
    """The id of the oldest transaction that runs: versions of rows by older ones are committed, or gone for good."""
    return str(connection.execute(text("select cast(pg_snapshot_xmin(pg_current_snapshot()) as text)")).scalar_one())


def count_versions(connection: Connection, partition: Partition, oldest: str) -> tuple[int, int]:
    """How many rows the partition has, and how many of them were inserted or updated by transactions from that one on.

    For a transaction that has locked writers out. Cost: one scan.
    """
    statement = f"""
        with next as materialized (
            select cast(cast(pg_snapshot_xmax(pg_current_snapshot()) as text) as bigint) as id
        )
        select count(*), count(*) filter (where {between_ids("part.xmin", ":oldest", "next.id")})
        from only {escaped(partition.path)} part cross join next
    """
    rows, written = connection.execute(text(statement), {"oldest": int(oldest)}).one()
    return int(rows), int(written)


def between_ids(version: str, first: str, end: str) -> str:
    """SQL: whether a version's transaction is one of `first` to before `end`, which have 64 bits, and it has 32.

    It is compared by its distance from the first: `age()` is negative for what is half of all ids away, and counts from
    the own transaction's id. Below 3 are no transactions. One that is all ids away may be taken for one of these.
    """
    own, first, ids = f"cast(cast({version} as text) as bigint)", f"cast({first} as bigint)", 2**32
    return f"({own} > 2 and mod({own} - mod({first}, {ids}) + {ids}, {ids}) < {end} - {first})"


def keep_drops_out(connection: Connection, partition: Partition) -> str | None:
    """Locks the partition as a reader does, until the transaction ends: it is not dropped or altered meanwhile.

    Returns the sessions in the way, as `keep_writers_out`.
    """

    def lock() -> None:
        connection.execute(text(f"lock table only {escaped(partition.path)} in access share mode"))

    return attempt(connection, [partition.oid], lock)


def keep_writers_out(connection: Connection, partition: Partition) -> str | None:
    """Locks the partition against writers until the transaction ends; readers, and writers of other partitions, go on.

    Returns the sessions in the way, if they do not end their transactions in time; then nothing is locked.
    """

    def lock() -> None:
        connection.execute(text(f"lock table only {escaped(partition.path)} in share row exclusive mode"))

    return attempt(connection, [partition.oid], lock, writers_only=True)


def attempt(
    connection: Connection, relations: list[int], work: Callable[[], str | None], writers_only: bool = False
) -> str | None:
    """What `work` returns, which may wait for each lock for a moment; the sessions in the way, if it never got them.

    It is repeated, in a savepoint: between two attempts it holds no lock. Other errors are raised.
    """
    for number in range(ATTEMPTS):
        if number:
            time.sleep(PAUSE_SECONDS)
        try:
            with connection.begin_nested():
                connection.execute(_BRIEFLY)
                found = work()
                connection.execute(_AS_USUAL)
            return found
        except DBAPIError as error:
            if sqlstate(error) in GONE and _is_gone(connection, relations):
                return "another process has dropped it"
            if sqlstate(error) not in BUSY:
                raise
    return describe_holders(connection, relations, writers_only)


def _is_gone(connection: Connection, relations: list[int]) -> bool:
    """Whether one of these tables does not exist any more."""
    statement = text("select count(*) from pg_class where oid = any(cast(:relations as oid[]))")
    return bool(connection.execute(statement, {"relations": relations}).scalar_one() < len(relations))


def drop_empty(engine: Engine, partition: Partition, note: Callable[[Connection], object]) -> str | None:
    """Drops the partition, unless rows have come; returns why it was left. Writers wait for a moment at most.

    DROP TABLE needs the lock of the log table, for which all writers queue: it is asked for briefly, again and again,
    and held for some milliseconds, since the partition is empty. `note` writes the journal in the same transaction.
    """
    relations = [partition.parent_oid, partition.oid]
    try:
        with transaction(engine) as connection:
            return attempt(connection, relations, lambda: _drop(connection, partition, note))
    except DatabaseError as error:
        if error.transient:
            raise
        return str(error)


def _drop(connection: Connection, partition: Partition, note: Callable[[Connection], object]) -> str | None:
    # The log table first, as writers lock them.
    for path in (partition.parent_path, partition.path):
        connection.execute(text(f"lock table only {escaped(path)} in access exclusive mode"))
    if not is_unchanged(connection, partition):
        return CHANGED
    if not is_empty(connection, partition):
        return "rows have come to it"
    note(connection)
    connection.execute(text(f"drop table {escaped(partition.path)}"))
    return None


_BRIEFLY = text(f"set local lock_timeout = {BRIEF_MS}")
_AS_USUAL = text(f"set local lock_timeout = '{LOCAL_SETTINGS['lock_timeout']}'")
_IS_BY_TIME = """
    select p.partstrat = 'r' and p.partnatts = 1 and p.partexprs is null
           and p.partattrs[0] = (select attnum from pg_attribute where attrelid = p.partrelid and attname = :event_time)
    from pg_partitioned_table p where p.partrelid = to_regclass(:source)
"""
_BOUND = "pg_get_expr(c.relpartbound, c.oid)"
_EARLIEST, _LATEST = "timestamptz '0001-01-03Z'", "timestamptz '9999-11-01Z'"


def _limit(keyword: str, end: str) -> str:
    """SQL: the instant after FROM or TO; null for MINVALUE, MAXVALUE and infinity. One that Python does not have, or
    that has no next month, is the nearest that it has."""
    instant = rf"cast(substring({_BOUND} from '{keyword} \(''([^'']+)''\){end}') as timestamptz)"
    limited = f"nullif(nullif({instant}, timestamptz 'infinity'), timestamptz '-infinity')"
    return f"case when {limited} is not null then greatest(least({limited}, {_LATEST}), {_EARLIEST}) end"


_LOWER, _UPPER = _limit("FROM", ""), _limit("TO", "$")
# Of the triggers on deleted rows, those of statements belong to the log table: bit 8 of tgtype is on delete.
_OBSTACLE = """
    case when c.relkind <> 'r' then 'it has partitions of its own, or is a foreign table'
         when exists (select from pg_constraint k where k.contype = 'f' and k.confrelid = c.oid)
             then 'a foreign key refers to it'
         when exists (select from pg_trigger t where t.tgrelid in (c.oid, i.inhparent) and t.tgtype & 8 <> 0
                      and t.tgenabled <> 'D' and not exists (select from pg_constraint k where k.oid = t.tgconstraint))
             then 'a trigger is called for each deleted row'
         when exists (select from pg_depend d where d.refobjid = c.oid and d.deptype = 'n'
                      and d.classid = cast('pg_rewrite' as regclass)) then 'a view reads it'
         when c.relrowsecurity and row_security_active(c.oid) then 'row-level security hides rows of it'
         when not pg_has_role(c.relowner, 'USAGE') then format('the role ''%s'' does not own it', current_user)
         when not pg_has_role(p.relowner, 'USAGE')
             then format('the role ''%s'' does not own %s', current_user, p.relname)
    end
"""
_PARTITIONS = f"""
    select oid, parent_oid, name, path, parent_path, schema, relname, is_plain, is_default,
           is_by_time and not is_default as is_ranged, lower, upper, obstacle
    from (
        select c.oid, i.inhparent as parent_oid, cast(cast(c.oid as regclass) as text) as name,
               format('%I.%I', n.nspname, c.relname) as path, format('%I.%I', m.nspname, p.relname) as parent_path,
               n.nspname as schema, c.relname, c.relkind = 'r' as is_plain,
               {_BOUND} = 'DEFAULT' as is_default, b.is_by_time,
               case when b.is_by_time then {_LOWER} end as lower, case when b.is_by_time then {_UPPER} end as upper,
               {_OBSTACLE} as obstacle
        from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = c.relnamespace
        join pg_class p on p.oid = i.inhparent join pg_namespace m on m.oid = p.relnamespace
        cross join ({_IS_BY_TIME}) b (is_by_time)
        where i.inhparent = to_regclass(:source) and not i.inhdetachpending
    ) each_partition
    order by is_default, lower nulls first, name
"""
_IS_UNCHANGED = f"""
    select exists (
        select from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where c.oid = to_regclass(:path) and c.oid = :oid and i.inhparent = :parent and not i.inhdetachpending
          and ({_LOWER}) is not distinct from cast(:lower as timestamptz)
          and ({_UPPER}) is not distinct from cast(:upper as timestamptz)
    )
"""
