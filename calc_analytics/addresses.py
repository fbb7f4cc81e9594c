"""Addresses of databases and of the archive: URLs are parsed and checked, completed for people, and reduced for
Dagster's database.

libpq takes what a URL leaves out from its own variables (PGHOST, PGUSER, PGOPTIONS, …), its service and password files,
and its defaults. So nothing is filled in here, except for display. Nothing connects.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

FORM = "the accepted form is postgresql://user:password@host:5432/database"
ENCODE = "write @, /, ?, # and : in the password percent-encoded, as %40, %2F, %3F, %23 and %3A, and @ elsewhere as %40"
# Names that other drivers have for the schema.
SCHEMA_OPTIONS = ("schema", "currentSchema", "search_path")
# The server, the role, and the kind of connection: what a second database on the same server needs as well.
CONNECTION_OPTIONS = re.compile(
    "host|hostaddr|port|passfile|password|service|ssl.*|gss.*|krbsrvname|channel_binding|require.*|"
    "target_session_attrs|load_balance_hosts|connect_timeout|keepalives.*|tcp_user_timeout"
)
ARCHIVE_FORM = "the accepted form is a folder, file:///folder, s3://bucket/prefix or gs://bucket/prefix"
# What may follow the ? of a bucket's address; all else, credentials too, comes from the provider's own variables.
BUCKET_OPTIONS = ("endpoint_url", "region")


@dataclass(frozen=True)
class ArchiveUrl:
    """Where the archive lies: `path` is a folder, or a bucket and a prefix; `options` may hold secrets."""

    protocol: str
    path: str
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def shown(self) -> str:
        """The address for people, without secrets."""
        return self.path if self.protocol == "file" else f"{self.protocol}://{self.path}"


def read_archive_url(text: str, root: Path) -> ArchiveUrl:
    """An ARCHIVE_URL; a relative folder is one of `root`. ValueError with the accepted form, and nothing secret."""
    if not re.match(r"\w+:", text):
        return ArchiveUrl("file", _folder(root, text))
    try:
        url = urlsplit(text)
        bucket, user, password = url.hostname or "", url.username, url.password
    except ValueError:
        raise ValueError(ARCHIVE_FORM) from None
    if url.scheme == "file" and url.netloc in ("", "localhost") and url.path.startswith("/") and not url.query:
        return ArchiveUrl("file", _folder(root, unquote(url.path)))
    # A colon, or an @ elsewhere: a secret that is not percent-encoded, which would be shown as a part of the address.
    place = url.netloc.split("@")[-1] + url.path
    if url.scheme not in ("s3", "gs") or not bucket or url.fragment or text.count("@") > 1 or {":", "@"} & set(place):
        raise ValueError(ARCHIVE_FORM)
    if (user is None) != (password is None) or (user is not None and url.scheme != "s3"):
        raise ValueError(
            "only s3://KEY:SECRET@bucket/prefix holds a key and a secret, percent-encoded; " + ARCHIVE_FORM
        )
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    if unknown := sorted(set(options) - set(BUCKET_OPTIONS)):
        raise ValueError(f"it has the option {unknown[0]}: the options are {' and '.join(BUCKET_OPTIONS)}")
    if (endpoint := options.get("endpoint_url")) is not None and not _is_endpoint(endpoint):
        raise ValueError("its endpoint_url is not of the form https://host:port, without a user name or password")
    if user is not None and password is not None:
        options.update(key=unquote(user), secret=unquote(password))
    path = "/".join([url.netloc.split("@")[-1], *filter(None, url.path.split("/"))])
    return ArchiveUrl(url.scheme, path, tuple(sorted(options.items())))


def _folder(root: Path, text: str) -> str:
    try:
        return str((root / Path(text).expanduser()).resolve())
    except (RuntimeError, OSError, ValueError):  # an unknown ~user, a loop of links, a zero byte
        raise ValueError("it is not a folder that can exist; " + ARCHIVE_FORM) from None


def is_http_url(text: str) -> bool:
    """Whether it is of the form http(s)://host, with or without a port, and has no character that must be encoded."""
    try:
        url = urlsplit(text)
        has_host = bool(url.hostname) and url.port != 0
    except ValueError:
        return False
    return url.scheme in ("http", "https") and has_host and bool(re.fullmatch(r"[!-~]+", text))


def _is_endpoint(text: str) -> bool:
    if not is_http_url(text):
        return False
    url = urlsplit(text)
    return "@" not in url.netloc and not url.query and not url.fragment


def with_driver(url: "str | URL", driver: str) -> "URL":
    """The same PostgreSQL URL with SQLAlchemy's driver set: 'psycopg' (3) or 'psycopg2'."""
    from sqlalchemy.engine import make_url

    return make_url(url).set(drivername=f"postgresql+{driver}")


def read_url(text: str) -> "URL":
    """A PostgreSQL URL as an engineer writes it; ValueError with the accepted form, and nothing of the password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(FORM) from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError(f"it names {url.drivername}; {FORM}")
    if _may_be_misread(text, url):
        raise ValueError(ENCODE)
    url = _with_options_in_place(url)
    if not (url.database or "service" in url.query or libpq_defaults().get("dbname")):
        raise ValueError(f"it names no database; {FORM}")
    return with_driver(url, "psycopg")


def _may_be_misread(text: str, url: "URL") -> bool:
    """Whether a part of the password may stand where the host, the database or an option is expected."""
    before = text.split("@")[0] if "@" in text else ""
    misplaced = {"@", "/"} & set(url.database or "")
    return text.count("@") > 1 or bool(misplaced) or {"/", "?"} <= set(before.split("://")[-1])


def _with_options_in_place(url: "URL") -> "URL":
    """`?dbname=` and `?user=` as libpq reads them; ValueError for an option that it does not have."""
    query: dict[str, Any] = {name: _last(name, value) for name, value in url.query.items()}
    for name in query:
        if name in SCHEMA_OPTIONS:
            raise ValueError(f"it has the option {name}; a schema is named by ?options=-csearch_path%3Dschema")
        if name not in _libpq_options():
            raise ValueError(f"it has the option {name}, which PostgreSQL's libpq does not know")
    database, username = query.pop("dbname", url.database), query.pop("user", url.username)
    return url.set(database=database, username=username, query=query)


def _last(name: str, value: Any) -> Any:
    """Of an option that is given twice the last counts; several hosts may be given one by one."""
    return value if isinstance(value, str) or name == "host" else value[-1]


def _libpq_options() -> set[str]:
    from psycopg import pq

    return {option.keyword.decode() for option in pq.Conninfo.get_defaults()}


def libpq_defaults() -> dict[str, str]:
    """What libpq takes for what a URL leaves out: its variables, PGSERVICE's entry, its own defaults."""
    from psycopg import pq

    return {option.keyword.decode(): option.val.decode() for option in pq.Conninfo.get_defaults() if option.val}


def completed(url: "URL") -> "URL":
    """The URL with the host, user and database that libpq adds; a URL with a service is left as it is."""
    if "service" in url.query:
        return url
    known, host = libpq_defaults(), url.host or url.query.get("host") or url.query.get("hostaddr")
    if not host and known.get("host", "").startswith("/"):
        url = url.update_query_dict({"host": known["host"]})
    elif not host and known.get("host"):
        url = url.set(host=known["host"])
    if not host and not url.port and known.get("port", "5432") != "5432":
        url = url.set(port=int(known["port"])) if url.host else url.update_query_dict({"port": known["port"]})
    return url.set(username=url.username or known.get("user"), database=url.database or known.get("dbname"))


def redact_url(url: "URL") -> str:
    """The URL for people, in psql's form, without the password; of its options only those that name the server."""
    full = completed(url)
    place = {name: value for name, value in full.query.items() if name in ("host", "port", "service")}
    plain = full.set(drivername="postgresql", query=place)
    return plain.render_as_string(hide_password=True).replace("%2F", "/")


def without_secrets(text: str, url: "URL") -> str:
    """The text with stars for each password of the URL, in every form in which a URL may hold it."""
    for secret in (url.password, url.query.get("password"), url.query.get("sslpassword")):
        if secret and secret != url.username:
            # SQLAlchemy writes spaces and plus signs as they are; others do not.
            for form in (str(secret), quote(str(secret), ""), quote(str(secret), " +"), quote_plus(str(secret))):
                text = text.replace(form, "***")
    return text


def with_database(url: "URL", database: str) -> "URL":
    """Another database on the URL's server, with what is needed to connect there and nothing else.

    Settings such as a search_path are meant for the URL's own database, also those in PGOPTIONS, which an option that
    is empty turns off. What routes a connection on a managed server ('endpoint=…') stays.
    """
    query = {name: value for name, value in url.query.items() if CONNECTION_OPTIONS.fullmatch(name)}
    options = str(url.query.get("options", ""))
    return url.set(database=database, query={**query, "options": "" if options.lstrip().startswith("-") else options})
