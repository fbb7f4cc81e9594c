"""Install: migrations, then what is built from the declarations (state rows and live views). Safe to repeat."""

from sqlalchemy.engine import Connection, Engine

from calc_analytics.database import adopt, migrate
from calc_analytics.database.engine import trouble_in_words
from calc_analytics.rollup import state
from calc_analytics.rollup.declaration import ROLLUPS
from calc_analytics.rollup.live_view import create_live_view


def install(engine: Engine, timezone: str) -> None:
    """Makes an empty or an API's database ready; every existing row of every table stays."""

    def state_and_views(connection: Connection) -> None:
        for rollup in ROLLUPS:
            state.create_if_missing(connection, rollup, timezone)
            create_live_view(connection, rollup)

    migrate.upgrade(engine, state_and_views)


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
    adopt.forget_xact_ids(connection)
    for rollup in ROLLUPS:
        state.start_afresh(connection, rollup, timezone)
        create_live_view(connection, rollup)
    connection.commit()
