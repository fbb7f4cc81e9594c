"""What a rebuild did, and which days it left as they are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from calc_analytics.plurals import number
from calc_analytics.rollup.reports.counts import DayCount, measures_by_day, most_rows


@dataclass(frozen=True)
class SkippedDay:
    """A day of a rollup that a rebuild left as it is. `reason`: what it found.

    `log_rows` are those visible now, `counted_rows` those counted, `deleted_rows` those known to be deleted since.

    - differs: log rows vanished, were added to the past, or were changed, without an announcement
    - pruned: log rows were deleted after they were counted; nothing differs
    - frozen: the day was never counted whole here, and its log rows are gone
    - undecided: its log was found different before, and what came since could hide that
    - late: it cannot be kept, because some of its log rows were never counted
    - unproven: it cannot be kept yet, because its statistics are not what was counted, which no proof has reported
    - archive: its archive cannot be read or counted, or does not have what was counted; `detail` says why
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
        return f"{self.day} of {of} was not rebuilt: {self._describe_reason()}"

    def _describe_reason(self) -> str:
        logs = number(self.log_rows, "log row")
        counted = f"{self.counted_rows:,} counted"
        match self.reason:
            case "pruned":
                return (
                    f"{self.deleted_rows:,} of its {counted} log rows were deleted. Its statistics stay; "
                    "--allow-shrink recounts it from what is left."
                )
            case "frozen":
                few = f"only {self.log_rows:,} of its log rows {'is' if self.log_rows == 1 else 'are'} left"
                left = few if self.log_rows else "its log rows are gone"
                return (
                    f"{left}, so the day cannot be recounted. Its statistics stay; "
                    f"'--rollup {self.rollup} --allow-shrink' counts what is left."
                )
            case "overflow" | "archive":
                return self.detail
            case "late":
                return (
                    f"{logs} and {counted}, but some of these log rows were never counted. Its statistics "
                    "cannot be kept without losing those; recount what is left with --allow-shrink."
                )
            case "unproven":
                return (
                    "its statistics differ from what was counted, and no comparison has reported that yet. Look at "
                    f"them with 'calc-analytics verify --day {self.day}', then repeat --keep to accept them as they "
                    "are."
                )
            case "undecided" if self.log_rows + self.deleted_rows >= self.counted_rows:
                return (
                    f"log rows were missing at the last comparison, and no decision was made since. There are {logs} "
                    f"now, {counted}: --keep keeps the statistics, unless rows were added since; --allow-shrink "
                    "recounts what is there."
                )
            case _:
                return self._describe_difference()

    def _describe_difference(self) -> str:
        """How the log differs from what was counted, and what to do.

        A day of which log rows were deleted before cannot be recounted whole, so a person has to decide.
        """
        logs = number(self.log_rows, "log row")
        counted = f"{self.counted_rows:,} counted"
        deleted = f" and {self.deleted_rows:,} deleted since" if self.deleted_rows else ""
        decide = (
            f"Keep the statistics with 'calc-analytics rollup --day {self.day} --keep', or recount from what is left "
            f"with 'calc-analytics rollup --day {self.day} --allow-shrink'."
        )
        recount = f"Recount it with 'calc-analytics rollup --day {self.day}'."
        rows = self.log_rows + self.deleted_rows
        if rows < self.counted_rows:
            return f"{logs} but {counted}{deleted}. {decide}"
        if rows > self.counted_rows and deleted:
            return f"{logs}{deleted} but only {counted}. {decide}"
        if rows > self.counted_rows:
            return f"{logs} but only {counted}: rows were moved into this day. {recount}"
        if deleted:
            return f"{logs}{deleted}, as many as were counted, but other values. {decide}"
        return f"{logs}, as many as were counted, but other values: log rows were changed. {recount}"


def refusals(refused: Sequence[SkippedDay]) -> list[str]:
    """A line for each refused day; rollups with the same text share one."""
    alike: dict[str, list[SkippedDay]] = {}
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
    refused: list[SkippedDay] = field(default_factory=list)
    kept: list[SkippedDay] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def days(self) -> list[date]:
        """The days that were recounted in at least one rollup."""
        return sorted({day.day for day in self.rebuilt})

    @property
    def rows_by_day(self) -> dict[date, int]:
        """Log rows of the recounted days."""
        return most_rows(self.rebuilt)

    @property
    def rows(self) -> int:
        """Log rows in the recounted days."""
        return sum(self.rows_by_day.values())

    @property
    def failed(self) -> list[SkippedDay]:
        """Refused days that need a decision, a repair of the log, or a wider column."""
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
            "days": measures_by_day(self.rebuilt),
            "sources": {str(each.day): {"source": each.source, "engine": each.engine} for each in self.rebuilt},
            "refused": [_refused(each) for each in self.refused],
            "kept": [_refused(each) for each in self.kept],
            "seconds": round(self.seconds, 4),
        }


def _refused(each: SkippedDay) -> dict[str, Any]:
    return {**vars(each), "day": str(each.day), "message": str(each)}
