"""Settings: defaults, accepted forms, and errors that name the variable and the form."""

from datetime import date

import pytest

from calc_analytics.config import InvalidSetting, Settings, shown, without_secrets
from calc_analytics.rollups import LATENCY, LOG, STATS, chosen_log

SECRET = "hunter2"
URL = f"postgresql://me:{SECRET}@db.example/calc"


def settings(**environment: str) -> Settings:
    return Settings.from_environment(environment)


def test_without_any_variable_the_defaults_hold():
    assert settings() == Settings(None, None, "UTC", date(2025, 1, 1), "0 * * * *", 0.2, None, None)
    assert settings().embedded


@pytest.mark.parametrize(
    ("variable", "value", "field", "read"),
    [
        ("ROLLUP_TIMEZONE", "Asia/Jerusalem", "timezone", "Asia/Jerusalem"),
        ("ROLLUP_START_DATE", "2026-01-31", "start_date", date(2026, 1, 31)),
        ("ROLLUP_INTERVAL_HOURS", "1", "cron", "0 * * * *"),
        ("ROLLUP_INTERVAL_HOURS", "6", "cron", "0 */6 * * *"),
        ("ROLLUP_INTERVAL_HOURS", "24", "cron", "0 0 * * *"),
        ("ROLLUP_CRON", "*/30 * * * *", "cron", "*/30 * * * *"),
        ("ROLLUP_DEBOUNCE_SECONDS", "0.25", "debounce_seconds", 0.25),
        ("ROLLUP_DEBOUNCE_SECONDS", "  ", "debounce_seconds", 0.2),
        ("ROLLUPS", "calculation_stats_daily", "rollups", ("calculation_stats_daily",)),
        ("ROLLUPS", " b , a,b ,", "rollups", ("b", "a")),
        ("ROLLUPS", "all", "rollups", None),
        ("ROLLUPS", "", "rollups", None),
        ("LOGS_KEPT_DAYS", "90", "logs_kept_days", 90),
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
        ("ENABLE_TEST_ENDPOINTS", "1", "true or false"),
        ("ROLLUP_TRIGGER_TOKEN", f"{SECRET} with spaces", "printable"),
        ("LOG_FORMAT", "xml", "text or json"),
        ("LOG_LEVEL", "verbose", "error"),
        ("ROLLUP_DEBOUNCE_SECONDS", "0", "seconds"),
        ("ROLLUP_DEBOUNCE_SECONDS", "nan", "seconds"),
        ("ROLLUP_DEBOUNCE_SECONDS", "-1", "seconds"),
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
    said = str(refused.value)
    assert said.startswith(variable)
    assert form in said
    assert "\n" not in said
    assert SECRET not in said


def test_a_rollup_that_is_not_declared_is_refused_with_the_names_that_are():
    with pytest.raises(InvalidSetting) as refused:
        chosen_log(settings(ROLLUPS=f"weekly,{STATS.name}").rollups)
    said = str(refused.value)
    assert said.startswith("ROLLUPS: ")
    assert "there is no rollup 'weekly'" in said
    assert all(name in said for name in LOG.names)


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
    assert shown(url) == "postgresql://me@db.example/calc?host=/run/pg"


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
    assert shown(given.database_url) == "postgresql://me:***@db.example/calc"
