"""Install: migrations, then what is built from the declarations (state, live views, grants). Safe to repeat."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.config import redact_url
from calc_analytics.database import adopt, contract, grants, log_tree, migrate, relations, row_security, schemas
from calc_analytics.database.engine import ALL_ROWS, transaction
from calc_analytics.database.errors import translate_db_errors
from calc_analytics.database.log_columns import UnfitTable
from calc_analytics.database.schemas import Place
from calc_analytics.database.server import is_read_only
from calc_analytics.database.sql import quote_identifier
from calc_analytics.database.tables import (
    READER_TABLES,
    STATE_TABLES,
    VERSION_TABLE,
    calculation_stats_daily,
    metadata,
)
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup import journal, ledger, predecessor, unseen, widen
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log
from calc_analytics.rollup.live_view import create_live_view, without_logs


class ReadOnly(CalcAnalyticsError):
    """The database is read-only: a standby, or a role or database that is set so. Nothing can be counted there."""


def install(db: Database, start_date: date | None = None) -> list[Place]:
    """Prepares an empty database or the API's, and repairs one that was changed since; every row stays.

    Returns each table with its schema, and whether it was created or adopted.

    The log's rollups are those that are kept from now on: one that is new has its days rebuilt. Records of empty days
    before `start_date` or after today are removed. Raises `UnfitTable` for what it would have to guess.
    """

    there: set[str] = set()
    is_repaired = False
    tables = table_names(db.log)
    before, found = dict[str, str](), list[Place]()

    def prepare(connection: Connection) -> None:
        connection.execute(ALL_ROWS)
        schemas.require_visible(connection, tables)
        _require_usable_database(connection, db.log)
        contract.require_free_names(connection)
        there.update(grants.existing(connection))
        before.update(schemas.places(connection, [*tables, VERSION_TABLE]))

    def finish(connection: Connection) -> None:
        nonlocal is_repaired
        connection.execute(ALL_ROWS)
        metadata.create_all(connection, checkfirst=True)
        adopt.require_tables(connection, [rollup.target for rollup in db.log.rollups])
        require_fit_tables(connection, db.log)
        widen.widen_keys(connection, db.log)
        is_repaired = _repair_log_table(connection, db)
        if not is_repaired and (name := ledger.follow_into_partition(connection, db)):
            journal.note(
                connection, db.log, "partition", detail=f"{db.log.name} has partitions; what was counted is {name}"
            )
        _keep_state(connection, db, start_date, there)
        found[:] = _places(before, schemas.places(connection, tables))

    migrate.upgrade(db.engine, prepare, finish)
    if is_repaired:
        # Another table than was counted waits for a rebase, which looks for its days.
        with suppress(ledger.LogReplaced, ledger.ClusterChanged):
            unseen.record_days(db)
    return found


def table_names(log: Log) -> list[str]:
    """The log, its rollups, what is computed from these, and what holds their state."""
    return [log.name, *log.names, *(table.name for table in (*READER_TABLES, *STATE_TABLES))]


def _places(before: Mapping[str, str], after: Mapping[str, str]) -> list[Place]:
    """What became of each table: what was there before the first migration is adopted."""
    kept = "unchanged" if VERSION_TABLE in before else "adopted"
    return [Place(name, schema, kept if name in before else "created") for name, schema in after.items()]


def _require_usable_database(connection: Connection, log: Log) -> None:
    """Raises `NotOwner`, `RowsHidden` or `UnfitTable` before anything is changed."""
    tables = table_names(log)
    views = [each.live_view for each in log.rollups]
    migrate.require_ownership(connection, [*log_tree.paths(connection, log.name), *tables, *views])
    row_security.require_exempt(connection, [*tables, VERSION_TABLE])
    _require_log(connection, log)
    require_fit_tables(connection, log)


def require_fit_tables(connection: Connection, log: Log) -> None:
    """Raises `UnfitTable` unless the tables that exist can be counted exactly, once all revisions have run."""
    reads = [log.table.columns[name] for name in log.reads]
    targets = [rollup.target for rollup in log.rollups]
    adopt.check_existing(connection, log.keys, reads, targets, migrate.is_at_head(connection))
    _require_wide_keys(connection, log)


def _require_wide_keys(connection: Connection, log: Log) -> None:
    """Raises `UnfitTable` if the API's table of statistics has a narrower key than the log; the project's own are
    widened, and so is that table if an interrupted `migrate` created it."""
    narrow = [each for each in widen.narrow_keys(connection, log) if each.table == calculation_stats_daily.name]
    if narrow and not _is_interrupted(connection):
        change = narrow[0]
        raise UnfitTable(
            f"{change.table}.{change.column} is {change.before}, but {log.name} has {change.after}: run "
            f"'calc-analytics widen {change.column}', which rewrites {change.table}"
        )


def _is_interrupted(connection: Connection) -> bool:
    """Whether a `migrate` has run its revisions, which it does only on usable tables, and has not finished."""
    return ledger.has_any(connection) is False


def _require_log(connection: Connection, log: Log) -> None:
    """Raises `UnfitTable` where the log was counted and is gone: an empty one would take its place."""
    if not relations.exists(connection, log.name) and ledger.has_any(connection):
        raise UnfitTable(
            f"there is no table {log.name} any more, but its rows were counted: rename it back, or create it"
        )


def _keep_state(connection: Connection, db: Database, start_date: date | None, there: set[str]) -> None:
    """Changes the state to what the declarations require: rollups, days on record, live views and grants."""
    is_new = ledger.create_if_missing(connection, db)
    before = ledger.kept_rollups(connection, db.log)
    if start_date is not None:
        ledger.forget_empty_days(connection, db, start_date)
    switched_on, switched_off = ledger.keep_rollups(connection, db.log)
    if is_new:
        predecessor.record_days(connection, db)
    for rollup in db.log.rollups:
        adopt.create_date_index(connection, rollup.name)
        create_live_view(connection, db.log, rollup)
    new = db.log.names if is_new else switched_on
    known = there - grants.without_grants(connection, new)
    grants.extend(connection, known, [*before, *db.log.names], db.log.names)
    contract.install(connection)
    grants.share(connection, db.log.names, contract.VIEWS, there)
    for name in switched_off:
        connection.execute(text(f"drop view if exists {quote_identifier(name + '_live')}"))
    if switched_on or switched_off:
        changes = [*(f"+{name}" for name in switched_on), *(f"-{name}" for name in switched_off)]
        journal.note(connection, db.log, "rollups", detail=" ".join(changes))


def _repair_log_table(connection: Connection, db: Database) -> bool:
    """Gives rows their transaction's id again; returns whether that was needed on a database that was in use.

    Rows written in the meantime have none, and which of them are counted is not known: all days are to be rebuilt.
    """
    adopt.rename_city_id(connection)
    if adopt.gives_xact_ids(connection):
        return False
    ledger.lock_unchecked(connection, db.log)
    ledger.mark_stale(connection, db.log)
    ledger.forget_archived_snapshots(connection, db.log)
    adopt.add_xact_id(connection)
    return ledger.exists(connection, db.log)


def is_installed(db: Database, with_these_rollups: bool = True) -> bool:
    """Whether the migrations, the state and the views are there, at the newest revision, and rows get their ids.

    Without `with_these_rollups` the database may keep other rollups than `db` has.
    """
    with transaction(db.engine) as connection:
        if not migrate.is_at_head(connection) or not ledger.exists(connection, db.log):
            return False
        kept = ledger.kept_rollups(connection, db.log)
        has_these_rollups = not with_these_rollups or set(kept) == set(db.log.names)
        return has_these_rollups and _has_tables(connection, kept) and adopt.gives_xact_ids(connection)


def _has_tables(connection: Connection, rollups: Sequence[str]) -> bool:
    names = [
        *(table.name for table in (*READER_TABLES, *STATE_TABLES)),
        *rollups,
        *(f"{name}_live" for name in rollups),
    ]
    statement = text("select bool_and(to_regclass(name) is not null) from unnest(cast(:names as text[])) as n (name)")
    return bool(connection.execute(statement, {"names": names}).scalar())


def require_usable(db: Database) -> None:
    """Raises what every refresh would raise (see `ledger.require_usable`), or `ReadOnly`."""
    with transaction(db.engine) as connection:
        ledger.read(connection, db)
    if is_read_only(db.engine):
        raise ReadOnly(f"{redact_url(db.engine.url)} is read-only (a standby?): use the primary's address")


def rebase(db: Database) -> None:
    """Restarts the counting: after a restore into another cluster, with another log table, or for another time zone.

    Every row becomes "older than any snapshot" in an instant (`adopt.forget_xact_ids`), every built day becomes
    stale and keeps its statistics until it is rebuilt, and the state takes this cluster's snapshot. Writers wait
    for a moment only. One transaction, then the indexes are built again without blocking.
    """
    with translate_db_errors(db.engine.url), migrate.turn(db.engine):
        with db.engine.connect() as connection:
            migrate.with_brief_locks(connection, lambda: _rebase(connection, db))
        migrate.build_log_index(db.engine)
    unseen.record_days(db)


def _rebase(connection: Connection, db: Database) -> None:
    connection.execute(ALL_ROWS)
    _require_usable_database(connection, db.log)
    ledger.lock_unchecked(connection, db.log)
    for rollup in db.log.rollups:
        without_logs(connection, db.log, rollup)
    adopt.forget_xact_ids(connection)
    ledger.start_afresh(connection, db)
    for rollup in db.log.rollups:
        create_live_view(connection, db.log, rollup)
    journal.note(connection, db.log, "rebase", detail=f"days in {db.timezone}")
    connection.commit()
