"""What a comparison with the log found, of one day and of many."""

from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from calc_analytics.plurals import number

if TYPE_CHECKING:
    from calc_analytics.rollup.ledger import ArchiveBalance
    from calc_analytics.rollup.overflow import Misfit

# How many of the keys that differ a line names.
NAMED_KEYS = 3


@dataclass(frozen=True)
class DayProof:
    """One day of one rollup compared: the target's rows, the ledger and the log.

    `differences`: per measure, the sum of absolute differences between target and log over keys; of a day with
    deleted rows, between the totals, deleted rows added. `changed_rows` is how many rows the target has too many
    (negative: too few) against what was counted. `finding` names what is wrong:

    - equal
    - statistics_changed: the target is not what was counted: another program wrote to it
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
    """The value that does not fit its column, of a day that is set aside."""

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
        """Whether there is a difference that a person or a rebuild has to resolve, in any status."""
        return self.difference != 0

    def describe(self) -> str:
        """One line: what was found and what to do."""
        return f"{self.day} of {self.rollup}: {self._describe_finding()}"

    def _describe_finding(self) -> str:
        match self.finding:
            case "equal":
                deleted = f" and {number(self.deleted_rows, 'row')} deleted since" if self.deleted_rows else ""
                return f"statistics equal the log{deleted}"
            case "statistics_changed":
                return self._describe_changed_statistics()
            case "logs_missing" | "logs_added" | "logs_changed":
                return self._describe_changed_log()
            case "frozen" if self.stored_rows:
                return f"its log rows are gone; {number(self.stored_rows, 'stored row')} kept as they were"
            case "frozen":
                return "its log rows were gone before this rollup was kept, so it has no statistics"
            case "overflow" if self.misfit is not None:
                return (
                    f"a value does not fit its column: {self.misfit}. {self.misfit.advice} Then run {self._command}'."
                )
            case "overflow":
                return f"a value does not fit its column. Run {self._command}' to see which."
            case _:
                state = "to be recounted" if self.status == "stale" else "never counted whole"
                return f"{number(self.log_rows, 'log row')}, {state}. Build it with {self._command}'."

    def _describe_changed_statistics(self) -> str:
        if self.status in ("pending", "frozen") and not self.counted_rows:
            return (
                f"{number(self.stored_rows, 'row')} stored, but none was ever counted: another program wrote them. "
                f"Keep them with {self._command} --keep', or recount from the log with {self._command} --allow-shrink'."
            )
        change = (
            f"another program changed the statistics: {self.stored_rows:,} stored but {self.counted_rows:,} counted"
            if self.stored_rows != self.counted_rows
            else f"statistics or log rows were changed: {number(self.stored_rows, 'row')} as counted, but with other "
            "keys or values"
        )
        if not self._is_pruned:
            return f"{change}{self._named()}. Recount with {self._command}'."
        return (
            f"{change}. Log rows were deleted, so they cannot be recounted: restore the rows, accept them with "
            f"{self._command} --keep', or recount from what is left with --allow-shrink."
        )

    def _describe_changed_log(self) -> str:
        counts = f"{number(self.log_rows, 'log row')}, {self.counted_rows:,} counted"
        if self.deleted_rows:
            counts += f", {self.deleted_rows:,} deleted since"
        if self.finding == "logs_missing":
            return (
                f"log rows are missing: {counts}{self._named()}. Keep the statistics with {self._command} --keep', or "
                f"recount from what is left with {self._command} --allow-shrink'."
            )
        is_added = self.finding == "logs_added"
        change = "rows were added to the past or moved here" if is_added else "log rows were changed"
        advice = (
            "Log rows were deleted before, so it cannot be recounted whole: change the statistics in the same way and "
            f"accept them with {self._command} --keep', or recount from what is left with --allow-shrink."
            if self._is_pruned
            else f"Recount with {self._command}'."
        )
        return f"{change}: {counts}{self._named()}. {advice}"

    @property
    def _command(self) -> str:
        """The beginning of a command, without the closing quote."""
        return f"'calc-analytics rollup --day {self.day}"

    @property
    def _is_pruned(self) -> bool:
        return bool(self.deleted_rows) or self.status == "frozen"

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
    """Days on record that wait for a rebuild and were not requested."""
    overflowed: list[date] = field(default_factory=list)
    """Days on record with a value that does not fit its column."""
    nothing_built: bool = False
    """There are log rows, but no day at all was ever built: nothing is proven."""
    archive: "list[ArchiveBalance]" = field(default_factory=list)
    """Archived days whose rows do not add up to what was counted."""

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
            found.setdefault(str(proof.day), {})[proof.rollup] = _proof_as_dict(proof)
        return {
            "difference": self.difference,
            "days": found,
            "waiting_days": [str(day) for day in self.waiting],
            "overflowed_days": [str(day) for day in self.overflowed],
            "nothing_built": self.nothing_built,
            "archive": {str(each.day): each.as_dict() for each in self.archive},
            "seconds": round(self.seconds, 4),
        }


def _proof_as_dict(proof: DayProof) -> dict[str, Any]:
    status = "proven" if proof.is_proven else proof.status or "never built"
    return {
        "status": "different" if proof.is_different else status,
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
