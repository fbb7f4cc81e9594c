"""Replaces a view and keeps what it has besides its query: owner, grants, comments, options.

PostgreSQL replaces a view in place as long as its columns keep their names, types and order. Otherwise it is dropped
and created again in the caller's transaction, so no session ever sees it missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from calc_analytics.database.errors import sqlstate
from calc_analytics.database.sql import quote_identifier
from calc_analytics.errors import CalcAnalyticsError

# The columns would change: invalid_table_definition.
_OTHER_COLUMNS = "42P16"


class ViewInUse(CalcAnalyticsError):
    """Another view needs the one that has to be dropped and created again."""


@dataclass(frozen=True)
class Attributes:
    """What a view has besides its query."""

    name: str = ""
    """With its schema, so that it is created again where it was."""
    owner: str | None = None
    options: tuple[str, ...] = ()
    statements: list[tuple[str, str]] = field(default_factory=list)
    """The grants and comments: the column concerned ('': none), and the statement that gives it to a new view."""


def attributes(connection: Connection, name: str) -> Attributes | None:
    """Those of the view that the name finds; None if there is none."""
    row = connection.execute(text(_VIEW), {"name": name}).one_or_none()
    if row is None:
        return None
    comments = [(each.of_column, each.statement) for each in connection.execute(text(_COMMENTS), {"name": name})]
    return Attributes(row.name, row.owner, tuple(row.options), [*_grants(connection, name), *comments])


def replace_view(connection: Connection, name: str, query: str) -> None:
    """Creates the view, or replaces its query. `ViewInUse` if its columns change and another view needs it."""
    had = attributes(connection, name)
    if had is None:
        create_view(connection, name, query)
        return
    try:
        with connection.begin_nested():
            connection.execute(text(f"create or replace view {name} {_with(had)} as {query}"))
    except DBAPIError as error:
        if sqlstate(error) != _OTHER_COLUMNS:
            raise
        drop_view(connection, name)
        create_view(connection, name, query, had)


def drop_view(connection: Connection, name: str) -> Attributes | None:
    """Drops the view if it is there and returns what `create_view` gives back to it."""
    had = attributes(connection, name)
    if had is not None:
        if others := dependents(connection, name):
            raise ViewInUse(
                f"{name} must be created again, but {', '.join(others)} depends on it: drop that view, run this "
                "command again, and create it again; nothing was changed"
            )
        connection.execute(text(f"drop view {name}"))
    return had


def create_view(connection: Connection, name: str, query: str, had: Attributes | None = None) -> None:
    """Creates the view, with the attributes of the one that was dropped."""
    had = had or Attributes()
    name = had.name or name
    connection.execute(text(f"create view {name} {_with(had)} as {query}"))
    if had.owner is None:
        return
    # Default privileges may have granted something to the new view that the old one did not have.
    for grantee in connection.execute(text(_GRANTEES), {"name": name}).scalars():
        connection.execute(text(f"revoke all on {name} from {grantee}"))
    columns = {"", *connection.execute(text(_COLUMNS), {"name": name}).scalars()}
    for column, statement in had.statements:
        if column in columns:
            connection.execute(text(statement.replace(":", "\\:")))
    if not connection.execute(text("select current_user = :owner"), {"owner": had.owner}).scalar():
        connection.execute(text(f"alter view {name} owner to {quote_identifier(had.owner)}"))


def dependents(connection: Connection, name: str, column: str | None = None) -> list[str]:
    """The views (and materialized views) that use the table or view, or that column of it."""
    return list(connection.execute(text(_DEPENDENTS), {"name": name, "column": column}).scalars())


def _with(had: Attributes) -> str:
    return f"with ({', '.join(had.options)})" if had.options else ""


def _grants(connection: Connection, name: str) -> list[tuple[str, str]]:
    found: Sequence[Any] = connection.execute(text(_GRANTS), {"name": name}).all()
    return [(row.of_column, _grant(row, name)) for row in found]


def _grant(row: Any, name: str) -> str:
    columns = f" ({quote_identifier(row.of_column)})" if row.of_column else ""
    option = " with grant option" if row.is_grantable else ""
    return f"grant {row.privilege}{columns} on {name} to {row.grantee}{option}"


_VIEW = """
    select format('%I.%I', n.nspname, c.relname) as name, cast(r.rolname as text) as owner,
           array(select quote_ident(o.option_name) || ' = ' || quote_literal(o.option_value)
                 from pg_options_to_table(c.reloptions) o) as options
    from pg_class c join pg_roles r on r.oid = c.relowner join pg_namespace n on n.oid = c.relnamespace
    where c.oid = to_regclass(:name) and c.relkind = 'v'
"""
_GRANTEE = "case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end"
_GRANTS = f"""
    select a.privilege_type as privilege, '' as of_column, {_GRANTEE} as grantee, a.is_grantable
    from pg_class c cross join lateral aclexplode(c.relacl) a
    where c.oid = to_regclass(:name) and a.grantee <> c.relowner
    union all
    select a.privilege_type, cast(t.attname as text), {_GRANTEE}, a.is_grantable
    from pg_attribute t join pg_class c on c.oid = t.attrelid cross join lateral aclexplode(t.attacl) a
    where t.attrelid = to_regclass(:name) and not t.attisdropped and a.grantee <> c.relowner
"""
_GRANTEES = f"""
    select distinct {_GRANTEE} from pg_class c cross join lateral aclexplode(c.relacl) a
    where c.oid = to_regclass(:name) and a.grantee <> c.relowner
"""
_COLUMNS = """
    select cast(attname as text) from pg_attribute
    where attrelid = to_regclass(:name) and attnum > 0 and not attisdropped
"""
_COMMENTS = """
    select cast(coalesce(t.attname, '') as text) as of_column,
           'comment on ' || case when t.attname is null then 'view ' || :name
                            else 'column ' || :name || '.' || quote_ident(t.attname) end
           || ' is ' || quote_literal(d.description) as statement
    from pg_description d left join pg_attribute t on t.attrelid = d.objoid and t.attnum = d.objsubid and d.objsubid > 0
    where d.objoid = to_regclass(:name) and d.classoid = cast('pg_class' as regclass)
"""
_DEPENDENTS = """
    select distinct cast(cast(r.ev_class as regclass) as text)
    from pg_depend d join pg_rewrite r on r.oid = d.objid
    where d.classid = cast('pg_rewrite' as regclass) and d.refclassid = cast('pg_class' as regclass)
      and d.refobjid = to_regclass(:name) and r.ev_class <> d.refobjid
      and (cast(:column as text) is null or d.refobjsubid = (
          select attnum from pg_attribute where attrelid = d.refobjid and attname = :column and not attisdropped))
    order by 1
"""
