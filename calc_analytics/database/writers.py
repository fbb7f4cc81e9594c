"""Open transactions that have written something: they are what snapshots are about."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import transaction
from calc_analytics.database.log_tree import TREE

WRITERS_LIMIT = 20


@dataclass(frozen=True)
class Writer:
    """An open transaction that has written something. A prepared one has a name and no pid; `seconds` is None where
    the role may not see it (pg_read_all_stats shows it)."""

    pid: int | None
    name: str | None
    application: str | None
    user: str | None
    state: str | None
    seconds: float | None
    writes_logs: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def writers(engine: Engine, log: str) -> list[Writer]:
    """The open transactions of this database that have written, oldest first; `log` is the log table's name."""
    with transaction(engine) as connection:
        rows = connection.execute(text(_WRITERS), {"source": log, "limit": WRITERS_LIMIT}).mappings()
        return [Writer(**{**row, "seconds": row["seconds"] and max(row["seconds"], 0.0)}) for row in rows]


# Ages are measured at one instant, so that they sort by age; a transaction that began later has a negative one.
# A transaction has an id from its first write on. Of other roles' transactions the age is hidden from those without
# pg_read_all_stats. A prepared one belongs to no process; of its locks, one is on its own id.
_WRITERS = f"""
    with {TREE},
    writing as (
        select l.pid, l.virtualtransaction from pg_locks l join tree on l.relation = tree.oid
        where l.mode = 'RowExclusiveLock' and l.granted
          and l.database = (select oid from pg_database where datname = current_database())
    )
    select a.pid, null as name, nullif(a.application_name, '') as application, cast(a.usename as text) as user, a.state,
           cast(extract(epoch from statement_timestamp() - a.xact_start) as float) as seconds,
           exists (select from writing w where w.pid = a.pid) as writes_logs
    from pg_stat_activity a
    where a.datname = current_database() and a.backend_xid is not null and a.pid <> pg_backend_pid()
    union all
    select null, p.gid, null, cast(p.owner as text), 'prepared',
           cast(extract(epoch from statement_timestamp() - p.prepared) as float),
           exists (select from writing w join pg_locks own using (virtualtransaction)
                   where w.pid is null and own.pid is null and own.transactionid = p.transaction)
    from pg_prepared_xacts p
    where p.database = current_database()
    order by seconds desc nulls last limit :limit
"""
