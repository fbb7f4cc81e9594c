"""The ledger: what is counted, up to which snapshot. The only module that writes `rollup_state` and `rollup_days`.

`rollup_state` has one row per log, locked by every operation that changes statistics, so that they take turns. It holds
the snapshot, the time zone, the rollups that take part, and where it was written: after a restore into another
cluster, or with another setting, the stored snapshot would be meaningless, so operations refuse.

`rollup_days` has one row per rollup and day. `counted` and `deleted` hold the totals of each measure, changed only in
the transactions that change the statistics or the log. So two independent equations hold:

    sum over the target's rows of the day == counted                    (audit: reads statistics only)
    counted == aggregate(visible log rows of the day) + deleted         (verify: reads the log)

A day that may have lost log rows has a checksum over its rows as well, kept up to date by adding and subtracting, so
that a change by somebody else is never absorbed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import transaction
from calc_analytics.days import FIRST, LAST
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import KEYS_HASH, Log, Rollup, quote_literal
from calc_analytics.rollup.reports import DayProof
from calc_analytics.rollup.snapshot import SAME_CLUSTER, Snapshot, log_oid, same_log

# Days that have statistics for which the equations hold; the last two are not added to.
COUNTED = ("built", "stale", "frozen")
WAITING = ("pending", "stale")
Totals = Mapping[str, int]
PRUNE_LOCK = 724_410_050


class NotInstalled(CalcAnalyticsError):
    """There is no state row: the migrations have not run on this database."""


class ClusterChanged(CalcAnalyticsError):
    """The database was restored into another cluster, whose transaction ids mean something else."""


class LogReplaced(CalcAnalyticsError):
    """The table that has the log's name is not the one whose rows were counted."""


class TimezoneChanged(CalcAnalyticsError):
    """ROLLUP_TIMEZONE is not the zone in which the stored days were built."""


class RollupsChanged(CalcAnalyticsError):
    """ROLLUPS names other rollups than the database keeps."""


@dataclass(frozen=True)
class State:
    """The state row: days are built in `timezone`, for these rollups, from the log rows visible in `snapshot`."""

    timezone: str
    snapshot: Snapshot
    rollups: tuple[str, ...]


# -- The state row --------------------------------------------------------------------------------------------------


def exists(connection: Connection, log: Log) -> bool:
    """Whether there is a state row at all."""
    statement = text("select exists (select from rollup_state where log = :log)")
    return bool(connection.execute(statement, {"log": log.name}).scalar())


def read(connection: Connection, db: Database) -> State:
    """The state without a lock. Raises what `require_usable` raises."""
    row = connection.execute(text(_read_sql(db.log)), {"log": db.log.name}).mappings().one_or_none()
    require_usable(db, row)
    assert row is not None
    return State(row["timezone"], Snapshot.parse(row["snapshot"]), tuple(row["rollups"]))


def lock(connection: Connection, db: Database) -> State:
    """The state, locked until the transaction ends: whoever else changes statistics waits here. Raises as `read`.

    It is read by a statement of its own: one that had waited would compare a newer row with its own, older snapshot.
    """
    connection.execute(text("select from rollup_state where log = :log for no key update"), {"log": db.log.name})
    return read(connection, db)


def lock_sql(log: Log) -> str:
    """The lock as a statement of its own, whatever the state says.

    Also keeps the statement that follows from sorting the new rows, which a wrong estimate of their number leads to.
    """
    no_sort = "set_config('enable_sort', 'off', true)"
    return f"select {no_sort} from rollup_state where log = {quote_literal(log.name)} for no key update"


def require_usable(db: Database, state: Any) -> None:
    """Raises unless the state row fits: `NotInstalled`, `ClusterChanged`, `LogReplaced`, `TimezoneChanged` or
    `RollupsChanged`."""
    if state is None:
        raise NotInstalled(f"no state for {db.log.name}: run 'calc-analytics migrate' first")
    if not state["same_cluster"]:
        raise ClusterChanged(
            "this database was restored into another PostgreSQL cluster, so the stored snapshot says nothing about "
            "its rows: run 'calc-analytics rebase' to count afresh from here"
        )
    if not state["same_log"]:
        raise LogReplaced(
            f"{db.log.name} is not the table whose rows were counted: it was replaced or renamed. Rename it back, or "
            "run 'calc-analytics migrate' to adopt the table of that name, then 'calc-analytics rebase' and "
            "'calc-analytics rollup'"
        )
    if state["timezone"] != db.timezone:
        raise TimezoneChanged(
            f"the stored days were built in {state['timezone']}, but ROLLUP_TIMEZONE is {db.timezone}: set it back, "
            "or run 'calc-analytics rebase' to rebuild the days in the new zone"
        )
    if set(state["rollups"]) != set(db.log.names):
        raise RollupsChanged(
            f"the database keeps {', '.join(state['rollups'])}, but ROLLUPS asks for {', '.join(db.log.names)}: "
            "set ROLLUPS, or run 'calc-analytics migrate' to keep what it names"
        )


def state_columns(log: Log) -> str:
    """SQL: the columns of the state row `s` that `require_usable` needs."""
    return f"""s.timezone, cast(s.snapshot as text) as snapshot, s.rollups, {SAME_CLUSTER} as same_cluster,
           {same_log(log_oid(log))} as same_log"""


def _read_sql(log: Log) -> str:
    return f"select {state_columns(log)} from rollup_state s where s.log = :log"


def is_usable_sql(db: Database) -> str:
    """SQL: the state row `s` is one that `require_usable` accepts."""
    names = ", ".join(quote_literal(name) for name in db.log.names)
    same_rollups = f"s.rollups @> array[{names}] and s.rollups <@ array[{names}]"
    is_same = f"{SAME_CLUSTER} and {same_log(log_oid(db.log))}"
    return f"{is_same} and s.timezone = {quote_literal(db.timezone)} and {same_rollups}"


def moved_cte(log: Log, source: str) -> str:
    """CTE: moves the state row to the snapshot in `source.snapshot`, if that has a row."""
    return f"""moved as (
        update rollup_state s set snapshot = {source}.snapshot, refreshed_at = clock_timestamp(),
               relation = cast(s.tableoid as bigint), written_by = txid_current(),
               log_relation = cast({log_oid(log)} as bigint)
        from {source} where s.log = {quote_literal(log.name)}
    )"""


def note_cluster(connection: Connection, log: Log) -> None:
    """Writes down which cluster this is; after pg_upgrade it has another identifier, and the state row is its own."""
    connection.execute(text(f"update rollup_state set {_here(log)} where log = :log"), {"log": log.name})


def _here(log: Log) -> str:
    """SQL: where the row was written, for `SAME_CLUSTER`, and for `same_log`."""
    return f"""
    system_identifier = (select system_identifier from pg_control_system()),
    relation = cast(tableoid as bigint), written_by = txid_current(), log_relation = cast({log_oid(log)} as bigint)
"""


def _still_here(log: Log) -> str:
    """SQL: the same for a change that leaves the snapshot alone: a row of another cluster, or of another log table,
    stays one."""
    return f"""
    system_identifier = case when {SAME_CLUSTER} then s.system_identifier else 0 end,
    relation = case when {SAME_CLUSTER} then cast(s.tableoid as bigint) else s.relation end,
    written_by = case when {SAME_CLUSTER} then txid_current() else s.written_by end,
    log_relation = case when {SAME_CLUSTER} and s.relation <> cast(s.tableoid as bigint)
                        then cast({log_oid(log)} as bigint) else s.log_relation end
"""


def create_if_missing(connection: Connection, log: Log, timezone: str) -> bool:
    """The state a log starts with: nothing built, counting from this moment's snapshot. Whether it was missing."""
    parameters = {"log": log.name, "timezone": timezone, "rollups": log.names}
    return connection.execute(text(_CREATE.format(log=log_oid(log))), parameters).rowcount > 0


def wait_for_turn(connection: Connection, log: Log) -> None:
    """Locks the state row whatever it says; before any lock on the log, as every other operation does."""
    connection.execute(text("select from rollup_state where log = :log for update"), {"log": log.name})


def kept_rollups(connection: Connection, log: Log) -> list[str]:
    """The rollups that every refresh adds to."""
    statement = text("select rollups from rollup_state where log = :log")
    return list(connection.execute(statement, {"log": log.name}).scalar_one())


def stored_timezone(db: Database) -> str:
    """The zone in which the stored days are built, whatever ROLLUP_TIMEZONE says."""
    with transaction(db.engine) as connection:
        statement = text("select timezone from rollup_state where log = :log")
        return str(connection.execute(statement, {"log": db.log.name}).scalar_one())


def keep_rollups(connection: Connection, log: Log) -> tuple[list[str], list[str]]:
    """Makes the log's rollups those that every refresh adds to; returns those switched on, and those switched off.

    The days of a rollup that is switched on are to be rebuilt: stale where they have statistics, pending where the
    other rollups have some. Those of one that is switched off are stale from now on.
    """
    wait_for_turn(connection, log)
    kept = kept_rollups(connection, log)
    on, off = [name for name in log.names if name not in kept], [name for name in kept if name not in log.names]
    for name in [*on, *off]:
        connection.execute(_SWITCHED, {"rollup": name})
    for name in on:
        connection.execute(_PENDING_AS_OTHERS, {"rollup": name, "others": kept})
    if on or off:
        statement = f"update rollup_state s set rollups = cast(:names as text[]), {_still_here(log)} where log = :log"
        connection.execute(text(statement), {"log": log.name, "names": log.names})
    return on, off


def mark_stale(connection: Connection, log: Log) -> None:
    """Every built or frozen day with counted rows is to be rebuilt; its statistics stay until then."""
    connection.execute(_STALE, {"rollups": log.names})


def start_afresh(connection: Connection, log: Log, timezone: str) -> None:
    """Takes this cluster's snapshot and marks every built or frozen day stale; its statistics stay until rebuilt."""
    create_if_missing(connection, log, timezone)
    parameters = {"log": log.name, "rollups": log.names, "timezone": timezone, "first": FIRST, "last": LAST}
    for statement in (_NEIGHBOURS, _STALE, text(_AFRESH.format(here=_here(log)))):
        connection.execute(statement, parameters)


def record_pending(connection: Connection, log: Log, days: Sequence[date]) -> None:
    """Those of these days that are not on record wait for a rebuild, in every rollup."""
    statement = """
        insert into rollup_days (rollup, date, status)
        select rollup, date, 'pending'
        from unnest(cast(:rollups as text[])) as r (rollup) cross join unnest(cast(:days as date[])) as d (date)
        on conflict (rollup, date) do nothing
    """
    connection.execute(text(statement), {"rollups": log.names, "days": list(days)})


def days_on_record(connection: Connection, log: Log) -> set[date]:
    """The days that are on record for every rollup."""
    parameters = {"rollups": log.names, "number": len(log.names)}
    return set(connection.execute(text(ON_RECORD), parameters).scalars())


# The days on record for every rollup, or built in one: a record that is missing beside that was lost, which an audit
# reports (`record_lost_days`). Parameters :rollups, and their :number.
ON_RECORD = """
    select date from rollup_days where rollup = any(cast(:rollups as text[]))
    group by date having count(*) = :number or bool_or(status = 'built')
"""
_CREATE = """
    insert into rollup_state (log, timezone, system_identifier, snapshot, relation, written_by, log_relation, rollups)
    select :log, :timezone, system_identifier, pg_current_snapshot(),
           cast(cast('rollup_state' as regclass) as bigint), txid_current(), cast({log} as bigint),
           cast(:rollups as text[])
    from pg_control_system()
    on conflict (log) do nothing
"""
_SWITCHED = text(
    """
    update rollup_days set status = case when counted is null then 'pending' else 'stale' end
    where rollup = :rollup and status in ('built', 'overflow')
    """
)
_PENDING_AS_OTHERS = text(
    """
    insert into rollup_days (rollup, date, status)
    select distinct :rollup, date, 'pending' from rollup_days where rollup = any(cast(:others as text[]))
    on conflict (rollup, date) do nothing
    """
)
# In another zone, rows move to the days beside: those are to be built too.
_NEIGHBOURS = text(
    """
    insert into rollup_days (rollup, date, status)
    select distinct d.rollup, d.date + step, 'pending'
    from rollup_days d, rollup_state s, unnest(array[-1, 1]) as step
    where d.rollup = any(cast(:rollups as text[])) and s.log = :log and s.timezone <> :timezone
      and d.date + step between :first and :last
    on conflict (rollup, date) do nothing
    """
)
_STALE = text(
    """
    update rollup_days set status = 'stale'
    where rollup = any(cast(:rollups as text[])) and status in ('built', 'frozen')
    """
)
_AFRESH = "update rollup_state set timezone = :timezone, snapshot = pg_current_snapshot(), {here} where log = :log"


# -- The days: what a refresh does with them --------------------------------------------------------------------------


def sum_json(left: str, right: str) -> str:
    """SQL: the sums, key by key, of two JSON objects of numbers; either may be null or lack keys."""
    return f"""(
        select coalesce(jsonb_object_agg(key, value), '{{}}')
        from (
            select key, sum(cast(value as numeric)) as value
            from (select * from jsonb_each_text({left}) union all select * from jsonb_each_text({right})) both_
            group by key
        ) summed)"""


def seen_cte(log: Log) -> str:
    """CTE: what is known of each day in `days`, for each rollup; status is null for a day never seen."""
    names = ", ".join(f"({quote_literal(name)})" for name in log.names)
    return f"""seen as materialized (
        select r.rollup, d.date, b.status, b.checksum is not null as has_checksum
        from days d cross join (values {names}) r (rollup)
        left join rollup_days b on b.rollup = r.rollup and b.date = d.date
    )"""


def recorded_cte(db: Database) -> str:
    """CTE: records every day in `judged`, adds `amounts` to what is counted of built ones, and `hashes` to checksums.

    A checksum that a verification added while this statement ran lacks its rows: it is dropped, and made again later.
    """
    return f"""recorded as (
        insert into rollup_days as r (rollup, date, status, timezone, method, built_at, built_by, refreshed_at, counted,
                                      deleted, checksum)
        select j.rollup, j.date, j.status, {quote_literal(db.timezone)}, case j.status when 'built' then 'refresh' end,
               case j.status when 'built' then clock_timestamp() end,
               case j.status when 'built' then current_setting('application_name') end, clock_timestamp(),
               case when j.status = 'built' then a.totals when j.is_foreign then '{{}}' end,
               case j.status when 'built' then cast('{{}}' as jsonb) end,
               h.hash
        from judged j join amounts a using (rollup, date) left join hashes h using (rollup, date)
        on conflict (rollup, date) do update
        set refreshed_at = excluded.refreshed_at,
            counted = case when r.status = 'built' then {sum_json("r.counted", "excluded.counted")} else r.counted end,
            checksum = case when r.status = 'built' then r.checksum + excluded.checksum else r.checksum end
    )"""


def set_aside(connection: Connection, rollup: Rollup, days: Sequence[date]) -> set[date]:
    """These days have a value that does not fit its column: they are not added to until that is resolved.

    Returns those of which that was not known.
    """
    return set(connection.execute(_SET_ASIDE, {"rollup": rollup.name, "days": list(days)}).scalars())


def count_again(connection: Connection, rollup: Rollup) -> None:
    """Days that were set aside wait for a rebuild: a column is wider now."""
    connection.execute(_COUNT_AGAIN, {"rollup": rollup.name})


_COUNT_AGAIN = text(
    """
    update rollup_days set status = case when counted is null then 'pending' else 'stale' end
    where rollup = :rollup and status = 'overflow'
    """
)
_SET_ASIDE = text(
    """
    insert into rollup_days as r (rollup, date, status)
    select :rollup, date, 'overflow' from unnest(cast(:days as date[])) as d (date)
    on conflict (rollup, date) do update set status = 'overflow' where r.status in ('built', 'pending', 'stale')
    returning date
    """
)


# -- The days: what other operations do with them ----------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A row of the ledger. Totals are per measure; `counted` is None where the day was never counted whole.

    `deleted` may hold a hash of the deleted keys besides (`Rollup.keys_hash`).
    """

    rollup: str
    day: date
    status: str
    timezone: str | None
    counted: dict[str, int] | None
    deleted: dict[str, int] | None
    has_checksum: bool
    method: str | None
    log_finding: str | None
    """How the log differed from what was counted when last compared (logs_missing, …); None: it did not."""
    statistics_differ: bool
    """Whether an audit or a comparison found that the statistics are not what was counted."""
    is_different: bool
    """Whether the last comparison or the last audit found a difference."""

    @property
    def is_whole(self) -> bool:
        """Whether the day was counted whole here, and that is not undone."""
        is_counted = self.counted is not None and self.deleted is not None
        return is_counted and self.status in ("built", "stale", "overflow", "frozen")

    @property
    def has_deletions(self) -> bool:
        """Whether log rows were deleted after they were counted."""
        return any((self.deleted or {}).values())


def entries(connection: Connection, rollups: Iterable[Rollup], days: Sequence[date]) -> dict[tuple[str, date], Entry]:
    """The rows of these rollups and days that exist."""
    names = [rollup.name for rollup in rollups]
    rows = connection.execute(_ENTRIES, {"rollups": names, "days": list(days)}).all()
    return {(row.rollup, row.date): Entry(*row) for row in rows}


def record_rebuilt(connection: Connection, rollup: Rollup, timezone: str, totals: dict[date, dict[str, int]]) -> None:
    """These days are recounted: they are built, nothing of them is deleted, and they have these totals.

    Days before yesterday get a checksum at once: nobody can have changed them yet.
    """
    parameters = [
        {"rollup": rollup.name, "day": day, "tz": timezone, "counted": _json(counted)}
        for day, counted in totals.items()
    ]
    if parameters:
        connection.execute(text(_REBUILT.format(hash=checksum_sql(rollup, ":day"))), parameters)


def record_added(connection: Connection, rollup: Rollup, day: date, counted: Totals) -> None:
    """Rows were added to the day, which is built again and has these totals now; what was deleted stays so."""
    parameters = {"rollup": rollup.name, "day": day, "counted": _json(counted)}
    connection.execute(text(_ADDED.format(hash=checksum_sql(rollup, ":day"))), parameters)


def record_kept(
    connection: Connection, rollup: Rollup, day: date, deleted: dict[str, int], by: str, is_intact: bool
) -> None:
    """The difference between `counted` and the log is a deletion, says `by`: the statistics stay and are built.

    The day gets a checksum if it has none, unless its statistics are not what was counted (not `is_intact`).
    """
    parameters = {"rollup": rollup.name, "day": day, "deleted": _json(deleted), "by": by, "intact": is_intact}
    connection.execute(text(_KEPT.format(hash=checksum_sql(rollup, ":day"))), parameters)


def record_accepted(connection: Connection, rollup: Rollup, day: date, counted: dict[str, int], deleted: Any) -> None:
    """A person accepts the statistics as they are in the target now: these are the day's totals."""
    parameters = {"rollup": rollup.name, "day": day, "counted": _json(counted), "deleted": _json(deleted)}
    connection.execute(text(_ACCEPTED.format(hash=checksum_sql(rollup, ":day"))), parameters)


def is_intact(connection: Connection, rollup: Rollup, day: date, stored: Mapping[str, int]) -> bool:
    """Whether the day's statistics are what was counted, by their totals and, if there is one, their checksum."""
    statement = f"""
        select counted, checksum is null or checksum = {checksum_sql(rollup, ":day")} as is_same
        from rollup_days where rollup = :rollup and date = :day
    """
    row = connection.execute(text(statement), {"rollup": rollup.name, "day": day}).one()
    return bool(row.is_same) and all(int((row.counted or {}).get(name, 0)) == stored[name] for name in stored)


def deleted_cte(rollup: Rollup, name: str, totals: str, rows: str) -> str:
    """CTE `name`: adds the JSON in `totals` (a column of the CTE `rows`) to what the day's record says is deleted.

    Deletions that were noted without a hash of their keys (by version 0.1) stay so.
    """
    known = f"case when d.deleted = '{{}}' or d.deleted ? '{KEYS_HASH}' then {totals} else {totals} - '{KEYS_HASH}' end"
    return f"""{name} as (
        update rollup_days d set deleted = {sum_json("d.deleted", known)},
            pruned_at = coalesce(pruned_at, clock_timestamp()), pruned_by = coalesce(pruned_by, 'prune')
        from {rows} where d.rollup = {quote_literal(rollup.name)} and d.date = :day and {rows}.rows > 0
    )"""


def take_out(
    connection: Connection, rollup: Rollup, day: date, counted: Totals, deleted: Totals, hash_change: Any
) -> None:
    """The day's statistics were lowered by `counted`, of which the log rows of `deleted` were gone before.

    Whatever did not balance before does not balance by as much afterwards.
    """
    parameters = {
        "rollup": rollup.name,
        "day": day,
        "counted": _negative(counted),
        "deleted": _negative(deleted),
        "hash": hash_change,
    }
    connection.execute(_TAKE_OUT, parameters)


def _negative(totals: Totals) -> str | None:
    return _json({name: -value for name, value in totals.items()} if any(totals.values()) else {})


def freeze_if_pruned(connection: Connection, rollup: Rollup, day: date) -> None:
    """For a rollup that is not kept: how much of the day is deleted is no longer known, so it is frozen."""
    connection.execute(_FREEZE_IF_PRUNED, {"rollup": rollup.name, "day": day})


def unknown_rollups(connection: Connection, rollups: Iterable[Rollup]) -> list[str]:
    """Tables that have days on record, but are none of these rollups'."""
    names = connection.execute(_UNKNOWN_ROLLUPS, {"known": [rollup.name for rollup in rollups]})
    return list(names.scalars())


def freeze(connection: Connection, rollup: Rollup, timezone: str, day: date, counted: dict[str, int]) -> None:
    """The day's log rows are gone and it was never counted whole here: its statistics stay as they are, audited."""
    parameters = {"rollup": rollup.name, "day": day, "tz": timezone, "counted": _json(counted)}
    connection.execute(text(_FREEZE.format(hash=checksum_sql(rollup, ":day"))), parameters)


def record_predecessors_day(connection: Connection, rollup: Rollup, day: date) -> None:
    """The day has statistics from before this project, and log rows: it waits for its first rebuild."""
    statement = text(
        "insert into rollup_days (rollup, date, status, method) values (:rollup, :day, 'pending', 'predecessor') "
        "on conflict do nothing"
    )
    connection.execute(statement, {"rollup": rollup.name, "day": day})


def forget_empty_days(connection: Connection, db: Database, first: date) -> None:
    """Removes records of days before `first` or after today that were built and hold nothing, as version 0.1 left."""
    for rollup in db.log.rollups:
        parameters = {"rollup": rollup.name, "first": first, "tz": db.timezone}
        connection.execute(text(_FORGET_EMPTY.format(target=rollup.name, count=rollup.count)), parameters)


def mark(connection: Connection, rollup: Rollup, days: Sequence[date], status: str) -> None:
    """Gives these days that status; days that are not on record stay so."""
    statement = text("update rollup_days set status = :status where rollup = :rollup and date = any(:days)")
    connection.execute(statement, {"rollup": rollup.name, "days": list(days), "status": status})


def checksum_sql(rollup: Rollup, day: str) -> str:
    """SQL: the checksum over the day's rows in the target, as they are."""
    return f"(select coalesce(sum({rollup.hash_of('t')}), 0) from {rollup.name} t where t.date = {day})"


# SQL: changes when the day is rebuilt, pruned or decided upon, and not when a refresh adds to it.
VERSION = "concat_ws(' ', status, timezone, built_at, deleted, pruned_at, pruned_by)"

# SQL: the log was found different, and the day is not added to: rows that came since could be as many as were missing.
UNDECIDED = "coalesce(status <> 'built' and difference <> 0 and finding like 'logs!_%' escape '!', false)"


@dataclass(frozen=True)
class Seen:
    """A day's record as a comparison saw it: its version, the transaction that wrote it, its target's checksum."""

    version: str
    written_by: str
    checksum: Any


def record_verified(
    connection: Connection, rollup: Rollup, proof: DayProof, seen: Seen, timezone: str, with_checksum: bool
) -> bool:
    """Records what a comparison found, unless the day was rebuilt, pruned or decided upon meanwhile; whether it did.

    Rows that a refresh added meanwhile change nothing about it. A proven day before yesterday (or, `with_checksum`,
    any) gets a checksum: should its log rows be deleted later, each key stays provable. Keeping one costs a refresh a
    little, so today and yesterday have none.
    """
    parameters = {
        "rollup": rollup.name,
        "day": proof.day,
        "seconds": proof.seconds,
        "difference": proof.difference,
        "finding": proof.finding,
        "version": seen.version,
        "written_by": seen.written_by,
        "checksum": seen.checksum if proof.is_proven else None,
        "tz": timezone,
        "with_checksum": with_checksum,
    }
    return connection.execute(_VERIFIED, parameters).rowcount > 0


def record_audited(
    connection: Connection, rollup: Rollup, days: Sequence[date] | None, different: Mapping[date, int]
) -> None:
    """Records the audit of these days (None: all) that have statistics; `different` holds those that differ.

    Only verdicts that change are written, and of days that are named, when they were audited. A day that is not on
    record and has statistics is recorded as pending with nothing counted, so that it is seen and rebuilt.
    """
    parameters = {
        "rollup": rollup.name,
        "all": days is None,
        "days": list(days or []),
        "different": list(different),
        "differences": list(different.values()),
    }
    connection.execute(_UNKNOWN_STATISTICS, parameters)
    connection.execute(_AUDITED, parameters)


def record_lost_days(connection: Connection, log: Log) -> None:
    """Days that a rollup has no record of, though another counted them whole: somebody deleted the record.

    They are recorded with nothing counted, and differ until they are recounted or a person decides.
    """
    for rollup in log.rollups:
        for other in log.rollups:
            connection.execute(text(_LOST.format(count=other.count)), {"rollup": rollup.name, "other": other.name})


def audit_differences(connection: Connection, rollup: Rollup, days: Sequence[date]) -> dict[date, int | None]:
    """What the last audit found on these days."""
    statement = text("select date, audit_difference from rollup_days where rollup = :rollup and date = any(:days)")
    rows = connection.execute(statement, {"rollup": rollup.name, "days": list(days)})
    return {row.date: row.audit_difference for row in rows}


def record_audit_of_all(connection: Connection, log: Log) -> None:
    """Records when all days were audited."""
    statement = f"update rollup_state s set audited_at = clock_timestamp(), {_still_here(log)} where log = :log"
    connection.execute(text(statement), {"log": log.name})


def keep_out_prune(connection: Connection, log: Log) -> None:
    """Until the transaction ends no `prune` of the log deletes: a rebuild counts and judges the same rows."""
    _advise(connection, log, "pg_advisory_xact_lock_shared")


def keep_out_rebuilds(connection: Connection, log: Log) -> None:
    """Until the transaction ends no rebuild of the log counts. Taken before the state's lock, by both."""
    _advise(connection, log, "pg_advisory_xact_lock")


def _advise(connection: Connection, log: Log, function: str) -> None:
    connection.execute(text(f"select {function}({PRUNE_LOCK}, hashtext(:log))"), {"log": log.name})


def _json(totals: Any) -> str | None:
    return None if totals is None else json.dumps(totals)


_ENTRIES = text(
    """
    select rollup, date, status, timezone, counted, deleted, checksum is not null,
           method, case when difference <> 0 and finding like 'logs!_%' escape '!' then finding end,
           coalesce(audit_difference <> 0, false)
               or coalesce(difference <> 0 and finding = 'statistics_changed', false),
           coalesce(difference, 0) <> 0 or coalesce(audit_difference, 0) <> 0
    from rollup_days where rollup = any(cast(:rollups as text[])) and date = any(cast(:days as date[]))
    """
)
# A recount starts the proofs afresh.
_PROVEN_AFRESH = (
    "verified_at = null, verified_seconds = null, difference = null, finding = null, "
    "audited_at = null, audit_difference = null"
)
_REBUILT = f"""
    insert into rollup_days (rollup, date, status, timezone, method, built_at, built_by, refreshed_at, counted, deleted,
                             checksum)
    values (:rollup, :day, 'built', :tz, 'rebuild', clock_timestamp(), current_setting('application_name'),
            clock_timestamp(), cast(:counted as jsonb), '{{{{}}}}',
            case when :day < cast(clock_timestamp() at time zone :tz as date) - 1 then {{hash}} end)
    on conflict (rollup, date) do update
    set status = excluded.status, timezone = excluded.timezone, method = excluded.method, built_at = excluded.built_at,
        built_by = excluded.built_by, refreshed_at = excluded.refreshed_at, counted = excluded.counted,
        deleted = excluded.deleted, checksum = excluded.checksum, pruned_at = null, pruned_by = null, {_PROVEN_AFRESH}
"""
_ADDED = f"""
    update rollup_days set status = 'built', counted = cast(:counted as jsonb), checksum = {{hash}},
        refreshed_at = clock_timestamp(), {_PROVEN_AFRESH}
    where rollup = :rollup and date = :day
"""
_KEPT = f"""
    update rollup_days set status = 'built', deleted = cast(:deleted as jsonb),
        checksum = coalesce(checksum, case when :intact then {{hash}} end),
        pruned_at = coalesce(pruned_at, clock_timestamp()), pruned_by = :by, {_PROVEN_AFRESH}
    where rollup = :rollup and date = :day
"""
_ACCEPTED = f"""
    update rollup_days set status = 'built', counted = cast(:counted as jsonb), deleted = cast(:deleted as jsonb),
        checksum = {{hash}}, pruned_at = coalesce(pruned_at, clock_timestamp()), pruned_by = 'keep', {_PROVEN_AFRESH}
    where rollup = :rollup and date = :day
"""
_VERIFIED = text(
    f"""
    update rollup_days set verified_at = clock_timestamp(), verified_seconds = :seconds, difference = :difference,
        finding = :finding,
        audit_difference = case
            when :difference = 0 and method is distinct from 'unrecorded' then 0 else audit_difference end,
        checksum = case
            when cast(:checksum as numeric) is not null and (deleted = '{{}}' or checksum is null)
                 and cast(xmin as text) = :written_by
                 and (:with_checksum or date < cast(clock_timestamp() at time zone :tz as date) - 1)
            then cast(:checksum as numeric) else checksum end
    where rollup = :rollup and date = :day and {VERSION} = :version
      and not {UNDECIDED}
    """
)
_UNKNOWN_STATISTICS = text(
    """
    insert into rollup_days (rollup, date, status, counted, audit_difference, audited_at)
    select :rollup, date, 'pending', '{}', difference, clock_timestamp()
    from unnest(cast(:different as date[]), cast(:differences as bigint[])) as d (date, difference)
    on conflict (rollup, date) do update
    set counted = '{}', audit_difference = excluded.audit_difference, audited_at = excluded.audited_at
    where rollup_days.counted is null and rollup_days.method is distinct from 'predecessor'
    """
)
_LOST = """
    insert into rollup_days (rollup, date, status, method, counted, audit_difference, audited_at)
    select :rollup, date, 'pending', 'unrecorded', '{{}}', cast(counted ->> '{count}' as bigint), clock_timestamp()
    from rollup_days
    where rollup = :other and status = 'built' and deleted is not null and cast(counted ->> '{count}' as bigint) > 0
    on conflict (rollup, date) do nothing
"""
_AUDITED = text(
    """
    update rollup_days d set audit_difference = a.difference, audited_at = clock_timestamp()
    from (
        select k.date, coalesce(f.difference, 0) as difference
        from rollup_days k
        left join unnest(cast(:different as date[]), cast(:differences as bigint[])) as f (date, difference)
            using (date)
        where k.rollup = :rollup and k.counted is not null
          and (:all or k.date = any(cast(:days as date[])))
          and (not :all or k.audit_difference is distinct from coalesce(f.difference, 0))
    ) a
    where d.rollup = :rollup and d.date = a.date
    """
)
_KNOWN_DELETED = (
    f"case when deleted ? '{KEYS_HASH}' then cast(:deleted as jsonb) else cast(:deleted as jsonb) - '{KEYS_HASH}' end"
)
_TAKE_OUT = text(
    f"""
    update rollup_days
    set counted = {sum_json("counted", "cast(:counted as jsonb)")},
        deleted = case when deleted is not null then {sum_json("deleted", _KNOWN_DELETED)} end,
        checksum = checksum + cast(:hash as numeric)
    where rollup = :rollup and date = :day and counted is not null
    """
)
_FREEZE_IF_PRUNED = text(
    """
    update rollup_days set status = 'frozen', deleted = null
    where rollup = :rollup and date = :day and counted is not null
      and exists (select from jsonb_each_text(deleted) where cast(value as numeric) <> 0)
    """
)
_UNKNOWN_ROLLUPS = text(
    """
    select distinct rollup from rollup_days
    where rollup <> all(cast(:known as text[])) and to_regclass(quote_ident(rollup)) is not null order by rollup
    """
)
_FORGET_EMPTY = """
    delete from rollup_days d
    where rollup = :rollup and status = 'built' and (deleted is null or deleted = '{{}}')
      and coalesce(cast(counted ->> '{count}' as numeric), 0) = 0
      and (date < :first or date > cast(clock_timestamp() at time zone :tz as date))
      and not exists (select from {target} t where t.date = d.date)
"""
_FREEZE = """
    insert into rollup_days as r (rollup, date, status, timezone, counted, checksum)
    values (:rollup, :day, 'frozen', :tz, cast(:counted as jsonb), {hash})
    on conflict (rollup, date) do update
    set status = excluded.status, counted = coalesce(r.counted, excluded.counted), deleted = null,
        checksum = coalesce(r.checksum, excluded.checksum)
"""


# -- Days by status ----------------------------------------------------------------------------------------------------


def days_by_status(db: Database, statuses: Sequence[str]) -> dict[date, list[str]]:
    """The days on record that have one of these statuses, oldest first, and for which rollups."""
    parameters = {"rollups": db.log.names, "statuses": list(statuses)}
    with transaction(db.engine) as connection:
        return rollups_by_day(connection.execute(_BY_STATUS, parameters))


def rollups_by_day(rows: Iterable[Any]) -> dict[date, list[str]]:
    """The rollups of each day, from rows with a date and a rollup, in their order."""
    found: dict[date, list[str]] = {}
    for row in rows:
        found.setdefault(row.date, []).append(row.rollup)
    return found


def built_days(db: Database) -> list[date]:
    """The days that are built in at least one rollup, oldest first."""
    return list(days_by_status(db, ["built"]))


def counted_days(db: Database) -> list[date]:
    """The days with statistics that can be proven (built, stale or frozen in some rollup), oldest first."""
    return list(days_by_status(db, COUNTED))


def waiting_days(db: Database) -> list[date]:
    """Days that need a rebuild before they can be exact, in some rollup, oldest first."""
    return list(days_by_status(db, WAITING))


def overflowed_days(db: Database) -> list[date]:
    """Days that are not counted any more because a value would not fit its column, oldest first."""
    return list(days_by_status(db, ["overflow"]))


_BY_STATUS = text(
    """
    select date, rollup from rollup_days
    where rollup = any(cast(:rollups as text[])) and status = any(cast(:statuses as text[]))
    order by date, array_position(cast(:rollups as text[]), rollup)
    """
)
