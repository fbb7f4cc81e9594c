"""Any order of writing, counting, archiving, pruning, erasing, killing and rebasing: at every step each row that was
ever written, and not erased, is in the log or in the archive, and no row is in the archive twice."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import Engine

from calc_analytics.archive.checking import check, opened, prove_day
from calc_analytics.archive.erasing import erase_archived
from calc_analytics.archive.place import Archive
from calc_analytics.archive.writing import archive
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.erasure import NothingToErase, erase
from calc_analytics.rollup.install import rebase
from calc_analytics.rollup.ledger import built_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.reports import RebuildReport
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.archives import archive_in, counted_in, log_rows, manifest, record
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.integration.test_archive import Killed, interrupt
from calc_analytics_tests.logs import FORMS, all_stored, copy_rows, execute, random_rows, stored, utc

DAYS = (date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3))
BEGIN, END = utc(2026, 3, 1), utc(2026, 3, 4)
MOMENTS = ("noted", "half", "file", "manifest", "deleting")
STEPS, SEEDS = 60, 3
Connect = Callable[[], psycopg.Connection]


class Model:
    """A database with its archive, and every row that was written to it and not erased, by day and id."""

    def __init__(self, place: Archive, owner: Engine, writer: psycopg.Connection, seed: int) -> None:
        self.place, self.owner, self.writer, self.rng = place, owner, writer, random.Random(seed)
        self.db: Database = place.db
        self.written: dict[date, set[int]] = {day: set() for day in DAYS}
        self.is_open = False

    def write(self) -> None:
        """Rows of any day, in a transaction that stays open for a while or not."""
        copy_rows(self.writer, random_rows(self.rng, self.rng.randint(1, 40), BEGIN, END, publishers=4))
        self.is_open = self.rng.random() < 0.3
        if not self.is_open:
            self.commit()

    def commit(self) -> None:
        self.writer.commit()
        self.is_open = False
        for day in DAYS:
            self.written[day].update(row[0] for row in log_rows(self.db, day))

    def count(self) -> None:
        refresh(self.db)

    def rebuild(self) -> None:
        rebuild(self.db, self.rng.sample(DAYS, 2))

    def rebuild_from_archive(self) -> None:
        """Two days whose statistics another program has changed become what they were, from wherever their rows are."""
        refresh(self.db)
        before, days = all_stored(self.db), self.rng.sample(DAYS, 2)
        for relation in FORMS:
            for day in days:
                execute(self.db, f"delete from {relation} where date = '{day}' and publisher_id < 3")
        report = self.rebuilt(days)
        assert report.refused == []
        assert all_stored(self.db) == before
        pruned = {day for day in days if self.is_pruned(day)}
        assert pruned == {each.day for each in report.rebuilt if each.engine}

    def archive(self) -> None:
        archive(self.place)

    def archive_killed(self) -> None:
        """The archiving ends at some moment, or is done before."""
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, self.rng.choice(MOMENTS))
            with suppress(Killed):
                archive(self.place)

    def prune(self) -> None:
        before = self.rng.choice(DAYS)
        prune(self.db, before, batch_rows=20, prove_archived=lambda day: prove_day(self.place, day))

    def erase(self) -> None:
        """A publisher; the erasure in the archive may be killed once, and is repeated then."""
        if self.is_open:
            return
        publisher = self.rng.randint(1, 4)
        keys, held = {"publisher_id": publisher}, [row for day in DAYS for row in self.archived(day)]
        held += [row for day in DAYS for row in log_rows(self.db, day)]
        erased = {row[0] for row in held if row[1] == publisher}
        try:
            left = [each.day for each in erase(self.db, keys, even_if_writing=True).left]
        except NothingToErase:
            return
        assert left == []
        with pytest.MonkeyPatch.context() as patch:
            if self.rng.random() < 0.5:
                interrupt(patch, self.rng.choice(MOMENTS))
            with suppress(Killed):
                erase_archived(self.place, keys)
        erase_archived(self.place, keys)
        for day in DAYS:
            self.written[day] -= erased
            assert not [row for row in self.archived(day) if row[1] == publisher]

    def rebase(self) -> None:
        """Whatever is pruned or archived: afterwards each day is rebuilt, from wherever its rows are."""
        self.commit()
        refresh(self.db)
        before = all_stored(self.db)
        rebase(replace(self.db, engine=self.owner))
        if self.rng.random() < 0.5:
            rebuild(self.db, DAYS)
        archive(self.place)
        assert self.rebuilt(DAYS).refused == []
        assert all_stored(self.db) == before

    def rebuilt(self, days: Sequence[date]) -> RebuildReport:
        archived = counted_in(self.place)
        return rebuild(self.db, days, archived=archived)

    def is_pruned(self, day: date) -> bool:
        with self.db.engine.begin() as connection:
            entries = ledger.entries(connection, self.db.log.rollups, [day]).values()
        return any(entry.has_deletions for entry in entries)

    def archived(self, day: date) -> list[tuple[Any, ...]]:
        """Rows (id, publisher) of the files that the day's manifest names."""
        if record(self.place, day).manifest is None:
            return []
        found: list[tuple[Any, ...]] = []
        for name in manifest(self.place, day).names:
            with opened(self.place, name) as file:
                table = file.read(["id", "publisher_id"])
            found += zip(*(table.column(each).to_pylist() for each in ("id", "publisher_id")), strict=True)
        return found

    def require_exact(self) -> None:
        """What holds after every step."""
        for day in DAYS:
            ids = [row[0] for row in self.archived(day)]
            assert len(ids) == len(set(ids)) == record(self.place, day).rows
            assert set(ids) | {row[0] for row in log_rows(self.db, day)} == self.written[day]
        built = built_days(self.db)
        assert verify(self.db, built).difference == 0
        assert verify(self.db, built).archive == []
        assert check(self.place).problems == []


@pytest.fixture
def model(db: Database, owner: Engine, connect: Connect, tmp_path: Path, seed: int) -> Model:
    execute(db, f"grant delete on calculation_logs to {ROLE}")
    rebuild(db, DAYS)
    return Model(archive_in(db, tmp_path / "archive"), owner, connect(), seed)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_order_of_events_loses_or_doubles_a_row(model: Model, seed: int):
    steps = [model.write, model.commit, model.count, model.rebuild, model.archive, model.archive_killed]
    steps += [model.write, model.count, model.archive, model.prune, model.erase, model.rebase]
    steps += [model.prune, model.rebuild_from_archive]
    for n in range(STEPS):
        step = model.rng.choice(steps)
        try:
            step()
            model.require_exact()
        except AssertionError as error:
            raise AssertionError(f"step {n} of seed {seed}: {step.__name__}") from error
    model.commit()
    refresh(model.db)
    archive(model.place)
    model.require_exact()
    counted = dict.fromkeys(DAYS, 0)
    for (_, day), measures in stored(model.db).items():
        counted[day] += measures[0]
    assert {day: len(model.archived(day)) for day in DAYS} == counted
    assert {day: len(ids) for day, ids in model.written.items()} == counted
