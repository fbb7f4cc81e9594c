"""Settings: defaults, accepted forms, and errors that name the variable and the form."""

import random
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

from calc_analytics import config, days
from calc_analytics.config import ArchiveUrl, InvalidSetting, Settings, process_settings, redact_url, without_secrets
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.rollups import LATENCY, LOG, STATS, chosen_log

SECRET = "hunter2"
URL = f"postgresql://me:{SECRET}@db.example/calc"


def settings(**environment: str) -> Settings:
    return Settings.from_environment(environment)


def test_without_any_variable_the_defaults_hold():
    assert settings() == Settings(None, None, "UTC", date(2025, 1, 1), "0 * * * *", 0.2, None, None)
    assert settings().embedded


def test_a_process_reads_them_once_and_again_only_after_an_error(monkeypatch: pytest.MonkeyPatch):
    variables = {"ROLLUP_TIMEZONE": "Nowhere"}
    monkeypatch.setattr(config.os, "environ", variables)
    with pytest.raises(InvalidSetting):
        process_settings()
    variables["ROLLUP_TIMEZONE"] = "Asia/Jerusalem"
    assert RollupDatabase().settings.timezone == "Asia/Jerusalem"
    variables["ROLLUP_TIMEZONE"] = "UTC"
    assert RollupDatabase().settings is process_settings()
    assert process_settings().timezone == "Asia/Jerusalem"


@pytest.mark.parametrize(
    ("variable", "value", "field", "read"),
    [
        ("ROLLUP_TIMEZONE", "Asia/Jerusalem", "timezone", "Asia/Jerusalem"),
        ("ROLLUP_START_DATE", "2026-01-31", "start_date", date(2026, 1, 31)),
        ("ROLLUP_INTERVAL_HOURS", "1", "cron", "0 * * * *"),
        ("ROLLUP_INTERVAL_HOURS", "6", "cron", "0 */6 * * *"),
        ("ROLLUP_INTERVAL_HOURS", "24", "cron", "0 0 * * *"),
        ("ROLLUP_CRON", "*/30 * * * *", "cron", "*/30 * * * *"),
        ("ROLLUP_CRON", "0,30 8-18/2 1-7 jan-MAR mon-fri", "cron", "0,30 8-18/2 1-7 jan-MAR mon-fri"),
        ("ROLLUP_CRON", "5/15 22-2 L * 7", "cron", "5/15 22-2 L * 7"),
        ("ROLLUP_CRON", "0 0 29 2 *", "cron", "0 0 29 2 *"),
        ("ROLLUP_CRON", "0 0 31 2 mon", "cron", "0 0 31 2 mon"),
        ("ROLLUP_DEBOUNCE_SECONDS", "0.25", "debounce_seconds", 0.25),
        ("ROLLUP_DEBOUNCE_SECONDS", "  ", "debounce_seconds", 0.2),
        ("ROLLUPS", "calculation_stats_daily", "rollups", ("calculation_stats_daily",)),
        ("ROLLUPS", " b , a,b ,", "rollups", ("b", "a")),
        ("ROLLUPS", "all", "rollups", None),
        ("ROLLUPS", "", "rollups", None),
        ("LOGS_KEPT_DAYS", "90", "logs_kept_days", 90),
        ("ARCHIVE_URL", "/var/archive", "archive_url", ArchiveUrl("file", "/var/archive")),
        ("ARCHIVE_URL", "archive", "archive_url", ArchiveUrl("file", str(config.project_root() / "archive"))),
        ("ARCHIVE_URL", "s3://bucket/logs", "archive_url", ArchiveUrl("s3", "bucket/logs")),
        ("ARCHIVE_URL", " ", "archive_url", None),
        ("SPARK_REMOTE", "sc://spark:15002/;token=abc", "spark_remote", "sc://spark:15002/;token=abc"),
        ("LOGS_KEPT_DAYS", " ", "logs_kept_days", None),
        ("ENABLE_TEST_ENDPOINTS", "True", "enable_test_endpoints", True),
        ("ENABLE_TEST_ENDPOINTS", "false", "enable_test_endpoints", False),
        ("ROLLUP_TRIGGER_TOKEN", "correct-horse", "trigger_token", "correct-horse"),
        ("LOG_FORMAT", "JSON", "log_format", "json"),
        ("LOG_LEVEL", "warning", "log_level", "warning"),
        (
            "ALERT_WEBHOOK_URL",
            "https://hooks.example/services/T0/B0",
            "alert_webhook_url",
            "https://hooks.example/services/T0/B0",
        ),
    ],
)
def test_a_value_is_read_and_cast(variable: str, value: str, field: str, read: object):
    assert getattr(settings(**{variable: value}), field) == read


def test_cron_wins_over_the_interval():
    assert settings(ROLLUP_CRON="5 * * * *", ROLLUP_INTERVAL_HOURS="2").cron == "5 * * * *"


@pytest.mark.parametrize(
    ("variable", "value", "form"),
    [
        ("ROLLUP_TIMEZONE", "Mars/Olympus", "IANA"),
        ("ROLLUP_TIMEZONE", "../../etc/passwd", "IANA"),
        ("ROLLUP_TIMEZONE", "CET", "IANA"),
        ("ROLLUP_TIMEZONE", "right/UTC", "IANA"),
        ("ROLLUP_INTERVAL_HOURS", "²", "divides a day"),
        ("DATABASE_URL", f"postgresql://me:p@{SECRET}/w:rd@db/calc", "percent-encoded"),
        ("DATABASE_URL", f"postgresql://me:p@{SECRET}%2Fword@db/calc", "percent-encoded"),
        ("ROLLUP_START_DATE", "1.1.2025", "YYYY-MM-DD"),
        ("ROLLUP_INTERVAL_HOURS", "5", "divides a day"),
        ("ROLLUP_INTERVAL_HOURS", "one", "divides a day"),
        ("ROLLUP_CRON", "hourly", "five fields"),
        ("ROLLUP_CRON", "99 * * * *", "'99' is not a minute, which goes from 0 to 59"),
        ("ROLLUP_CRON", "* 24 * * *", "'24' is not a hour"),
        ("ROLLUP_CRON", "0 0 0 * *", "'0' is not a day of the month"),
        ("ROLLUP_CRON", "0 0 * 13 *", "'13' is not a month"),
        ("ROLLUP_CRON", "0 0 * * 8", "'8' is not a day of the week"),
        ("ROLLUP_CRON", "0 0 * * someday", "'someday' is not a day of the week"),
        ("ROLLUP_CRON", "*/0 * * * *", "'/0' is not a step"),
        ("ROLLUP_CRON", "1-99 * * * *", "'1-99' is not a minute"),
        ("ROLLUP_CRON", "-1 * * * *", "'-1' is not a minute"),
        ("ROLLUP_CRON", "1,,2 * * * *", "'' is not a minute"),
        ("ROLLUP_CRON", "² * * * *", "'²' is not a minute"),
        ("ROLLUP_CRON", "５ * * * *", "'５' is not a minute"),
        ("ROLLUP_CRON", "*/５ * * * *", "'/５' is not a step"),
        ("ROLLUP_CRON", "0 0 30 2 *", "never comes"),
        ("ROLLUP_CRON", "0 0 31 4,jun,9-9,11 *", "never comes"),
        ("ROLLUP_START_DATE", "2999-01-01", "lies in the future"),
        ("ROLLUP_START_DATE", str(days.today("UTC") + timedelta(days=3)), "lies in the future"),
        ("ENABLE_TEST_ENDPOINTS", "1", "true or false"),
        ("ROLLUP_TRIGGER_TOKEN", f"{SECRET} with spaces", "printable"),
        ("LOG_FORMAT", "xml", "text or json"),
        ("LOG_LEVEL", "verbose", "error"),
        ("ROLLUP_DEBOUNCE_SECONDS", "0", "seconds"),
        ("ROLLUP_DEBOUNCE_SECONDS", "nan", "seconds"),
        ("ROLLUP_DEBOUNCE_SECONDS", "-1", "seconds"),
        ("ROLLUP_DEBOUNCE_SECONDS", "０.５", "seconds"),
        ("ROLLUP_START_DATE", "２０２６-０１-０１", "YYYY-MM-DD"),
        ("LOGS_KEPT_DAYS", "９０", "from 1 on"),
        ("ROLLUPS", "calculation_stats_daily;hours", "separated by commas"),
        ("ROLLUPS", ",", "separated by commas"),
        ("ROLLUPS", "statistiken_für_tage", "separated by commas"),
        ("LOGS_KEPT_DAYS", "0", "from 1 on"),
        ("LOGS_KEPT_DAYS", "-1", "from 1 on"),
        ("LOGS_KEPT_DAYS", "90 days", "from 1 on"),
        ("LOGS_KEPT_DAYS", "1.5", "from 1 on"),
        ("LOGS_KEPT_DAYS", "9999999", "from 1 on"),
        ("DATABASE_URL", f"mysql://me:{SECRET}@db/calc", "postgresql://"),
        ("DATABASE_URL", f"me:{SECRET}", "postgresql://"),
        ("DATABASE_URL", f"postgresql://me:{SECRET}@db", "names no database"),
        ("DATABASE_URL", f"postgresql://me:{SECRET}@db:port/calc", "postgresql://"),
        ("DAGSTER_POSTGRES_URL", "sqlite:///x", "postgresql://"),
        ("ARCHIVE_URL", f"s3://{SECRET}@bucket/logs", "s3://bucket/prefix"),
        ("SPARK_REMOTE", f"spark://host:7077/{SECRET}", "sc://host:15002"),
        ("SPARK_REMOTE", f"sc:///;token={SECRET}", "sc://host:15002"),
        ("SPARK_REMOTE", f"sc://host/path;token={SECRET}", "sc://host:15002"),
        ("SPARK_REMOTE", f"sc://me:{SECRET}@host", "sc://host:15002"),
        ("SPARK_REMOTE", f"sc://host/;token={SECRET}==", "percent-encoded"),
        ("SPARK_REMOTE", f"sc://host/;token={SECRET}#b", "percent-encoded"),
        ("SPARK_REMOTE", f"sc://host/;{SECRET}", "NAME=value"),
        ("ARCHIVE_URL", f"s3:/bucket/{SECRET}", "s3://bucket/prefix"),
        ("ARCHIVE_URL", f"https://me:{SECRET}@host/logs", "s3://bucket/prefix"),
        ("ARCHIVE_URL", f"s3://KEY:a/{SECRET}@bucket/logs", "s3://bucket/prefix"),
        ("ARCHIVE_URL", f"s3://bucket/logs?secret={SECRET}", "endpoint_url and region"),
        ("ALERT_WEBHOOK_URL", f"hooks.example/{SECRET}", "https://host/path"),
        ("ALERT_WEBHOOK_URL", f"ftp://hooks.example/{SECRET}", "https://host/path"),
        ("ALERT_WEBHOOK_URL", f"https:///{SECRET}", "https://host/path"),
        ("ALERT_WEBHOOK_URL", f"https://hooks.example:port/{SECRET}", "https://host/path"),
        ("ALERT_WEBHOOK_URL", f"https://hooks.example/{SECRET} x", "https://host/path"),
        ("ALERT_WEBHOOK_URL", f"https://me:{SECRET}@hooks.example/x", "would not be sent"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_the_form(variable: str, value: str, form: str):
    with pytest.raises(InvalidSetting) as refused:
        settings(**{variable: value})
    message = str(refused.value)
    assert message.startswith(variable)
    assert form in message
    assert "\n" not in message
    assert SECRET not in message


def test_a_start_date_is_judged_in_the_reporting_zone():
    first = days.today("Pacific/Kiritimati")
    assert settings(ROLLUP_START_DATE=str(first), ROLLUP_TIMEZONE="Pacific/Kiritimati").start_date == first


def test_what_is_taken_for_a_cron_line_is_one_to_dagster():
    """Lines at random: what is refused Dagster refuses too, or it never comes."""
    from dagster._utils.schedules import is_valid_cron_schedule

    rng = random.Random(7)
    pieces = [
        "*",
        "0",
        "5",
        "12",
        "23",
        "24",
        "31",
        "32",
        "59",
        "60",
        "99",
        "1-5",
        "*/7",
        "*/0",
        "3,9",
        "mon",
        "jan",
        "x",
    ]
    for _ in range(2_000):
        line = " ".join(rng.choice(pieces) for _ in range(5))
        try:
            days.require_cron_line(line)
            accepted = True
        except ValueError as error:
            accepted = "never comes" in str(error)
        assert accepted == is_valid_cron_schedule(line), line


@pytest.fixture
def dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Settings]:
    """What the settings are with that text in `.env`, and nothing else."""
    monkeypatch.setattr(config, "project_root", lambda: tmp_path)
    monkeypatch.setattr(config.os, "environ", {})

    def read(text: str) -> Settings:
        (tmp_path / ".env").write_text(text)
        return Settings.from_environment()

    return read


def test_settings_are_read_from_dotenv(dotenv: Callable[[str], Settings]):
    text = "# settings\n\nexport ROLLUP_TIMEZONE=Asia/Jerusalem\nROLLUPS='calculation_stats_daily' # one\n"
    found = dotenv(text + 'EMPTY=\nA="b\nc"\n')
    assert (found.timezone, found.rollups) == ("Asia/Jerusalem", ("calculation_stats_daily",))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (f"DATABASE_URL postgresql://me:{SECRET}@db/calc", "1"),
        (f"\n\n# a comment\n\n  {SECRET}\nLOG_LEVEL=info\n", "5"),
        (f"LOG_LEVEL=info\nDATABASE_URL: {URL}\n\n{SECRET}", "2, 4"),
        (f"={SECRET}", "1"),
        (f"LOG_LEVEL=info\r\n\r\nexport {SECRET}\r\n", "3"),
        (f"A='{SECRET}", "1"),
    ],
)
def test_a_line_of_dotenv_that_is_ignored_is_reported_by_its_number_alone(
    dotenv: Callable[[str], Settings], text: str, lines: str
):
    with pytest.raises(InvalidSetting) as refused:
        dotenv(text)
    message = str(refused.value)
    assert message.startswith(f"line {lines} of the project's .env is not usable: the accepted form is NAME=value")
    assert SECRET not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("ROLUP_TIMEZONE", "ROLLUP_TIMEZONE"),
        ("ROLLUP_TIME_ZONE", "ROLLUP_TIMEZONE"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("database_url", "DATABASE_URL"),
        ("LOG_LEVLE", "LOG_LEVEL"),
        ("LOGS_KEEP_DAYS", "LOGS_KEPT_DAYS"),
        ("ENABLE_TEST_ENDPOINT", "ENABLE_TEST_ENDPOINTS"),
    ],
)
def test_a_misspelled_name_in_dotenv_is_refused_with_the_setting_it_resembles(
    dotenv: Callable[[str], Settings], name: str, known: str
):
    with pytest.raises(InvalidSetting) as refused:
        dotenv(f"A=b\n{name}={SECRET}\n")
    assert str(refused.value) == f"{name} in the project's .env is not a setting: did you mean {known}?"


def test_names_of_other_programs_in_dotenv_are_left_alone(dotenv: Callable[[str], Settings]):
    others = ["DAGSTER_HOME", "DAGSTER_POSTGRES_USER", "LOG_FILE", "ALERT_EMAIL", "PGHOST", "TEST_DATABASE_URL", "DB"]
    assert dotenv("".join(f"{name}=x\n" for name in others)) == Settings()
    assert dotenv(f"DATABASE_URL={URL}\nDATABASE_URI={URL}\n").database_url is not None


def test_misspelled_names_of_the_environment_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(config.os, "environ", {"ROLUP_CRON": "", "PATH": "/bin", "ROLLUPS": "all"})
    assert config.misspelled() == {"ROLUP_CRON": "ROLLUP_CRON"}


def test_a_rollup_that_is_not_declared_is_refused_with_the_names_that_are():
    with pytest.raises(InvalidSetting) as refused:
        chosen_log(settings(ROLLUPS=f"weekly,{STATS.name}").rollups)
    message = str(refused.value)
    assert message.startswith("ROLLUPS: ")
    assert "there is no rollup 'weekly'" in message
    assert all(name in message for name in LOG.names)


def test_rollups_are_kept_in_the_order_of_their_declaration():
    assert chosen_log(settings(ROLLUPS=f"{LATENCY.name},{STATS.name}").rollups).names == [STATS.name, LATENCY.name]
    assert chosen_log(settings().rollups) is LOG


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"])
def test_every_way_to_write_postgresql_becomes_psycopg_3(scheme: str):
    url = settings(DATABASE_URL=URL.replace("postgresql", scheme, 1)).database_url
    assert url is not None
    assert url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize("option", ["password", "sslpassword", "passfile"])
def test_options_of_the_url_are_not_shown(option: str):
    url = settings(DATABASE_URL=f"postgresql://me@db.example/calc?{option}={SECRET}&host=/run/pg").database_url
    assert url is not None
    assert redact_url(url) == "postgresql://me@db.example/calc?host=/run/pg"


@pytest.mark.parametrize("form", ["p@/hunter2 +", "p%40%2Fhunter2%20%2B", "p%40%2Fhunter2 +", "p%40%2Fhunter2+%2B"])
def test_a_password_is_hidden_in_every_form_in_which_a_driver_may_quote_it(form: str):
    url = settings(DATABASE_URL="postgresql://me:p%40%2Fhunter2%20%2B@db/calc").database_url
    assert url
    assert without_secrets(f'cannot use "{form}"', url) == 'cannot use "***"'


def test_no_representation_holds_the_password():
    given = settings(
        DATABASE_URL=URL,
        DAGSTER_POSTGRES_URL=URL,
        ROLLUP_TRIGGER_TOKEN=SECRET,
        ALERT_WEBHOOK_URL=f"https://hooks.example/{SECRET}",
    )
    assert SECRET not in repr(given)
    assert given.database_url is not None
    assert redact_url(given.database_url) == "postgresql://me:***@db.example/calc"
