"""Messages of database errors: one line, no password, and whether a retry can help."""

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url

from calc_analytics.database.create import ensure_database
from calc_analytics.database.engine import engine_for, transaction
from calc_analytics.database.errors import DatabaseError
from calc_analytics.processes.simulate import Traffic, simulate
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import LOG

SECRET = "hunter2"


def connection_error(url: URL, statement: str = "select 1") -> DatabaseError:
    """The error that a user would see."""
    engine = engine_for(url)
    with pytest.raises(DatabaseError) as raised, transaction(engine) as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert "\n" not in str(raised.value)
    assert SECRET not in str(raised.value)
    return raised.value


def url_of_a_server_that_is_down() -> URL:
    return make_url(f"postgresql+psycopg://me:{SECRET}@127.0.0.1:{free_port()}/db")


def test_a_server_that_is_down(url: URL):
    error = connection_error(url_of_a_server_that_is_down())
    assert error.transient
    assert "cannot connect to postgresql://me:***@127.0.0.1" in str(error)


def test_a_database_that_does_not_exist(url: URL):
    error = connection_error(url.set(database="no_such", password=SECRET))
    assert not error.transient
    assert "no_such" in str(error)


@pytest.mark.parametrize(
    ("statement", "transient", "hint"),
    [
        ("select no_such from calculation_logs", False, "calc-analytics migrate"),
        ("select * from no_such", False, "calc-analytics migrate"),
        ("set transaction read only; delete from calculation_logs", False, "read-only"),
        ("select 1 / 0", False, "division by zero"),
        ("do $$ begin raise exception 'x' using errcode = '40001'; end $$", True, "40001"),
        ("do $$ begin raise exception 'x' using errcode = '53300'; end $$", True, "53300"),
        ("set local statement_timeout = 1; select pg_sleep(1)", True, "timeout"),
        ("select pg_terminate_backend(pg_backend_pid())", True, "terminating"),
    ],
)
def test_each_kind_has_its_line(url: URL, statement: str, transient: bool, hint: str):
    error = connection_error(url, statement)
    assert error.transient is transient
    assert hint in str(error)


def test_a_role_without_the_right(url: URL, maintenance):
    role = f"reader_{url.database}"
    maintenance(f"create role {role} login password '{SECRET}'")
    try:
        error = connection_error(url.set(username=role, password=SECRET), "select * from calculation_logs")
    finally:
        maintenance(f"drop role {role}")
    assert not error.transient
    assert f"grant it to the role '{role}'" in str(error)


def test_a_refresh_on_a_down_server_says_the_same():
    engine = engine_for(url_of_a_server_that_is_down())
    with pytest.raises(DatabaseError, match="cannot connect"):
        refresh(Database(engine, LOG, "UTC"))


def test_made_up_traffic_on_a_down_server_says_the_same():
    with pytest.raises(DatabaseError, match="cannot connect") as raised:
        simulate(url_of_a_server_that_is_down(), Traffic(rate=100, writers=2), rows=10)
    assert SECRET not in str(raised.value)


def test_creating_a_database_on_a_down_server_says_the_same():
    with pytest.raises(DatabaseError, match="cannot connect"):
        ensure_database(url_of_a_server_that_is_down())
