"""Schemas: which one each table is in, and whether the role's search_path finds it.

Tables are found, and new ones created, by the role's search_path, as by any other program: set for the role or the
database, by PGOPTIONS, or by the URL's options. A table that it does not find must not be created a second time.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import URL, Connection

from calc_analytics.addresses import libpq_defaults
from calc_analytics.database.engine import engine_for, transaction
from calc_analytics.database.sql import quote_identifier
from calc_analytics.database.tables import calculation_logs
from calc_analytics.errors import CalcAnalyticsError


class HiddenTable(CalcAnalyticsError):
    """A table is in a schema that the role's search_path does not name, or that it may not use; nothing was changed."""


class NoSchema(CalcAnalyticsError):
    """No schema that the role's search_path names exists, or may be used; nothing was changed."""


class PathIgnored(CalcAnalyticsError):
    """The search_path of the URL or PGOPTIONS is not in effect; nothing was changed."""


@dataclass(frozen=True)
class Place:
    """A table, the schema it is in, and what became of it: 'created', 'adopted', or 'unchanged'."""

    table: str
    schema: str
    how: str = "unchanged"

    @property
    def line(self) -> str:
        """'created    analytics.rollup_state'."""
        return f"{self.how:<9}  {self.schema}.{self.table}"


@dataclass(frozen=True)
class Hidden:
    """A table that the role's search_path does not find, and the statement with which it does."""

    table: str
    schema: str
    path: str
    statement: str

    @property
    def fact(self) -> str:
        """In one line, without the statement."""
        return f"{self.table} is in the schema {self.schema}, where the search_path ({self.path}) does not find it"


@dataclass(frozen=True)
class Look:
    """What the role finds: tables by schema, those that it does not find, and other schemas with a log table.

    New tables are created in `creates_in`; None: nowhere. `ignores` is a path that was requested, and is not in effect.
    """

    role: str
    path: str
    creates_in: str | None
    places: dict[str, str]
    hidden: list[Hidden]
    copies: list[str]
    ignores: str | None

    @property
    def where(self) -> str:
        """'analytics', 'api, reports'; where they will be, if there are none."""
        return ", ".join(sorted(set(self.places.values()))) or f"{self.creates_in}, where none is yet"


def look(connection: Connection, names: Sequence[str], log: str) -> Look:
    """Everything about the tables' schemas, for a report."""
    row, found = connection.execute(_CURRENT).one(), places(connection, names)
    copies = connection.execute(_SCHEMAS, {"log": log}).scalars().all()
    others = [schema for schema in copies if log in found and schema != found[log]]
    ignored = _ignored_path(connection, row.path)
    return Look(row.role, row.path, row.schema, found, hidden(connection, names), others, ignored)


def places(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """The schema of each table that is found by its name alone."""
    found = {row.name: row.schema for row in connection.execute(_PLACES, {"names": list(names)})}
    return {name: found[name] for name in names if name in found}


def hidden(connection: Connection, names: Collection[str]) -> list[Hidden]:
    """Those of the tables that exist and are not found by their names.

    A path that was set may leave out a schema with an installation of its own: that is another one.
    """
    rows = connection.execute(_HIDDEN, {"names": list(names), "log": calculation_logs.name}).all()
    return [Hidden(row.name, row.schema, row.path, _statement(row)) for row in rows]


def require_visible(connection: Connection, names: Collection[str]) -> None:
    """Raises `PathIgnored` if the search_path is not the requested one, `HiddenTable` if a table would be created a
    second time, `NoSchema` if none could be created at all."""
    row = connection.execute(_CURRENT).one()
    ignored = _ignored_path(connection, row.path)
    if ignored is not None:
        raise PathIgnored(
            f"the search_path is {row.path}, and not {ignored}, as the URL or PGOPTIONS requests: a pooler ignores "
            f"start-up options; alter role {quote_identifier(row.role)} set search_path = {ignored}; "
            "nothing was changed"
        )
    for found in hidden(connection, names):
        raise HiddenTable(f"{found.fact}: {found.statement}; nothing was changed")
    if row.schema is None:
        raise NoSchema(
            f"the search_path ({row.path}) names no schema that exists and that the role '{row.role}' may use: "
            "create the schema, grant usage on it, or correct the search_path; nothing was changed"
        )


def _ignored_path(connection: Connection, path: str) -> str | None:
    """The search_path that the URL's options request (or PGOPTIONS where it has none), if it is another one."""
    options = connection.engine.url.query.get("options", libpq_defaults().get("options", ""))
    found = re.findall(r'(?:-c\s*|--)search_path=((?:"[^"]*"|[^\s,"]|,\s*)+)', str(options).replace("\\ ", " "))
    return _plain(found[-1]) if found and _plain(found[-1]) != _plain(path) else None


def _plain(path: str) -> str:
    return re.sub(r",\s+", ",", path).strip()


def ensure_schema(url: URL) -> None:
    """Creates the schema that the role's search_path names first in a database of Dagster's, if it names none there."""
    engine = engine_for(url)
    try:
        with transaction(engine) as connection:
            row = connection.execute(_CURRENT).one()
            first = re.match(r'\s*("(?:[^"]|"")+"|[^",\s]+)', row.path.replace('"$user",', ""))
            if row.schema is None and first:
                connection.execute(text(f"create schema if not exists {first.group(1)}"))
    finally:
        engine.dispose()


def _statement(row: Any) -> str:
    schema, role = quote_identifier(row.schema), quote_identifier(row.role)
    if not row.may_use:
        return f"grant usage on schema {schema} to {role}"
    rest = row.path if row.is_set else "public"
    path = f"{schema}, {rest}" if rest else schema
    if row.source == "client":
        return f"name it in PGOPTIONS or in the URL's options, as -csearch_path={path.replace(', ', ',')}"
    return f"alter role {role} set search_path = {path}"


_PLACES = text(
    """
    select c.relname as name, cast(n.nspname as text) as schema
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid in (select to_regclass(quote_ident(name)) from unnest(cast(:names as text[])) as n (name))
    """
)
_CURRENT = text("select current_schema() as schema, current_setting('search_path') as path, current_user as role")
_SCHEMAS = text(
    """
    select cast(n.nspname as text) from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relname = :log and c.relkind in ('r', 'p') and n.nspname !~ '^pg_' order by 1
    """
)
_HIDDEN = text(
    """
    select cast(c.relname as text) as name, cast(n.nspname as text) as schema, current_user as role,
           p.path, p.source, p.is_set, has_schema_privilege(n.oid, 'USAGE') as may_use
    from pg_class c join pg_namespace n on n.oid = c.relnamespace, (
        select setting as path, source, source not in ('default', 'configuration file') as is_set
        from pg_settings where name = 'search_path'
    ) p
    where c.relname = any(cast(:names as text[])) and c.relkind in ('r', 'p') and n.nspname !~ '^pg_'
      and to_regclass(quote_ident(c.relname)) is null
      and not (p.is_set and exists (
          select from pg_class l join pg_attribute a on a.attrelid = l.oid
          where l.relnamespace = n.oid and l.relname = :log and a.attname = 'xact_id' and not a.attisdropped))
    order by n.nspname, c.relname
    """
)
