"""What an erasure did, and which days it left."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from calc_analytics.plurals import number
from calc_analytics.rollup.erasure.keys import Keys, describe_keys


@dataclass(frozen=True)
class LeftDay:
    """A day of which nothing (more) was erased, and why.

    - differs: it differs from its log or from what was counted, which erasing must not hide
    - waits: `rollup` is to be rebuilt first
    - overflow: a value of `rollup` does not fit its column
    - archive: since a rebase it is not known which of its log rows are archived
    - unknown: `rollup` lacks the keys, and log rows that it counted were deleted: their part is not known
    """

    day: date
    reason: str
    rollup: str = ""

    def __str__(self) -> str:
        command = f"calc-analytics rollup --day {self.day}"
        match self.reason:
            case "differs":
                return (
                    f"{self.day} was not erased, because it differs from its log or from what was counted: run "
                    f"'calc-analytics verify --day {self.day}', follow its advice, and erase again"
                )
            case "waits":
                return (
                    f"{self.day} was not erased, because {self.rollup} waits for a rebuild: run '{command}', and erase "
                    "again"
                )
            case "overflow":
                return (
                    f"{self.day} was not erased, because a value of {self.rollup} does not fit its column: run "
                    f"'{command}' to see which, and erase again when it is resolved"
                )
            case "archive":
                return (
                    f"{self.day} was not erased, because since a rebase it is not known which of its log rows are "
                    "archived: run 'calc-analytics archive', and erase again"
                )
            case _:
                return (
                    f"{self.day} was not erased, because {self.rollup} adds up several publishers, and some log rows "
                    "were deleted, so this publisher's share is unknown. "
                    f"'{command} --rollup {self.rollup} --allow-shrink' recounts that day from what is left; then "
                    "erase again"
                )


@dataclass(frozen=True)
class EraseReport:
    """What was erased, by day and table; the days that were left; and rows that arrived while it ran."""

    keys: Keys
    erased: dict[str, dict[str, int]]
    left: list[LeftDay] = field(default_factory=list)
    arrived: int = 0
    """Log rows of the keys that were written while the others were erased, and are still there."""
    open_writers: list[str] = field(default_factory=list)
    """Open transactions that have written log rows, which may be the keys'."""
    seconds: float = 0.0

    def rows(self, table: str) -> int:
        """Rows that were erased from a table."""
        return sum(tables.get(table, 0) for tables in self.erased.values())

    @property
    def tables(self) -> list[str]:
        """The tables of which something was erased."""
        return list(dict.fromkeys(name for tables in self.erased.values() for name in tables))

    @property
    def problems(self) -> list[str]:
        """What keeps the erasure from being complete, a line each."""
        return [*map(str, self.left), *self._of_writers()]

    def _of_writers(self) -> Iterator[str]:
        who = describe_keys(self.keys)
        if self.arrived:
            rows = number(self.arrived, "log row")
            yield f"{rows} of {who} arrived while this ran: stop their writers, and erase again"
        for writer in self.open_writers:
            yield f"{writer} has written log rows, which may be those of {who}: when it has ended, erase again"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "dry_run": False,
            "keys": dict(self.keys),
            "tables": {name: {"rows": self.rows(name)} for name in self.tables},
            "days": self.erased,
            "left_days": [{"day": str(each.day), "reason": each.reason, "message": str(each)} for each in self.left],
            "arrived_rows": self.arrived,
            "problems": self.problems,
            "seconds": round(self.seconds, 4),
        }
