"""Settings: defaults, accepted forms, and errors that name the variable and the form."""

from datetime import date

import pytest

from calc_analytics.config import InvalidSetting, Settings, shown, without_secrets

SECRET = "hunter2"
URL = f"postgresql://me:{SECRET}@db.example/calc"


def settings(**environment: str) -> Settings:
    return Settings.from_environment(environment)


def test_without_any_variable_the_defaults_hold():
    assert settings() == Settings(None, None, "UTC", date(2025, 1, 1), "0 * * * *", 1.0)
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
        ("ROLLUP_DEBOUNCE_SECONDS", "  ", "debounce_seconds", 1.0),
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
        ("ROLLUP_DEBOUNCE_SECONDS", "0", "seconds"),
        ("ROLLUP_DEBOUNCE_SECONDS", "nan", "seconds"),
        ("ROLLUP_DEBOUNCE_SECONDS", "-1", "seconds"),
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
    given = settings(DATABASE_URL=URL, DAGSTER_POSTGRES_URL=URL, ALERT_WEBHOOK_URL=f"https://hooks.example/{SECRET}")
    assert SECRET not in repr(given)
    assert given.database_url is not None
    assert shown(given.database_url) == "postgresql://me:***@db.example/calc"
