"""The result of an audit, which compares statistics with what was counted."""

from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True)
class AuditDifference:
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
    different: list[AuditDifference]
    seconds: float
