"""What a refresh counted, and the counts that a rebuild reports as well."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from calc_analytics.rollup.snapshot import Snapshot

if TYPE_CHECKING:
    from calc_analytics.rollup.overflow import Misfit


LOG_ROWS = "log rows"


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
    source: str = LOG_ROWS
    """Where a rebuild got the rows from: 'log rows', 'archive', or 'archive and log rows'."""
    engine: str = ""
    """What counted the archived rows: 'DuckDB 2.0.1'."""


@dataclass(frozen=True)
class RefreshReport:
    """What a refresh counted, as of `snapshot`. Days whose status is not 'built' saw rows, but wait for a rebuild."""

    days: list[DayCount]
    seconds: float
    snapshot: Snapshot
    misfits: "Sequence[Misfit]" = ()
    """The values for which days were set aside meanwhile."""

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
        return most_rows(self.counted)

    @property
    def waiting_by_day(self) -> dict[date, int]:
        """Log rows that some rollup did not count, per day."""
        return most_rows(self.unbuilt)

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
            "days": measures_by_day(self.counted),
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


def most_rows(days: list[DayCount]) -> dict[date, int]:
    """The rows of each day, by the rollup that has most of it."""
    rows: dict[date, int] = {}
    for each in days:
        rows[each.day] = max(rows.get(each.day, 0), each.rows)
    return rows


def measures_by_day(days: list[DayCount]) -> dict[str, dict[str, dict[str, int]]]:
    """The measures per day and rollup, as plain values for JSON."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for each in days:
        found.setdefault(str(each.day), {})[each.rollup] = each.measures
    return found
