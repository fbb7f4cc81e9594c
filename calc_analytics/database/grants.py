"""Grants for new tables and views: roles that may use a rollup's may use a new one's in the same way.

Only what is new gets grants, so that a right that was revoked is not granted again. Policies are not copied: where
row-level security is enabled on the model, only roles that it exempts get the grants.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.sql import quote_identifier
from calc_analytics.database.tables import READER_TABLES


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
    """Gives the targets, live views, tables for readers, journal and archived days that are not `there` the grants of
    their kind.

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
    for name in (table.name for table in READER_TABLES if table.name not in there):
        model = next((each for each in models if each in there), None)
        if model is not None:
            _copy(connection, model, name)
    if "rollup_journal" not in there and "rollup_days" in there:
        _copy(connection, "rollup_days", "rollup_journal")
        for role in _roles_that(connection, "rollup_days", "INSERT"):
            connection.execute(text(f"grant usage on sequence rollup_journal_id_seq to {role}"))
            connection.execute(text(f"grant delete on rollup_journal to {role}"))


def share(connection: Connection, tables: Sequence[str], views: Collection[str], there: Collection[str]) -> None:
    """Roles that may read all the tables, the first of which was `there`, may ask the views that were not, and call the
    functions of the contract.

    Views and functions run with the rights of the role that asks, so it gets what they read of the state, too.
    """
    new = [view for view in views if view not in there]
    if not new or tables[0] not in there:
        return
    asked = [*(f"select on {view}" for view in new), *STATE_READS, *_functions(connection)]
    readers = [set(_roles_that(connection, table, "SELECT")) for table in tables]
    for role in sorted(set.intersection(*readers)):
        for right in asked:
            connection.execute(text(f"grant {right} to {role}"))


def _functions(connection: Connection) -> list[str]:
    return [f"execute on function {name}" for name in connection.execute(text(_FUNCTIONS)).scalars()]


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


# The columns that the contract reads, as in deploy/reader.sql.
STATE_READS = (
    "select (log, timezone, refreshed_at, rollups) on rollup_state",
    "select (rollup, date, status, counted, difference, audit_difference) on rollup_days",
)
_FUNCTIONS = """
    select cast(cast(p.oid as regprocedure) as text)
    from pg_proc p join pg_class state on state.oid = to_regclass('rollup_state')
    where p.pronamespace = state.relnamespace and obj_description(p.oid, 'pg_proc') like 'calc\\_analytics: %'
"""
_GRANTS = """
    select r.rolname as role, a.privilege_type as privilege, a.is_grantable
    from pg_class c cross join lateral aclexplode(c.relacl) a left join pg_roles r on r.oid = a.grantee
    where c.oid = to_regclass(:model) and a.grantee <> c.relowner
      and (not c.relrowsecurity or r.rolsuper or r.rolbypassrls)
"""
