"""The double entry: what another program changes in statistics or logs is found, and never becomes green automatically.

After any order of events: where audit and verify report nothing, the statistics are what they must be.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import OperationalError

from calc_analytics.database.engine import engine_for
from calc_analytics.database.errors import sqlstate
from calc_analytics.rollup import ledger
from calc_analytics.rollup import retention as retention_module
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.install import install, rebase
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.reports import RebuildReport
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import HOURS, LATENCY, LOCALITIES, LOG, STATS
from calc_analytics_tests.conftest import ROLE, own_database
from calc_analytics_tests.crowd import Crowd
from calc_analytics_tests.logs import FORMS, Statistics, all_stored, execute, oracles, random_rows, row, stored, write

TODAY = datetime.now(timezone.utc).date()
YESTERDAY, OLD, PRUNED = (TODAY - timedelta(days=n) for n in (1, 100, 200))
NEVER = TODAY - timedelta(days=150)
DAYS = [OLD, YESTERDAY, TODAY, PRUNED]
UNPRUNED = [OLD, YESTERDAY, TODAY]
BEFORE = OLD - timedelta(days=1)
Key = tuple[str, date]
AUTOMATIC, PERSON, KEEP, ALLOW_SHRINK = Decision.AUTOMATIC, Decision.NONE, Decision.KEEP, Decision.ALLOW_SHRINK


def begin(day: date) -> datetime:
    """The day's first instant."""
    return datetime(day.year, day.month, day.day, tzinfo=timezone.utc)


def noon(day: date) -> datetime:
    """An instant in the day."""
    return begin(day) + timedelta(hours=12)


@dataclass
class Books:
    """A database with four built days, one of them pruned, and what its statistics must be."""

    db: Database
    owner: Engine
    write: Callable[[list], None]
    truth: dict[str, Statistics]

    def of(self, rollup: str, day: date) -> Statistics:
        """What the statistics of that day must be."""
        return {key: value for key, value in self.truth[rollup].items() if key[-1] == day}

    def now(self, rollup: str, day: date) -> Statistics:
        """What the statistics of that day are."""
        return {key: value for key, value in stored(self.db, rollup).items() if key[-1] == day}

    def is_right(self, rollup: str, day: date) -> bool:
        """Whether the statistics of that day are what they must be."""
        return self.now(rollup, day) == self.of(rollup, day)

    def change(self, statement: str) -> None:
        """A statement of another program."""
        execute(self.db, statement)

    def late(self, day: date, rows: int = 3) -> None:
        """Late rows of that day, committed and counted."""
        made = [row(noon(day), publisher=1 + n % 2, response_time_ms=300 + n) for n in range(rows)]
        before = oracles(self.db)
        self.write(made)
        after = oracles(self.db)
        for name in FORMS:
            for key, value in after[name].items():
                old = before[name].get(key, (0,) * len(value))
                added = tuple(a - b for a, b in zip(value, old, strict=True))
                known = self.truth[name].get(key, (0,) * len(value))
                if any(added):
                    self.truth[name][key] = tuple(a + b for a, b in zip(known, added, strict=True))
        refresh(self.db)

    def recounted(self, *days: date) -> None:
        """From now on what is in the log is the truth of these days."""
        logs = oracles(self.db)
        for name in FORMS:
            others = {key: value for key, value in self.truth[name].items() if key[-1] not in days}
            self.truth[name] = {**others, **{key: value for key, value in logs[name].items() if key[-1] in days}}

    def rebuild(self, decision: Decision = AUTOMATIC, days: Iterable[date] = (*DAYS, NEVER)) -> RebuildReport:
        """A rebuild of all days."""
        return rebuild(self.db, list(days), decision=decision)


def found(books: Books) -> set[Key]:
    """What audit and verify report, each as (rollup, day)."""
    return audited(books) | set(findings(books))


def audited(books: Books) -> set[Key]:
    """What an audit of all days reports."""
    return {(each.rollup, each.day) for each in audit(books.db).different}


def findings(books: Books) -> dict[Key, str]:
    """What verify finds different, and as what."""
    days = sorted({*DAYS, *ledger.days_by_status(books.db, ledger.COUNTED)})
    return {(proof.rollup, proof.day): proof.finding for proof in verify(books.db, days).different}


def assert_never_green_and_wrong(books: Books) -> set[Key]:
    """Every built day that neither audit nor verify reports is right, and the ledger agrees; returns the rest."""
    red = found(books)
    recorded = {(rollup, day) for day, rollups in different_days(books.db).items() for rollup in rollups}
    assert recorded == red
    built = ledger.days_by_status(books.db, ["built"])
    for day, rollups in built.items():
        for name in rollups:
            if (name, day) not in red:
                assert books.now(name, day) == books.of(name, day), (name, day)
    for name in FORMS:
        unknown = {key[-1] for key in stored(books.db, name)} - set(ledger.days_by_status(books.db, _EVERY))
        assert not unknown, "statistics that are not on record"
    return red


_EVERY = ["built", "pending", "stale", "frozen", "overflow"]


@pytest.fixture(scope="module")
def proven_days(
    server_url: URL, template: str, maintenance: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Statistics]]]:
    """A database to be cloned, and what its statistics must be: four days with random rows, proven; the last, which is
    the oldest, is pruned."""
    with own_database(server_url, maintenance, template) as url:
        db, rng = Database(engine_for(url.set(username=ROLE)), LOG, "UTC"), random.Random(11)
        execute(db, f"grant delete on calculation_logs to {ROLE}")
        with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as writer:
            for day in DAYS:
                rows = random_rows(rng, 37, begin(day), begin(day) + timedelta(days=1), publishers=3)
                write(writer, rows + [row(noon(day))] * 3)
        rebuild(db, DAYS)
        truth = oracles(db)
        assert verify(db, DAYS).difference == 0
        assert set(prune(db, BEFORE).rows_by_day) == {PRUNED}
        db.engine.dispose()
        yield str(url.database), truth


@pytest.fixture
def url(
    server_url: URL, proven_days: tuple[str, dict[str, Statistics]], maintenance: Callable[[str], None]
) -> Iterator[URL]:
    """A clone of it."""
    with own_database(server_url, maintenance, proven_days[0]) as url:
        yield url


@pytest.fixture
def books(db: Database, owner: Engine, connect, proven_days: tuple[str, dict[str, Statistics]]) -> Books:
    """That database: nothing differs yet."""
    writer = connect()
    made = Books(
        db, owner, lambda rows: write(writer, rows), {name: dict(each) for name, each in proven_days[1].items()}
    )
    assert assert_never_green_and_wrong(made) == set()
    return made


# -- Changes of statistics ---------------------------------------------------------------------------------------------


def first(rollup: Rollup, day: date, number: int = 1) -> str:
    """SQL: the physical address of the day's first row, or of a later one."""
    order = ", ".join(rollup.keys)
    return f"(select ctid from {rollup.name} where date = '{day}' order by {order} limit 1 offset {number - 1})"


def add(amount: int, measure: int = 0) -> Callable[[Rollup, date], str]:
    """Adds to one measure of one row."""

    def statement(rollup: Rollup, day: date) -> str:
        name = rollup.measure_names[measure % len(rollup.measure_names)]
        return f"update {rollup.name} set {name} = {name} + {amount} where ctid = {first(rollup, day)}"

    return statement


def delete_row(rollup: Rollup, day: date) -> str:
    """Deletes one row."""
    return f"delete from {rollup.name} where ctid = {first(rollup, day)}"


def insert_row(rollup: Rollup, day: date, to: date | None = None) -> str:
    """Inserts a row of a publisher that has no logs."""
    rest = ", ".join([*rollup.keys[1:], *rollup.measure_names])
    columns = f"publisher_id, date, {rest}"
    return (
        f"insert into {rollup.name} ({columns}) select 999, date '{to or day}', {rest} from {rollup.name} "
        f"where ctid = {first(rollup, day)}"
    )


def move_row(rollup: Rollup, day: date) -> str:
    """Moves a row to a day that is not on record."""
    return f"update {rollup.name} set date = date '{NEVER}' where ctid = {first(rollup, day)}"


def exchange(rollup: Rollup, day: date) -> str:
    """Moves a calculation from a row to another: every sum stays."""
    name = rollup.count
    one, other = first(rollup, day), first(rollup, day, 2)
    return (
        f"update {rollup.name} set {name} = {name} + case when ctid = {one} then 1 else -1 end "
        f"where ctid in ({one}, {other})"
    )


def swap(rollup: Rollup, day: date) -> str:
    """Exchanges the counts of two rows, so that each column holds the same values as before."""
    name = rollup.count
    greatest, least = (f"(select {how}({name}) from {rollup.name} where date = '{day}')" for how in ("max", "min"))
    one, other = (
        f"(select ctid from {rollup.name} where date = '{day}' and {name} = {value} limit 1)"
        for value in (greatest, least)
    )
    return (
        f"update {rollup.name} set {name} = case when ctid = {one} then {least} else {greatest} end "
        f"where ctid in ({one}, {other})"
    )


CHANGES = {
    "+1": add(1),
    "+1 of another measure": add(1, 2),
    "+1000": add(1000),
    "-50": add(-50),
    "a deleted row": delete_row,
    "an inserted row": insert_row,
    "a moved row": move_row,
}
rollups = pytest.mark.parametrize("rollup", LOG.rollups, ids=LOG.names)
# Each change is made in every table once; what becomes of it later is shown in two of them.
some_rollups = pytest.mark.parametrize("rollup", [STATS, LATENCY], ids=[STATS.name, LATENCY.name])
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))


@rollups
@changes
def test_a_changed_statistic_is_found_named_and_repaired_or_stays_red(books: Books, rollup: Rollup, change):
    days = DAYS if change is not move_row else [OLD, PRUNED]
    if change is move_row:
        books.change(f"update {rollup.name} set publisher_id = -77 where ctid = {first(rollup, PRUNED)}")
    for day in days:
        books.change(change(rollup, day))
    tampered = {(rollup.name, day) for day in days} | ({(rollup.name, NEVER)} if change is move_row else set())
    assert audited(books) == tampered
    assert assert_never_green_and_wrong(books) == tampered
    assert {findings(books)[rollup.name, day] for day in days} == {"statistics_changed"}
    # Whether a day that was never counted lost its log rows is not known: its statistics are not deleted.
    red = {(rollup.name, PRUNED)} | ({(rollup.name, NEVER)} if change is move_row else set())
    for _ in range(3):
        books.rebuild()
        assert assert_never_green_and_wrong(books) == red
    assert not books.is_right(rollup.name, PRUNED)
    assert all(books.is_right(name, day) for name in FORMS for day in UNPRUNED)


@rollups
@pytest.mark.parametrize("change", [exchange, swap])
def test_an_exchange_between_keys_is_found_by_verify_or_by_the_checksum(books: Books, rollup: Rollup, change):
    for day in DAYS:
        books.change(change(rollup, day))
    assert audited(books) == {(rollup.name, PRUNED)}
    assert findings(books) == {(rollup.name, day): "statistics_changed" for day in DAYS}
    for _ in range(3):
        books.rebuild()
        assert assert_never_green_and_wrong(books) == {(rollup.name, PRUNED)}


def test_the_report_names_the_publisher_both_numbers_and_what_to_type(books: Books):
    before = books.now(STATS.name, OLD)[1, OLD][0]
    books.change(f"update {STATS.name} set total_calculations = total_calculations + 1000 where publisher_id = 1 "
                 f"and date = '{OLD}'")  # fmt: skip
    (proof,) = verify(books.db, DAYS).different
    assert f"publisher_id 1: {before:,} in the log, {before + 1000:,} stored" in proof.describe()
    assert f"Recount with 'calc-analytics rollup --day {OLD}'" in proof.describe()
    books.change(f"delete from {STATS.name} where date = '{PRUNED}' and publisher_id = 1")
    describes = [proof.describe() for proof in verify(books.db, [PRUNED]).different]
    assert f"accept them with 'calc-analytics rollup --day {PRUNED} --keep'" in describes[0]


@some_rollups
@pytest.mark.parametrize("change", [add(1), exchange, delete_row], ids=["+1", "exchange", "deleted row"])
def test_late_rows_do_not_hide_a_change_of_a_pruned_day(books: Books, rollup: Rollup, change):
    books.change(change(rollup, PRUNED))
    for _ in range(2):
        books.late(PRUNED, 4)
        assert assert_never_green_and_wrong(books) == {(rollup.name, PRUNED)}
        books.rebuild()
        assert assert_never_green_and_wrong(books) == {(rollup.name, PRUNED)}
    assert prune(books.db, BEFORE).different == [PRUNED]
    assert assert_never_green_and_wrong(books) == {(rollup.name, PRUNED)}


@rollups
def test_a_pruned_days_change_that_is_undone_is_green_again(books: Books, rollup: Rollup):
    books.change(add(5)(rollup, PRUNED))
    assert audited(books) == {(rollup.name, PRUNED)}
    books.change(add(-5)(rollup, PRUNED))
    books.late(PRUNED, 4)
    assert assert_never_green_and_wrong(books) == set()
    assert books.is_right(rollup.name, PRUNED)


@some_rollups
@pytest.mark.parametrize("change", [add(1), exchange, delete_row, insert_row])
def test_prune_deletes_no_row_of_a_day_that_differs(books: Books, rollup: Rollup, change):
    books.change(change(rollup, OLD))
    before = oracles(books.db)
    report = prune(books.db, YESTERDAY)
    assert (report.rows, report.different) == (0, [OLD])
    assert oracles(books.db) == before
    books.rebuild()
    assert assert_never_green_and_wrong(books) == set()
    assert books.is_right(rollup.name, OLD)
    assert set(prune(books.db, YESTERDAY).rows_by_day) == {OLD}
    assert assert_never_green_and_wrong(books) == set()


def test_prune_deletes_no_row_of_a_day_whose_log_was_changed(books: Books):
    books.change(f"update calculation_logs set created_at = '{noon(OLD)}' where created_at::date = '{YESTERDAY}'")
    before = oracles(books.db)
    assert prune(books.db, TODAY).different == [OLD, YESTERDAY]
    assert oracles(books.db) == before


def test_prune_deletes_nothing_of_a_day_that_is_changed_while_it_prunes(books: Books, monkeypatch: pytest.MonkeyPatch):
    """Between the proof and the batches: the checksum is from before, so the change stays red."""
    batches = retention_module._batches

    def change_first(*arguments):
        books.change(exchange(STATS, OLD))
        yield from batches(*arguments)

    monkeypatch.setattr(retention_module, "_batches", change_first)
    prune(books.db, YESTERDAY)
    books.rebuild()
    assert assert_never_green_and_wrong(books) <= {(STATS.name, OLD)}


@rollups
def test_a_row_for_an_unseen_day_stays_red_until_a_person_decides(books: Books, rollup: Rollup):
    books.change(insert_row(rollup, OLD, to=NEVER))
    inserted = books.now(rollup.name, NEVER)
    assert assert_never_green_and_wrong(books) == {(rollup.name, NEVER)}
    for decision in (AUTOMATIC, AUTOMATIC, AUTOMATIC, Decision.NONE):
        (refused,) = [each for each in books.rebuild(decision, [NEVER]).refused if each.rollup == rollup.name]
        assert refused.reason == "differs"
        assert assert_never_green_and_wrong(books) == {(rollup.name, NEVER)}
        assert books.now(rollup.name, NEVER) == inserted
    assert "another program wrote them" in verify(books.db, [NEVER]).different[0].describe()
    books.rebuild(Decision.ALLOW_SHRINK, [NEVER])
    assert assert_never_green_and_wrong(books) == set()
    assert books.now(rollup.name, NEVER) == {}


@rollups
def test_imported_statistics_are_kept_when_a_person_decides_so(books: Books, rollup: Rollup):
    books.change(insert_row(rollup, OLD, to=NEVER))
    imported = books.now(rollup.name, NEVER)
    assert found(books) == {(rollup.name, NEVER)}
    books.rebuild(Decision.KEEP, [NEVER])
    assert found(books) == set()
    books.rebuild()
    assert books.now(rollup.name, NEVER) == imported
    books.change(f"update {rollup.name} set {rollup.count} = {rollup.count} + 1 where date = '{NEVER}'")
    assert found(books) == {(rollup.name, NEVER)}


@some_rollups
@pytest.mark.parametrize("is_audited", [True, False], ids=["audited", "not audited"])
@pytest.mark.parametrize("count", [1, 1000])
def test_a_row_for_a_day_that_begins_afterwards_is_replaced_once_the_log_has_as_many(
    books: Books, rollup: Rollup, is_audited: bool, count: int
):
    books.change(insert_row(rollup, OLD, to=NEVER))
    books.change(f"update {rollup.name} set {rollup.count} = {count} where date = '{NEVER}'")
    if is_audited:
        assert audited(books) == {(rollup.name, NEVER)}
    books.late(NEVER, 3)
    assert_never_green_and_wrong(books)
    for _ in range(3):
        books.rebuild()
        assert assert_never_green_and_wrong(books) == (set() if count == 1 else {(rollup.name, NEVER)})
    books.rebuild(Decision.ALLOW_SHRINK, [NEVER])
    assert assert_never_green_and_wrong(books) == set()
    assert NEVER in ledger.built_days(books.db)
    assert all(books.is_right(name, NEVER) for name in FORMS)


# -- Changes of the log ------------------------------------------------------------------------------------------------

OF_OLD = f"(created_at at time zone 'UTC')::date = '{OLD}'"
SOME = f"id in (select id from calculation_logs where {OF_OLD} order by id limit 5)"
COPIED = "publisher_id, locality_id, date_calculated, cache_hit, response_time_ms, source, created_at"


@dataclass(frozen=True)
class LogChange:
    """A statement of another program, what verify calls it, and on which days."""

    statement: str
    finding: str
    also: dict[date, str]
    is_lost: bool = False


LOG_CHANGES = {
    "deleted": LogChange(f"delete from calculation_logs where {SOME}", "logs_missing", {}, True),
    "moved to a built day": LogChange(
        f"update calculation_logs set created_at = '{noon(YESTERDAY)}' where {SOME}",
        "logs_missing",
        {YESTERDAY: "logs_added"},
        True,
    ),
    "moved here": LogChange(
        f"update calculation_logs set created_at = '{noon(OLD)}' "
        f"where id in (select id from calculation_logs where created_at >= '{YESTERDAY}Z' "
        f"and created_at < '{TODAY}Z' limit 5)",
        "logs_added",
        {YESTERDAY: "logs_missing"},
    ),
    "other response times": LogChange(
        f"update calculation_logs set response_time_ms = 7 + coalesce(response_time_ms, 0) / 2 where {OF_OLD}",
        "logs_changed",
        {},
    ),
    "other cache hits": LogChange(f"update calculation_logs set cache_hit = true where {OF_OLD}", "logs_changed", {}),
    "copied with old ids": LogChange(
        f"insert into calculation_logs ({COPIED}, xact_id) select {COPIED}, xact_id from calculation_logs where {SOME}",
        "logs_added",
        {},
    ),
    "copied without ids": LogChange(
        f"insert into calculation_logs ({COPIED}, xact_id) select {COPIED}, null from calculation_logs where {SOME}",
        "logs_added",
        {},
    ),
}
log_changes = pytest.mark.parametrize("change", LOG_CHANGES.values(), ids=list(LOG_CHANGES))


@log_changes
def test_a_changed_log_is_found_as_what_it_is_and_left_alone(books: Books, change: LogChange):
    books.change(change.statement)
    expected = {OLD: change.finding, **change.also}
    seen = findings(books)
    for day, finding in expected.items():
        assert seen[STATS.name, day] == finding
        assert seen[LOCALITIES.name, day] == seen[HOURS.name, day] == finding
    assert {day for _, day in seen} == set(expected)
    before = all_stored(books.db)
    if (LATENCY.name, OLD) in seen and change.finding == "logs_changed":
        # It sums up nothing but rows, of which there are as many: the log is its truth.
        books.truth[LATENCY.name] = oracles(books.db)[LATENCY.name] | books.of(LATENCY.name, PRUNED)
    for _ in range(3):
        report = books.rebuild()
        assert {each.day for each in report.failed} == set(expected)
        assert assert_never_green_and_wrong(books) >= {(STATS.name, day) for day in expected}
        if change.finding != "logs_changed":
            assert all_stored(books.db) == before
    assert stored(books.db) == before[STATS.name]


@log_changes
def test_a_person_recounts_what_was_added_or_changed_and_decides_what_was_lost(books: Books, change: LogChange):
    books.change(change.statement)
    lost = {OLD} if change.is_lost else set()
    lost |= {day for day, finding in change.also.items() if finding == "logs_missing"}
    report = books.rebuild(PERSON)
    assert {each.day for each in report.failed} == lost
    assert {day for _, day in found(books)} == lost
    for each in report.failed:
        assert f"{each.log_rows:,} log rows but {each.counted_rows:,} counted" in str(each)
        assert each.log_rows < each.counted_rows
        assert "--keep'" in str(each)
        assert "--allow-shrink'" in str(each)
    books.recounted(*(set(UNPRUNED) - lost))
    assert {day for _, day in assert_never_green_and_wrong(books)} == lost
    books.rebuild(ALLOW_SHRINK, UNPRUNED)
    books.recounted(*UNPRUNED)
    assert assert_never_green_and_wrong(books) == set()


def test_a_changed_publisher_is_the_truth_of_the_log(books: Books):
    books.change(f"update calculation_logs set publisher_id = 1 where {OF_OLD}")
    assert {day for _, day in findings(books)} == {OLD}
    books.rebuild()
    books.recounted(OLD)
    assert assert_never_green_and_wrong(books) == set()


def test_what_is_kept_stays_takes_late_rows_can_be_pruned_and_is_watched(books: Books):
    books.change(f"delete from calculation_logs where {SOME}")
    (kept, *_) = books.rebuild(KEEP, [OLD]).kept
    assert (kept.day, kept.log_rows, kept.counted_rows, kept.deleted_rows) == (OLD, 35, 40, 5)
    assert assert_never_green_and_wrong(books) == set()
    assert books.is_right(STATS.name, OLD)
    books.late(OLD, 4)
    assert assert_never_green_and_wrong(books) == set()
    for _ in range(2):
        books.rebuild()
        assert assert_never_green_and_wrong(books) == set()
    assert prune(books.db, YESTERDAY).rows_by_day == {OLD: 39}
    assert assert_never_green_and_wrong(books) == set()
    for rollup in LOG.rollups:
        books.change(exchange(rollup, OLD))
        assert assert_never_green_and_wrong(books) >= {(rollup.name, OLD)}
    books.rebuild()
    assert assert_never_green_and_wrong(books) == {(name, OLD) for name in FORMS}


def test_keeping_twice_notes_each_deletion_once(books: Books):
    for lost in (5, 10):
        books.change(f"delete from calculation_logs where {SOME}")
        assert {day for _, day in findings(books)} == {OLD}
        assert [each.deleted_rows for each in books.rebuild(KEEP, [OLD]).kept] == [lost] * 4
        assert assert_never_green_and_wrong(books) == set()


def test_keeping_a_day_without_a_loss_recounts_it(books: Books):
    books.change(add(1000)(STATS, OLD))
    assert books.rebuild(KEEP, [OLD]).kept == []
    assert assert_never_green_and_wrong(books) == set()
    assert books.is_right(STATS.name, OLD)


def test_a_duplicated_batch_that_is_deleted_again_leaves_no_trace(books: Books):
    with books.db.engine.begin() as connection:
        last = connection.execute(text("select max(id) from calculation_logs")).scalar_one()
    books.change(LOG_CHANGES["copied with old ids"].statement)
    assert {day for _, day in found(books)} == {OLD}
    books.change(f"delete from calculation_logs where id > {last}")
    assert assert_never_green_and_wrong(books) == set()
    books.rebuild()
    assert assert_never_green_and_wrong(books) == set()


# -- Both at once ------------------------------------------------------------------------------------------------------


@some_rollups
@pytest.mark.parametrize("change", [add(1), add(-5), exchange], ids=["+1", "-5", "exchange"])
def test_a_changed_statistic_of_a_day_that_lost_logs_stays_red_when_the_loss_is_kept(
    books: Books, rollup: Rollup, change
):
    books.change(change(rollup, OLD))
    books.change(f"delete from calculation_logs where {SOME}")
    assert (rollup.name, OLD) in assert_never_green_and_wrong(books)
    for _ in range(3):
        books.rebuild()
    assert (rollup.name, OLD) in assert_never_green_and_wrong(books)
    books.rebuild(KEEP, [OLD])
    assert assert_never_green_and_wrong(books) == {(rollup.name, OLD)}
    books.rebuild()
    assert assert_never_green_and_wrong(books) == {(rollup.name, OLD)}
    books.rebuild(KEEP, [OLD])
    # A person accepted the statistics as they are, unless the log has more rows of a key than they.
    assert found(books) <= {(rollup.name, OLD)}


def test_statistics_lowered_to_what_is_left_of_the_log_stay_red(books: Books):
    """Deleting rows and lowering the statistics by as much does not change what was counted."""
    books.change(f"delete from calculation_logs where {SOME}")
    for rollup in LOG.rollups:
        books.change(f"delete from {rollup.name} where date = '{OLD}'")
        keys, columns = rollup.key_selects, ", ".join([*rollup.keys, *rollup.measure_names])
        books.change(
            f"insert into {rollup.name} ({columns}, date) select *, date '{OLD}' from (select {keys}, "
            f"{rollup.measure_selects} from calculation_logs where {OF_OLD} group by {rollup.group_by}) recounted"
        )
    assert audited(books) == {(name, OLD) for name in FORMS}
    for _ in range(3):
        books.rebuild()
        assert assert_never_green_and_wrong(books) == {(name, OLD) for name in FORMS}


# -- Announced deletions -----------------------------------------------------------------------------------------------


@pytest.fixture
def announced(books: Books) -> Books:
    """The same, where others delete rows older than 30 days."""
    books.db = replace(books.db, logs_kept_days=30)
    return books


@pytest.mark.parametrize("how", ["verify", "rebuild"])
def test_announced_deletions_are_noted(announced: Books, how: str):
    announced.change(f"delete from calculation_logs where {SOME}")
    if how == "verify":
        assert verify(announced.db, [OLD]).difference == 0
    else:
        assert [each.reason for each in announced.rebuild().kept] == ["announced"] * 4
    assert assert_never_green_and_wrong(announced) == set()
    assert announced.is_right(STATS.name, OLD)
    announced.change(f"delete from calculation_logs where {OF_OLD}")
    announced.late(OLD, 2)
    assert assert_never_green_and_wrong(announced) == set()


def test_deletions_of_younger_days_are_not_announced(announced: Books):
    announced.change(f"delete from calculation_logs where created_at < '{YESTERDAY} 18:00Z'")
    assert {day for _, day in assert_never_green_and_wrong(announced)} == {YESTERDAY}
    announced.rebuild()
    assert {day for _, day in assert_never_green_and_wrong(announced)} == {YESTERDAY}


def test_no_setting_accepts_added_or_changed_rows(announced: Books):
    for name in ("copied without ids", "other cache hits", "other response times", "moved here"):
        announced.change(LOG_CHANGES[name].statement)
        assert (STATS.name, OLD) in assert_never_green_and_wrong(announced)
        announced.rebuild()
        assert (STATS.name, OLD) in assert_never_green_and_wrong(announced)


@some_rollups
@pytest.mark.parametrize("change", [add(1), add(-5), exchange, insert_row], ids=["+1", "-5", "exchange", "inserted"])
def test_an_announced_deletion_excuses_no_changed_statistic(announced: Books, rollup: Rollup, change):
    announced.change(change(rollup, OLD))
    announced.change(f"delete from calculation_logs where {OF_OLD}")
    for _ in range(3):
        assert assert_never_green_and_wrong(announced) == {(rollup.name, OLD)}
        announced.rebuild()


@rollups
def test_an_announced_deletion_of_a_day_just_rebuilt_excuses_no_exchange(announced: Books, rollup: Rollup):
    announced.rebuild(PERSON, [OLD])
    announced.change(exchange(rollup, OLD))
    announced.change(f"delete from calculation_logs where {OF_OLD}")
    assert assert_never_green_and_wrong(announced) == {(rollup.name, OLD)}


# -- Adoption ----------------------------------------------------------------------------------------------------------

ADOPTED = NEVER - timedelta(days=1)


def adopt(url: URL) -> Books:
    """A predecessor's database: statistics of one day with its logs, counted twice, and of one without."""
    engine = engine_for(url)
    db = Database(engine, LOG, "UTC")
    with engine.begin() as connection:
        for table in (LOG.table, STATS.target):
            table.create(connection)
        for values in random_rows(random.Random(5), 40, begin(OLD), begin(OLD) + timedelta(days=1), publishers=3):
            insert = LOG.table.insert().values(dict(zip(COPIED.split(", "), values, strict=True)))
            connection.execute(insert)
        for day, total in ((OLD, 20), (ADOPTED, 7), (NEVER, 9)):
            for publisher in (1, 2, 3):
                connection.execute(
                    text(f"insert into {STATS.name} values ({publisher}, '{day}', {total}, 1, 50, {total}, 0, 0)")
                )
    install(db)

    def insert_rows(rows: list) -> None:
        with engine.begin() as connection:
            for values in rows:
                connection.execute(LOG.table.insert().values(dict(zip(COPIED.split(", "), values, strict=True))))

    truth = oracles(db)
    truth[STATS.name] |= {key: value for key, value in stored(db).items() if key[-1] != OLD}
    return Books(db, engine, insert_rows, truth)


@pytest.fixture
def predecessor(empty_url: URL) -> Iterable[Books]:
    """That database, with every day rebuilt."""
    books = adopt(empty_url)
    books.rebuild(days=[OLD, NEVER, ADOPTED])
    yield books
    books.db.engine.dispose()


def test_a_predecessors_statistics_are_replaced_where_its_logs_are_and_frozen_where_not(predecessor: Books):
    assert assert_never_green_and_wrong(predecessor) == set()
    assert predecessor.is_right(STATS.name, OLD)
    assert predecessor.is_right(STATS.name, NEVER)
    assert ledger.days_by_status(predecessor.db, ["frozen"])[NEVER] == [STATS.name]


@pytest.mark.parametrize("change", [add(1), add(-5), exchange, delete_row, insert_row])
def test_a_changed_frozen_day_stays_red_until_a_person_accepts_it(predecessor: Books, change):
    predecessor.change(change(STATS, NEVER))
    for _ in range(3):
        assert found(predecessor) == {(STATS.name, NEVER)}
        predecessor.rebuild()
    changed = predecessor.now(STATS.name, NEVER)
    predecessor.rebuild(KEEP, [NEVER])
    assert found(predecessor) == set()
    assert predecessor.now(STATS.name, NEVER) == changed
    predecessor.change(add(1)(STATS, NEVER))
    assert found(predecessor) == {(STATS.name, NEVER)}


def test_late_rows_do_not_replace_a_frozen_days_statistics(predecessor: Books):
    predecessor.write([row(noon(NEVER))] * 30)
    before = predecessor.now(STATS.name, NEVER)
    for _ in range(3):
        predecessor.rebuild()
        assert predecessor.now(STATS.name, NEVER) == before
    rebase(predecessor.db)
    predecessor.rebuild()
    assert predecessor.now(STATS.name, NEVER) == before


# -- Rebase ------------------------------------------------------------------------------------------------------------


def test_a_rebase_makes_nothing_green(books: Books):
    others = Database(books.owner, LOG, "UTC")
    books.change(add(3)(STATS, OLD))
    books.change(exchange(LOCALITIES, PRUNED))
    books.change(
        f"delete from calculation_logs where created_at >= '{YESTERDAY}Z' and created_at < '{YESTERDAY} 09:00Z'"
    )
    assert {day for _, day in found(books)} == {OLD, PRUNED, YESTERDAY}
    rebase(others)
    for _ in range(3):
        books.rebuild()
        red = assert_never_green_and_wrong(books)
        assert red == {(LOCALITIES.name, PRUNED), *((name, YESTERDAY) for name in FORMS)}
    assert books.is_right(STATS.name, OLD)


def test_late_rows_after_a_rebase_do_not_hide_a_known_loss(books: Books):
    books.change(f"delete from calculation_logs where {SOME}")
    assert {day for _, day in found(books)} == {OLD}
    rebase(Database(books.owner, LOG, "UTC"))
    books.write([row(noon(OLD))] * 9)
    for _ in range(3):
        books.rebuild()
    assert {day for _, day in found(books)} == {OLD}


def test_a_rebase_leaves_a_frozen_day_frozen(predecessor: Books):
    rebase(predecessor.db)
    report = predecessor.rebuild()
    assert [each.reason for each in report.refused if each.day == NEVER] == ["frozen"]
    assert report.failed == []
    assert ledger.days_by_status(predecessor.db, ["frozen"])[NEVER] == [STATS.name]
    assert found(predecessor) == set()


# -- A rollup that is switched off and on ------------------------------------------------------------------------------


@dataclass
class Switch:
    """Switches a rollup off, and on again."""

    books: Books
    rollup: Rollup

    def off(self) -> None:
        """Without it."""
        self.books.db = Database(self.books.db.engine, self._without(), "UTC")
        install(Database(self.books.owner, self._without(), "UTC"))

    def on(self) -> None:
        """With all."""
        self.books.db = Database(self.books.db.engine, LOG, "UTC")
        install(Database(self.books.owner, LOG, "UTC"))

    def _without(self):
        return LOG.only([name for name in LOG.names if name != self.rollup.name])


@some_rollups
def test_a_rollup_that_was_off_fills_itself(books: Books, rollup: Rollup):
    switch = Switch(books, rollup)
    switch.off()
    for day in UNPRUNED:
        books.late(day)
    books.change(add(7)(rollup, OLD))
    switch.on()
    for _ in range(3):
        books.rebuild()
        assert assert_never_green_and_wrong(books) == set()
    assert all(books.is_right(name, day) for name in FORMS for day in DAYS)


@some_rollups
@pytest.mark.parametrize("again", [40, 45], ids=["as many", "more"])
def test_rows_pruned_while_a_rollup_was_off_are_not_forgotten(books: Books, rollup: Rollup, again: int):
    """The log has as many rows as the rollup once counted, or more; they are other rows."""
    switch = Switch(books, rollup)
    switch.off()
    assert prune(books.db, YESTERDAY).rows_by_day == {OLD: 40}
    books.late(OLD, again)
    switch.on()
    for decision in (AUTOMATIC, AUTOMATIC, PERSON, KEEP):
        books.rebuild(decision, [OLD])
        assert_never_green_and_wrong(books)
        assert (rollup.name, OLD) not in built(books) or books.is_right(rollup.name, OLD)


@some_rollups
def test_the_same_rows_pruned_and_written_again_while_a_rollup_was_off(books: Books, rollup: Rollup, connect):
    writer = connect()
    rows = writer.execute(f"select {COPIED} from calculation_logs where {OF_OLD}").fetchall()
    writer.commit()
    switch = Switch(books, rollup)
    switch.off()
    prune(books.db, YESTERDAY)
    books.write(rows)
    refresh(books.db)
    for name in FORMS:
        of_day = books.of(name, OLD)
        books.truth[name] |= {key: tuple(2 * value for value in values) for key, values in of_day.items()}
    switch.on()
    for _ in range(3):
        books.rebuild()
        assert assert_never_green_and_wrong(books) == set()
        assert (rollup.name, OLD) not in built(books) or books.is_right(rollup.name, OLD)


@some_rollups
def test_rows_deleted_while_a_rollup_was_off_are_missing_in_it_too(books: Books, rollup: Rollup):
    switch = Switch(books, rollup)
    switch.off()
    books.late(OLD, 5)
    books.change(f"delete from calculation_logs where {OF_OLD} and response_time_ms >= 300 and response_time_ms < 305")
    switch.on()
    for decision in (AUTOMATIC, AUTOMATIC, KEEP):
        books.rebuild(decision, [OLD])
        assert_never_green_and_wrong(books)
        assert (rollup.name, OLD) not in built(books) or books.is_right(rollup.name, OLD)


def built(books: Books) -> set[Key]:
    """The rollups and days that are built and that nothing is reported of."""
    days = ledger.days_by_status(books.db, ["built"])
    return {(name, day) for day, names in days.items() for name in names} - found(books)


# -- All at once -------------------------------------------------------------------------------------------------------


def test_rebuilds_refreshes_prunes_and_proofs_at_once_leave_a_change_red_or_repaired(books: Books, connect):
    writer, rng, written = connect(), random.Random(9), [0]

    def writing() -> None:
        write(writer, [row(noon(rng.choice(DAYS)), publisher=rng.randint(1, 3))] * 3)
        written[0] += 3
        time.sleep(0.01)

    def changing() -> None:
        day, rollup = rng.choice(UNPRUNED[1:]), rng.choice(LOG.rollups)
        try:
            books.change(rng.choice([add(1), add(-50), exchange, delete_row])(rollup, day))
        except OperationalError as error:
            # A change of two rows may be chosen to give way to a refresh of the same two: then nothing was changed.
            if sqlstate(error) != "40P01":
                raise
        time.sleep(0.05)

    works = [
        writing,
        changing,
        lambda: refresh(books.db),
        lambda: rebuild(books.db, DAYS, decision=AUTOMATIC),
        lambda: prune(books.db, YESTERDAY, batch_rows=20),
        lambda: audit(books.db),
    ]
    before = stored(books.db)
    with Crowd(*works):
        time.sleep(4)
    for _ in range(3):
        rebuild(books.db, DAYS, decision=AUTOMATIC)
    # Prune was at work on the older day: changes of it may have to stay red.
    red = found(books)
    assert {day for _, day in red} <= {OLD}
    if (STATS.name, OLD) not in red:
        total = sum(values[0] for values in before.values()) + written[0]
        assert sum(values[0] for values in stored(books.db).values()) == total
    logs = oracles(books.db)
    for name in FORMS:
        for day in (YESTERDAY, TODAY):
            assert books.now(name, day) == {key: value for key, value in logs[name].items() if key[-1] == day}


def test_changes_of_pruned_days_survive_everything_at_once(books: Books):
    books.change(exchange(STATS, PRUNED))
    rng = random.Random(4)
    works = [
        lambda: books.write([row(noon(rng.choice(DAYS)), publisher=rng.randint(1, 3))] * 3),
        lambda: refresh(books.db),
        lambda: rebuild(books.db, DAYS, decision=AUTOMATIC),
        lambda: prune(books.db, YESTERDAY, batch_rows=20),
    ]
    with Crowd(*works):
        time.sleep(2)
    assert found(books) == {(STATS.name, PRUNED)}
