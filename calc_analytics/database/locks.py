"""Locks of the server that this process waits for, and the sessions that hold them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from calc_analytics.database.engine import transaction

# The longest wait of these sessions. A session that waits for a row has locked the row's place ('tuple') or waits for
# that lock. Of other roles' sessions only the process id is shown, unless the role may read all statistics.
_WAIT = text("""
select
  (select cast(cast(l.relation as regclass) as text) from pg_locks l
   where l.pid = waiter.pid and l.relation is not null and (not l.granted or l.locktype = 'tuple') limit 1) as relation,
  holder.pid as holder,
  holder.application_name as application,
  holder.state as state
from pg_stat_activity waiter
cross join lateral (select min(pid) as pid from unnest(pg_blocking_pids(waiter.pid)) as blocking (pid)) first
join pg_stat_activity holder on holder.pid = first.pid
where waiter.pid = any(:pids) and waiter.wait_event_type = 'Lock'
order by waiter.query_start
limit 1
""")
IN_USE = "it is in use by"
# A prepared transaction has no process.
_HOLDERS = text("""
select distinct l.pid, a.application_name, a.state
from pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'relation' and l.relation = any(cast(:relations as oid[])) and l.granted
  and l.database = (select oid from pg_database where datname = current_database())
  and l.pid is distinct from pg_backend_pid()
  and (not :writers_only or l.mode not in ('AccessShareLock', 'RowShareLock'))
order by l.pid
""")


@dataclass(frozen=True)
class LockWait:
    """A table, where it is known, and the session that holds a lock on it."""

    relation: str | None
    holder: int
    application: str | None
    state: str | None

    def describe(self) -> str:
        """'waiting for a lock on calculation_logs, held by process 4711 (psql, idle in transaction)'."""
        where = f" on {self.relation}" if self.relation else ""
        known = ", ".join(each for each in (self.application, self.state) if each)
        return f"waiting for a lock{where}, held by process {self.holder}" + (f" ({known})" if known else "")


def lock_wait(engine: Engine, pids: Collection[int]) -> LockWait | None:
    """What one of the sessions with these process ids waits for; None if none of them waits for a lock."""
    with transaction(engine) as connection:
        row: Any = connection.execute(_WAIT, {"pids": list(pids)}).one_or_none()
    return LockWait(row.relation, row.holder, row.application, row.state) if row else None


def describe_holders(connection: Connection, relations: Collection[int], writers_only: bool = False) -> str:
    """'it is in use by process 4711 (psql, idle in transaction)': who has these tables locked. Never empty."""
    parameters = {"relations": list(relations), "writers_only": writers_only}
    found = [_describe_holder(row) for row in connection.execute(_HOLDERS, parameters)]
    return f"{IN_USE} {', '.join(found) or 'sessions that have ended meanwhile'}"


def _describe_holder(row: Any) -> str:
    if row.pid is None:
        return "a prepared transaction"
    known = ", ".join(each for each in (row.application_name, row.state) if each)
    return f"process {row.pid}" + (f" ({known})" if known else "")
