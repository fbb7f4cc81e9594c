"""URLs of databases: what is read, what is refused without a word of the password, and what Dagster's gets."""

from pathlib import Path

import pytest

from calc_analytics import config
from calc_analytics.addresses import read_archive_url, with_database
from calc_analytics.config import InvalidSetting, Settings, redact_url
from calc_analytics.database.engine import dagster_url

SECRETS = ("hunter", "zk7")
# Passwords that are not percent-encoded, each of which a parser may take for a host, a database or an option.
PASSWORDS = (
    "hunter@zk7/w#rd?x",
    "hunter@zk7",
    "hunter@/zk7",
    "hunter@x?zk7",
    "hunter@x/zk7#",
    "hunter@x?zk7=1&y=z",
    "hunter/a?sslmode=zk7",
    "@hunterzk7",
    "hunterzk7@",
    "hunter@[zk7",
    "hunter@x:zk7",
    "hunter@x/zk7?host=y",
)


def url_of(text: str, variable: str = "DATABASE_URL"):
    settings = Settings.from_environment({variable: text})
    return settings.database_url or settings.dagster_postgres_url


@pytest.fixture(autouse=True)
def _without_libpqs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE", "PGOPTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", ["DATABASE_URL", "DAGSTER_POSTGRES_URL"])
@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_that_is_not_encoded_is_refused_and_no_part_of_it_is_shown(password: str, variable: str):
    with pytest.raises(InvalidSetting) as refused:
        url_of(f"postgresql://u:{password}@host/db", variable)
    message = str(refused.value)
    assert message.startswith(variable)
    assert not [secret for secret in SECRETS if secret in message]


@pytest.mark.parametrize("password", ["p%40%2F%3F%23%3A", "p/w", "p#w", "p?w", "p:w", "p%w"])
def test_a_password_that_cannot_be_misread_is_taken(password: str):
    url = url_of(f"postgresql://u:{password}@host/db")
    assert (url.host, url.database) == ("host", "db")
    assert redact_url(url) == "postgresql://u:***@host/db"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("schema=analytics", "options=-csearch_path"),
        ("currentSchema=analytics", "options=-csearch_path"),
        ("pgbouncer=true", "has the option pgbouncer"),
    ],
)
def test_an_option_that_libpq_does_not_know_is_refused_by_name(query: str, message: str):
    with pytest.raises(InvalidSetting, match=message):
        url_of(f"postgresql://u@host/db?{query}")


def test_options_of_the_url_mean_what_they_mean_to_libpq():
    url = url_of("postgresql://host/?dbname=calc&user=me&connect_timeout=3")
    assert (url.database, url.username, dict(url.query)) == ("calc", "me", {"connect_timeout": "3"})


def test_a_url_without_any_database_is_refused_unless_libpq_has_one(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InvalidSetting, match="names no database"):
        url_of("postgresql://")
    monkeypatch.setenv("PGDATABASE", "calc")
    monkeypatch.setenv("PGHOST", "db.example")
    monkeypatch.setenv("PGUSER", "me")
    monkeypatch.setenv("PGPORT", "6432")
    assert redact_url(url_of("postgresql://")) == "postgresql://me@db.example:6432/calc"


def test_dagsters_url_gets_what_is_needed_to_connect_and_nothing_else():
    given = url_of(
        "postgresql://me:secret@host:6000/api?sslmode=require&options=-csearch_path%3Danalytics&application_name=x"
        "&target_session_attrs=read-write&dbname=other"
    )
    url = with_database(given, "dagster")
    assert (url.host, url.port, url.username, url.password) == ("host", 6000, "me", "secret")
    assert url.database == "dagster"
    assert dict(url.query) == {"sslmode": "require", "target_session_attrs": "read-write", "options": ""}


def test_dagsters_url_keeps_what_routes_a_connection():
    given = url_of("postgresql://me@host/api?options=endpoint%3Dep-1")
    assert with_database(given, "dagster").query["options"] == "endpoint=ep-1"


def test_a_url_of_dagsters_own_keeps_its_options():
    settings = Settings.from_environment({"DAGSTER_POSTGRES_URL": "postgresql://h/d?options=-csearch_path%3Druns"})
    assert dagster_url(settings).query["options"] == "-csearch_path=runs"


def test_libpqs_variables_count_in_dotenv_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".env").write_text("DATABASE_URL=postgresql://\nPGDATABASE=calc\nPGHOST=db.example\nPGUSER=me\n")
    monkeypatch.setattr(config, "project_root", lambda: tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("PGUSER", "you")
    for name in ("PGHOST", "PGDATABASE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    found = Settings.from_environment().database_url
    assert found is not None
    assert redact_url(found) == "postgresql://you@db.example/calc"


KEYS = "s3://AKID:se%2Fcr%40et@bucket/logs/"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("archive", "/project/archive"),
        ("./archive/", "/project/archive"),
        ("/var/archive", "/var/archive"),
        ("file:///var/my%20archive", "/var/my archive"),
        ("s3://bucket", "s3://bucket"),
        ("s3://My.bucket/a//b/", "s3://My.bucket/a/b"),
        (KEYS, "s3://bucket/logs"),
        ("s3://bucket/logs?endpoint_url=http://127.0.0.1:9000&region=eu-west-1", "s3://bucket/logs"),
        ("gs://bucket/logs", "gs://bucket/logs"),
    ],
)
def test_a_place_for_the_archive_is_read_and_shown_without_secrets(text: str, shown: str):
    url = read_archive_url(text, Path("/project"))
    assert url.shown == shown
    for hidden in ("AKID", "se/cr@et", "se%2Fcr%40et"):
        assert hidden not in url.shown
        assert hidden not in repr(url)


def test_a_loop_of_links_is_refused(tmp_path: Path):
    (tmp_path / "one").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    with pytest.raises(ValueError, match="not a folder that can exist"):
        read_archive_url("one/archive", tmp_path)


def test_key_and_secret_are_decoded_and_options_kept():
    assert dict(read_archive_url(KEYS, Path("/")).options) == {"key": "AKID", "secret": "se/cr@et"}
    url = read_archive_url("s3://bucket/logs?endpoint_url=http://127.0.0.1:9000&region=eu-west-1", Path("/"))
    assert dict(url.options) == {"endpoint_url": "http://127.0.0.1:9000", "region": "eu-west-1"}


@pytest.mark.parametrize(
    "text",
    [
        "http://host/path",
        "s3://",
        "s3:///path",
        "s3:/bucket/hunter2",
        "file://host/path",
        "file://path",
        "s3://hunter2@bucket/logs",
        "gs://me:hunter2@bucket/logs",
        "s3://me:hunt@er2@bucket/logs",
        "s3://me:hunter2@bucket/logs#hunter2",
        "s3://bucket/logs?secret=hunter2",
        "s3://[bucket/hunter2",
        "~nobody-has-this-name/hunter2",
        "folder/\0hunter2",
        "s3://bucket/logs?endpoint_url=https://me:hunter2@minio.example",
        "s3://bucket/logs?endpoint_url=localhost:9000/hunter2",
        "s3://bucket/logs?endpoint_url=https://",
        "s3://bucket/logs?endpoint_url=https://minio.example:hunter2",
        "s3://bucket/logs?endpoint_url=https://minio.example?token=hunter2",
        "s3://bucket/logs?endpoint_url=https://minio example",
        "s3://bucket/logs?endpoint_url=",
    ],
)
def test_another_place_is_refused_with_the_accepted_form_and_nothing_secret(text: str):
    with pytest.raises(ValueError, match=r"accepted form|the options are|endpoint_url is not of the form") as refused:
        read_archive_url(text, Path("/project"))
    assert "hunter2" not in str(refused.value)
