"""A model against an adversary: writers that begin, write, save, roll back, prepare, commit and die in any order, among
refreshes, rebuilds, pruned and otherwise deleted logs, and rebases. After every step, for every built day: statistics
equal the logs visible in the stored snapshot and the live view those that are visible at all, each with the rows that
were deleted after they were counted; and `verify` says zero, or notices that somebody else deleted.

What is visible in a snapshot PostgreSQL itself says (`pg_visible_in_snapshot`), and Python adds up: the oracle shares
nothing with the SQL under test. Hypothesis prints a failing case as the few steps that replay it.

    MODEL_EXAMPLES=4000 pytest -m model     # the long form: more than 200,000 steps
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
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
from sqlalchemy.engine import URL

from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.declaration import CALCULATION_STATS_DAILY as ROLLUP
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import built_days, verify
from calc_analytics_tests.clusters import Cluster
from calc_analytics_tests.integration.test_migrations import PARTITIONED
from calc_analytics_tests.logs import COLUMNS, Row, copy_rows, row

# The default is more than 5,000 steps: Hypothesis ends an example after 80 steps at the latest.
EXAMPLES, STEPS = int(os.environ.get("MODEL_EXAMPLES", "110")), 80
ZONE = "Asia/Jerusalem"
# Clocks went forward on the first of these days (2026-03-27), and the next two are ordinary.
DAYS = [date(2026, 3, 27), date(2026, 3, 28), date(2026, 3, 29)]
WRITERS = 3
# The server allows ten.
PREPARED_AT_MOST = 8
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

Sums = dict[tuple[int, date], tuple[int, ...]]
_server: dict[str, URL] = {}


@pytest.fixture(scope="module")
def server() -> Iterator[URL]:
    """A server that allows prepared transactions, with two templates: an ordinary log table and a partitioned one."""
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    cluster = Cluster(folder).create().start()
    url = cluster.url()
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
    cluster.stop("immediate")
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
    steps = 0

    @initialize(partitioned=st.booleans())
    def start(self, partitioned: bool) -> None:
        self.name = f"model_{os.getpid()}_{next(self.numbers)}"
        server = _server["url"]
        run(server, f"create database {self.name} template {'partitioned' if partitioned else 'plain'}")
        self.url = server.set(database=self.name)
        self.engine = engine_for(self.url)
        self.observer = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self.writers = [Writer(self.url) for _ in range(WRITERS)]
        self.tables = TABLES if partitioned else TABLES[:1]
        self.prepared: list[str] = []
        # The measures of rows that were deleted after they were counted, and the days that do not know it yet.
        self.gone: Sums = {}
        self.unnoted: set[date] = set()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for writer in self.writers:
                writer.connection.close()
            for name in self.prepared:
                run(self.url, f"rollback prepared '{name}'")
            self.observer.close()
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
        in_transaction = writer.connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        if in_transaction and len(self.prepared) < PREPARED_AT_MOST:
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
        built = set(built_days(self.engine, ROLLUP))
        report = rebuild(self.engine, ROLLUP, ZONE, sorted(days), allow_shrink=allow_shrink)
        refused, lost = {shrunk.day for shrunk in report.shrunk}, {day for _, day in self.gone}
        assert refused & built == (set() if allow_shrink else days & lost & built)
        assert refused <= lost
        self.unnoted -= days
        if allow_shrink:
            self.gone = {key: sums for key, sums in self.gone.items() if key[1] not in days}

    @rule(day=st.sampled_from(DAYS), some=st.booleans())
    def somebody_deletes_logs(self, day: date, some: bool) -> None:
        rows = self.rows(f"(created_at at time zone '{ZONE}')::date = '{day}' and ({not some} or id % 2 = 0)")
        with self.engine.begin() as connection:
            connection.execute(text("delete from calculation_logs where id = any(:ids)"), {"ids": [r.id for r in rows]})
        if day in built_days(self.engine, ROLLUP) and self.note(found for found in rows if found.counted):
            self.unnoted.add(day)

    @rule(before=st.sampled_from([*DAYS[1:], date(2026, 4, 1)]))
    def prune(self, before: date) -> None:
        days = {day for day in built_days(self.engine, ROLLUP) if day < before}
        counted = [found for found in self.rows() if found.counted and self.day(found) in days]
        assert prune(self.engine, ROLLUP, ZONE, before, batch_rows=3).rows == len(counted)
        self.note(counted)

    @rule()
    def rebase(self) -> None:
        idle = all(w.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE for w in self.writers)
        if idle and not self.prepared and not self.unnoted:
            rebase(self.engine, ZONE)

    @invariant()
    def statistics_are_the_logs(self) -> None:
        if not hasattr(self, "engine"):
            return
        type(self).steps += 1
        built, rows = set(built_days(self.engine, ROLLUP)), self.rows()
        counted = self.sums((found for found in rows if found.counted), self.gone)
        assert self.statistics("calculation_stats_daily", built) == of_days(built, counted)
        visible = self.sums(rows, self.gone)
        assert self.statistics("calculation_stats_daily_live", built) == of_days(built, visible)
        different = verify(self.engine, ROLLUP, ZONE, sorted(built)).different
        assert {day.day for day in different} == self.unnoted & built

    def note(self, rows: Iterable[Any]) -> bool:
        """Remembers rows that were deleted after they were counted; whether there were any."""
        before, self.gone = self.gone, self.sums(rows, self.gone)
        return before != self.gone

    def statistics(self, table: str, days: set[date]) -> Sums:
        """What the table says of these days."""
        rows = self.observer.execute(text(f"select * from {table}")).all()
        return of_days(days, {(row.publisher_id, row.date): tuple(row)[2:] for row in rows})

    def rows(self, which: str = "true") -> Sequence[Any]:
        """The log rows that are visible, and whether they are in the stored snapshot: PostgreSQL says so itself."""
        statement = f"""
            select id, publisher_id, created_at, cache_hit, response_time_ms, source, xact_id is null
                or pg_visible_in_snapshot(xact_id::text::xid8, (select snapshot from rollup_state)) as counted
            from calculation_logs where {which}
        """
        return self.observer.execute(text(statement)).all()

    @staticmethod
    def day(row: Any) -> date:
        return row.created_at.astimezone(ZoneInfo(ZONE)).date()

    def sums(self, rows: Iterable[Any], more: Sums) -> Sums:
        """The measures of the rows, added to others."""
        sums = dict(more)
        for found in rows:
            key = (found.publisher_id, self.day(found))
            sources = [found.source == source for source in (1, 2, 3)]
            values = [1, found.cache_hit, found.response_time_ms or 0, *sources]
            sums[key] = tuple(map(sum, zip(sums.get(key, (0,) * 6), values, strict=True)))
        return sums


def of_days(days: set[date], sums: Sums) -> Sums:
    return {key: value for key, value in sums.items() if key[1] in days}


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
    print(f"{Adversary.steps:,} steps")
    assert Adversary.steps > EXAMPLES * STEPS * 0.55
