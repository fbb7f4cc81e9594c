"""What a sensor tick leaves for the next one, as JSON that a person can read: the UI shows it as the sensor's cursor.

Empty fields are left out, and instants are ISO 8601. Cursors of earlier versions, with all fields and with seconds of
the epoch, are read as well.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Unreported:
    """Rows that refreshes added to a day since it was last reported, and how long these refreshes took."""

    rows: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class CheckRequest:
    """When the checks of a day were requested, the last event of its checks before, the rollups concerned, and those
    that differed then."""

    at: float
    after_event: int
    rollups: list[str]
    differs: list[str]


@dataclass
class Cursor:
    """Days are YYYY-MM-DD; instants are seconds of the epoch, and ISO 8601 in the stored text."""

    rebuild_requested_at: dict[str, float] = field(default_factory=dict)
    """When a rebuild of a day was last requested."""

    checks_requested: dict[str, CheckRequest] = field(default_factory=dict)
    """The requests for checks of days whose verdict changed, until that is reported."""

    different: dict[str, list[str]] = field(default_factory=dict)
    """The days that differ, and in which rollups, as their checks last reported."""

    unreported: dict[str, Unreported] = field(default_factory=dict)
    """What no materialization has reported yet, per day."""

    built_elsewhere: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Days built on the command line that no materialization has reported yet: per rollup the seconds it took."""

    reported_at: dict[str, float] = field(default_factory=dict)
    """When a materialization last reported added rows of a day."""

    unobserved_rows: int = 0
    """Rows counted since the last observation of the log."""

    built_elsewhere_until: str | None = None
    """Up to which instant days built on the command line are reported or in `built_elsewhere`."""

    looked_for_wiped_at: float = 0.0
    """When days that Dagster no longer shows as materialized were last looked for."""

    @classmethod
    def parse(cls, text: str | None) -> "Cursor | None":
        """The cursor of the last tick; None on a first start, or if it is not a cursor of this sensor."""
        try:
            values = json.loads(text or "")
            return cls(**{name: _READ[name](value) for name, value in values.items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def text(self) -> str:
        """The form that Dagster stores: one line per entry, without empty fields."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        kept = {name: _WRITE.get(name, _as_it_is)(value) for name, value in values.items() if value}
        return json.dumps(kept, indent=1)


def _as_it_is(value: Any) -> Any:
    return value


def _of_days(read: Callable[[Any], T]) -> Callable[[Any], dict[str, T]]:
    """Reads or writes a value per day."""
    return lambda values: {str(day): read(value) for day, value in values.items()}


def _instant(value: Any) -> float:
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else float(value)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")


def _names(value: Any) -> list[str]:
    return [str(name) for name in value]


def _request(value: Any) -> CheckRequest:
    names = [_names(value[of]) for of in ("rollups", "differs")]
    return CheckRequest(_instant(value["at"]), int(value["after_event"]), *names)


def _seconds(value: Any) -> dict[str, float | None]:
    """Per rollup; an earlier version kept a list of rollups."""
    by_name = value if isinstance(value, dict) else dict.fromkeys(value)
    return {str(name): None if seconds is None else float(seconds) for name, seconds in by_name.items()}


_READ: dict[str, Callable[[Any], Any]] = {
    "rebuild_requested_at": _of_days(_instant),
    "checks_requested": _of_days(_request),
    "different": _of_days(_names),
    "unreported": _of_days(lambda each: Unreported(int(each["rows"]), float(each["seconds"]))),
    "built_elsewhere": _of_days(_seconds),
    "reported_at": _of_days(_instant),
    "unobserved_rows": int,
    "built_elsewhere_until": _as_it_is,
    "looked_for_wiped_at": _instant,
}
_WRITE: dict[str, Callable[[Any], Any]] = {
    "rebuild_requested_at": _of_days(_iso),
    "checks_requested": _of_days(lambda each: {**vars(each), "at": _iso(each.at)}),
    "unreported": _of_days(lambda each: {"rows": each.rows, "seconds": round(each.seconds, 4)}),
    "reported_at": _of_days(_iso),
    "looked_for_wiped_at": _iso,
}
