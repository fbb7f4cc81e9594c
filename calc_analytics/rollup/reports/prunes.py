"""The result of a prune, which deletes log rows of proven days."""

from dataclasses import dataclass, field
from datetime import date
from typing import Any


@dataclass(frozen=True)
class PruneReport:
    """Log rows deleted per day, and the days before the limit that kept theirs, with the reason."""

    rows_by_day: dict[date, int]
    not_built: list[date]
    seconds: float
    different: list[date] = field(default_factory=list)
    """Days that differ from the log: nothing of them is deleted."""
    not_archived: list[date] = field(default_factory=list)
    """Days with counted log rows that are not archived, where days are archived: nothing of them is deleted."""
    refused: dict[date, str] = field(default_factory=dict)
    """Days whose archive is not what it should be, and why: nothing of them is deleted."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Partitions whose rows were deleted as a whole, and how many; dropped unless they are in `kept` as well."""
    kept: dict[str, str] = field(default_factory=dict)
    """Partitions before the limit that were not dropped, and why."""

    busy: list[str] = field(default_factory=list)
    """Those of them that other sessions use: their rows, or the empty table, are left to the next prune."""

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
            "not_archived_days": [str(day) for day in self.not_archived],
            "refused_days": {str(day): reason for day, reason in self.refused.items()},
            "dropped_partitions": self.dropped,
            "kept_partitions": self.kept,
            "busy_partitions": self.busy,
            "seconds": round(self.seconds, 4),
        }
