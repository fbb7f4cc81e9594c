"""Instants, durations and numbers as people read them, and what more than one report says."""

from collections.abc import Sequence
from datetime import datetime, timezone

USE_THE_PRIMARY = "set DATABASE_URL to the primary"


def instant(at: datetime) -> str:
    """ISO 8601 in UTC, to the millisecond: '2026-03-01T12:00:00.000Z'."""
    return at.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ago(seconds: float) -> str:
    """'0.4 s', '12 s', '3 min', '2.5 h', '4 days'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h".replace(".0 h", " h")
    return f"{seconds / 86400:,.0f} days"


def in_rollups(names: Sequence[str], of: int) -> str:
    """'a, b', or 'all 4 rollups' where these are all `of` them."""
    return f"all {of} rollups" if len(names) == of > 1 else ", ".join(names)


def first_of(names: Sequence[str], limit: int = 3) -> str:
    """'a, b, c and 4 more'."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more:,} more" if more > 0 else "")
