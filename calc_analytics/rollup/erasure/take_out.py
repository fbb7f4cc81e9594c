"""One day of an erasure: log rows and statistics are deleted, and the ledger is lowered by as much.

Every function works inside the caller's transaction, which holds the state's lock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import WHOLE_DAYS
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import KEYS_HASH, Rollup
from calc_analytics.rollup.erasure.keys import Keys, describe_keys, matches, parameters
from calc_analytics.rollup.erasure.report import LeftDay
from calc_analytics.rollup.snapshot import Snapshot, visible
from calc_analytics.rollup.windows import Window, of_day


class DayLeft(Exception):
    """The day cannot be erased, or not now."""

    def __init__(self, day: LeftDay) -> None:
        super().__init__(str(day))
        self.day = day


@dataclass(frozen=True)
class Books:
    """A transaction in which rows of the keys are taken out, at the snapshot up to which rows are counted."""

    connection: Connection
    db: Database
    keys: Keys
    counted: Snapshot

    def whole_rollups(self, day: date) -> list[Rollup]:
        """The rollups that have counted the day's log rows. Raises `DayLeft` if the day cannot be erased now.

        Of a day that was never counted whole (pending, frozen) log rows are in no statistics that the ledger records.
        """
        entries = ledger.entries(self.connection, self.db.log.rollups, [day])
        found = []
        for rollup in self.db.log.rollups:
            entry = entries.get((rollup.name, day))
            if entry is None or entry.counted is None:
                continue
            if entry.is_different:
                raise DayLeft(LeftDay(day, "differs"))
            if entry.status in ("stale", "overflow"):
                raise DayLeft(LeftDay(day, "waits" if entry.status == "stale" else "overflow", rollup.name))
            if entry.deleted is not None:
                found.append(rollup)
            elif rollup.keys_of(self.keys) is None and any(entry.counted.values()):
                raise DayLeft(LeftDay(day, "unknown", rollup.name))
        return found

    def require_known(self, span: Window) -> None:
        """Raises `DayLeft` if a rollup without the keys has counted log rows of theirs that were deleted since."""
        whole = self.whole_rollups(span.day)
        entries = ledger.entries(self.connection, whole, [span.day])
        for rollup in whole:
            is_summing = rollup.keys_of(self.keys) is None
            if is_summing and entries[rollup.name, span.day].has_deletions and not self._has_all_log_rows(span, whole):
                raise DayLeft(LeftDay(span.day, "unknown", rollup.name))

    def _has_all_log_rows(self, span: Window, whole: Sequence[Rollup]) -> bool:
        """Whether the log has as many rows of the keys as the statistics that hold them."""
        return self._counted_rows(span) in self._stored_rows(whole, span.day)

    def _counted_rows(self, span: Window) -> int:
        """The keys' log rows of the day that are counted."""
        self.connection.execute(WHOLE_DAYS)
        condition = f"{of_day(self.db.log.event_time, span)} and {matches(self.keys)} and {visible('s1')}"
        statement = text(f"select count(*) from {self.db.log.name} where {condition}")
        values = {**span.parameters(), "tz": self.db.timezone, **parameters(self.keys), **self.counted.bind("s1")}
        return int(self.connection.execute(statement, values).scalar_one())

    def _stored_rows(self, whole: Sequence[Rollup], day: date) -> set[int]:
        """The keys' log rows of the day, according to the rollups that have the keys."""
        found = set()
        for rollup in whole:
            if columns := rollup.keys_of(self.keys):
                rows = f"select coalesce(sum({rollup.count}), 0) from {rollup.name}"
                statement = text(f"{rows} where date = :day and {matches(self.keys, columns)}")
                found.add(int(self.connection.execute(statement, {"day": day, **parameters(self.keys)}).scalar_one()))
        return found

    def take_out_rows(self, span: Window, ids: Sequence[int]) -> dict[str, int]:
        """Deletes these log rows of the day; takes those that are counted out of the statistics and of the ledger.

        Returns the rows deleted from each table. Raises `DayLeft`, with nothing changed.
        """
        whole = self.whole_rollups(span.day)
        values = {"ids": list(ids), "tz": self.db.timezone, **span.parameters(), **self.counted.bind("s1")}
        record = ledger.archived_days(self.connection, self.db.log, [span.day]).get(span.day)
        archived = record.snapshot if record is not None and whole else None
        values.update({} if archived is None else archived.bind("s0"))
        is_archived = "false" if archived is None else visible("s0")
        statement = text(_take_out_sql(self.db, self.keys, of_day(self.db.log.event_time, span), whole, is_archived))
        row = self.connection.execute(statement, {**values, **parameters(self.keys)}).mappings().one()
        if row["rows"] and record is not None and record.manifest is not None and record.snapshot is None:
            raise DayLeft(LeftDay(span.day, "archive"))
        self._owe(span.day, row["archived"])
        for n, rollup in enumerate(whole):
            totals = {name: int(value) for name, value in (row[f"totals_{n}"] or {}).items()}
            ledger.take_out(self.connection, rollup, span.day, totals, {}, row[f"hash_{n}"])
        emptied = {rollup.name: self._delete_empty(rollup, span.day) for rollup in whole}
        return {self.db.log.name: int(row["rows"]), **emptied}

    def _owe(self, day: date, rows: int) -> None:
        """So many rows of the day, which were counted, are still to be erased from its archive."""
        ledger.owe_erasure(self.connection, self.db.log, day, describe_keys(self.keys), rows)

    def _delete_empty(self, rollup: Rollup, day: date) -> int:
        """Of a rollup without the keys, rows of statistics in which nothing is left."""
        if rollup.keys_of(self.keys) is not None:
            return 0
        return self._delete_rows(rollup, day, rollup.each_measure("t.{name} = 0", " and "), is_kept=True)

    def owe_deleted_rows(self, day: date) -> None:
        """What is left of the keys' statistics is of log rows that were deleted before: archived, or missing there.

        How many is what the first rollup loses, since its rows are those that the archive is compared with.
        """
        whole = self.whole_rollups(day)
        first = [rollup for rollup in whole if rollup.name == self.db.log.names[0]]
        self._owe(day, max(self._stored_rows(first, day) or self._stored_rows(whole, day), default=0))

    def delete_statistics(self, rollup: Rollup, day: date, is_kept: bool) -> int:
        """Deletes the keys' statistics of the day, once their counted log rows are gone. Returns how many rows.

        Of a rollup that is not kept it is not known how many of its log rows had been deleted before.
        """
        columns = rollup.keys_of(self.keys)
        if columns is None:
            return 0
        condition = matches(self.keys, {name: f"t.{column}" for name, column in columns.items()})
        return self._delete_rows(rollup, day, condition, is_kept)

    def _delete_rows(self, rollup: Rollup, day: date, condition: str, is_kept: bool) -> int:
        statement = f"""
            with gone as (
                delete from {rollup.name} t where t.date = :day and {condition}
                returning {rollup.columns}, {rollup.hash_of("t")} as rollup_hash
            )
            select count(*) as rows, {rollup.each_measure("coalesce(sum({name}), 0) as {name}")},
                   coalesce(sum({rollup.keys_hash("{name}")}), 0) as keys_hash,
                   coalesce(sum(rollup_hash), 0) as hash_of_rows
            from gone
        """
        row = self.connection.execute(text(statement), {"day": day, **parameters(self.keys)}).mappings().one()
        if row["rows"]:
            totals = {name: int(row[name]) for name in rollup.measure_names}
            deleted = {**totals, KEYS_HASH: int(row["keys_hash"])} if is_kept else {}
            ledger.take_out(self.connection, rollup, day, totals, deleted, -row["hash_of_rows"])
            if not is_kept:
                ledger.freeze_if_pruned(self.connection, rollup, day)
        return int(row["rows"])


def _take_out_sql(db: Database, keys: Keys, is_of_day: str, rollups: Sequence[Rollup], is_archived: str) -> str:
    """Deletes log rows and lowers the statistics by their measures. One row: how many log rows, and how many of them
    were counted and archived; per rollup the totals that were taken out, and by how much the sum of its rows' hashes
    changed."""
    log, parts, results = db.log, list[str](), list[str]()
    columns = ", ".join(sorted({log.event_time}.union(*(rollup.reads for rollup in rollups))))
    for n, rollup in enumerate(rollups):
        parts.append(_lowered(rollup, n))
        results.append(
            f"(select {rollup.totals_json('coalesce(sum({name}), 0)')} from part_{n}) as totals_{n}, "
            f"(select coalesce(sum(hash_change), 0) from lowered_{n}) as hash_{n}"
        )
    return f"""
    with gone as (
        delete from {log.name} where {log.id_column} = any(:ids) and {is_of_day} and {matches(keys)}
        returning {columns}, {visible("s1")} as rollup_counted, {is_archived} as rollup_archived
    ){"".join(f", {part}" for part in parts)}
    select (select count(*) from gone) as rows,
           (select count(*) from gone where rollup_counted and rollup_archived) as archived
           {"".join(f", {result}" for result in results)}
    """


def _lowered(rollup: Rollup, n: int) -> str:
    """CTEs: the deleted rows' measures by keys, and the statistics less those."""
    before = {name: f"t.{name}" for name in [*rollup.keys, "date"]}
    before.update({name: f"t.{name} + p.{name}" for name in rollup.measure_names})
    same = " and ".join(f"t.{name} = p.{name}" for name in rollup.keys)
    return f"""
    part_{n} as (
        select {rollup.key_selects}, {rollup.measure_selects} from gone where rollup_counted group by {rollup.group_by}
    ),
    lowered_{n} as (
        update {rollup.name} t set {rollup.each_measure("{name} = t.{name} - p.{name}")}
        from part_{n} p where t.date = :day and {same}
        returning {rollup.hash_of("t")} - {rollup.row_hash.format(**before)} as hash_change
    )"""
