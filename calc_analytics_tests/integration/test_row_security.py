"""Row-level security: nothing is counted under a policy; message and doctor name the statement that exempts a role."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DBAPIError

from calc_analytics.config import Settings
from calc_analytics.database.engine import engine_for
from calc_analytics.database.errors import DatabaseError
from calc_analytics.database.row_security import RowsHidden
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations.doctor import Ports, examine
from calc_analytics.operations.findings import Finding
from calc_analytics.operations.health import health
from calc_analytics.operations.probes import Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.orchestration import history
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup import status
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.follow import Follower
from calc_analytics.rollup.install import install, is_installed, rebase
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.patrol import Patrol
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.conftest import ROLE, least_privilege
from calc_analytics_tests.logs import (
    FORMS,
    all_stored,
    assert_exact,
    copy_rows,
    execute,
    live,
    oracles,
    row,
    stored,
    utc,
    write,
)

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NOON = utc(2026, 3, 1, 12)
HIDES = "row-level security"
Examine = Callable[[], list[Finding]]


def hide(place: Database | Engine, table: str = LOG.name, condition: str = "publisher_id = 7") -> None:
    """Others than the owner see only some rows of the table, or none."""
    execute(place, f"create policy some_rows on {table} using ({condition})")
    execute(place, f"alter table {table} enable row level security")


def rows(count: int, at=NOON) -> list:
    return [row(at, publisher=n % 20) for n in range(count)]


@pytest.fixture
def counted(db: Database, connect) -> Database:
    """Two built days, and rows that are not counted yet."""
    execute(db, f'grant delete on {LOG.name} to "{ROLE}"')
    rebuild(db, [DAY, NEXT])
    write(connect(), [*rows(200), *rows(60, utc(2026, 3, 2, 1))])
    refresh(db)
    write(connect(), rows(40))
    return db


OPERATIONS: dict[str, Callable[[Database], object]] = {
    "refresh": refresh,
    "rebuild": lambda db: rebuild(db, [DAY]),
    "rebuild that may shrink": lambda db: rebuild(db, [DAY], decision=Decision.ALLOW_SHRINK),
    "rebuild that keeps": lambda db: rebuild(db, [DAY], decision=Decision.KEEP),
    "verify": lambda db: verify(db, [DAY]),
    "prune": lambda db: prune(db, NEXT),
    "follow": lambda db: follow(db, 3),
    "lag": status.lag,
}


def follow(db: Database, seconds: float) -> int:
    return Follower(db, 0.05, threading.Event()).follow(seconds, 0).rows


def everything(db: Database) -> dict:
    found = all_stored(db)
    with db.engine.begin() as connection:
        found["days"] = connection.execute(
            text("select rollup, date, status, counted, deleted, finding from rollup_days order by 1, 2")
        ).all()
        found["state"] = connection.execute(text("select snapshot::text, rollups from rollup_state")).all()
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_operation_counts_under_a_policy(counted: Database, operation: str):
    before = everything(counted)
    hide(counted)
    with pytest.raises(DatabaseError, match=HIDES) as refused:
        OPERATIONS[operation](counted)
    assert not refused.value.transient
    assert f'alter role "{ROLE}" bypassrls' in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    execute(counted, f"alter table {LOG.name} disable row level security")
    assert everything(counted) == before
    refresh(counted)
    assert_exact(counted)
    assert verify(counted, [DAY, NEXT]).difference == 0


@pytest.mark.parametrize("condition", ["false", "true"])
@pytest.mark.parametrize(
    "table", ["calculation_stats_daily", "calculation_latency_daily", "rollup_state", "rollup_days", "rollup_journal"]
)
def test_the_projects_own_tables_may_not_hide_rows_either(counted: Database, table: str, condition: str):
    before = everything(counted)
    hide(counted, table, condition)
    for operation in (refresh, OPERATIONS["rebuild"], audit if table != LOG.name else refresh):
        with pytest.raises(DatabaseError, match=HIDES):
            operation(counted)
    execute(counted, f"alter table {table} disable row level security")
    assert everything(counted) == before
    refresh(counted)
    assert_exact(counted)


def test_a_policy_of_a_partition_hides_nothing_from_who_reads_the_whole_table(empty_url: URL):
    owner = engine_for(empty_url)
    execute(owner, PARTITIONED_LOGS)
    execute(owner, "create table logs_1 partition of calculation_logs default")
    db = Database(owner, LOG, "UTC")
    install(db)
    grant(owner)
    reader = engine_for(empty_url.set(username=ROLE))
    counting = Database(reader, LOG, "UTC")
    rebuild(counting, [DAY])
    hide(owner, "logs_1")
    with psycopg.connect(plain(empty_url)) as writer:
        write(writer, rows(50))
    assert refresh(counting).rows == 50
    assert_exact(counting)
    hide(owner)
    with pytest.raises(DatabaseError, match=HIDES):
        refresh(counting)
    reader.dispose()
    owner.dispose()


def test_a_policy_that_begins_while_the_follower_runs_stops_it_until_the_role_is_exempt(db, connect, maintenance):
    rebuild(db, [DAY])
    writer = connect()
    errors: list[tuple[str, Exception]] = []
    follower = Follower(db, 0.05, threading.Event())
    patrol = Patrol(db, threading.Event(), lambda operation, error: errors.append((operation, error)))
    write(writer, rows(100))
    assert counted_within(follower, 100)
    hide(db)
    write(writer, rows(500))
    with pytest.raises(DatabaseError, match=HIDES):
        follower.follow(5, 1)
    patrol._verify_at = 0.0
    execute(db, "update rollup_days set verified_at = null")
    patrol.step()
    assert {operation for operation, _ in errors} == {"search", "verify"}
    assert all(HIDES in str(error) for _, error in errors)
    assert sum(values[0] for values in stored(db).values()) == 100
    assert status.different_days(db) == {}
    maintenance(f'alter role "{ROLE}" bypassrls')
    try:
        assert counted_within(follower, 500)
        assert_exact(db)
        assert verify(db, [DAY]).difference == 0
    finally:
        follower.stopping.set()
        maintenance(f'alter role "{ROLE}" nobypassrls')


def counted_within(follower: Follower, rows: int, seconds: float = 10) -> bool:
    deadline, counted = time.monotonic() + seconds, 0
    while counted < rows and time.monotonic() < deadline:
        counted += follower.follow(0.2, 2).rows
    return counted == rows


def test_log_rows_that_others_delete_behind_a_policy_are_not_reported_as_deleted(counted: Database):
    refresh(counted)
    hide(counted)
    execute(counted, f"delete from {LOG.name} where publisher_id = 3")
    for operation in ("verify", "rebuild"):
        with pytest.raises(DatabaseError, match=HIDES):
            OPERATIONS[operation](counted)
    with counted.engine.begin() as connection:
        assert connection.execute(text("select count(*) from rollup_days where difference <> 0")).scalar() == 0


# -- An owner who is no superuser -------------------------------------------------------------------------------------

API = f"api_of_{ROLE}"
PARTITIONED_LOGS = """
    create table calculation_logs (
        id bigserial, publisher_id integer not null, locality_id bigint not null, date_calculated date not null,
        cache_hit boolean not null default false, response_time_ms smallint, zman_count smallint,
        source smallint not null, created_at timestamptz not null default now(), primary key (id, created_at)
    ) partition by range (created_at)
"""


def grant(owner: Engine) -> None:
    execute(owner, least_privilege(ROLE))


def plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def api_role(maintenance: Callable[[str], None]) -> Iterator[str]:
    """An ordinary role that owns the API's tables."""
    maintenance(f'create role "{API}" login')
    yield API
    maintenance(f'drop role "{API}"')


@pytest.fixture
def owned(empty_url: URL, api_role: str, maintenance: Callable[[str], None], template: str) -> Iterator[Database]:
    """A migrated database of that role, with a built day, as its owner."""
    maintenance(f'alter database "{empty_url.database}" owner to "{api_role}"')
    engine = engine_for(empty_url.set(username=api_role))
    db = Database(engine, LOG, "UTC")
    install(db)
    rebuild(db, [DAY])
    with psycopg.connect(plain(engine.url)) as writer:
        write(writer, rows(100))
    refresh(db)
    yield db
    engine.dispose()


def force(db: Database, table: str = LOG.name) -> None:
    execute(db, f"alter table {table} force row level security")


def test_a_table_that_forces_its_policies_on_its_owner_is_refused_by_everything(owned: Database):
    before = everything(owned)
    hide(owned)
    assert refresh(owned).rows == 0
    assert_exact(owned)
    force(owned)
    for operation in ("refresh", "rebuild", "verify", "follow"):
        with pytest.raises(DatabaseError, match=HIDES) as refused:
            OPERATIONS[operation](owned)
        assert "no force row level security" in str(refused.value)
    for operation in (lambda: install(owned), lambda: rebase(owned)):
        with pytest.raises(RowsHidden, match="'alter table calculation_logs no force row level security'"):
            operation()
    for relation in FORMS:
        with pytest.raises(DBAPIError, match="row-level security hides rows from this view, see calc-analytics doctor"):
            live(owned, relation)
    execute(owned, f"alter table {LOG.name} no force row level security")
    after = everything(owned)
    assert {**after, "state": None} == {**before, "state": None}
    install(owned)
    assert_exact(owned)


@pytest.mark.parametrize("table", ["calculation_stats_daily", "rollup_state", "rollup_days", "calc_analytics_version"])
def test_the_owners_live_view_and_migrate_refuse_forced_policies_of_each_table(owned: Database, table: str):
    hide(owned, table, "false")
    force(owned, table)
    if table != "calc_analytics_version":  # which the view does not read
        with pytest.raises(DBAPIError, match="row-level security hides rows"):
            live(owned)
    with pytest.raises(RowsHidden, match=f"alter table {table} no force row level security"):
        install(owned)
    with pytest.raises(CalcAnalyticsError):
        is_installed(owned) and refresh(owned)


def test_an_api_table_with_forced_policies_is_refused_before_anything_is_changed(
    empty_url: URL, api_role: str, maintenance: Callable[[str], None]
):
    maintenance(f'alter database "{empty_url.database}" owner to "{api_role}"')
    engine = engine_for(empty_url.set(username=api_role))
    with psycopg.connect(plain(engine.url)) as writer:
        writer.execute(PARTITIONED_LOGS.replace("partition by range (created_at)", ""))
        copy_rows(writer, rows(30))
        writer.execute("create policy some_rows on calculation_logs using (publisher_id = 7)")
        writer.execute("alter table calculation_logs enable row level security, force row level security")
    with pytest.raises(RowsHidden, match="nothing was changed"):
        install(Database(engine, LOG, "UTC"))
    with engine.begin() as connection:
        assert connection.execute(text("select array_agg(relname) from pg_class where relkind in ('r', 'v') "
                                       "and relnamespace = 'public'::regnamespace")).scalar() == [LOG.name]  # fmt: skip
    engine.dispose()


def test_a_member_of_the_owner_is_exempt_unless_the_policies_are_forced(owned: Database, maintenance):
    hide(owned)
    maintenance(f'grant "{API}" to "{ROLE}"')
    engine = engine_for(owned.engine.url.set(username=ROLE))
    member = Database(engine, LOG, "UTC")
    try:
        with psycopg.connect(plain(owned.engine.url)) as writer:
            write(writer, rows(25))
        assert refresh(member).rows == 25
        assert_exact(member)
        force(owned)
        with pytest.raises(DatabaseError, match=HIDES):
            verify(member, [DAY])
    finally:
        engine.dispose()
        maintenance(f'revoke "{API}" from "{ROLE}"')


@pytest.fixture
def reader(owned: Database, maintenance: Callable[[str], None]) -> Iterator[Engine]:
    """A role that may read the live views, and of the log only what its policy shows."""
    name = f"reader_of_{owned.engine.url.database}"
    maintenance(f'create role "{name}" login')
    for rollup in LOG.rollups:
        execute(owned, f'grant select on {rollup.live_view}, {rollup.name} to "{name}"')
    execute(owned, f'grant select on {LOG.name}, rollup_state, rollup_days to "{name}"')
    engine = engine_for(owned.engine.url.set(username=name))
    yield engine
    engine.dispose()
    execute(owned, f'drop owned by "{name}"')
    maintenance(f'drop role "{name}"')


def test_a_live_view_is_whole_for_each_reader_under_any_policy_of_the_log(owned: Database, reader: Engine):
    with psycopg.connect(plain(owned.engine.url)) as writer:
        write(writer, rows(25))
    expected = oracles(owned)
    hide(owned)
    assert {relation: read_live(reader, relation) for relation in FORMS} == expected


def read_live(reader: Engine, relation: str) -> dict:
    """In an ordinary session, with PostgreSQL's own settings."""
    keys, measures = FORMS[relation]
    with psycopg.connect(plain(reader.url)) as session:
        found = session.execute(f"select {', '.join([*keys, 'date', *measures])} from {relation}_live").fetchall()  # type: ignore[arg-type]
    return {tuple(row[: len(keys) + 1]): tuple(row[len(keys) + 1 :]) for row in found}


@pytest.mark.parametrize(
    "change",
    [
        "alter table calculation_logs force row level security",
        "alter view calculation_stats_daily_live set (security_invoker = true)",
        "alter table calculation_logs owner to postgres; grant select on calculation_logs to {api}",
        "alter view calculation_stats_daily_live rename to totals_live",
    ],
)
def test_a_live_view_that_a_policy_would_filter_raises_an_error(
    owned: Database, reader: Engine, server_url: URL, change: str
):
    hide(owned)
    superuser = engine_for(owned.engine.url.set(username=server_url.username))
    for statement in change.format(api=API).split("; "):
        execute(superuser, statement.replace("postgres", str(server_url.username)))
    superuser.dispose()
    view = "totals_live" if "totals_live" in change else "calculation_stats_daily_live"
    with psycopg.connect(plain(reader.url)) as session, pytest.raises(psycopg.Error, match="row-level security hides"):
        session.execute(f"select * from {view}")  # type: ignore[arg-type]


# -- The doctor -------------------------------------------------------------------------------------------------------


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[URL], list[Finding]]]:
    """What the doctor finds wrong with permissions, as the role of a URL."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    history.instance.cache_clear()

    def run(url: URL) -> list[Finding]:
        monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
        found = examine(Sources(Settings.from_environment()), Prober(60.0), Ports(free_port(), free_port()))
        return [
            finding for finding in found if finding.level == "wrong" and finding.name in ("permissions", "log rows")
        ]

    yield run
    history.instance.cache_clear()


def test_the_doctor_names_the_statement_that_exempts_the_role(counted: Database, database: URL, examined, maintenance):
    hide(counted)
    hide(counted, "rollup_state", "true")
    found = [finding for finding in examined(counted.engine.url) if finding.name == "permissions"]
    assert {finding.command for finding in found} == {f'alter role "{ROLE}" bypassrls;'}
    assert {LOG.name, "rollup_state"} <= {finding.fact.split()[5] for finding in found}
    maintenance(found[0].command)
    try:
        assert examined(counted.engine.url) == []
        refresh(counted)
        assert_exact(counted)
    finally:
        maintenance(f'alter role "{ROLE}" nobypassrls')


def test_the_health_report_is_red_with_that_statement(counted: Database, database: URL):
    sources = Sources(Settings.from_environment())

    def state() -> Finding:
        return next(finding for finding in health(sources, Prober(60.0)).findings if finding.name == "state")

    assert state().ok
    hide(counted)
    assert (state().ok, state().command) == (False, f'alter role "{ROLE}" bypassrls;')
    assert ROLE not in state().public


def test_the_doctor_names_the_statement_that_exempts_the_owner(owned: Database, database: URL, examined):
    hide(owned)
    force(owned)
    found = [finding for finding in examined(owned.engine.url) if finding.name == "permissions"]
    assert [finding.command for finding in found] == ["alter table calculation_logs no force row level security;"]
    execute(owned, found[0].command)
    assert [finding for finding in examined(owned.engine.url) if finding.name == "log rows"] == []
    refresh(owned)
    assert_exact(owned)
