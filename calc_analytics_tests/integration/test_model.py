"""A model against an adversary: writers that begin, write, save, roll back, prepare, commit and die in any order, among
refreshes, rebuilds, pruned logs and rebases, while another program deletes and changes logs and statistics.

After every step, for every rollup and built day: unless audit or verify reports it, the statistics equal the logs
visible in the stored snapshot, and the live view adds those that are visible at all, each with the rows that were
deleted after they were counted. Days that no other program touched are never reported, and the rollups agree on them.

What is visible in a snapshot PostgreSQL itself says (`pg_visible_in_snapshot`), and Python adds up: the oracle shares
nothing with the SQL under test. Hypothesis prints a failing case as the few steps that replay it.

    MODEL_EXAMPLES=4000 pytest -m "model and long" -s     # more than 200,000 steps
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
from calc_analytics.rollup import ledger
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG
from calc_analytics_tests.clusters import Cluster
from calc_analytics_tests.integration.test_migrations import PARTITIONED
from calc_analytics_tests.logs import COLUMNS, FORMS, Row, Statistics, copy_rows, disagreements, round_down, row, stored

# Hypothesis ends an example after 80 steps at the latest: 5 examples are about 350 steps, 12 are about 900.
SHORT, EXAMPLES, STEPS = 3, int(os.environ.get("MODEL_EXAMPLES", "6")), 80
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
        lambda at, publisher, locality, hit, milliseconds, source: row(
            at,
            publisher=publisher,
            locality_id=locality,
            cache_hit=hit,
            response_time_ms=milliseconds,
            source=source,
        ),
        instants,
        st.integers(1, 3),
        st.integers(1, 2),
        st.booleans(),
        st.sampled_from([None, 0, 9, 300, 32_767]),
        st.sampled_from([1, 2, 3, 9]),
    ),
    min_size=1,
    max_size=4,
)
names = st.sampled_from(LOG.names)
day_sets = st.sets(st.sampled_from(DAYS), min_size=1)

Sums = dict[str, Statistics]
"""The statistics of each rollup."""
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
        install(Database(engine, LOG, ZONE))
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
    """One database, three writers, and any order of events that Hypothesis generates."""

    numbers = iter(range(10**9))
    steps = 0

    @initialize(partitioned=st.booleans())
    def start(self, partitioned: bool) -> None:
        self.name = f"model_{os.getpid()}_{next(self.numbers)}"
        server = _server["url"]
        run(server, f"create database {self.name} template {'partitioned' if partitioned else 'plain'}")
        self.url = server.set(database=self.name)
        self.engine = engine_for(self.url)
        self.db = Database(self.engine, LOG, ZONE)
        self.observer = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self.writers = [Writer(self.url) for _ in range(WRITERS)]
        self.tables = TABLES if partitioned else TABLES[:1]
        self.prepared: list[str] = []
        # The measures of rows that were deleted after they were counted, by prune or kept by a decision.
        self.gone: Sums = {name: {} for name in FORMS}
        # Days whose logs or statistics another program changed, and that may be reported.
        self.touched: set[date] = set()
        # Days of rollups whose statistics another program changed, that were not recounted since.
        self.tampered: set[tuple[str, date]] = set()
        # Days of which nothing is known to be equal in all rollups any more.
        self.ever_touched: set[date] = set()
        self.turn = 0

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
        refresh(self.db)

    @rule(days=day_sets, decision=st.sampled_from(list(Decision)))
    def rebuild(self, days: set[date], decision: Decision) -> None:
        if decision is Decision.KEEP:
            days = {day for day in days if day not in {tampered for _, tampered in self.tampered}}
        pruned = {(name, key[-1]) for name in FORMS for key in self.gone[name]}
        report = rebuild(self.db, sorted(days), decision=decision)
        for each in report.rebuilt:
            self.tampered.discard((each.rollup, each.day))
            of_rollup = self.gone[each.rollup]
            self.gone[each.rollup] = {key: value for key, value in of_rollup.items() if key[-1] != each.day}
        for each in report.kept:
            if each.reason == "keep":
                assert decision is Decision.KEEP
                self.keep(each.rollup, each.day)
        assert {each.day for each in report.failed} <= self.touched
        if decision is Decision.ALLOW_SHRINK:
            assert (report.refused, report.kept) == ([], [])
        elif decision is not Decision.KEEP:
            rebuilt = {(each.rollup, each.day) for each in report.rebuilt}
            assert not rebuilt & pruned, "nothing that lost logs is recounted"

    def keep(self, name: str, day: date) -> None:
        """A person decided: what the statistics have and the log has not was deleted."""
        logs = self.sums(found for found in self.rows() if found.counted and self.day(found) == day)[name]
        others = {key: value for key, value in self.gone[name].items() if key[-1] != day}
        kept = {key: value for key, value in stored(self.engine, name).items() if key[-1] == day}
        for key in kept.keys() | logs.keys():
            zeros = (0,) * len(FORMS[name][1])
            left = tuple(a - b for a, b in zip(kept.get(key, zeros), logs.get(key, zeros), strict=True))
            if any(left):
                others[key] = left
        self.gone[name] = others

    def touch(self, days: Iterable[date]) -> None:
        """Another program changed something that belongs to these days."""
        self.touched |= set(days)
        self.ever_touched |= set(days)

    @rule(day=st.sampled_from(DAYS), some=st.booleans())
    def other_program_deletes_logs(self, day: date, some: bool) -> None:
        found = [each for each in self.rows() if self.day(each) == day and (not some or each.id % 2 == 0)]
        self.change("delete from calculation_logs where id = any(:ids)", ids=[each.id for each in found])
        self.touch([day])

    @rule(day=st.sampled_from(DAYS), to=st.sampled_from(DAYS), number=st.integers(0, 5))
    def other_program_moves_logs(self, day: date, to: date, number: int) -> None:
        found = [each for each in self.rows() if self.day(each) == day][:number]
        statement = f"update calculation_logs set created_at = timestamptz '{to} 12:00 {ZONE}' where id = any(:ids)"
        self.change(statement, ids=[each.id for each in found])
        self.touch([day, to] if found else [])

    @rule(
        day=st.sampled_from(DAYS),
        change=st.sampled_from(["publisher_id = 2", "response_time_ms = 5", "cache_hit = not cache_hit"]),
    )
    def other_program_changes_logs(self, day: date, change: str) -> None:
        # Which publisher's rows are left of a day that lost some is not known.
        if "publisher" in change and any(key[-1] == day for sums in self.gone.values() for key in sums):
            return
        found = [each.id for each in self.rows() if self.day(each) == day]
        self.change(f"update calculation_logs set {change} where id = any(:ids)", ids=found)
        self.touch([day])

    @rule(name=names, day=st.sampled_from(DAYS), by=st.sampled_from(["+ 1", "+ 1000", "- 50"]), first=st.booleans())
    def other_program_changes_statistics(self, name: str, day: date, by: str, first: bool) -> None:
        measure = FORMS[name][1][0 if first else -1]
        row = f"(select ctid from {name} where date = '{day}' order by {', '.join(FORMS[name][0])} limit 1)"
        self.tamper(name, day, f"update {name} set {measure} = {measure} {by} where ctid = {row}")

    @rule(name=names, day=st.sampled_from(DAYS))
    def other_program_deletes_a_statistic(self, name: str, day: date) -> None:
        self.tamper(name, day, f"delete from {name} where ctid = (select max(ctid) from {name} where date = '{day}')")

    @rule(name=names, day=st.sampled_from(DAYS))
    def other_program_exchanges_statistics(self, name: str, day: date) -> None:
        measure, of_day = FORMS[name][1][0], f"from {name} where date = '{day}'"
        both = f"(select min(ctid) {of_day}), (select max(ctid) {of_day})"
        self.tamper(
            name,
            day,
            f"update {name} set {measure} = {measure} + case ctid when (select min(ctid) {of_day}) then 1 else -1 end "
            f"where ctid in ({both}) and (select count(*) {of_day}) > 1",
        )

    def tamper(self, name: str, day: date, statement: str) -> None:
        """Changes the statistics of a day on record."""
        if day in ledger.days_by_status(self.db, ["built", "stale", "frozen"]):
            self.change(statement)
            self.touch([day])
            self.tampered.add((name, day))

    def change(self, statement: str, **parameters: Any) -> None:
        """A transaction of another program."""
        with self.engine.begin() as connection:
            connection.execute(text(statement), parameters)

    @rule(before=st.sampled_from([*DAYS[1:], date(2026, 4, 1)]))
    def prune(self, before: date) -> None:
        days = {day for day in self.built_everywhere() if day < before}
        counted = [found for found in self.rows() if found.counted and self.day(found) in days]
        report = prune(self.db, before, batch_rows=3)
        left = {found.id for found in self.rows()}
        deleted = [found for found in counted if found.id not in left]
        assert report.rows == len(deleted)
        assert set(report.different) <= self.touched
        assert not {self.day(found) for found in deleted} & set(report.different)
        assert {self.day(found) for found in counted if found.id in left} <= self.touched
        gone = self.sums(deleted)
        self.gone = {name: added(self.gone[name], gone[name]) for name in FORMS}

    @rule()
    def rebase(self) -> None:
        idle = all(w.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE for w in self.writers)
        if idle and not self.prepared and not self.touched:
            rebase(self.db)
            # Rows that come to a pruned day before it is built again are left to a person.
            self.touch(key[-1] for sums in self.gone.values() for key in sums)

    @invariant()
    def statistics_are_the_logs_or_are_reported(self) -> None:
        if not hasattr(self, "engine"):
            return
        type(self).steps += 1
        self.turn += 1
        rows = self.rows()
        red = self.reported()
        counted, visible = self.sums(found for found in rows if found.counted), self.sums(rows)
        built = {(name, day) for day, names in ledger.days_by_status(self.db, ["built"]).items() for name in names}
        for name in FORMS:
            green = {day for rollup, day in built - red if rollup == name and self.is_proven_now(name, day)}
            now, live = self.read(name), self.read(f"{name}_live")
            assert of_days(green, now) == of_days(green, added(counted[name], self.gone[name])), name
            assert of_days(green, live) == of_days(green, added(visible[name], self.gone[name])), name
        assert {day for _, day in red} <= self.touched
        disagreeing = {found.date for found in disagreements(self.engine)}
        assert not disagreeing & (self.built_everywhere() - self.ever_touched)
        if self.turn % len(FORMS) == 0:
            settled = self.built_everywhere() - {day for _, day in red | self.tampered}
            self.touched -= {day for day in settled if self.is_equal_everywhere(day, counted)}

    def is_proven_now(self, name: str, day: date) -> bool:
        """Whether this step compared the day with the log; for untouched days the last comparison is as good."""
        return day not in self.touched or name == self.compared()

    def compared(self) -> str:
        """The rollup that this step compares: each in turn."""
        return list(FORMS)[self.turn % len(FORMS)]

    def reported(self) -> set[tuple[str, date]]:
        """What audit and verify find now."""
        found = {(each.rollup, each.day) for each in audit(self.db).different}
        return found | {(proof.rollup, proof.day) for proof in verify(self.db, DAYS, [self.compared()]).different}

    def is_equal_everywhere(self, day: date, counted: Sums) -> bool:
        """Whether every rollup has what the log has, and what is known to be deleted."""
        return (
            all(
                of_days({day}, self.read(name)) == of_days({day}, added(counted[name], self.gone[name]))
                for name in FORMS
            )
            and not verify(self.db, [day]).difference
        )

    def built_everywhere(self) -> set[date]:
        """The days that are built in every rollup."""
        return {day for day, names in ledger.days_by_status(self.db, ["built"]).items() if len(names) == len(FORMS)}

    def read(self, relation: str) -> Statistics:
        """The contents of the table or of the view."""
        keys, measures = FORMS[relation.removesuffix("_live")]
        statement = f"select {', '.join([*keys, 'date', *measures])} from {relation}"
        return {
            tuple(found)[: len(keys) + 1]: tuple(found)[len(keys) + 1 :]
            for found in self.observer.execute(text(statement)).all()
        }

    def rows(self) -> Sequence[Any]:
        """The log rows that are visible, and whether they are in the stored snapshot: PostgreSQL says so itself."""
        statement = """
            select id, publisher_id, locality_id, created_at, cache_hit, response_time_ms, source, xact_id is null
                or pg_visible_in_snapshot(xact_id::text::xid8, (select snapshot from rollup_state)) as counted
            from calculation_logs order by id
        """
        return self.observer.execute(text(statement)).all()

    @staticmethod
    def day(row: Any) -> date:
        return row.created_at.astimezone(ZoneInfo(ZONE)).date()

    def sums(self, rows: Iterable[Any]) -> Sums:
        """The statistics of the rows."""
        sums: Sums = {name: {} for name in FORMS}
        for found in rows:
            hour = found.created_at.astimezone(timezone.utc).replace(minute=0, second=0, microsecond=0)
            counts = (1, int(found.cache_hit), found.response_time_ms or 0)
            sources = tuple(int(found.source == source) for source in (1, 2, 3))
            publisher, bucket = found.publisher_id, round_down(found.response_time_ms)
            for name, (keys, values) in zip(
                FORMS,
                [
                    ((publisher,), counts + sources),
                    ((publisher, found.locality_id), counts),
                    ((publisher, hour), counts + sources),
                    ((publisher, found.source, bucket), (1,)),
                ],
                strict=True,
            ):
                key = (*keys, self.day(found))
                sums[name][key] = plus(sums[name].get(key), values)
        return sums


def plus(before: tuple[int, ...] | None, values: tuple[int, ...]) -> tuple[int, ...]:
    return values if before is None else tuple(a + b for a, b in zip(before, values, strict=True))


def added(one: Statistics, other: Statistics) -> Statistics:
    """Both together."""
    return {key: plus(one.get(key), other[key]) if key in other else one[key] for key in one.keys() | other.keys()}


def of_days(days: set[date], sums: Statistics) -> Statistics:
    """Those of these days; a key with zeros only is as good as none."""
    return {key: value for key, value in sums.items() if key[-1] in days and any(value)}


@pytest.mark.model
@pytest.mark.parametrize(
    "examples", [pytest.param(SHORT, id="short"), pytest.param(EXAMPLES, id="long", marks=pytest.mark.long)]
)
def test_no_order_of_events_makes_a_difference(server: URL, examples: int):
    _server["url"], Adversary.steps = server, 0
    run_state_machine_as_test(
        Adversary,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{Adversary.steps:,} steps")
    assert Adversary.steps > examples * STEPS * 0.5
