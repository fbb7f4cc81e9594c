"""What a sensor tick leaves for the next one, as the JSON text that Dagster stores."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


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
    """Days are YYYY-MM-DD, instants are seconds of the epoch or ISO 8601."""

    rebuild_requested_at: dict[str, float] = field(default_factory=dict)
    """When a rebuild of a day was last requested."""

    checks_requested: dict[str, CheckRequest] = field(default_factory=dict)
    """The requests for checks of days whose verdict changed, until that is reported."""

    different: dict[str, list[str]] = field(default_factory=dict)
    """The days that differ, and in which rollups, as far as their checks have said so."""

    unreported: dict[str, Unreported] = field(default_factory=dict)
    """What no materialization has reported yet, per day."""

    built_elsewhere: dict[str, list[str]] = field(default_factory=dict)
    """Days built on the command line that no materialization has reported yet, and in which rollups."""

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
        """The cursor of the last tick; None on a first start, or if it is not one of this version."""
        try:
            values = json.loads(text or "")
            return cls(
                rebuild_requested_at=_instants(values["rebuild_requested_at"]),
                checks_requested={str(day): _request(each) for day, each in values["checks_requested"].items()},
                different=_names(values["different"]),
                unreported={
                    str(day): Unreported(int(each["rows"]), float(each["seconds"]))
                    for day, each in values["unreported"].items()
                },
                built_elsewhere=_names(values["built_elsewhere"]),
                reported_at=_instants(values["reported_at"]),
                unobserved_rows=int(values["unobserved_rows"]),
                built_elsewhere_until=values["built_elsewhere_until"],
                looked_for_wiped_at=float(values.get("looked_for_wiped_at", 0.0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def text(self) -> str:
        """The form Dagster stores."""
        return json.dumps(asdict(self), sort_keys=True)


def _request(values: Any) -> CheckRequest:
    names = [[str(name) for name in values[of]] for of in ("rollups", "differs")]
    return CheckRequest(float(values["at"]), int(values["after_event"]), *names)


def _instants(values: Any) -> dict[str, float]:
    return {str(day): float(at) for day, at in values.items()}


def _names(values: Any) -> dict[str, list[str]]:
    return {str(day): [str(name) for name in names] for day, names in values.items()}
