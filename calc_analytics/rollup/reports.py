"""What the operations return: small, frozen, and shown alike by the CLI, Dagster and `--json`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from calc_analytics.plurals import number
from calc_analytics.rollup.snapshot import Snapshot

if TYPE_CHECKING:
    from calc_analytics.rollup.overflow import Misfit

# Of the keys that differ, so many are named in a line.
NAMED_KEYS = 3
_CHANGED = "log rows were changed"


@dataclass(frozen=True)
class DayCount:
    """One day of one rollup in a refresh or rebuild: the totals that were added (refresh) or that it now has (rebuild).

    `rows` are log rows, `keys` rows of the target. `status` is the day's in the ledger.
    """

    rollup: str
    day: date
    rows: int
    measures: dict[str, int]
    keys: int
    status: str
    rows_before: int = 0
    """Log rows that the day had before a rebuild."""


@dataclass(frozen=True)
class RefreshReport:
    """What a refresh counted, as of `snapshot`. Days whose status is not 'built' saw rows, but wait for a rebuild."""

    days: list[DayCount]
    seconds: float
    snapshot: Snapshot
    misfits: "Sequence[Misfit]" = ()
    """The values for which days were set aside on the way."""

    @property
    def counted(self) -> list[DayCount]:
        """What was added, per rollup and day."""
        return [day for day in self.days if day.status == "built"]

    @property
    def unbuilt(self) -> list[DayCount]:
        """What was not added, because the day is not built in that rollup."""
        return [day for day in self.days if day.status != "built"]

    @property
    def rows_by_day(self) -> dict[date, int]:
        """Log rows counted, per day; a row is counted once, however many rollups it is added to."""
        return _most_rows(self.counted)

    @property
    def waiting_by_day(self) -> dict[date, int]:
        """Log rows that some rollup did not count, per day."""
        return _most_rows(self.unbuilt)

    @property
    def rows(self) -> int:
        """Log rows counted."""
        return sum(self.rows_by_day.values())

    def __add__(self, other: "RefreshReport") -> "RefreshReport":
        misfits = [*self.misfits, *other.misfits]
        return RefreshReport(_summed(self.days + other.days), self.seconds + other.seconds, other.snapshot, misfits)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        return {
            "rows": self.rows,
            "days": _by_day(self.counted),
            "never_built_days": sorted({str(day.day) for day in self.unbuilt}),
            "seconds": round(self.seconds, 4),
        }


def _summed(days: list[DayCount]) -> list[DayCount]:
    """Counts of the same rollup, day and status added up; keys are the most that one of them touched."""
    found: dict[tuple[str, date, str], DayCount] = {}
    for each in days:
        key = (each.rollup, each.day, each.status)
        before = found.get(key)
        if before is not None:
            measures = {name: before.measures.get(name, 0) + value for name, value in each.measures.items()}
            keys = max(before.keys, each.keys)
            each = DayCount(each.rollup, each.day, before.rows + each.rows, measures, keys, each.status)
        found[key] = each
    return sorted(found.values(), key=lambda each: each.day)


def _most_rows(days: list[DayCount]) -> dict[date, int]:
    """The rows of each day, by the rollup that has most of it."""
    rows: dict[date, int] = {}
    for each in days:
        rows[each.day] = max(rows.get(each.day, 0), each.rows)
    return rows


def _by_day(days: list[DayCount]) -> dict[str, dict[str, dict[str, int]]]:
    found: dict[str, dict[str, dict[str, int]]] = {}
    for each in days:
        found.setdefault(str(each.day), {})[each.rollup] = each.measures
    return found


@dataclass(frozen=True)
class Refused:
    """A day of a rollup that a rebuild left as it is. `reason`: what it found.

    `log_rows` are those visible now, `counted_rows` those counted, `deleted_rows` those known to be deleted since.

    - differs: log rows vanished, were added to the past, or were changed, and nobody announced it
    - pruned: log rows were deleted after they were counted; the books balance
    - frozen: the day was never counted whole here, and its log rows are gone
    - undecided: its log was found different before, and what came since could hide that
    - late: it cannot be kept, because some of its log rows were never counted
    - unproven: it cannot be kept yet, because its statistics are not what was counted and no proof has reported that
    - overflow: `detail` names the column and the value that it cannot hold, `misfit` the same for programs
    """

    rollup: str
    day: date
    reason: str
    log_rows: int
    counted_rows: int
    deleted_rows: int = 0
    detail: str = ""
    misfit: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self._describe(self.rollup)

    def _describe(self, of: str) -> str:
        """What was found and what to do; `of` is the rollup's name, or what stands for several."""
        start = f"{self.day} of {of} was not rebuilt: "
        logs = number(self.log_rows, "log row")
        counted = f"{self.counted_rows:,} counted"
        deleted = f" and {self.deleted_rows:,} deleted since" if self.deleted_rows else ""
        decide = (
            f"Keep the statistics with 'calc-analytics rollup --day {self.day} --keep', or recount from what is left "
            f"with 'calc-analytics rollup --day {self.day} --allow-shrink'."
        )
        match self.reason:
            case "pruned":
                return (
                    f"{start}{self.deleted_rows:,} of its {counted} log rows were deleted. Its statistics stay; "
                    "--allow-shrink recounts it from what is left."
                )
            case "frozen":
                left = f"only {logs} of it left" if self.log_rows else "its log rows are gone"
                return (
                    f"{start}{left}, so it cannot be counted whole. Its statistics stay; "
                    f"'--rollup {self.rollup} --allow-shrink' counts what is left."
                )
            case "overflow":
                return f"{start}{self.detail}"
            case "late":
                return (
                    f"{start}{logs} and {counted}, but some of these log rows were never counted. Its statistics "
                    "cannot be kept without losing those; recount what is left with --allow-shrink."
                )
            case "undecided" if self.log_rows + self.deleted_rows >= self.counted_rows:
                return (
                    f"{start}log rows were missing when it was last compared, and nobody has decided since. There are "
                    f"{logs} now, {counted}: --keep keeps the statistics, unless rows came since; --allow-shrink "
                    "recounts what is there."
                )
            case "unproven":
                return (
                    f"{start}its statistics are not what was counted, which no proof has reported yet. Look at them "
                    f"with 'calc-analytics verify --day {self.day}', then repeat --keep to accept them as they are."
                )
            case _ if self.log_rows + self.deleted_rows < self.counted_rows:
                return f"{start}{logs} but {counted}{deleted}. {decide}"
            case _ if self.log_rows + self.deleted_rows > self.counted_rows:
                return (
                    f"{start}{logs}{deleted} but only {counted}: rows were moved into this day. Recount it with "
                    f"'calc-analytics rollup --day {self.day}'."
                    if not self.deleted_rows
                    else f"{start}{logs}{deleted} but only {counted}. {decide}"
                )
            case _:
                return (
                    f"{start}{logs}, as many as were counted, but other values: log rows were changed. Recount it with "
                    f"'calc-analytics rollup --day {self.day}'."
                    if not self.deleted_rows
                    else f"{start}{logs}{deleted}, as many as were counted, but other values. {decide}"
                )


def refusals(refused: Sequence[Refused]) -> list[str]:
    """A line for each refused day; rollups of which it says the same share one."""
    alike: dict[str, list[Refused]] = {}
    for each in refused:
        alike.setdefault(each._describe(""), []).append(each)
    return [
        first._describe(number(len(others) + 1, "rollup") if others else first.rollup)
        for first, *others in alike.values()
    ]


@dataclass(frozen=True)
class RebuildReport:
    """What a rebuild did: days that were recounted, days that were kept by decision, and days left as they are."""

    rebuilt: list[DayCount] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    kept: list[Refused] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def days(self) -> list[date]:
        """The days that were recounted in at least one rollup."""
        return sorted({day.day for day in self.rebuilt})

    @property
    def rows_by_day(self) -> dict[date, int]:
        """Log rows of the recounted days."""
        return _most_rows(self.rebuilt)

    @property
    def rows(self) -> int:
        """Log rows in the recounted days."""
        return sum(self.rows_by_day.values())

    @property
    def failed(self) -> list[Refused]:
        """Refused days that need somebody: a decision, a repair of the log, or a wider column."""
        return [each for each in self.refused if each.reason not in ("pruned", "frozen")]

    def __add__(self, other: "RebuildReport") -> "RebuildReport":
        return RebuildReport(
            self.rebuilt + other.rebuilt,
            self.refused + other.refused,
            self.kept + other.kept,
            self.seconds + other.seconds,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        return {
            "rows": self.rows,
            "days": _by_day(self.rebuilt),
            "refused": [_refused(each) for each in self.refused],
            "kept": [_refused(each) for each in self.kept],
            "seconds": round(self.seconds, 4),
        }


def _refused(each: Refused) -> dict[str, Any]:
    return {**vars(each), "day": str(each.day), "message": str(each)}


@dataclass(frozen=True)
class DayProof:
    """One day of one rollup compared: the target's rows, the ledger and the log.

    `differences`: per measure, the sum of absolute differences between target and log over keys; of a day with
    deleted rows, between the totals, deleted rows added. `changed_rows` is how many rows the target has too many
    (negative: too few) against what was counted. `finding` names what is wrong:

    - equal
    - statistics_changed: the target is not what was counted: somebody wrote to it
    - logs_missing, logs_added, logs_changed: the log is not what was counted
    - waiting (pending or stale), frozen, overflow: the day is not proven, because its status is not 'built'
    """

    rollup: str
    day: date
    status: str | None
    log_rows: int
    stored_rows: int
    counted_rows: int
    deleted_rows: int
    differences: dict[str, int]
    difference: int
    finding: str
    differing_keys: int = 0
    examples: tuple[dict[str, Any], ...] = ()
    """The keys that differ most, at most ten, each with its log and its stored number of rows."""
    seconds: float = 0.0
    suspects: dict[str, int] = field(default_factory=dict)
    """Log rows that are counted, but look wrong: how many of each kind."""
    misfit: "Misfit | None" = None
    """Of a day that is set aside, the value that does not fit its column."""

    @property
    def is_built(self) -> bool:
        """Whether the guarantee covers this day."""
        return self.status == "built"

    @property
    def is_proven(self) -> bool:
        """Built, and nothing differs."""
        return self.is_built and not self.difference

    @property
    def is_different(self) -> bool:
        """Whether there is a difference that a person or a rebuild has to resolve, whatever the status."""
        return self.difference != 0

    def describe(self) -> str:
        """One line: what was found and what to do."""
        day, command = self.day, f"'calc-analytics rollup --day {self.day}"
        counts = f"{number(self.log_rows, 'log row')}, {self.counted_rows:,} counted"
        if self.deleted_rows:
            counts += f", {self.deleted_rows:,} deleted since"
        match self.finding:
            case "equal" if self.deleted_rows:
                said = f"statistics equal the log and {number(self.deleted_rows, 'row')} deleted since"
            case "equal":
                said = "statistics equal the log"
            case "statistics_changed" if self.status in ("pending", "frozen") and not self.counted_rows:
                said = (
                    f"{number(self.stored_rows, 'row')} stored, but none was ever counted: somebody else wrote them. "
                    f"Keep them with {command} --keep', or recount from the log with {command} --allow-shrink'."
                )
            case "statistics_changed":
                said = (
                    f"somebody changed the statistics: {self.stored_rows:,} stored but {self.counted_rows:,} counted"
                    if self.stored_rows != self.counted_rows
                    else f"statistics or log rows were changed: {number(self.stored_rows, 'row')} as counted, but with "
                    "other keys or values"
                )
                said += f"{'' if self._is_pruned else self._named()}. "
                said += (
                    f"Log rows were deleted, so they cannot be recounted: restore the rows, accept them with {command} "
                    "--keep', or recount from what is left with --allow-shrink."
                    if self._is_pruned
                    else f"Recount with {command}'."
                )
            case "logs_missing":
                said = (
                    f"log rows are missing: {counts}{self._named()}. Keep the statistics with {command} --keep', or "
                    f"recount from what is left with {command} --allow-shrink'."
                )
            case "logs_added" | "logs_changed":
                what = "rows were added to the past or moved here" if self.finding == "logs_added" else _CHANGED
                said = f"{what}: {counts}{self._named()}. {self._recount(command)}"
            case "frozen":
                said = (
                    f"its log rows are gone; {number(self.stored_rows, 'stored row')} kept as they were"
                    if self.stored_rows
                    else "its log rows were gone before this rollup was kept, so it has no statistics"
                )
            case "overflow" if self.misfit is not None:
                said = f"a value does not fit its column: {self.misfit}. {self.misfit.advice} Then run {command}'."
            case "overflow":
                said = f"a value does not fit its column. Run {command}' to see which."
            case _:
                was = "to be recounted" if self.status == "stale" else "never counted whole"
                said = f"{number(self.log_rows, 'log row')}, {was}. Build it with {command}'."
        return f"{day} of {self.rollup}: {said}"

    @property
    def _is_pruned(self) -> bool:
        return bool(self.deleted_rows) or self.status == "frozen"

    def _recount(self, command: str) -> str:
        """What to do about a changed log."""
        if not self._is_pruned:
            return f"Recount with {command}'."
        return (
            "Log rows were deleted before, so it cannot be recounted whole: change the statistics in the same way and "
            f"accept them with {command} --keep', or recount from what is left with --allow-shrink."
        )

    def _named(self) -> str:
        """' (publisher_id 7: 12 in the log, 1,012 stored)': the keys that differ most.

        Of a pruned day it may be known only which keys have log rows.
        """
        if not self.examples:
            return ""
        named = "; ".join(_example(example) for example in self.examples[:NAMED_KEYS])
        is_one_of = self._is_pruned and all(each["log_rows"] <= each["stored_rows"] for each in self.examples)
        more = self.differing_keys - min(len(self.examples), NAMED_KEYS)
        return f" ({'among ' if is_one_of else ''}{named}{f'; and {more:,} more' if more > 0 else ''})"


def _example(example: dict[str, Any]) -> str:
    """'publisher_id 7: 12 in the log, 1,012 stored'; of as many rows the measure that differs."""
    key = ", ".join(f"{name} {value}" for name, value in example["key"].items())
    if "measure" in example:
        return f"{key}: {example['measure']} {example['log']:,} in the log, {example['stored']:,} stored"
    return f"{key}: {example['log_rows']:,} in the log, {example['stored_rows']:,} stored"


@dataclass(frozen=True)
class VerifyReport:
    """Whether statistics, ledger and log agree, per day and rollup, at the stored snapshot."""

    days: list[DayProof]
    seconds: float
    waiting: list[date] = field(default_factory=list)
    """Days on record that wait for a rebuild and were not asked for."""
    overflowed: list[date] = field(default_factory=list)
    """Days on record with a value that does not fit its column."""
    nothing_built: bool = False
    """There are log rows, but no day at all was ever built: nothing is proven."""

    @property
    def different(self) -> list[DayProof]:
        """What differs."""
        return [day for day in self.days if day.is_different]

    @property
    def never_built(self) -> list[DayProof]:
        """Days with log rows that no rebuild has counted yet, or that cannot be counted."""
        return [day for day in self.days if not day.is_built and not day.is_different and day.status != "frozen"]

    @property
    def difference(self) -> int:
        """The sum of all differences: exactly zero, or something is wrong."""
        return sum(day.difference for day in self.days)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        found: dict[str, dict[str, Any]] = {}
        for proof in self.days:
            found.setdefault(str(proof.day), {})[proof.rollup] = {
                "status": "different"
                if proof.is_different
                else "proven"
                if proof.is_proven
                else proof.status or "never built",
                "finding": proof.finding,
                "log_rows": proof.log_rows,
                "stored_rows": proof.stored_rows,
                "counted_rows": proof.counted_rows,
                "deleted_rows": proof.deleted_rows,
                "difference": proof.difference,
                "differences": proof.differences,
                "differing_keys": proof.differing_keys,
                "keys": list(proof.examples),
                "message": proof.describe(),
            }
        return {
            "difference": self.difference,
            "days": found,
            "waiting_days": [str(day) for day in self.waiting],
            "overflowed_days": [str(day) for day in self.overflowed],
            "nothing_built": self.nothing_built,
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class AuditFinding:
    """A day of a rollup whose statistics are not what was counted. `difference`: the sum over the measures, or 1 if
    only the checksum differs."""

    rollup: str
    day: date
    difference: int
    stored_rows: int
    counted_rows: int


@dataclass(frozen=True)
class AuditReport:
    """The audited days (per rollup), and those whose statistics are not what was counted."""

    days: int
    different: list[AuditFinding]
    seconds: float


@dataclass(frozen=True)
class PruneReport:
    """Log rows deleted per day, and the days before the limit that kept theirs, with the reason."""

    rows_by_day: dict[date, int]
    not_built: list[date]
    seconds: float
    different: list[date] = field(default_factory=list)
    """Days that differ from the log: nothing of them is deleted."""

    @property
    def rows(self) -> int:
        """Log rows deleted."""
        return sum(self.rows_by_day.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        return {
            "rows": self.rows,
            "days": {str(day): rows for day, rows in self.rows_by_day.items()},
            "not_built_days": [str(day) for day in self.not_built],
            "different_days": [str(day) for day in self.different],
            "seconds": round(self.seconds, 4),
        }
