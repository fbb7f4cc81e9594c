"""What an archiving, a check, or an erasure in the archive did."""

from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any


@dataclass(frozen=True)
class DayArchived:
    """A day of which rows were written: `rows` and `bytes` of the new file; `files` and `total` of the whole day.

    `missing` rows were counted, and deleted before they were archived.
    """

    day: date
    rows: int
    bytes: int
    files: int
    total: int
    missing: int
    seconds: float

    def after(self, earlier: "DayArchived | None") -> "DayArchived":
        """Both files together, if another one of the day was written just before."""
        if earlier is None:
            return self
        rows, size = self.rows + earlier.rows, self.bytes + earlier.bytes
        return replace(self, rows=rows, bytes=size, seconds=self.seconds + earlier.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "rows": self.rows,
            "bytes": self.bytes,
            "files": self.files,
            "total_rows": self.total,
            "missing_rows": self.missing,
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class DayNotArchived:
    """A day that was left as it is, or of which old files are left, and why.

    - not_over: it has not ended
    - not_built: it is not built in every rollup
    - differs: it differed from its log when it was last compared
    - to_be_erased: an erasure of keys (`detail`) took rows out of its statistics, and not out of its files yet
    - counts: the log's rows are not as many as were counted
    - only_copy: its files hold rows that the log does not have, so they are not written again
    - damaged: `detail` is the refusal
    - old_files: it was archived, but files that are no part of it any more could not be deleted; `detail` is the error
    """

    day: date
    reason: str
    rows: int = 0
    expected: int = 0
    detail: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether files or rows are not what they should be; else the day is to be archived later, or differs."""
        return self.reason in ("counts", "damaged")

    def __str__(self) -> str:
        match self.reason:
            case "not_over":
                return f"{self.day} was not archived: the day is not over"
            case "not_built":
                return (
                    f"{self.day} was not archived: it is not built in every rollup. Run 'calc-analytics rollup --day "
                    f"{self.day}'"
                )
            case "differs":
                return (
                    f"{self.day} was not archived: it differs from its log. Run 'calc-analytics verify --day "
                    f"{self.day}' and follow its advice"
                )
            case "to_be_erased":
                return (
                    f"{self.day} was not archived: rows of {self.detail} are erased from its statistics, and not from "
                    "its files yet: erase again"
                )
            case "counts":
                return (
                    f"{self.day} was not archived: {self.rows:,} rows to archive, but {self.expected:,} counted that "
                    f"are not archived. Run 'calc-analytics verify --day {self.day}'; if log rows were corrected, "
                    f"archive the day again with 'calc-analytics archive --replace --day {self.day}'"
                )
            case "only_copy":
                return (
                    f"{self.day} was not archived again: {self.rows:,} archived rows of it are not in the log, so its "
                    "files may be the only copy and stay. Compare them with 'calc-analytics archive --check --day "
                    f"{self.day}' and 'calc-analytics verify --day {self.day}'"
                )
            case "old_files":
                return (
                    f"{self.day} was archived, but its old files are still there, and the next archive deletes them: "
                    f"{self.detail}"
                )
            case _:
                return f"{self.day} was not archived: {self.detail}"


@dataclass(frozen=True)
class ArchiveReport:
    """The days that were written, those that held all their rows already, and those that were left."""

    place: str
    archived: list[DayArchived]
    unchanged: list[date]
    left: list[DayNotArchived]
    seconds: float

    @property
    def rows(self) -> int:
        """Rows written."""
        return sum(each.rows for each in self.archived)

    @property
    def bytes(self) -> int:
        """Bytes written."""
        return sum(each.bytes for each in self.archived)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        return {
            "place": self.place,
            "rows": self.rows,
            "bytes": self.bytes,
            "days": {str(each.day): each.as_dict() for each in self.archived},
            "unchanged_days": [str(day) for day in self.unchanged],
            "left_days": [{"day": str(each.day), "reason": each.reason, "message": str(each)} for each in self.left],
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class CheckReport:
    """Days whose files are proven, rows in them, how many of these are still in the log, and what is wrong."""

    place: str
    days: list[date]
    rows: int
    compared: int
    problems: list[str]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        return {
            "place": self.place,
            "days": [str(day) for day in self.days],
            "rows": self.rows,
            "compared_rows": self.compared,
            "problems": self.problems,
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class ArchiveErasure:
    """Rows that were erased from the archive per day, and the days that keep theirs, with the reason."""

    rows: dict[date, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: days as YYYY-MM-DD."""
        days = {str(day): rows for day, rows in self.rows.items()}
        return {"rows": sum(self.rows.values()), "days": days, "problems": self.problems}
