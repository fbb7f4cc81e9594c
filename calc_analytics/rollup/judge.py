"""Judge: which recounted days may replace the stored ones. No difference is accepted automatically.

Compares three totals of each day: the log rows recounted now, what was `counted`, and what is known to be `deleted`.
Where they balance, the log is the truth. Where they do not, log rows vanished, were moved or were changed: the day is
left alone until a person decides, unless the deletion was announced (`LOGS_KEPT_DAYS`).
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import Enum

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import KEYS_HASH, Log, Rollup
from calc_analytics.rollup.reports import SkippedDay
from calc_analytics.rollup.totals import keys_hash, no_totals, totals_by_day
from calc_analytics.rollup.windows import Window, of_day, windows

Totals = Mapping[str, int]


class Decision(Enum):
    """What a rebuild may do to a day whose log is not what was counted.

    AUTOMATIC (schedule, sensor): leave it alone. NONE (a person who gave no option): recount it, unless log rows
    vanished. KEEP: keep its statistics, and note the difference as deleted. ALLOW_SHRINK: recount it from what is left.
    """

    AUTOMATIC = "automatic"
    NONE = "none"
    KEEP = "keep"
    ALLOW_SHRINK = "allow_shrink"


@dataclass
class Judgement:
    """The days to replace or to add to, with the rows stored for them; those left alone; those kept with the difference
    noted."""

    replace: dict[date, int] = field(default_factory=dict)
    add: dict[date, int] = field(default_factory=dict)
    refused: list[SkippedDay] = field(default_factory=list)
    kept: list[SkippedDay] = field(default_factory=list)


@dataclass(frozen=True)
class _Day:
    """A day's totals: in the log (recounted), stored in the target, and in the ledger."""

    span: Window
    log: Totals
    stored: Totals
    entry: ledger.Entry | None
    deleted_by_log: int
    """Rows that some rollup of the log counted and that were deleted since."""
    counted_by_others: int | None
    """Rows that another rollup counted, the most of any; None: no other counted the day whole."""
    is_cut: bool
    """Whether it shares instants with a day of another zone of which log rows were deleted."""
    is_whole: bool
    """Whether the recounted rows are all that were ever counted: those in the archive, and the log rows beside it."""


@dataclass(frozen=True)
class LedgerDays:
    """The ledger's records of a chunk of days, in all rollups, before any of them is judged."""

    log: Log
    timezone: str
    entries: Mapping[tuple[str, date], ledger.Entry]

    @classmethod
    def read(cls, connection: Connection, db: Database, days: Sequence[date]) -> "LedgerDays":
        """As it is now, under the state's lock; with the adjacent days, whose rows another zone moves."""
        adjacent = {day + timedelta(days=step) for day in days for step in (-1, 0, 1)}
        rollups = [*db.log.rollups, *db.log.switched_off]
        return cls(db.log, db.timezone, ledger.entries(connection, rollups, sorted(adjacent)))

    def entry(self, rollup: Rollup, day: date) -> ledger.Entry | None:
        """The rollup's own row of the ledger."""
        return self.entries.get((rollup.name, day))

    def deleted_by_log(self, day: date) -> int:
        """Rows of the day that are known to be deleted, by the rollup with the highest number."""
        known = ((rollup, self.entry(rollup, day)) for rollup in self.log.rollups)
        return max((_rows(rollup, entry.deleted) for rollup, entry in known if entry is not None), default=0)

    def counted_by_others(self, rollup: Rollup, day: date) -> int | None:
        """Rows that another rollup counted, the most of any that counted the day whole.

        Rollups that are switched off count only where no other did: they lack later decisions.
        """
        kept = self._counted(rollup, self.log.rollups, day)
        return self._counted(rollup, self.log.switched_off, day) if kept is None else kept

    def has_gaps(self, day: date) -> bool:
        """Whether log rows of the day are known to be deleted, or gone, in this zone."""
        known = [each for (_, of_day), each in self.entries.items() if of_day == day]
        is_of_this_zone = all(each.timezone in (None, self.timezone) for each in known)
        return is_of_this_zone and any(each.has_deletions or each.status == "frozen" for each in known)

    def is_built(self, day: date) -> bool:
        """Whether the day is built in some rollup, so that late rows are added to it."""
        known = (self.entry(rollup, day) for rollup in self.log.rollups)
        return any(entry is not None and entry.status == "built" for entry in known)

    def counted_whole(self, day: date) -> int | None:
        """Rows that were counted of the day, by a rollup that counted it whole; None: none did."""
        kept = self._counted(None, self.log.rollups, day)
        return self._counted(None, self.log.switched_off, day) if kept is None else kept

    def _counted(self, rollup: Rollup | None, others: Sequence[Rollup], day: date) -> int | None:
        known = ((other, self.entry(other, day)) for other in others if rollup is None or other.name != rollup.name)
        whole = [(other, entry) for other, entry in known if entry is not None and entry.is_whole_in(self.timezone)]
        return max((_rows(other, entry.counted) for other, entry in whole), default=None)

    def cut_days(self, day: date) -> list[tuple[date, str]]:
        """This day and its adjacent ones, with their zones: those that are of another zone and lost log rows."""
        return [
            (entry.day, str(entry.timezone))
            for (name, _), entry in self.entries.items()
            if abs((entry.day - day).days) <= 1 and entry.timezone not in (None, self.timezone) and entry.has_deletions
        ]


def judge(
    connection: Connection,
    db: Database,
    rollup: Rollup,
    spans: list[Window],
    decision: Decision,
    known: LedgerDays,
    whole: Container[date] = (),
) -> Judgement:
    """Judges the recounted days of a rollup, under the state's lock. Writes into the ledger what is kept or frozen.

    The days in `whole` were recounted with the rows that are in the archive only, and have as many as were counted.
    """
    days = [span.day for span in spans]
    logs = totals_by_day(connection, rollup, days, recount_table(rollup))
    stored = totals_by_day(connection, rollup, days)
    nothing = no_totals(rollup)
    judging = _Judge(connection, db, rollup, decision)
    for span in spans:
        day, others = span.day, known.counted_by_others(rollup, span.day)
        entry, deleted = known.entry(rollup, day), known.deleted_by_log(day)
        log, held = logs.get(day, nothing).measures, stored.get(day, nothing).measures
        is_cut = any(_overlap(connection, span, *cut) for cut in known.cut_days(day))
        judging.judge(_Day(span, log, held, entry, deleted, others, is_cut, day in whole))
    return judging.judgement


def recount_table(rollup: Rollup) -> str:
    """The temporary table that holds the recounted days of a rollup."""
    return f"recounted_{rollup.name}"


def _overlap(connection: Connection, span: Window, day: date, timezone: str) -> bool:
    """Whether the day of the other zone shares instants with the span."""
    (other,) = windows(connection, [day], timezone)
    return span.begin < other.end and other.begin < span.end


def _rows(rollup: Rollup, totals: Totals | None) -> int:
    return int((totals or {}).get(rollup.count, 0))


class _Judge:
    """One judgement over the days of one rollup."""

    def __init__(self, connection: Connection, db: Database, rollup: Rollup, decision: Decision) -> None:
        self.connection, self.db, self.rollup, self.decision = connection, db, rollup, decision
        self.judgement = Judgement()

    def judge(self, day: _Day) -> None:
        """Sorts the day into one of the three lists."""
        if self.decision is Decision.ALLOW_SHRINK:
            self._replace(day)
        elif day.entry is not None and self._needs_decision(day.entry):
            self._leave(day, "undecided" if day.entry.log_finding == "logs_missing" else "differs", day.entry)
        elif day.is_whole:
            self._judge_whole(day)
        elif day.entry is not None and self._has_late_rows_to_lose(day, day.entry):
            self._leave(day, "late", day.entry)
        elif self._lacks_rows(day) or self._is_cut(day):
            self._freeze(day)
        elif day.entry is None or day.entry.counted is None:
            self._judge_never_counted(day)
        elif day.entry.deleted is None:
            self._judge_frozen(day, day.entry, day.entry.counted)
        elif day.entry.timezone not in (None, self.db.timezone):
            self._judge_of_another_zone(day, day.entry)
        else:
            self._judge_counted(day, day.entry)

    def _judge_whole(self, day: _Day) -> None:
        """Its rows are there, whatever the log lacks: it is replaced, unless other values were counted of as many rows.

        Statistics of more rows, of which none was counted here, are another program's.
        """
        counted = None if day.entry is None or day.entry.deleted is None else day.entry.counted
        if counted is None and self._rows(day.stored) > self._rows(day.log):
            self.judgement.refused.append(self._describe_day(day, "differs", day.stored))
        elif counted is not None and day.entry is not None and self._has_other_values(day.log, counted):
            self._leave(day, "differs", day.entry)
        else:
            self._replace(day)

    def _has_other_values(self, log: Totals, counted: Totals) -> bool:
        """Whether as many rows were counted as there are, but other values; a person may recount them.

        A measure that was added since was not counted.
        """
        is_different = any(log[name] != counted[name] for name in log if name in counted)
        is_as_many = self._rows(log) == self._rows(counted)
        return is_different and is_as_many and self.decision is Decision.AUTOMATIC

    def _needs_decision(self, entry: ledger.Entry) -> bool:
        """Whether the log was found different, and the day was not added to since: late rows could be as many.

        A person who gave no option may recount it, unless log rows are missing.
        """
        if entry.status == "built" or entry.log_finding is None:
            return False
        may_recount = self.decision is Decision.NONE and entry.log_finding != "logs_missing"
        return not may_recount and self.decision is not Decision.KEEP

    def _has_late_rows_to_lose(self, day: _Day, entry: ledger.Entry) -> bool:
        """Whether keeping the statistics would lose rows that came after the counting was restarted (`rebase`)."""
        is_behind = entry.status in ("stale", "frozen") and entry.deleted is not None
        return self.decision is Decision.KEEP and is_behind and self._has_rows(day.span, "xact_id is not null")

    def _lacks_rows(self, day: _Day) -> bool:
        """Whether the log lacks rows that other rollups counted while this one was not kept up to date.

        It was switched off, or is new, so its own counts prove nothing. Its statistics stay as they are.
        """
        own = self._rows(day.entry.counted if day.entry is not None else None)
        is_built = day.entry is not None and day.entry.status == "built"
        if day.counted_by_others is None or is_built or own >= day.counted_by_others:
            return False
        deleted = self._rows(day.entry.deleted if day.entry is not None else None)
        return self._rows(day.log) + deleted < day.counted_by_others

    def _is_cut(self, day: _Day) -> bool:
        """Whether rows that the reporting zone puts into this day were deleted as rows of an adjacent day."""
        return day.is_cut and not (day.entry is not None and day.entry.has_deletions)

    def _judge_never_counted(self, day: _Day) -> None:
        """Statistics of a predecessor, if any. It counted log rows from before this project more than once."""
        is_predecessors = day.entry is not None and day.entry.method == "predecessor"
        surplus = self._rows(day.stored) > self._rows(day.log)
        if day.deleted_by_log:
            self._freeze(day)
        elif not surplus or (is_predecessors and self._has_rows(day.span, "xact_id is null")):
            self._replace(day)
        elif is_predecessors or self.decision is Decision.KEEP:
            self._freeze(day)
        else:
            # Another program wrote them: nothing was counted, and no deletion of log rows was announced.
            ledger.freeze(self.connection, self.db, self.rollup, day.span.day, {})
            self.judgement.refused.append(self._describe_day(day, "differs", day.stored))

    def _judge_frozen(self, day: _Day, entry: ledger.Entry, counted: Totals) -> None:
        """A day that was never counted whole here. It may be once its log rows are back, if a person decides so.

        Late rows could be as many. Statistics that another program wrote, of which nothing was counted, are replaced as
        soon as the log has as many rows; they are not deleted because it has fewer.
        """
        is_foreign = self._rows(counted) == 0
        is_there = self._rows(day.log) >= max(self._rows(counted), self._rows(day.stored)) and not day.deleted_by_log
        is_whole = max(self._rows(day.log), day.counted_by_others or 0) <= self._rows(day.stored)
        if self.decision is Decision.KEEP and is_whole:
            self._accept(day)
        elif is_there and (is_foreign or self.decision is not Decision.AUTOMATIC):
            self._replace(day)
        elif is_foreign:
            ledger.mark(self.connection, self.rollup, [day.span.day], "frozen")
            self.judgement.refused.append(self._describe_day(day, "differs", day.stored))
        else:
            self._leave(day, "frozen", entry)

    def _judge_of_another_zone(self, day: _Day, entry: ledger.Entry) -> None:
        """After a change of the reporting zone the log is compared by the day of the old zone."""
        in_old_zone = _rows_of_day(self.connection, self.db, day.span.day, str(entry.timezone))
        if self._rows(entry.deleted):
            self._leave(day, "frozen", entry)
        elif self._rows(entry.counted) > in_old_zone:
            self._leave(day, "differs", entry)
        else:
            self._replace(day)

    def _judge_counted(self, day: _Day, entry: ledger.Entry) -> None:
        counted, deleted = entry.counted or {}, entry.deleted or {}
        missing = {name: counted.get(name, 0) - day.log[name] - deleted.get(name, 0) for name in day.log}
        was_deleted, is_lost = any(deleted.values()), self._rows(missing) > 0
        # Not added to for a while: more log rows than were counted are what a rebuild is for.
        is_behind = entry.status in ("stale", "overflow") and not is_lost and not was_deleted
        if not any(missing.values()):
            self._judge_balanced(day, entry, was_deleted)
        elif is_behind or (self.decision is Decision.NONE and not is_lost and not was_deleted):
            self._replace(day)
        elif self._has_only_late_rows(day, entry):
            self.judgement.add[day.span.day] = self._rows(day.stored)
        elif is_lost and self._is_announced(day.span.day, missing):
            self._keep(day, counted, "announced")
        elif self.decision is Decision.KEEP and self._are_alike(day, deleted):
            self._accept(day)
        elif self.decision is Decision.KEEP and (is_lost or was_deleted) and self._rows(counted) >= self._rows(day.log):
            self._keep(day, counted, "keep")
        else:
            self._leave(day, "differs", entry)

    def _has_only_late_rows(self, day: _Day, entry: ledger.Entry) -> bool:
        """Whether all that was counted is deleted, and others counted what is there while this rollup was off."""
        counted_before, deleted = entry.counted or {}, entry.deleted or {}
        if entry.status != "stale" or any(deleted.get(name) != counted_before.get(name) for name in day.log):
            return False
        counted = self._rows(entry.counted) + self._rows(day.log)
        return day.counted_by_others == counted and ledger.is_intact(
            self.connection, self.rollup, day.span.day, dict(day.stored)
        )

    def _are_alike(self, day: _Day, deleted: Totals) -> bool:
        """Whether a person corrected log and statistics alike: they agree with each other, and not with the ledger."""
        return all(day.stored[name] == day.log[name] + deleted.get(name, 0) for name in day.log)

    def _judge_balanced(self, day: _Day, entry: ledger.Entry, was_deleted: bool) -> None:
        """The log is what was counted. It is the truth, unless a part of it was deleted since."""
        if not was_deleted:
            self._replace(day)
        elif self.decision is Decision.KEEP:
            self._accept(day)
        elif entry.status == "built":
            self.judgement.refused.append(self._describe_day(day, "pruned", entry.counted, entry.deleted))
        else:
            ledger.mark(self.connection, self.rollup, [day.span.day], "built")
            self.judgement.kept.append(self._describe_day(day, "pruned", entry.counted, entry.deleted))

    def _replace(self, day: _Day) -> None:
        self.judgement.replace[day.span.day] = self._rows(day.stored)

    def _leave(self, day: _Day, reason: str, entry: ledger.Entry) -> None:
        """Refuses the day. If it waits for a rebuild, no other is requested."""
        if entry.status == "stale":
            ledger.mark(self.connection, self.rollup, [day.span.day], "frozen")
        self.judgement.refused.append(self._describe_day(day, reason, entry.counted, entry.deleted))

    def _freeze(self, day: _Day) -> None:
        """Keeps the statistics of a day that cannot be counted whole. If other rollups counted another number, the
        origin of these is unknown: nothing is recorded as counted, so that the audit finds them."""
        counted = {} if self._contradicts_others(day) else dict(day.stored)
        ledger.freeze(self.connection, self.db, self.rollup, day.span.day, counted)
        self.judgement.refused.append(self._describe_day(day, "frozen" if counted else "differs", day.stored))

    def _contradicts_others(self, day: _Day) -> bool:
        """Whether these statistics, which were not counted here, are not as many rows as another rollup counted."""
        entry, stored = day.entry, self._rows(day.stored)
        is_known = entry is not None and (entry.counted is not None or entry.method == "predecessor")
        return stored > 0 and not is_known and day.counted_by_others not in (None, stored)

    def _keep(self, day: _Day, counted: Totals, reason: str) -> None:
        """Notes what the log lacks as deleted. Statistics that are not what was counted stay a difference."""
        if self._would_lose_rows(day):
            return
        deleted = {name: counted.get(name, 0) - day.log[name] for name in day.log} | self._keys_hash(day)
        by = "logs_kept_days" if reason == "announced" else "keep"
        is_intact = all(day.stored[name] == counted.get(name, 0) for name in day.log)
        ledger.record_kept(self.connection, self.rollup, day.span.day, deleted, by, is_intact)
        self.judgement.kept.append(self._describe_day(day, reason, counted, deleted))

    def _accept(self, day: _Day) -> None:
        """A person accepts the statistics of a pruned day as they are stored now.

        Either the log is the same, or a proof has reported the change: else the same command, given for a loss and
        repeated, would accept a change that was never reported.
        """
        if day.entry is not None and not self._is_known(day, day.entry):
            self._leave(day, "unproven", day.entry)
        elif not self._would_lose_rows(day):
            deleted = {name: day.stored[name] - day.log[name] for name in day.log} | self._keys_hash(day)
            ledger.record_accepted(self.connection, self.rollup, day.span.day, dict(day.stored), deleted)
            self.judgement.kept.append(self._describe_day(day, "keep", day.stored, deleted))

    def _is_known(self, day: _Day, entry: ledger.Entry) -> bool:
        """Whether the statistics are what was counted or what the log holds, or are known to differ."""
        if entry.statistics_differ or self._are_alike(day, entry.deleted or {}):
            return True
        return ledger.is_intact(self.connection, self.rollup, day.span.day, dict(day.stored))

    def _keys_hash(self, day: _Day) -> dict[str, int]:
        """The hash of the keys that the statistics have and the log has not: of those that are deleted."""
        stored, log = (
            keys_hash(self.connection, self.rollup, day.span.day, t) for t in (None, recount_table(self.rollup))
        )
        return {KEYS_HASH: stored - log}

    def _would_lose_rows(self, day: _Day) -> bool:
        """Whether the log has more rows than were counted and not deleted, which the statistics do not hold either."""
        entry = day.entry
        if entry is None or entry.deleted is None or self._are_alike(day, entry.deleted):
            return False
        if self._rows(day.log) + self._rows(entry.deleted) <= self._rows(entry.counted):
            return False
        self._leave(day, "late", entry)
        return True

    def _describe_day(
        self, day: _Day, reason: str, counted: Totals | None, deleted: Totals | None = None
    ) -> SkippedDay:
        log_rows, counted_rows, deleted_rows = map(self._rows, (day.log, counted, deleted))
        return SkippedDay(self.rollup.name, day.span.day, reason, log_rows, counted_rows, deleted_rows)

    def _rows(self, totals: Totals | None) -> int:
        return _rows(self.rollup, totals)

    def _is_announced(self, day: date, missing: Totals) -> bool:
        """Whether deletions of log rows of such a day were announced, and deleted rows explain the difference.

        As many rows as are missing, and no more, of each measure that counts rows; without missing rows nothing is.
        """
        if self.db.logs_kept_days is None:
            return False
        statement = text("select cast(clock_timestamp() at time zone :tz as date)")
        today: date = self.connection.execute(statement, {"tz": self.db.timezone}).scalar_one()
        rows = self._rows(missing)
        counts = [missing[each.name] for each in self.rollup.measures if each.is_count]
        is_explained = min(missing.values()) >= 0 and max(counts) <= rows
        return is_explained and day < today - timedelta(days=self.db.logs_kept_days)

    def _has_rows(self, span: Window, which: str) -> bool:
        """Whether the day has such log rows: without transaction ids they are from before this project or a rebase."""
        log = self.db.log
        statement = f"select exists (select from {log.name} where {of_day(log.event_time, span)} and {which})"
        parameters = {**span.parameters(), "tz": self.db.timezone}
        return bool(self.connection.execute(text(statement), parameters).scalar())


def _rows_of_day(connection: Connection, db: Database, day: date, timezone: str) -> int:
    """Log rows of the day in the zone in which its statistics were built."""
    (span,) = windows(connection, [day], timezone)
    statement = f"select count(*) from {db.log.name} where {of_day(db.log.event_time, span)}"
    return int(connection.execute(text(statement), {**span.parameters(), "tz": timezone}).scalar_one())
