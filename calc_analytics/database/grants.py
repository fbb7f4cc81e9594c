"""Grants for new tables and views: roles that may use a rollup's may use a new one's in the same way.

Only what is new gets grants, so that a right that was revoked is not granted again.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.sql import quote_identifier


def existing(connection: Connection) -> set[str]:
    """The tables and views that are found by their name alone."""
    statement = "select relname from pg_class where relkind in ('r', 'p', 'v') and pg_table_is_visible(oid)"
    return set(connection.execute(text(statement)).scalars())


def without_grants(connection: Connection, names: Collection[str]) -> set[str]:
    """Those of the tables for which nothing was ever granted."""
    statement = """
        select relname from pg_class
        where oid in (select to_regclass(name) from unnest(cast(:names as text[])) as n (name)) and relacl is null
    """
    return set(connection.execute(text(statement), {"names": list(names)}).scalars())


def extend(connection: Connection, there: set[str], models: Sequence[str], targets: Sequence[str]) -> None:
    """Gives the targets, live views, journal and archived days that are not `there` the grants of their kind that are.

    The first of the rollups in `models` that is there is the model. Roles that may read a target that is there may read
    its live view too, if that was dropped, and its grants with it.
    """
    for suffix in ("", "_live"):
        model = next((f"{name}{suffix}" for name in models if f"{name}{suffix}" in there), None)
        for name in targets:
            if model is not None and f"{name}{suffix}" not in there:
                _copy(connection, model, f"{name}{suffix}")
    for name in targets:
        if name in there and f"{name}_live" not in there:
            _copy(connection, name, f"{name}_live", ("SELECT",))
    if "rollup_archive" not in there and "rollup_days" in there:
        _copy(connection, "rollup_days", "rollup_archive")
    if "rollup_journal" not in there and "rollup_days" in there:
        _copy(connection, "rollup_days", "rollup_journal")
        for role in _roles_that(connection, "rollup_days", "INSERT"):
            connection.execute(text(f"grant usage on sequence rollup_journal_id_seq to {role}"))
            connection.execute(text(f"grant delete on rollup_journal to {role}"))


def _copy(connection: Connection, model: str, name: str, privileges: Collection[str] | None = None) -> None:
    for row in connection.execute(text(_GRANTS), {"model": model}).all():
        if privileges is not None and row.privilege not in privileges:
            continue
        option = " with grant option" if row.is_grantable else ""
        connection.execute(text(f"grant {row.privilege} on {name} to {_role(row.role)}{option}"))


def _roles_that(connection: Connection, table: str, privilege: str) -> list[str]:
    rows = connection.execute(text(_GRANTS), {"model": table}).all()
    return [_role(row.role) for row in rows if row.privilege == privilege]


def _role(name: str | None) -> str:
    return "public" if name is None else quote_identifier(name)


_GRANTS = """
    select r.rolname as role, a.privilege_type as privilege, a.is_grantable
    from pg_class c cross join lateral aclexplode(c.relacl) a left join pg_roles r on r.oid = a.grantee
    where c.oid = to_regclass(:model) and a.grantee <> c.relowner
"""
