"""The live views: they depend on the columns that they use, and are replaced without losing what they have besides
their query; widening a column of the log is one command."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from calc_analytics.cli.main import main
from calc_analytics.database import views
from calc_analytics.database.engine import engine_for
from calc_analytics.database.relations import integer_types
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.logs import OWNER, assert_exact, execute, row, utc, write

VIEWS = [rollup.live_view for rollup in LOG.rollups]
NOON = utc(2026, 3, 1, 12)
DAY = NOON.date()


@pytest.fixture
def names(maintenance: Callable[[str], None], url: URL) -> Any:
    """Roles of this test's own: an owner of the views, a reader of them, a reader of the statistics."""
    suffix = str(url.database).rsplit("_", 1)[-1]
    roles = [f"{name}_{suffix}" for name in ("view_owner", "page", "Dash Board")]
    for role in roles:
        maintenance(f'create role "{role}"')
    yield roles
    for role in roles:
        execute(_engine(url), f'drop owned by "{role}"')
        maintenance(f'drop role "{role}"')


def _engine(url: URL) -> Engine:
    import sqlalchemy

    return sqlalchemy.create_engine(url)


@pytest.fixture
def calc(url: URL, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command as the owner of the tables."""
    monkeypatch.setenv("DATABASE_URL", url.set(**OWNER).render_as_string(hide_password=False))
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def facts(owner: Engine, view: str) -> views.Attributes | None:
    with owner.begin() as connection:
        found = views.attributes(connection, view)
    return found


def columns_of(owner: Engine, view: str, column: str) -> list[str]:
    """The views that depend on that column of the table."""
    with owner.begin() as connection:
        return views.dependents(connection, view, column)


@pytest.fixture
def own(owner: Engine) -> Database:
    """The database as its owner has it."""
    return Database(owner, LOG, "UTC")


def test_columns_that_no_statistic_uses_may_be_dropped_and_altered(own: Database, owner: Engine, connect):
    for column in ("date_calculated", "zman_count", "id"):
        assert columns_of(owner, "calculation_logs", column) == []
    execute(own, "alter table calculation_logs alter column zman_count type bigint")
    execute(own, "alter table calculation_logs drop column zman_count")
    execute(own, "alter table calculation_logs add column note text")
    execute(own, "alter table calculation_logs drop column note")
    write(connect(), [row(NOON)] * 3)
    refresh(own)
    assert_exact(own)


def test_a_view_keeps_owner_grants_comments_and_options_after_each_change(
    own: Database, owner: Engine, names: list[str]
):
    view_owner, reader, page = names
    view = VIEWS[0]
    execute(own, f'grant select on {view} to "{reader}" with grant option')
    execute(own, f'grant select (publisher_id, date) on {view} to "{page}"')
    execute(own, f"grant select on {view} to public")
    execute(own, f"comment on view {view} is 'what ''the page'' shows: 100 %'")
    execute(own, f"comment on column {view}.date is 'the day: UTC'")
    execute(own, f"alter view {view} set (security_barrier = true)")
    execute(own, f'grant create on schema public to "{view_owner}"')
    execute(own, f'grant select on all tables in schema public to "{view_owner}"')
    execute(own, f'alter view {view} owner to "{view_owner}"')
    before = facts(owner, view)
    assert before is not None
    assert before.owner == view_owner
    assert len(before.statements) == 7
    install(own)
    assert facts(owner, view) == before, "migrate"
    rebase(own)
    assert facts(owner, view) == before, "rebase"
    execute(own, f'alter default privileges in schema public grant all on tables to "{page}"')
    with owner.begin() as connection:
        views.replace_view(connection, view, "select 1 as other, now() as columns")
        assert views.attributes(connection, view).owner == view_owner
    execute(own, f"drop view {view}")
    execute(own, f'alter default privileges in schema public revoke all on tables from "{page}"')


def test_the_columns_of_a_view_may_change_and_it_keeps_the_rest(owner: Engine, names: list[str]):
    _, reader, page = names
    execute(owner, "create view shown as select 1 as a, 2 as b")
    execute(owner, f'grant select, update on shown to "{reader}"')
    execute(owner, "comment on view shown is 'as: it was'")
    execute(owner, "alter view shown set (security_invoker = true)")
    before = facts(owner, "shown")
    execute(owner, f'alter default privileges grant select on tables to "{page}"')
    with owner.begin() as connection:
        views.replace_view(connection, "shown", "select cast(1 as bigint) as a, 'x' as other")
    execute(owner, f'alter default privileges revoke select on tables from "{page}"')
    assert facts(owner, "shown") == before
    with owner.begin() as connection:
        assert connection.execute(text("select * from shown")).one() == (1, "x")


def test_a_foreign_view_that_depends_on_ours_is_named_and_nothing_changes(owner: Engine):
    execute(owner, "create view shown as select 1 as a")
    execute(owner, 'create view "The page" as select a from shown')
    with owner.begin() as connection, pytest.raises(views.ViewInUse, match='"The page" depends on it'):
        views.replace_view(connection, "shown", "select 'x' as a")
    with owner.begin() as connection:
        assert connection.execute(text('select a from "The page"')).scalar() == 1
        views.replace_view(connection, "shown", "select 7 as a")
        assert connection.execute(text('select a from "The page"')).scalar() == 7


def may_read(owner: Engine, role: str, view: str) -> bool:
    with owner.begin() as connection:
        statement = text("select has_table_privilege(:role, :view, 'SELECT')")
        return bool(connection.execute(statement, {"role": role, "view": view}).scalar())


@pytest.mark.parametrize("dropped", [VIEWS, VIEWS[:1], VIEWS[-1:]], ids=["all", "the first", "the last"])
def test_a_view_that_was_dropped_is_readable_by_the_readers_of_its_table(
    own: Database, owner: Engine, names: list[str], dropped: list[str]
):
    _, reader, stranger = names
    for table in LOG.names:
        execute(own, f'grant select on {table} to "{reader}"')
    for view in dropped:
        execute(own, f"drop view {view}")
    install(own)
    for view in dropped:
        assert may_read(owner, reader, view)
        assert may_read(owner, ROLE, view)
        assert not may_read(owner, stranger, view)


@pytest.mark.parametrize(
    ("column", "to", "tables"),
    [
        ("response_time_ms", "integer", ["calculation_logs"]),
        ("response_time_ms", "bigint", ["calculation_logs", "calculation_latency_daily"]),
        ("publisher_id", "bigint", ["calculation_logs", *LOG.names]),
        ("source", "integer", ["calculation_logs", "calculation_latency_daily"]),
        ("cache_hits", "bigint", LOG.names[:3]),
    ],
)
def test_widening_is_one_command(
    calc: Callable[..., Result],
    own: Database,
    owner: Engine,
    db: Database,
    connect,
    names: list[str],
    column,
    to,
    tables,
):
    reader = names[1]
    write(connect(), [row(NOON, publisher=n) for n in range(5)])
    rebuild(own, [DAY])
    execute(own, f'grant select on {VIEWS[0]} to "{reader}"')
    before = {view: facts(owner, view) for view in VIEWS}
    done = calc("widen", column, "--to", to, "--yes")
    assert done.exit_code == 0, done.output
    for table in tables:
        assert f"{table}.{column}" in done.output
        with owner.begin() as connection:
            assert integer_types(connection, table)[column] == to
    assert "rewrites" in done.output
    assert {view: facts(owner, view) for view in VIEWS} == before
    assert may_read(owner, reader, VIEWS[0])
    write(connect(), [row(NOON, publisher=7)])
    refresh(db)
    assert verify(db, [DAY]).difference == 0
    assert_exact(db)
    assert "nothing to do" in calc("widen", column, "--to", to, "--yes").output


def test_a_partitioned_log_with_foreign_keys_and_indexes_is_widened(
    empty_url: URL, maintenance: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    engine = engine_for(empty_url)
    execute(engine, "create table publishers (id integer primary key)")
    execute(engine, "insert into publishers values (1), (7)")
    execute(
        engine,
        "create table calculation_logs (id bigserial, publisher_id integer not null references publishers (id), "
        "locality_id bigint not null, date_calculated date not null, cache_hit boolean not null default false, "
        "response_time_ms smallint, zman_count smallint, source smallint not null, created_at timestamptz not null "
        "default now(), primary key (id, created_at)) partition by range (created_at)",
    )
    execute(
        engine, "create table logs_march partition of calculation_logs for values from ('2026-03-01') to ('2026-04-01')"
    )
    execute(engine, "create index on calculation_logs (publisher_id)")
    db = Database(engine, LOG, "UTC")
    install(db)
    with psycopg.connect(empty_url.set(drivername="postgresql").render_as_string(hide_password=False)) as writer:
        write(writer, [row(NOON), row(NOON, publisher=7)])
        refresh(db)
        monkeypatch.setenv("DATABASE_URL", empty_url.render_as_string(hide_password=False))
        for column in ("publisher_id", "response_time_ms"):
            done = CliRunner().invoke(main, ["widen", column, "--yes"])
            assert done.exit_code == 0, done.output
        write(writer, [row(NOON, publisher=7)])
    with engine.begin() as connection:
        assert integer_types(connection, "logs_march")["publisher_id"] == "bigint"
    refresh(db)
    assert verify(db, [DAY]).difference == 0
    assert_exact(db)
    install(db)
    engine.dispose()


def test_what_cannot_be_widened_is_refused_in_one_line_and_nothing_changes(calc: Callable[..., Result], own: Database):
    for column in ("colour", "date", "created_at", "xact_id", "hour", "id; drop table calculation_logs"):
        done = calc("widen", column, "--yes")
        assert (done.exit_code, done.output.count("\n")) == (1, 1)
        assert f"'{column}' cannot be widened: the columns are cache_hits, " in done.output
    execute(own, "create view page as select publisher_id from calculation_logs")
    done = calc("widen", "publisher_id", "--yes")
    assert done.exit_code == 1
    assert "calculation_logs.publisher_id was not widened: page uses it: drop that view" in done.output
    execute(own, "drop view page")
    execute(own, f"create view page as select publisher_id from {VIEWS[0]}")
    done = calc("widen", "publisher_id", "--yes")
    assert done.exit_code == 1
    assert "page depends on it: drop that view" in done.output
    assert "publisher_id: integer -> bigint" in calc("widen", "publisher_id").output


def test_a_role_that_does_not_own_the_tables_cannot_widen(url: URL, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATABASE_URL", url.set(username=ROLE).render_as_string(hide_password=False))
    done = CliRunner().invoke(main, ["widen", "publisher_id", "--yes"])
    assert done.exit_code == 1
    assert f"the role '{ROLE}' does not own" in done.output
