"""A model against an adversary: writers that begin, write, save, roll back, prepare, commit and die in any order, among
refreshes, rebuilds and deleted logs. After every step, for every built day: statistics equal the logs visible in the
stored snapshot, and the live view equals the logs that are visible at all.

What is visible in a snapshot PostgreSQL itself says (`pg_visible_in_snapshot`), and Python adds up: the oracle shares
nothing with the SQL under test. Hypothesis prints a failing case as the few steps that replay it.

    MODEL_EXAMPLES=2500 pytest -m model     # the long form: 200,000 steps
"""

import os
import tempfile
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from shutil import rmtree
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url

from calc_analytics.config import with_driver
from calc_analytics.database import embedded
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import built_days, verify
from calc_analytics_tests.integration.test_migrations import PARTITIONED
from calc_analytics_tests.logs import COLUMNS, Row, copy_rows, row

EXAMPLES, STEPS = int(os.environ.get("MODEL_EXAMPLES", "65")), 80
ZONE = "Asia/Jerusalem"
# Clocks went forward on the first of these days (2026-03-27), and the next two are ordinary.
DAYS = [date(2026, 3, 27), date(2026, 3, 28), date(2026, 3, 29)]
WRITERS = 3
TABLES = ["calculation_logs", "logs_all"]

writer_numbers = st.integers(0, WRITERS - 1)
instants = st.builds(
    lambda day, seconds: (
        datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(ZONE)).astimezone(timezone.utc)
        + timedelta(seconds=seconds)
    ),
    st.sampled_from(DAYS),
    st.sampled_from([-1, 0, 1, 7_199, 7_200, 43_200, 82_799, 82_800, 86_399]),
)
rows = st.lists(
    st.builds(
        lambda at, publisher, hit, milliseconds, source: row(
            at, publisher=publisher, cache_hit=hit, response_time_ms=milliseconds, source=source
        ),
        instants,
        st.integers(1, 3),
        st.booleans(),
        st.sampled_from([None, 0, 9, 32_767]),
        st.sampled_from([1, 2, 3, 9]),
    ),
    min_size=1,
    max_size=4,
)
day_sets = st.sets(st.sampled_from(DAYS), min_size=1)

_server: dict[str, URL] = {}


@pytest.fixture(scope="module")
def server() -> Iterator[URL]:
    """A server that allows prepared transactions, with two templates: an ordinary log table and a partitioned one."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    started = embedded.start(folder / "pg")
    with open(folder / "pg" / "postgresql.conf", "a") as configuration:
        configuration.write("max_prepared_transactions = 10\nfsync = off\n")
    started.stop()
    started = embedded.start(folder / "pg")
    url = with_driver(make_url(started.get_uri(database="postgres").replace("postgres:@", "postgres@")), "psycopg")
    for name, statements in (("plain", ()), ("partitioned", PARTITIONED[:1])):
        run(url, f"create database {name}")
        engine = engine_for(url.set(database=name))
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
            if statements:
                connection.execute(text("create table logs_all partition of calculation_logs default"))
        install(engine, ZONE)
        engine.dispose()
    yield url
    started.stop()
    rmtree(folder)


def run(url: URL, statement: str) -> None:
    """One statement outside any transaction."""
    engine = engine_for(url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement))
    engine.dispose()


class Writer:
    """A connection of the API: whether a transaction is open, and ids it has drawn but not used."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.connection = self._connect()
        self.savepoints = 0
        self.drawn: list[int] = []

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self.url.set(drivername="postgresql").render_as_string(hide_password=False))

    def end(self, how: str) -> None:
        """Commits or rolls back."""
        self.savepoints = 0
        getattr(self.connection, how)()

    def die(self) -> None:
        """As if its machine had lost power."""
        with psycopg.connect(self.connection.info.dsn, autocommit=True) as other:
            other.execute("select pg_terminate_backend(%s, 5000)", [self.connection.info.backend_pid])
        self.connection.close()
        self.connection, self.savepoints = self._connect(), 0


class Adversary(RuleBasedStateMachine):
    """One database, three writers, and whatever order of events Hypothesis thinks of."""

    numbers = iter(range(10**9))

    @initialize(partitioned=st.booleans())
    def start(self, partitioned: bool) -> None:
        self.name = f"model_{os.getpid()}_{next(self.numbers)}"
        server = _server["url"]
        run(server, f"create database {self.name} template {'partitioned' if partitioned else 'plain'}")
        self.url = server.set(database=self.name)
        self.engine = engine_for(self.url)
        self.writers = [Writer(self.url) for _ in range(WRITERS)]
        self.tables = TABLES if partitioned else TABLES[:1]
        self.prepared: list[str] = []
        self.pruned: set[date] = set()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for writer in self.writers:
                writer.connection.close()
            for name in self.prepared:
                run(self.url, f"rollback prepared '{name}'")
            self.engine.dispose()
            run(_server["url"], f"drop database {self.name} with (force)")

    @rule(number=writer_numbers, made=rows, table=st.integers(0, 1))
    def write(self, number: int, made: list[Row], table: int) -> None:
        name = self.tables[table % len(self.tables)]
        copy_rows(self.writers[number].connection, made, name)

    @rule(number=writer_numbers, count=st.integers(1, 3))
    def draw_ids(self, number: int, count: int) -> None:
        for _ in range(count):
            found = self.writers[number].connection.execute("select nextval('calculation_logs_id_seq')").fetchone()
            self.writers[number].drawn.append(found[0] if found else 0)

    @rule(number=writer_numbers, made=rows)
    def write_with_ids_drawn_before(self, number: int, made: list[Row]) -> None:
        writer = self.writers[number]
        while writer.drawn and made:
            values = ", ".join(["%s"] * (len(COLUMNS) + 1))
            statement = f"insert into calculation_logs (id, {', '.join(COLUMNS)}) values ({values})"
            writer.connection.execute(statement, [writer.drawn.pop(), *made.pop()])

    @rule(number=writer_numbers)
    def savepoint(self, number: int) -> None:
        writer = self.writers[number]
        writer.savepoints += 1
        writer.connection.execute(f"savepoint s{writer.savepoints}")

    @rule(number=writer_numbers)
    def roll_back_to_savepoint(self, number: int) -> None:
        writer = self.writers[number]
        if writer.savepoints:
            writer.connection.execute(f"rollback to savepoint s{writer.savepoints}")

    @rule(number=writer_numbers, how=st.sampled_from(["commit", "commit", "rollback"]))
    def end(self, number: int, how: str) -> None:
        self.writers[number].end(how)

    @rule(number=writer_numbers)
    def die(self, number: int) -> None:
        self.writers[number].die()

    @rule(number=writer_numbers)
    def prepare(self, number: int) -> None:
        writer = self.writers[number]
        if writer.connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
            name = f"{self.name}_{next(self.numbers)}"
            writer.connection.execute(f"prepare transaction '{name}'")
            writer.end("commit")
            self.prepared.append(name)

    @rule(how=st.sampled_from(["commit", "rollback"]), which=st.integers(0, 9))
    def end_prepared(self, how: str, which: int) -> None:
        if self.prepared:
            run(self.url, f"{how} prepared '{self.prepared.pop(which % len(self.prepared))}'")

    @rule()
    def refresh(self) -> None:
        refresh(self.engine, ROLLUP, ZONE)

    @rule(days=day_sets, allow_shrink=st.booleans())
    def rebuild(self, days: set[date], allow_shrink: bool) -> None:
        before = self.stored()
        report = rebuild(self.engine, ROLLUP, ZONE, sorted(days), allow_shrink=allow_shrink)
        refused = {shrunk.day for shrunk in report.shrunk}
        assert refused <= self.pruned
        assert {key: v for key, v in before.items() if key[1] in refused}.keys() <= self.stored().keys()
        self.pruned -= {day.day for day in report.rebuilt}

    @rule(day=st.sampled_from(DAYS))
    def delete_logs(self, day: date) -> None:
        deletion = f"delete from calculation_logs where (created_at at time zone '{ZONE}')::date = '{day}'"
        with self.engine.begin() as connection:
            if connection.execute(text(deletion)).rowcount:
                self.pruned.add(day)

    @invariant()
    def verify_says_so_too(self) -> None:
        if hasattr(self, "engine"):
            built = [day for day in built_days(self.engine, ROLLUP) if day not in self.pruned]
            assert verify(self.engine, ROLLUP, ZONE, built).difference == 0

    @invariant()
    def statistics_are_the_logs_visible_in_the_stored_snapshot(self) -> None:
        if hasattr(self, "engine"):
            logs = self.logs("xact_id is null or pg_visible_in_snapshot(xact_id::text::xid8, (select snapshot from s))")
            assert self.stored() == self.of_built_days(logs)

    @invariant()
    def the_live_view_is_all_that_is_visible(self) -> None:
        if hasattr(self, "engine"):
            assert self.of_built_days(self.statistics("calculation_stats_daily_live")) == self.of_built_days(
                self.logs("true")
            )

    def stored(self) -> dict[tuple[int, date], tuple[int, ...]]:
        return self.of_built_days(self.statistics("calculation_stats_daily"))

    def of_built_days(self, found: dict[Any, Any]) -> dict[Any, Any]:
        built = set(built_days(self.engine, ROLLUP)) - self.pruned
        return {key: value for key, value in found.items() if key[1] in built}

    def statistics(self, table: str) -> dict[tuple[int, date], tuple[int, ...]]:
        with self.engine.begin() as connection:
            return {(r.publisher_id, r.date): tuple(r)[2:] for r in connection.execute(text(f"select * from {table}"))}

    def logs(self, which: str) -> dict[tuple[int, date], tuple[int, ...]]:
        statement = f"""
            with s as (select snapshot from rollup_state)
            select publisher_id, created_at, cache_hit, response_time_ms, source from calculation_logs where {which}
        """
        sums: dict[tuple[int, date], list[int]] = {}
        with self.engine.begin() as connection:
            for found in connection.execute(text(statement)):
                key = (found.publisher_id, found.created_at.astimezone(ZoneInfo(ZONE)).date())
                total = sums.setdefault(key, [0] * 6)
                for n, value in enumerate(
                    [1, found.cache_hit, found.response_time_ms or 0, *(found.source == s for s in (1, 2, 3))]
                ):
                    total[n] += int(value)
        return {key: tuple(total) for key, total in sums.items()}


@pytest.mark.model
def test_no_order_of_events_makes_a_difference(server: URL):
    _server["url"] = server
    run_state_machine_as_test(
        Adversary,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
