"""What a sensor tick leaves for the next one, as JSON that a person can read: the UI shows it as the sensor's cursor.

Empty fields are left out, and instants are ISO 8601. A cursor of version 0.1 is not read: the next tick is a first one.
"""

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, PlainSerializer, TypeAdapter, ValidationError


def _read_instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _write_instant(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")


Instant = Annotated[float, BeforeValidator(_read_instant), PlainSerializer(_write_instant)]


@dataclass
class UnreportedRows:
    """Rows that refreshes added to a day since it was last reported, and how long these refreshes took."""

    rows: int = 0
    seconds: Annotated[float, PlainSerializer(lambda seconds: round(seconds, 4))] = 0.0


@dataclass(frozen=True)
class CheckRequest:
    """When the checks of a day were requested, the last event of its checks before, the rollups concerned, and those
    that differed then."""

    at: Instant
    after_event: int
    rollups: list[str]
    differs: list[str]


@dataclass
class Cursor:
    """Days are YYYY-MM-DD; instants are seconds of the epoch, and ISO 8601 in the stored text."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    rebuild_requested_at: dict[str, Instant] = field(default_factory=dict)
    """When a rebuild of a day that waits was last requested."""

    rebuild_requests: dict[str, int] = field(default_factory=dict)
    """How often it was requested."""

    checks_requested: dict[str, CheckRequest] = field(default_factory=dict)
    """The requests for checks of days whose verdict changed, until that is reported."""

    different: dict[str, list[str]] = field(default_factory=dict)
    """The days that differ, and in which rollups, as their checks last reported."""

    unreported: dict[str, UnreportedRows] = field(default_factory=dict)
    """What no materialization has reported yet, per day."""

    built_elsewhere: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Days built on the command line that no materialization has reported yet: per rollup the seconds it took."""

    reported_at: dict[str, Instant] = field(default_factory=dict)
    """When a materialization last reported added rows of a day."""

    unobserved_rows: int = 0
    """Rows counted since the last observation of the log."""

    built_elsewhere_until: str | None = None
    """Up to which instant days built on the command line are reported or in `built_elsewhere`."""

    archived_elsewhere_until: str | None = None
    """Up to which instant days archived on the command line are reported."""

    looked_for_wiped_at: Instant = 0.0
    """When days that Dagster no longer shows as materialized were last looked for."""

    @classmethod
    def parse(cls, text: str | None) -> "Cursor | None":
        """The cursor of the last tick; None on a first start, or if it is not a cursor of this sensor."""
        try:
            return _CURSOR.validate_json(text or "")
        except (ValidationError, TypeError):
            return None

    def text(self) -> str:
        """The form that Dagster stores: one line per entry, without empty fields."""
        filled = {name for name, value in vars(self).items() if value}
        return _CURSOR.dump_json(self, indent=1, include=filled).decode()


_CURSOR = TypeAdapter(Cursor)
