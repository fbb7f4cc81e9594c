"""Settings: the only reader of the environment and of the project's `.env`.

`process_settings()` reads and checks every variable, once in each process. An error names the variable, the value and
the accepted form. `addresses` reads the URLs.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from difflib import SequenceMatcher
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

from calc_analytics import days
from calc_analytics.addresses import ArchiveUrl as ArchiveUrl
from calc_analytics.addresses import is_http_url, read_archive_url, read_url
from calc_analytics.addresses import redact_url as redact_url
from calc_analytics.addresses import with_driver as with_driver
from calc_analytics.addresses import without_secrets as without_secrets
from calc_analytics.errors import CalcAnalyticsError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

# PostgreSQL reads the first four as fixed offsets, without summer time; the others mean nothing to it, or no place.
AMBIGUOUS_ZONES = ("CET", "EET", "MET", "WET", "localtime", "posixrules", "Factory")
DAGSTER_DATABASE = "dagster"
MISSPELLED_LETTERS = 2


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
    """Everything that can be configured, typed and checked. Times are in seconds unless the name ends in hours."""

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
    archive_url: ArchiveUrl | None = field(default=None, repr=False)
    spark_remote: str | None = field(default=None, repr=False)
    report_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Reads `environment`; by default the process environment and, below it, the project's `.env`.

        A variable that is unset or blank has its default. Raises `InvalidSetting`.
        """
        if environment is None:
            dotenv = _dotenv()
            environment = {**dotenv, **os.environ}
            _hand_to_libpq(dotenv)
        given = {name: text for name in VARIABLES if (text := environment.get(name, "").strip())}
        settings = cls(**{VARIABLES[name].field: _cast(name, text) for name, text in given.items()})
        _require_begun(settings.start_date, days.today(settings.timezone))
        return settings

    @property
    def embedded(self) -> bool:
        """Whether the project runs its own PostgreSQL, because no DATABASE_URL is given."""
        return self.database_url is None


@lru_cache(maxsize=1)
def process_settings() -> Settings:
    """The settings of this process, read once; after an `InvalidSetting` the next call reads them again."""
    return Settings.from_environment()


def _dotenv() -> dict[str, str]:
    """The project's `.env`, which Dagster's own commands load too; empty if there is none.

    Raises `InvalidSetting` for a misspelled name, and for lines that are not NAME=value: only their numbers are shown.
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
    found = {key: value for key, value in dotenv_values(stream=StringIO(text)).items() if value is not None}
    for name, known in misspelled(found).items():
        raise InvalidSetting(f"{name} in the project's .env is not a setting: did you mean {known}?")
    return found


def misspelled(names: Iterable[str] | None = None) -> dict[str, str]:
    """Names that look like a misspelled setting, each with the setting it resembles; default: the environment's names.

    Every name that begins with ROLLUP is one of ours, or wrong. Another name is reported if it is at most two letters
    away from a setting that is not given.
    """
    given = set(os.environ if names is None else names)
    missing = [name for name in VARIABLES if name not in given]
    found: dict[str, str] = {}
    for name in sorted(given - set(VARIABLES)):
        candidates = VARIABLES if name.startswith("ROLLUP") else missing
        nearest = min(candidates, key=lambda known: _distance(name.upper(), known), default="")
        if name.startswith("ROLLUP") or (nearest and _distance(name.upper(), nearest) <= MISSPELLED_LETTERS):
            found[name] = nearest
    return found


def _distance(name: str, known: str) -> int:
    """How many letters of the two names have no counterpart in the other."""
    matched = sum(block.size for block in SequenceMatcher(None, name, known, autojunk=False).get_matching_blocks())
    return len(name) + len(known) - 2 * matched


def _line_number(binding: Binding) -> int:
    """The line on which the binding begins; the parser counts from the blank lines before it."""
    text = binding.original.string
    blank = text[: len(text) - len(text.lstrip())]
    return int(binding.original.line) + blank.replace("\r\n", "\n").count("\n")


def _hand_to_libpq(dotenv: Mapping[str, str]) -> None:
    """Exports libpq's variables (PGHOST, PGOPTIONS, …) of `.env`, as Dagster's own commands do."""
    for name, value in dotenv.items():
        if name.startswith("PG"):
            os.environ.setdefault(name, value)


def _cast(name: str, text: str) -> Any:
    """The variable's value; `InvalidSetting` with the accepted form, and without the text if it may be secret."""
    try:
        return VARIABLES[name].cast(text)
    except ValueError as error:
        shown = name if name.endswith(("_URL", "_TOKEN", "_REMOTE")) else f"{name}: '{text}'"
        raise InvalidSetting(f"{shown} is not usable: {error}") from None


def _require_begun(start: date, today: date) -> None:
    """Raises `InvalidSetting` for a first day in the future, before which there are no partitions at all."""
    if start > today:
        shown = f"ROLLUP_START_DATE: '{start}'"
        reason = f"it lies in the future; the accepted form is YYYY-MM-DD, {today} or before"
        raise InvalidSetting(f"{shown} is not usable: {reason}")


def _webhook_url(text: str) -> str:
    form = "the accepted form is https://host/path, as Slack's incoming webhooks have it"
    if not is_http_url(text):
        raise ValueError(form)
    if "@" in urlsplit(text).netloc:
        raise ValueError("a user name or password in it would not be sent; " + form)
    return text


def _archive_url(text: str) -> ArchiveUrl:
    return read_archive_url(text, project_root())


def _spark_remote(text: str) -> str:
    form = "the accepted form is sc://host:15002, or sc://host:15002/;NAME=value;NAME=value with percent-encoded values"
    try:
        url = urlsplit(text)
        usable = url.scheme == "sc" and bool(url.hostname) and url.port != 0 and "@" not in url.netloc
    except ValueError:
        raise ValueError(form) from None
    if not usable or not re.fullmatch(r"sc://[^/?#;]+(/(;\w+=[^;=?#\s]*)*)?", text):
        raise ValueError(form)
    return text


def _timezone(text: str) -> str:
    try:
        if text in AMBIGUOUS_ZONES or text.startswith(("right/", "posix/")):
            raise KeyError(text)
        days.zone(text)
    except (ValueError, OSError, KeyError):
        raise ValueError("the accepted form is an IANA name such as UTC or Asia/Jerusalem") from None
    return text


def _start_date(text: str) -> date:
    try:
        return days.parse_day(text)
    except days.InvalidDay:
        raise ValueError("the accepted form is YYYY-MM-DD") from None


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
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not 0.05 <= float(text) <= 60:
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


class Variable(NamedTuple):
    """An environment variable: the field of `Settings` that it sets, and what reads its text (or raises ValueError)."""

    field: str
    cast: Callable[[str], Any]


# Of two variables with the same field the later one wins.
VARIABLES = {
    "DATABASE_URL": Variable("database_url", read_url),
    "DAGSTER_POSTGRES_URL": Variable("dagster_postgres_url", read_url),
    "ROLLUP_TIMEZONE": Variable("timezone", _timezone),
    "ROLLUP_START_DATE": Variable("start_date", _start_date),
    "ROLLUP_INTERVAL_HOURS": Variable("cron", _hours),
    "ROLLUP_CRON": Variable("cron", _cron),
    "ROLLUP_DEBOUNCE_SECONDS": Variable("debounce_seconds", _seconds),
    "ROLLUPS": Variable("rollups", _names),
    "LOGS_KEPT_DAYS": Variable("logs_kept_days", _days_kept),
    "ENABLE_TEST_ENDPOINTS": Variable("enable_test_endpoints", _yes_or_no),
    "ROLLUP_TRIGGER_TOKEN": Variable("trigger_token", _token),
    "LOG_FORMAT": Variable("log_format", _one_of("text", "json")),
    "LOG_LEVEL": Variable("log_level", _one_of("debug", "info", "warning", "error")),
    "ALERT_WEBHOOK_URL": Variable("alert_webhook_url", _webhook_url),
    "ARCHIVE_URL": Variable("archive_url", _archive_url),
    "SPARK_REMOTE": Variable("spark_remote", _spark_remote),
    "REPORT_TOKEN": Variable("report_token", _token),
}
