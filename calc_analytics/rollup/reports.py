"""What the operations return: small, frozen, and printed alike by the CLI, Dagster and `--json`."""

from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from calc_analytics.rollup.snapshot import Snapshot


@dataclass(frozen=True)
class DayCount:
    """One day in a refresh or rebuild: the measures that were added (refresh) or that it now has (rebuild)."""

    day: date
    measures: dict[str, int]
    keys: int
    status: str

    @property
    def rows(self) -> int:
        """Log rows: the first measure."""
        return next(iter(self.measures.values()))


@dataclass(frozen=True)
class RefreshReport:
    """What one refresh counted. `counted` days are exact now, as of `snapshot`; `unbuilt` ones saw rows but wait for a
    rebuild."""

    counted: list[DayCount]
    unbuilt: list[DayCount]
    seconds: float
    snapshot: Snapshot

    @property
    def rows(self) -> int:
        """Log rows added to the statistics."""
        return sum(day.rows for day in self.counted)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        return {
            "rows": self.rows,
            "days": {str(d.day): d.measures for d in self.counted},
            "never_built_days": [str(d.day) for d in self.unbuilt],
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class Shrunk:
    """A day that a rebuild left alone: fewer raw rows than it has already counted, so logs were deleted."""

    day: date
    raw_rows: int
    counted_rows: int
    pruned_rows: int = 0
    """Of the rows counted, those that `prune` deleted or an earlier rebuild found deleted."""

    def __str__(self) -> str:
        why = (
            f"{self.pruned_rows:,} were deleted after they were counted"
            if self.counted_rows - self.raw_rows == self.pruned_rows
            else "so logs were deleted (or a predecessor counted them twice)"
        )
        return (
            f"{self.day} not rebuilt: {self.raw_rows:,} raw rows, but {self.counted_rows:,} already counted, {why}; "
            "rebuilding would lower the statistics; allow it by "
            f"'calc-analytics rollup --day {self.day} --allow-shrink'"
        )


@dataclass(frozen=True)
class Overflowed:
    """A day that a rebuild left alone: a counter of it does not fit its column."""

    day: date
    measure: str
    value: int

    def __str__(self) -> str:
        return (
            f"{self.day} not rebuilt: {self.measure} would be {self.value:,}, which its column cannot hold: look for "
            "log rows of that day that do not belong there, or alter the column to bigint"
        )


@dataclass(frozen=True)
class RebuildReport:
    """What one rebuild did: the days that are exact now, and those it refused to shrink or could not hold."""

    rebuilt: list[DayCount] = field(default_factory=list)
    shrunk: list[Shrunk] = field(default_factory=list)
    seconds: float = 0.0
    overflowed: list[Overflowed] = field(default_factory=list)

    @property
    def refused(self) -> list[Shrunk | Overflowed]:
        """The days that were left as they are; each says why."""
        return [*self.shrunk, *self.overflowed]

    @property
    def rows(self) -> int:
        """Log rows in the rebuilt days."""
        return sum(day.rows for day in self.rebuilt)

    def __add__(self, other: "RebuildReport") -> "RebuildReport":
        return RebuildReport(
            self.rebuilt + other.rebuilt,
            self.shrunk + other.shrunk,
            self.seconds + other.seconds,
            self.overflowed + other.overflowed,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        return {
            "rows": self.rows,
            "days": {str(d.day): d.measures for d in self.rebuilt},
            "refused": {str(s.day): {"raw_rows": s.raw_rows, "counted_rows": s.counted_rows} for s in self.shrunk},
            "overflowed": {str(o.day): {o.measure: o.value} for o in self.overflowed},
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class DayProof:
    """One day compared: log rows, counted rows, and by how much each measure differs in total."""

    day: date
    log_rows: int
    counted_rows: int
    differences: dict[str, int]
    differing_keys: int
    status: str | None = "built"
    seconds: float = 0.0
    pruned_rows: int = 0
    """Rows that were deleted after they were counted; then the day's totals are compared, else each key's."""
    suspects: dict[str, int] = field(default_factory=dict)
    """Log rows that are counted, but look wrong: how many of each kind."""

    @property
    def built(self) -> bool:
        """Whether the guarantee speaks of this day."""
        return self.status == "built"

    @property
    def difference(self) -> int:
        """The sum of all measures' absolute differences."""
        return sum(self.differences.values())

    @property
    def proven(self) -> bool:
        """Built, and not one measure of one key (of a sealed day: of the totals) differs."""
        return self.built and not self.differing_keys and not self.difference


@dataclass(frozen=True)
class LastProof:
    """When a built day was last compared with the logs, how long that took, and what the difference was."""

    at: datetime
    seconds: float
    difference: int


@dataclass(frozen=True)
class VerifyReport:
    """Day by day, whether statistics equal logs at the stored snapshot."""

    days: list[DayProof]
    seconds: float
    waiting: list[date] = field(default_factory=list)
    """Days on record that wait for a rebuild and were not asked for."""
    overflowed: list[date] = field(default_factory=list)
    """Days on record that have a counter too great for its column."""
    nothing_built: bool = False
    """There are logs, but no day at all was ever built: nothing is proven."""

    @property
    def different(self) -> list[DayProof]:
        """Built days whose statistics are not the logs'."""
        return [day for day in self.days if day.built and not day.proven]

    @property
    def never_built(self) -> list[DayProof]:
        """Days with logs that no rebuild has counted yet."""
        return [day for day in self.days if not day.built]

    @property
    def difference(self) -> int:
        """The sum of all measures' absolute differences: exactly zero, or a bug."""
        return sum(day.difference for day in self.days if day.built)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        return {
            "difference": self.difference,
            "days": {
                str(d.day): {
                    "status": "proven" if d.proven else "different" if d.built else "never built",
                    "log_rows": d.log_rows,
                    "counted_rows": d.counted_rows,
                    "pruned_rows": d.pruned_rows,
                    "differences": d.differences,
                }
                for d in self.days
            },
            "waiting_days": [str(day) for day in self.waiting],
            "overflowed_days": [str(day) for day in self.overflowed],
            "nothing_built": self.nothing_built,
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class PruneReport:
    """Log rows deleted per day, and the days before the limit that kept their logs because they are not built."""

    rows_by_day: dict[date, int]
    not_built: list[date]
    seconds: float

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
            "seconds": round(self.seconds, 4),
        }
