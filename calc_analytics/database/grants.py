"""Grants for new tables and views: who may use the first rollup's may use the others' in the same way.

Only what is new gets grants, so that a right that somebody took away is not given back.
"""

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.engine import quoted


def existing(connection: Connection) -> set[str]:
    """The tables and views of the current schema."""
    statement = "select relname from pg_class where relnamespace = to_regnamespace(quote_ident(current_schema()))"
    return set(connection.execute(text(statement)).scalars())


def extend(connection: Connection, there: set[str], targets: Sequence[str]) -> None:
    """Gives the tables and views that were not `there` the grants of their kind that was."""
    models = {
        **{name: "calculation_stats_daily" for name in targets},
        **{f"{name}_live": "calculation_stats_daily_live" for name in targets},
        "rollup_journal": "rollup_days",
    }
    for name, model in models.items():
        if name not in there and model in there:
            _copy(connection, model, name)
    if "rollup_journal" not in there and "rollup_days" in there:
        for role in _roles_that(connection, "rollup_days", "INSERT"):
            connection.execute(text(f"grant usage on sequence rollup_journal_id_seq to {role}"))
            connection.execute(text(f"grant delete on rollup_journal to {role}"))


def _copy(connection: Connection, model: str, name: str) -> None:
    for row in connection.execute(text(_GRANTS), {"model": model}).all():
        role = "public" if row.role is None else quoted(row.role)
        connection.execute(text(f"grant {row.privilege} on {name} to {role}"))


def _roles_that(connection: Connection, table: str, privilege: str) -> list[str]:
    rows = connection.execute(text(_GRANTS), {"model": table}).all()
    return ["public" if row.role is None else quoted(row.role) for row in rows if row.privilege == privilege]


_GRANTS = """
    select r.rolname as role, a.privilege_type as privilege
    from pg_class c cross join lateral aclexplode(c.relacl) a left join pg_roles r on r.oid = a.grantee
    where c.oid = to_regclass(:model) and a.grantee <> c.relowner
"""
