"""Install: migrations, then what is built from the declarations (state rows and live views). Safe to repeat."""

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from calc_analytics.config import shown
from calc_analytics.database import adopt, migrate
from calc_analytics.database.engine import trouble_in_words
from calc_analytics.database.tables import metadata
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.rollup import state
from calc_analytics.rollup.declaration import ROLLUPS, Rollup
from calc_analytics.rollup.live_view import create_live_view, without_logs
from calc_analytics.rollup.status import server


class ReadOnly(CalcAnalyticsError):
    """Nothing can be counted there: a standby, or a role or database that is set to read only."""


def install(engine: Engine, timezone: str) -> None:
    """Makes an empty or an API's database ready, and mends one that somebody changed since; every row stays.

    Raises `UnfitTable` for what it would have to guess.
    """

    def state_and_views(connection: Connection) -> None:
        metadata.create_all(connection, checkfirst=True)
        adopt.check_existing(connection)
        _mend_log_table(connection)
        for rollup in ROLLUPS:
            state.create_if_missing(connection, rollup, timezone)
            create_live_view(connection, rollup)

    migrate.upgrade(engine, state_and_views)


def _mend_log_table(connection: Connection) -> None:
    """Gives rows their transaction's id again. Those written in the meantime have none, and which of them are counted
    nobody knows: every built day is to be rebuilt."""
    adopt.rename_city_id(connection)
    if not adopt.gives_xact_ids(connection):
        for rollup in ROLLUPS:
            state.wait_for_turn(connection, rollup)
            state.mark_stale(connection, rollup)
        adopt.add_xact_id(connection)


def is_installed(engine: Engine) -> bool:
    """Whether the migrations, the state and the views are there, at the newest revision, and rows get their ids."""
    with trouble_in_words(engine.url), engine.connect() as connection:
        return (
            migrate.is_at_head(connection)
            and all(_is_ready(connection, rollup) for rollup in ROLLUPS)
            and adopt.gives_xact_ids(connection)
        )


def require_usable(engine: Engine, timezone: str) -> None:
    """Raises what every refresh would raise: `ClusterChanged`, `TimezoneChanged`, or `ReadOnly`."""
    with trouble_in_words(engine.url), engine.connect() as connection:
        for rollup in ROLLUPS:
            state.read(connection, rollup, timezone)
    if server(engine).read_only:
        raise ReadOnly(f"{shown(engine.url)} is read-only (a standby?): use the primary's address")


def _is_ready(connection: Connection, rollup: Rollup) -> bool:
    statement = """
        select to_regclass(:view) is not null and to_regclass('rollup_state') is not null
            and to_regclass('rollup_days') is not null
    """
    there = connection.execute(text(statement), {"view": rollup.live_view}).scalar()
    return bool(there) and state.exists(connection, rollup)


def rebase(engine: Engine, timezone: str) -> None:
    """Starts the counting afresh: after a restore into another cluster, or for another time zone.

    Every row becomes "older than any snapshot" in an instant (`adopt.forget_xact_ids`), every built day becomes
    stale and keeps its statistics until it is rebuilt, and the state takes this cluster's snapshot. Writers wait
    for a moment only. One transaction, then the indexes are built again without blocking.
    """
    with trouble_in_words(engine.url), engine.connect() as connection:
        migrate.with_brief_locks(connection, lambda: _rebase(connection, timezone))
    with trouble_in_words(engine.url), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        adopt.create_log_index(connection)


def _rebase(connection: Connection, timezone: str) -> None:
    for rollup in ROLLUPS:
        state.wait_for_turn(connection, rollup)
        without_logs(connection, rollup)
    adopt.forget_xact_ids(connection)
    for rollup in ROLLUPS:
        state.start_afresh(connection, rollup, timezone)
        create_live_view(connection, rollup)
    connection.commit()
