"""Widen: gives a column of the log, and the columns of the statistics that hold its values, a wider integer type.

One transaction: the live views are dropped, the columns altered, the views created again with what they had. PostgreSQL
rewrites each table, and keeps readers and writers out while it does. Days that were set aside then wait for a rebuild.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database import contract, migrate, relations, views
from calc_analytics.database.engine import transaction
from calc_analytics.database.errors import translate_db_errors
from calc_analytics.database.relations import BITS, integer_types
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup import journal, ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log
from calc_analytics.rollup.live_view import query


class NoSuchColumn(CalcAnalyticsError):
    """A column that counting does not use, or that is no integer."""


class ColumnInUse(CalcAnalyticsError):
    """Another program's view uses the column, so PostgreSQL does not alter its type."""


@dataclass(frozen=True)
class Change:
    """A column that gets a wider type, and the size of its table, which is rewritten."""

    table: str
    column: str
    before: str
    after: str
    bytes: int = 0

    def describe(self) -> str:
        """'calculation_logs.publisher_id: integer -> bigint'."""
        return f"{self.table}.{self.column}: {self.before} -> {self.after}"


def plan(db: Database, column: str, to: str) -> list[Change]:
    """What `widen` would change, in the log and in every rollup's table; nothing if all are that wide already."""
    with transaction(db.engine) as connection:
        changes = _changes(connection, db.log, column, to)
        return [replace(each, bytes=relations.size(connection, each.table)) for each in changes]


def widen(db: Database, column: str, to: str) -> list[Change]:
    """Makes the changes and returns them; raises `NotOwner`, `TableBusy`, `ViewInUse` or `ColumnInUse`: nothing was
    changed then."""
    done: list[Change] = []

    def work() -> None:
        done[:] = _changes(connection, db.log, column, to)
        _widen(connection, db, done)
        connection.commit()

    with translate_db_errors(db.engine.url), db.engine.connect() as connection:
        migrate.require_ownership(
            connection, [db.log.name, *db.log.names, *(each.live_view for each in db.log.rollups)]
        )
        migrate.with_brief_locks(connection, work)
    return done


def waiting_days(db: Database) -> list[date]:
    """The days that wait for a rebuild; none before the first `migrate`."""
    with transaction(db.engine) as connection:
        is_installed = _is_installed(connection)
    return ledger.waiting_days(db) if is_installed else []


def _is_installed(connection: Connection) -> bool:
    return relations.exists(connection, "rollup_journal")


def narrow_keys(connection: Connection, log: Log) -> list[Change]:
    """The keys of the rollups' tables that are narrower than the log columns from which they come."""
    types = log_types(connection, log)
    return [
        change
        for rollup in log.rollups
        for key, sources in rollup.key_sources.items()
        if (wanted := _widest([types[name] for name in sources if name in types])) is not None
        for change in _change(connection, rollup.name, key, wanted)
    ]


def widen_keys(connection: Connection, log: Log) -> list[Change]:
    """Widens the keys that are narrower than the log's, in the caller's transaction."""
    changes = narrow_keys(connection, log)
    _alter(connection, log, changes)
    return changes


def log_types(connection: Connection, log: Log) -> dict[str, str]:
    """The types of the log's integer columns; `city_id` is one that is about to be renamed."""
    types = integer_types(connection, log.name)
    return {"locality_id" if name == "city_id" else name: type_ for name, type_ in types.items()}


def _changes(connection: Connection, log: Log, column: str, to: str) -> list[Change]:
    types = integer_types(connection, log.name)
    known = {name for name in log.reads if name in types} | {
        name for each in log.rollups for name in each.measure_names
    }
    if column not in known:
        raise NoSuchColumn(f"'{column}' cannot be widened: the columns are {', '.join(sorted(known))}")
    wanted = _widest([to, types.get(column, to)]) or to
    found = list(_change(connection, log.name, column, wanted)) if column in log.reads else []
    if found and relations.is_partitioned_by(connection, log.name, column):
        raise ColumnInUse(
            f"{log.name} is partitioned by {column}, which PostgreSQL cannot alter then: copy its rows to a new table "
            "with the wider type, give that the name, and run 'calc-analytics migrate', then 'calc-analytics rebase'"
        )
    for rollup in log.rollups:
        keys = [key for key, sources in rollup.key_sources.items() if column in sources]
        for name in [*keys, *(name for name in rollup.measure_names if name == column)]:
            found += _change(connection, rollup.name, name, wanted)
    return found


def _change(connection: Connection, table: str, column: str, to: str) -> Iterator[Change]:
    has = integer_types(connection, table).get(column)
    if has is not None and BITS[has] < BITS[to]:
        yield Change(table, column, has, to)


def _widest(types: Sequence[str]) -> str | None:
    return max(types, key=BITS.__getitem__, default=None)


def _widen(connection: Connection, db: Database, changes: Sequence[Change]) -> None:
    is_installed = _is_installed(connection)
    if is_installed:
        ledger.lock_unchecked(connection, db.log)
    connection.execute(text("set local statement_timeout = 0"))
    _alter(connection, db.log, changes)
    if is_installed and changes:
        contract.install(connection)
        for rollup in db.log.rollups:
            ledger.count_again(connection, rollup)
        journal.note(connection, db.log, "widen", detail=", ".join(each.describe() for each in changes))


def _alter(connection: Connection, log: Log, changes: Sequence[Change]) -> None:
    """Makes the changes; the live views are dropped before and created again afterwards."""
    if not changes:
        return
    dropped = [(rollup, had) for rollup in log.rollups if (had := views.drop_view(connection, rollup.live_view))]
    for table in dict.fromkeys(change.table for change in changes):
        of_table = [change for change in changes if change.table == table]
        _require_unused(connection, of_table)
        altered = ", ".join(f"alter column {each.column} type {each.after}" for each in of_table)
        connection.execute(text(f"alter table {table} {altered}"))
    for rollup, had in dropped:
        views.create_view(connection, rollup.live_view, query(connection, log, rollup), had)


def _require_unused(connection: Connection, changes: Sequence[Change]) -> None:
    for change in changes:
        if others := views.dependents(connection, change.table, change.column):
            raise ColumnInUse(
                f"{change.table}.{change.column} was not widened: {', '.join(others)} uses it: drop that view, run "
                "this command again, and create it again; nothing was changed"
            )
