"""Dagster's storage keeps few connections for any number of instances, and replaces those that died."""

import gc
from collections.abc import Callable, Iterator

import pytest
from dagster import DagsterInstance
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine, make_url

from calc_analytics.database.engine import engine_for


@pytest.fixture
def server(server_url: URL) -> Iterator[Engine]:
    """The server's maintenance database."""
    engine = engine_for(server_url)
    yield engine
    engine.dispose()


@pytest.fixture
def backends(server: Engine, dagster_url: URL) -> Callable[[], set[int]]:
    """The processes of PostgreSQL that serve Dagster's database."""

    def pids() -> set[int]:
        statement = text("select pid from pg_stat_activity where datname = :name")
        with server.begin() as connection:
            return set(connection.execute(statement, {"name": dagster_url.database}).scalars())

    return pids


def use(instance: DagsterInstance) -> None:
    """A call to each of the three storages."""
    instance.get_runs(limit=1)
    instance.all_instigator_state()
    instance.event_log_storage.all_asset_keys()


def test_it_is_dagsters_own_and_the_url_is_found_as_ever(stored_instance: DagsterInstance, dagster_url: URL):
    storages = (stored_instance.run_storage, stored_instance.event_log_storage, stored_instance.schedule_storage)
    assert [type(each) for each in storages] == [PostgresRunStorage, PostgresEventLogStorage, PostgresScheduleStorage]
    url = make_url(storages[0].postgres_url)
    assert (url.drivername, url.database) == ("postgresql+psycopg2", dagster_url.database)
    assert url.query["tcp_user_timeout"] == "30000"


def test_calls_share_connections(stored_instance: DagsterInstance, backends):
    use(stored_instance)
    before = backends()
    for _ in range(5):
        use(stored_instance)
    assert backends() == before
    assert len(before) == 3


def test_idle_connections_that_died_fail_no_call(stored_instance, backends, server: Engine):
    for _ in range(2):
        use(stored_instance)
        before = backends()
        with server.begin() as connection:
            for pid in before:
                connection.execute(text("select pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        use(stored_instance)
        assert len(backends()) == 3
        assert not backends() & before


def test_instances_made_for_a_tick_leave_no_connections_behind(stored_instance: DagsterInstance, backends):
    reference = stored_instance.get_ref()
    gc.disable()
    try:
        for _ in range(10):
            with DagsterInstance.from_ref(reference) as instance:
                use(instance)
            use(stored_instance)
    finally:
        gc.enable()
    assert len(backends()) <= 2 * 3


def test_the_webserver_keeps_the_pools_and_sets_nothing_for_its_sessions(stored_instance, backends, server: Engine):
    stored_instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=20)
    use(stored_instance)
    with server.begin() as connection:
        for pid in backends():
            connection.execute(text("select pg_terminate_backend(:pid, 10000)"), {"pid": pid})
    use(stored_instance)
    assert len(backends()) == 3
    with stored_instance.run_storage._engine.connect() as connection:
        assert connection.exec_driver_sql("show statement_timeout").scalar() == "0"
