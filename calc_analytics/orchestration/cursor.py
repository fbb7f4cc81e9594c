"""What a sensor tick leaves for the next one, as the JSON text that Dagster stores."""

import json
from dataclasses import asdict, dataclass, field


@dataclass
class Cursor:
    """Days are YYYY-MM-DD, instants are seconds of the epoch or ISO 8601."""

    asked: dict[str, float] = field(default_factory=dict)
    """When a rebuild of a day was last asked for."""

    untold: dict[str, int] = field(default_factory=dict)
    """Rows added per day that no event tells of yet."""

    untold_seconds: float = 0.0
    """How long the refreshes took that added them."""

    told_at: float = 0.0
    """When events last told of added rows."""

    built_by_others_until: str | None = None
    """Up to which instant days built on the command line are on record as materializations."""

    @classmethod
    def parse(cls, text: str | None) -> "Cursor | None":
        """The cursor of the last tick; None on a first start, or if it is not one of ours."""
        try:
            values = json.loads(text or "")
            return cls(
                asked={str(day): float(at) for day, at in values["asked"].items()},
                untold={str(day): int(rows) for day, rows in values["untold"].items()},
                untold_seconds=float(values["untold_seconds"]),
                told_at=float(values["told_at"]),
                built_by_others_until=values["built_by_others_until"],
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def text(self) -> str:
        """The form Dagster stores."""
        return json.dumps(asdict(self), sort_keys=True)
