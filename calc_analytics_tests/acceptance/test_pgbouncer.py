"""Everything through PgBouncer in transaction mode: `up` with Dagster's own storage, writers, and a reader's views."""

from collections.abc import Callable

from sqlalchemy.engine import URL

from benchmarks.running import eventually
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.acceptance.conftest import Project
from calc_analytics_tests.acceptance.load import answered, built_everywhere, runs, unfinished_runs
from calc_analytics_tests.pgbouncer import pgbouncer

SIZE = 5


def test_up_runs_through_pgbouncer_and_no_session_is_changed(
    project: Project, server_url: URL, empty_url: URL, maintenance: Callable[[str], None]
):
    maintenance("drop database if exists dagster with (force)")
    try:
        with pgbouncer(server_url, [str(server_url.username)], size=SIZE) as pool:
            address = pool.url(empty_url)
            settings = {"DATABASE_URL": address.set(drivername="postgresql").render_as_string(hide_password=False)}
            with project.up(**settings) as up:
                simulated = project.cli("simulate", "--rows", "2000", "--rate", "1000", **settings)
                assert simulated.returncode == 0, simulated.stderr
                db = Database(engine_for(address), LOG, "UTC")
                eventually(lambda: built_everywhere(db), "a day built by the sensor")
                eventually(lambda: answered(lambda: runs(up) and unfinished_runs(up) == []), "the first runs to end")
                eventually(lambda: answered(lambda: up.get("/health/rollup")[0] == 200), "good health")
                report = verify(db, sorted(built_everywhere(db)))
                assert report.days
                assert report.difference == 0
                for database in (empty_url.database, "dagster"):
                    assert not pool.left_behind(empty_url.set(database=database)), database
                db.engine.dispose()
    finally:
        maintenance("drop database if exists dagster with (force)")
