"""The statements that turn the log table into one that is partitioned by month, with the old table as its first part.

Nothing is run here: they are printed for the table's owner, who runs them while the API writes. What reads the table
(the proof of its range, the unique index) stops no writer; the exchange itself takes milliseconds.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.sql import quote_identifier, quote_literal
from calc_analytics.errors import CalcAnalyticsError

# The old table ends with a month, and at least so long from now: the statements before the exchange take time.
LEAST_DAYS = 7
MONTHS = 2
AGAIN = "nothing was exchanged. See why, then print the statements again: calc-analytics doctor --partitioning"
LIKE = "including defaults including comments including storage including compression including generated"


class CannotPartition(CalcAnalyticsError):
    """The log table cannot be partitioned by these statements; the message says why."""


@dataclass(frozen=True)
class Size:
    """Of the log table, by PostgreSQL's estimate: rows, and bytes with indexes; whether it is partitioned."""

    rows: int
    bytes: int
    is_partitioned: bool


def read_size(connection: Connection, log: str) -> Size:
    """The log table's size; cost: the catalogs, and the lengths of its files."""
    row = connection.execute(_SIZE, {"source": log}).one()
    return Size(int(row.rows), int(row.bytes), row.is_partitioned)


def propose(connection: Connection, log: str, event_time: str, views: list[str], now: datetime) -> str:
    """The statements, for psql, with comments. `views` are the project's own. Raises `CannotPartition`."""
    found = connection.execute(_TABLE, {"source": log, "event_time": event_time}).mappings().one_or_none()
    if found is None:
        raise CannotPartition(f"there is no table {log}: run 'calc-analytics migrate' first")
    if found["relkind"] != "r" or found["has_parents"]:
        raise CannotPartition(f"{log} is not a plain table: it is partitioned, a partition, or inherits")
    if found["referring"]:
        raise CannotPartition(
            f"{', '.join(found['referring'])} refers to {log} by a foreign key, which a partitioned table needs "
            f"{event_time} in: drop it, or leave the table as it is"
        )
    if found["unique"]:
        raise CannotPartition(
            f"the unique index {', '.join(found['unique'])} of {log} does not have {event_time}, which each unique "
            "index of a partitioned table needs: drop it, or leave the table as it is"
        )
    script = _Script(dict(found), event_time, _first_month(now))
    parameters = {"source": log, "views": views, "own": [script.range_check, script.key, *script.left_checks]}
    parts = {name: list(connection.execute(text(sql), parameters).scalars()) for name, sql in _PARTS.items()}
    return "\n".join(script.lines(parts)) + "\n"


@dataclass(frozen=True)
class LeftCheck:
    """The check of a script that was not finished: PostgreSQL refuses log rows from `until` on, validated or not."""

    name: str
    until: datetime
    drop: str
    """The statement that removes it."""


def left_check(connection: Connection, log: str) -> LeftCheck | None:
    """The first such check of a log table that is not partitioned."""
    names = connection.execute(_LEFT_CHECKS, {"source": log}).scalars()
    found = sorted((until, name) for name in names if (until := _limit_of(name, log)) is not None)
    if not found:
        return None
    until, name = found[0]
    return LeftCheck(name, until, f"alter table {quote_identifier(log)} drop constraint {quote_identifier(name)};")


def _limit_of(check: str, table: str) -> datetime | None:
    """Where the range ends that a check of this name gives the table; None for a check of another name."""
    parts = re.fullmatch(re.escape(table) + r"_before_((?!0000)\d{4})_(0[1-9]|1[0-2])_range", check)
    return datetime(int(parts[1]), int(parts[2]), 1, tzinfo=timezone.utc) if parts else None


def _first_month(now: datetime) -> datetime:
    """The first instant of the first month that is to be a partition of its own, in UTC."""
    month = _next_month(now.astimezone(timezone.utc))
    return month if month - now > timedelta(days=LEAST_DAYS) else _next_month(month)


def _next_month(at: datetime) -> datetime:
    first = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


class _Script:
    """The statements about one table. Steps that were done by an interrupted run are left out."""

    def __init__(self, table: dict[str, Any], event_time: str, first: datetime) -> None:
        self.table, self.event_time, self.first = table, event_time, first
        self.schema, self.name = quote_identifier(table["schema"]), table["relname"]
        self.new = self._path(self.name)
        self.before = f"{self.name}_before_{first:%Y_%m}"
        self.old = self._path(self.before)
        self.limit = quote_literal(f"{first:%Y-%m-%d} 00:00:00+00")
        self.range_check, self.key = f"{self.before}_range", f"{self.before}_key"
        # Of a script that was not finished, with another month.
        self.left_checks = [each for each in table["done"] if _limit_of(each, self.name) not in (None, first)]

    def _path(self, name: str) -> str:
        return f"{self.schema}.{quote_identifier(name)}"

    def lines(self, parts: dict[str, list[str]]) -> Iterator[str]:
        """The whole script."""
        yield f"-- {self.name} becomes a table that is partitioned by month. All its rows stay where they are: the"
        yield f"-- table becomes the partition {self.before}. Run this with psql, as the owner of the table,"
        yield "-- while the API writes. A part that ends with a lock timeout has changed nothing: go on from there."
        yield "\\set ON_ERROR_STOP on"
        yield "set lock_timeout = '800ms';"
        yield ""
        yield from self._prove_range()
        yield from self._widen_key()
        yield from self._exchange(parts)
        yield from self._afterwards(parts["by_hand"])

    def _prove_range(self) -> Iterator[str]:
        limit, check = self.limit, quote_identifier(self.range_check)
        yield "-- 1. The old table gets a range. Proving it reads the table once, and stops no writer."
        for left in self.left_checks:
            yield f"alter table {self.new} drop constraint {quote_identifier(left)};"
        beyond = f"exists (select from {self.new} where {self.event_time} >= {limit})"
        yield f"do $$ begin if now() >= {limit} and {beyond} then"
        yield f"    raise 'these statements are of before {self.first:%Y-%m-%d}: {AGAIN}'; end if; end $$;"
        if self.range_check not in self.table["done"]:
            yield f"alter table {self.new} add constraint {check} check ({self.event_time} < {limit}) not valid;"
        yield "-- A check refuses later rows though it is not proven: it is removed if it cannot be."
        yield "\\set ON_ERROR_STOP off"
        yield f"alter table {self.new} validate constraint {check};"
        yield "\\if :ERROR"
        yield f"    alter table {self.new} drop constraint {check};"
        yield "    \\set ON_ERROR_STOP on"
        yield f"    do $$ begin raise 'the range was not proven: {AGAIN}'; end $$;"
        yield "\\endif"
        yield "\\set ON_ERROR_STOP on"
        yield ""

    def _widen_key(self) -> Iterator[str]:
        if self.needs_key and self.key not in self.table["done"]:
            key = quote_identifier(self.key)
            yield f"-- 2. The primary key of a partitioned table needs {self.event_time}. The index waits for open"
            yield "-- transactions, and stops no writer. If it is interrupted, drop it first."
            yield "set lock_timeout = 0;"
            yield f"create unique index concurrently {key} on {self.new} ({self._key_columns()});"
            yield "set lock_timeout = '800ms';"
            yield ""

    @property
    def needs_key(self) -> bool:
        """Whether there is a primary key, which lacks the event time."""
        return bool(self.table["key"]) and not self.table["key_has_time"]

    def _key_columns(self) -> str:
        columns = [*self.table["key"], *([] if self.table["key_has_time"] else [self.event_time])]
        return ", ".join(map(quote_identifier, columns))

    def _exchange(self, parts: dict[str, list[str]]) -> Iterator[str]:
        """One transaction, which writers wait for."""
        yield "-- 3. The exchange: all of it or nothing, within milliseconds."
        yield "begin;"
        yield f"lock table {self.new} in access exclusive mode;"
        if self.needs_key:
            key = quote_identifier(self.key)
            yield f"alter table {self.new} drop constraint {quote_identifier(self.table['key_name'])};"
            yield f"alter table {self.new} add constraint {key} primary key using index {key};"
        yield f"alter table {self.new} rename to {quote_identifier(self.before)};"
        yield f"create table {self.new} (like {self.old} {LIKE} including identity)"
        yield f"    partition by range ({self.event_time});"
        yield f"alter table {self.new} owner to {self.table['owner']};"
        yield from (line.replace("{new}", self.new).replace("{old}", self.old) for line in parts["columns"])
        if self.table["key"]:
            yield f"alter table {self.new} add primary key ({self._key_columns()});"
        for name in ("constraints", "indexes", "grants"):
            yield from (line.replace("{new}", self.new) for line in parts[name])
        yield f"alter table {self.new} attach partition {self.old} for values from (minvalue) to ({self.limit});"
        yield from self._months()
        yield "commit;"
        yield ""

    def _months(self) -> Iterator[str]:
        begin = self.first
        for _ in range(MONTHS):
            end, path = _next_month(begin), self._path(f"{self.name}_{begin:%Y_%m}")
            bounds = f"from ('{begin:%Y-%m-%d} 00:00:00+00') to ('{end:%Y-%m-%d} 00:00:00+00')"
            yield f"create table {path} partition of {self.new} for values {bounds};"
            begin = end

    def _afterwards(self, by_hand: list[str]) -> Iterator[str]:
        if by_hand:
            yield "-- These are still of the old table alone: create them on the new one where you need them."
            yield from (f"--     {each}" for each in by_hand)
            yield ""
        yield "-- 4. Immediately, because live views raise an error until then; counting goes on where it was:"
        yield "--     calc-analytics migrate && calc-analytics verify"
        yield "-- And daily from now on:"
        yield "--     calc-analytics partitions --create"
        yield "-- The partition's range says the same as the check:"
        yield f"--     alter table {self.old} drop constraint {quote_identifier(self.range_check)};"


_SIZE = text(
    """
    select greatest(reltuples, 0) as rows, pg_total_relation_size(oid) as bytes, relkind = 'p' as is_partitioned
    from pg_class where oid = to_regclass(:source)
    """
)
_LEFT_CHECKS = text(
    """
    select cast(d.conname as text) from pg_constraint d join pg_class c on c.oid = d.conrelid
    where c.oid = to_regclass(:source) and c.relkind = 'r' and not c.relispartition and d.contype = 'c'
    """
)
_TABLE = text(
    """
    select c.relkind, cast(n.nspname as text) as schema, cast(c.relname as text) as relname,
           quote_ident(pg_get_userbyid(c.relowner)) as owner, k.conname as key_name,
           exists (select from pg_inherits i where c.oid in (i.inhrelid, i.inhparent)) as has_parents,
           array(select cast(a.attname as text) from unnest(k.conkey) with ordinality as u (attnum, place)
                 join pg_attribute a on a.attrelid = c.oid and a.attnum = u.attnum order by place) as key,
           coalesce(t.attnum = any(k.conkey), false) as key_has_time,
           array(select cast(d.conname as text) from pg_constraint d where d.conrelid = c.oid
                 union all select cast(x.relname as text) from pg_index i join pg_class x on x.oid = i.indexrelid
                 where i.indrelid = c.oid and i.indisvalid) as done,
           array(select cast(cast(f.conrelid as regclass) as text) from pg_constraint f
                 where f.contype = 'f' and f.confrelid = c.oid order by 1) as referring,
           array(select cast(cast(i.indexrelid as regclass) as text) from pg_index i
                 where i.indrelid = c.oid and (i.indisunique or i.indisexclusion) and not i.indisprimary
                   and not t.attnum = any(i.indkey)) as unique
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    left join pg_attribute t on t.attrelid = c.oid and t.attname = :event_time
    left join pg_constraint k on k.conrelid = c.oid and k.contype = 'p'
    where c.oid = to_regclass(:source)
    """
)
# Lines with {new} and {old} where the tables' names belong. An identity of a partition is refused by PostgreSQL 17; a
# sequence of the old table would be dropped with it.
_PARTS = {
    "columns": """
        select unnest(case when attidentity <> '' then array[
            format('select setval(pg_get_serial_sequence(''{new}'', %L), last_value, is_called) from %s;',
                   attname, sequence),
            format('alter table {old} alter column %I drop identity;', attname)
        ] else array[format('alter sequence %s owned by {new}.%I;', sequence, attname)] end)
        from (
            select attname, attidentity, attnum,
                   pg_get_serial_sequence(cast(cast(attrelid as regclass) as text), attname) as sequence
            from pg_attribute where attrelid = to_regclass(:source) and attnum > 0 and not attisdropped
        ) owning where sequence is not null order by attnum
    """,
    "constraints": """
        select format('alter table {new} add constraint %I %s;', conname, pg_get_constraintdef(oid))
        from pg_constraint where conrelid = to_regclass(:source) and contype in ('c', 'f') and convalidated
          and conname <> all(cast(:own as text[]))
        order by contype, conname
    """,
    "indexes": """
        select format('create %sindex on {new} %s;', case when indisunique then 'unique ' else '' end,
                      substring(def from strpos(def, ' USING ') + 1))
        from (select indisunique, indexrelid, pg_get_indexdef(indexrelid) as def from pg_index
              join pg_class c on c.oid = indexrelid
              where indrelid = to_regclass(:source) and indisvalid and not indisprimary
                and c.relname <> all(cast(:own as text[]))) each_index
        order by indexrelid
    """,
    "grants": """
        select format('grant %s%s on {new} to %s%s;', a.privilege_type, columns,
                      case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end,
                      case when a.is_grantable then ' with grant option' else '' end)
        from (
            select relacl as acl, relowner, '' as columns from pg_class where oid = to_regclass(:source)
            union all
            select attacl, relowner, format(' (%I)', attname) from pg_attribute join pg_class c on c.oid = attrelid
            where attrelid = to_regclass(:source) and attacl is not null
        ) granted cross join lateral aclexplode(acl) a
        where a.grantee <> relowner order by 1
    """,
    "by_hand": """
        select 'trigger: ' || pg_get_triggerdef(oid) from pg_trigger
        where tgrelid = to_regclass(:source) and not tgisinternal
        union all
        select format('policy: %s', polname) from pg_policy where polrelid = to_regclass(:source)
        union all
        select format('publication: %s', pubname) from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
        where prrelid = to_regclass(:source)
        union all
        select distinct format('view: %s', cast(cast(w.ev_class as regclass) as text))
        from pg_depend d join pg_rewrite w on w.oid = d.objid
        where d.refobjid = to_regclass(:source) and d.classid = cast('pg_rewrite' as regclass)
          and w.ev_class <> d.refobjid
          and w.ev_class <> all(array(select to_regclass(name) from unnest(cast(:views as text[])) as v (name)
                                      where to_regclass(name) is not null))
        union all
        select format('constraint that is not validated: %s', conname) from pg_constraint
        where conrelid = to_regclass(:source) and contype in ('c', 'f') and not convalidated
          and conname <> all(cast(:own as text[]))
        order by 1
    """,
}
