"""Whether log rows of some keys are still being written: rows of the last minutes, and transactions that are open.

What an open transaction has written is visible to no other. So each that has written log rows is waited for, for a
while. Those that begin later do not matter, so that a log that is always written to is no obstacle.
"""

import time
from typing import Any

from sqlalchemy import text

from calc_analytics.database.engine import transaction
from calc_analytics.database.writers import writers
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.plurals import number
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.erasure.keys import Keys, describe_keys, matches, parameters
from calc_analytics.rollup.windows import within

# Rows that are newer than this mean that the keys are still being written.
RECENT_MINUTES = 15
# How long open transactions are waited for, and how often they are looked at.
WAIT_SECONDS, LOOK_SECONDS = 10.0, 0.05


class StillWriting(CalcAnalyticsError):
    """Log rows of the keys were written recently, or may be committed soon. Nothing was changed."""


def require_quiet(db: Database, keys: Keys) -> None:
    """Raises `StillWriting` if the keys have rows of the last minutes, or an open transaction may hold some."""
    rows, advice = describe_keys(keys), "repeat, or erase what is there with --even-if-writing. Nothing was erased"
    if recent := _recent_rows(db, keys):
        raise StillWriting(
            f"{number(recent, 'log row')} of {rows} were written in the last {RECENT_MINUTES} minutes: stop their "
            f"writers and {advice}"
        )
    for writer in still_open(db):
        raise StillWriting(f"{writer} has written log rows, which may be those of {rows}: end it and {advice}")


def still_open(db: Database) -> list[str]:
    """The transactions that have written log rows and are open now, and still after WAIT_SECONDS."""
    until = time.monotonic() + WAIT_SECONDS
    waiting = _writing(db)
    while waiting and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        now = _writing(db)
        waiting = {each: now[each] for each in waiting if each in now}
    return [_named(db, pid) for pid in waiting.values()]


def _recent_rows(db: Database, keys: Keys) -> int:
    """Rows of the keys of the last and the next minutes; later rows do not show that the keys are being written."""
    near = within(db.log.event_time, "cast(:begin as timestamptz)", "cast(:end as timestamptz)")
    minutes = f"make_interval(mins => {RECENT_MINUTES})"
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
        now = connection.execute(text(f"select now() - {minutes} as begin, now() + {minutes} as end")).mappings().one()
        statement = text(f"select count(*) from {db.log.name} where {near} and {matches(keys)}")
        return int(connection.execute(statement, {**parameters(keys), **now}).scalar_one())


def _writing(db: Database) -> dict[str, int | None]:
    """The transactions that have written to the log, with the process of each; None of a prepared one."""
    with transaction(db.engine) as connection:
        rows: Any = connection.execute(_WRITING, {"source": db.log.name})
        return {row.virtualtransaction: row.pid for row in rows}


def _named(db: Database, pid: int | None) -> str:
    known = {writer.pid: writer for writer in writers(db.engine, db.log.name)}.get(pid) if pid is not None else None
    if pid is None:
        return "a prepared transaction (see pg_prepared_xacts)"
    application = f" of {known.application}" if known is not None and known.application else ""
    return f"an open transaction{application} (process {pid})"


_WRITING = text(
    """
    select distinct l.virtualtransaction, l.pid
    from pg_locks l
    where l.relation in (select to_regclass(:source) union select relid from pg_partition_tree(to_regclass(:source)))
      and l.mode = 'RowExclusiveLock' and l.granted and l.pid is distinct from pg_backend_pid()
      and l.database = (select oid from pg_database where datname = current_database())
    """
)
