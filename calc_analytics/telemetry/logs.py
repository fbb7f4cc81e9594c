"""Log lines: one per event, `key=value` or JSON (LOG_FORMAT), on standard error, at LOG_LEVEL and above.

Only the logger `calc_analytics` is ours; Dagster's and others' logging stays as it is.
"""

import json
import logging
import sys
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from calc_analytics.config import Settings
from calc_analytics.errors import CalcAnalyticsError

NAME = "calc_analytics"


class _StandardError(logging.StreamHandler):
    """Whatever standard error is at the moment of the line."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line."""
        self.stream = sys.stderr
        super().emit(record)


class _Formatter(logging.Formatter):
    """The instant (UTC), the level, the event and its fields."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line; the stack trace of a bug is a field of it."""
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        fields = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
        }
        fields.update(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str) if self.as_json else _as_text(fields)


def _as_text(fields: dict[str, Any]) -> str:
    at, level, event = (fields.pop(name) for name in ("at", "level", "event"))
    return " ".join([at, level.upper(), event, *(f"{name}={_value(value)}" for name, value in fields.items())])


def _value(value: Any) -> str:
    text = ",".join(str(each) for each in value) if isinstance(value, list) else str(value)
    return text if text.isprintable() and not set(text) & set(' "=') and text else json.dumps(text)


@lru_cache(maxsize=1)
def handler() -> logging.Handler:
    """The one handler, in the format that is set."""
    made = _StandardError()
    made.setFormatter(_Formatter(Settings.from_environment().log_format == "json"))
    return made


@lru_cache(maxsize=1)
def logger() -> logging.Logger:
    """The project's logger, set up at the first use."""
    made = logging.getLogger(NAME)
    made.addHandler(handler())
    made.setLevel(Settings.from_environment().log_level.upper())
    made.propagate = False
    return made


def line(level: int, event: str, exc_info: bool = False, **fields: Any) -> None:
    """Writes one line, for example `… INFO refresh rows=12 days=2026-03-01 seconds=0.003`."""
    logger().log(level, event, exc_info=exc_info, extra={"fields": fields})


def in_one_line(error: BaseException) -> str:
    """What a user may be told of an error: the project's own say it themselves, of others only the kind."""
    if isinstance(error, CalcAnalyticsError):
        return str(error)
    return f"internal error: {type(error).__name__}"
