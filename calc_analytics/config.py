"""Settings: the only reader of the environment.

`Settings.from_environment()` reads, checks and freezes every variable once. An error names the variable, the
value and the accepted form. `addresses` reads the URLs.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

from calc_analytics import days
from calc_analytics.addresses import read_url
from calc_analytics.addresses import redact_url as redact_url
from calc_analytics.addresses import with_driver as with_driver
from calc_analytics.addresses import without_secrets as without_secrets
from calc_analytics.errors import CalcAnalyticsError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

T = TypeVar("T")
# PostgreSQL reads the first four as fixed offsets, without summer time; the others mean nothing to it, or no place.
AMBIGUOUS_ZONES = ("CET", "EET", "MET", "WET", "localtime", "posixrules", "Factory")
DAGSTER_DATABASE = "dagster"


class InvalidSetting(CalcAnalyticsError):
    """An environment variable (or a line of `.env`) whose value cannot be used."""


def project_root() -> Path:
    """The folder that holds dagster.yaml: the checkout this package runs from, else the current folder."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "dagster.yaml").exists() else Path.cwd()


def dagster_home() -> Path:
    """The folder of Dagster's configuration: DAGSTER_HOME, else the project's."""
    return project_root() / (_variable("DAGSTER_HOME") or "")


def _variable(name: str) -> str | None:
    """One variable of the environment or, below it, of the project's `.env`."""
    return os.environ.get(name) or _dotenv().get(name)


@dataclass(frozen=True)
class Settings:
    """Everything that can be configured, typed and checked. Times in seconds unless the name says hours."""

    database_url: "URL | None" = field(default=None, repr=False)
    dagster_postgres_url: "URL | None" = field(default=None, repr=False)
    timezone: str = "UTC"
    start_date: date = date(2025, 1, 1)
    cron: str = "0 * * * *"
    debounce_seconds: float = 0.2
    rollups: tuple[str, ...] | None = None
    logs_kept_days: int | None = None
    enable_test_endpoints: bool = False
    trigger_token: str | None = field(default=None, repr=False)
    log_format: str = "text"
    log_level: str = "info"
    alert_webhook_url: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Reads the process environment and, below it, the project's `.env`; raises `InvalidSetting`."""
        values = {**_dotenv(), **os.environ} if environment is None else dict(environment)
        if environment is None:
            _hand_to_libpq()
        timezone = _read(values, "ROLLUP_TIMEZONE", _timezone, "UTC")
        return cls(
            database_url=_read(values, "DATABASE_URL", read_url, None),
            dagster_postgres_url=_read(values, "DAGSTER_POSTGRES_URL", read_url, None),
            timezone=timezone,
            start_date=_read(values, "ROLLUP_START_DATE", _start_date(timezone), date(2025, 1, 1)),
            cron=_read(values, "ROLLUP_CRON", _cron, None)
            or _read(values, "ROLLUP_INTERVAL_HOURS", _hours, "0 * * * *"),
            debounce_seconds=_read(values, "ROLLUP_DEBOUNCE_SECONDS", _seconds, 0.2),
            rollups=_read(values, "ROLLUPS", _names, None),
            logs_kept_days=_read(values, "LOGS_KEPT_DAYS", _days_kept, None),
            enable_test_endpoints=_read(values, "ENABLE_TEST_ENDPOINTS", _yes_or_no, False),
            trigger_token=_read(values, "ROLLUP_TRIGGER_TOKEN", _token, None),
            log_format=_read(values, "LOG_FORMAT", _one_of("text", "json"), "text"),
            log_level=_read(values, "LOG_LEVEL", _one_of("debug", "info", "warning", "error"), "info"),
            alert_webhook_url=_read(values, "ALERT_WEBHOOK_URL", _webhook_url, None),
        )

    @property
    def embedded(self) -> bool:
        """Whether the project runs its own PostgreSQL, because no DATABASE_URL is given."""
        return self.database_url is None


def _dotenv() -> dict[str, str]:
    """The project's `.env`, which Dagster's own commands load too; absent is empty.

    Raises `InvalidSetting` for lines that are not NAME=value, which would be ignored: only their numbers are named.
    """
    file = project_root() / ".env"
    if not file.is_file():
        return {}
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InvalidSetting(f"the project's .env is not usable: {error.strerror}") from None
    lines = list(parse_stream(StringIO(text)))
    if wrong := [_line_number(each) for each in lines if each.error or (each.key and each.value is None)]:
        raise InvalidSetting(
            f"line {', '.join(map(str, wrong))} of the project's .env is not usable: the accepted form is NAME=value, "
            "or # and a comment"
        )
    return {key: value for key, value in dotenv_values(stream=StringIO(text)).items() if value is not None}


def _line_number(binding: Binding) -> int:
    """The line on which the binding begins; the parser counts from the blank lines before it."""
    said = binding.original.string
    blank = said[: len(said) - len(said.lstrip())]
    return int(binding.original.line) + blank.replace("\r\n", "\n").count("\n")


def _hand_to_libpq() -> None:
    """PGHOST, PGOPTIONS and the like in `.env` count for every command, as Dagster's own commands load it too."""
    for name, value in _dotenv().items():
        if name.startswith("PG"):
            os.environ.setdefault(name, value)


def _read(values: Mapping[str, str], name: str, cast: Callable[[str], T], default: T) -> T:
    """One variable, cast; unset or blank means the default. The cast's ValueError is the accepted form."""
    text = values.get(name, "").strip()
    if not text:
        return default
    try:
        return cast(text)
    except ValueError as error:
        shown = "" if name.endswith(("_URL", "_TOKEN")) else f": '{text}'"
        raise InvalidSetting(f"{name}{shown} is not usable: {error}") from None


def _webhook_url(text: str) -> str:
    form = "the accepted form is https://host/path, as Slack's incoming webhooks have it"
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        raise ValueError(form) from None
    if not usable or not re.fullmatch(r"[!-~]+", text):
        raise ValueError(form)
    if "@" in url.netloc:
        raise ValueError("a user name or password in it would not be sent; " + form)
    return text


def _timezone(text: str) -> str:
    try:
        if text in AMBIGUOUS_ZONES or text.startswith(("right/", "posix/")):
            raise KeyError(text)
        days.zone(text)
    except (ValueError, OSError, KeyError):
        raise ValueError("the accepted form is an IANA name such as UTC or Asia/Jerusalem") from None
    return text


def _start_date(timezone: str) -> Callable[[str], date]:
    """Reads a day that has begun in that zone: there would be no partition at all before it."""

    def read(text: str) -> date:
        try:
            day = days.parse_day(text)
        except days.InvalidDay:
            raise ValueError("the accepted form is YYYY-MM-DD") from None
        if day > days.today(timezone):
            raise ValueError(
                f"it lies in the future; the accepted form is YYYY-MM-DD, {days.today(timezone)} or before"
            )
        return day

    return read


def _hours(text: str) -> str:
    if not text.isdecimal() or not text.isascii() or int(text) not in (1, 2, 3, 4, 6, 8, 12, 24):
        raise ValueError("the accepted form is a number of hours that divides a day: 1, 2, 3, 4, 6, 8, 12 or 24")
    return {"1": "0 * * * *", "24": "0 0 * * *"}.get(str(int(text)), f"0 */{int(text)} * * *")


def _cron(text: str) -> str:
    try:
        days.require_cron_line(text)
    except ValueError as error:
        raise ValueError(
            f"{error}; the accepted form is a cron line of five fields, for example '*/30 * * * *'"
        ) from None
    return text


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not 0.05 <= float(text) <= 60:
        raise ValueError("the accepted form is a number of seconds from 0.05 to 60, for example 1 or 0.5")
    return float(text)


def _names(text: str) -> tuple[str, ...] | None:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or not all(re.fullmatch(r"\w+", name, re.ASCII) for name in names):
        raise ValueError("the accepted form is names of rollups separated by commas, or all")
    return None if names == ("all",) else names


def _days_kept(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        raise ValueError("the accepted form is a number of days from 1 on, for example 90")
    return int(text)


def _yes_or_no(text: str) -> bool:
    return _one_of("true", "false")(text) == "true"


def _token(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("the accepted form is printable ASCII without spaces")
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"the accepted form is {', '.join(words[:-1])} or {words[-1]}")
        return text.lower()

    return read
