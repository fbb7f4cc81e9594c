"""The state row of a log: up to which snapshot its rows are counted, in which zone, for which rollups, and where.

Every operation that changes statistics locks it, so that they take turns. `require_usable` refuses a row that was
written in another cluster, for another log table, zone or set of rollups, because its snapshot means nothing here.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database import relations
from calc_analytics.database.engine import transaction
from calc_analytics.database.sql import quote_literal
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log
from calc_analytics.rollup.snapshot import SAME_CLUSTER, Snapshot, log_oid, same_log


class NotInstalled(CalcAnalyticsError):
    """There is no state row: the migrations have not run on this database."""


class ClusterChanged(CalcAnalyticsError):
    """The database was restored into another cluster, whose transaction ids mean something else."""


class LogReplaced(CalcAnalyticsError):
    """The log table was replaced or renamed: the table of that name is not the one whose rows were counted."""


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


def exists(connection: Connection, log: Log) -> bool:
    """Whether the log has a state row."""
    statement = text("select exists (select from rollup_state where log = :log)")
    return bool(connection.execute(statement, {"log": log.name}).scalar())


def has_any(connection: Connection) -> bool | None:
    """Whether any log has a state row; None if the table does not exist."""
    return relations.has_rows(connection, "rollup_state") if relations.exists(connection, "rollup_state") else None


def read(connection: Connection, db: Database) -> State:
    """The state without a lock. Raises what `require_usable` raises."""
    row = connection.execute(text(_read_sql(db.log)), {"log": db.log.name}).mappings().one_or_none()
    require_usable(db, row)
    assert row is not None
    return State(row["timezone"], Snapshot.parse(row["snapshot"]), tuple(row["rollups"]))


def lock(connection: Connection, db: Database) -> State:
    """The state, locked until the transaction ends: other operations that change statistics wait. Raises as `read`.

    The row is read by a second statement: one that had waited would compare a newer row with its own, older snapshot.
    """
    connection.execute(text("select from rollup_state where log = :log for no key update"), {"log": db.log.name})
    return read(connection, db)


def lock_sql(log: Log) -> str:
    """SQL: locks the row without checking it, as a statement of its own.

    Also keeps the statement that follows from sorting the new rows, which it would do after a wrong estimate.
    """
    no_sort = "set_config('enable_sort', 'off', true)"
    return f"select {no_sort} from rollup_state where log = {quote_literal(log.name)} for no key update"


def lock_unchecked(connection: Connection, log: Log) -> None:
    """Locks the state row without checking it; before any lock on the log, as every other operation does."""
    connection.execute(text("select from rollup_state where log = :log for update"), {"log": log.name})


def require_usable(db: Database, state: Any) -> None:
    """Raises unless rows can be counted from this state row on.

    `NotInstalled`, `ClusterChanged`, `LogReplaced`, `TimezoneChanged` or `RollupsChanged`.
    """
    if state is None:
        raise NotInstalled(f"no state for {db.log.name}: run 'calc-analytics migrate' first")
    if not state["same_cluster"]:
        raise ClusterChanged(
            "this database was restored into another PostgreSQL cluster, so the stored snapshot does not "
            "apply to its rows: run 'calc-analytics rebase' to restart the counting"
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
            f"the database keeps {', '.join(state['rollups'])}, but ROLLUPS names {', '.join(db.log.names)}: "
            "set ROLLUPS, or run 'calc-analytics migrate' to keep those"
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
    """Records which cluster this is. After pg_upgrade the identifier is another one, and the state row stays valid."""
    connection.execute(text(f"update rollup_state set {here(log)} where log = :log"), {"log": log.name})


def kept_rollups(connection: Connection, log: Log) -> list[str]:
    """The rollups that every refresh adds to."""
    statement = text("select rollups from rollup_state where log = :log")
    return list(connection.execute(statement, {"log": log.name}).scalar_one())


def stored_timezone(db: Database) -> str:
    """The zone in which the stored days are built, which ROLLUP_TIMEZONE may contradict."""
    with transaction(db.engine) as connection:
        statement = text("select timezone from rollup_state where log = :log")
        return str(connection.execute(statement, {"log": db.log.name}).scalar_one())


def here(log: Log) -> str:
    """SQL: where the row was written, for `SAME_CLUSTER`, and for `same_log`."""
    return f"""
    system_identifier = (select system_identifier from pg_control_system()),
    relation = cast(tableoid as bigint), written_by = txid_current(), log_relation = cast({log_oid(log)} as bigint)
"""


def still_here(log: Log) -> str:
    """SQL: the same for a change that keeps the snapshot. A row of another cluster or log table stays recognizable."""
    return f"""
    system_identifier = case when {SAME_CLUSTER} then s.system_identifier else 0 end,
    relation = case when {SAME_CLUSTER} then cast(s.tableoid as bigint) else s.relation end,
    written_by = case when {SAME_CLUSTER} then txid_current() else s.written_by end,
    log_relation = case when {SAME_CLUSTER} and s.relation <> cast(s.tableoid as bigint)
                        then cast({log_oid(log)} as bigint) else s.log_relation end
"""
