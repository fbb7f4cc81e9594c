"""Row-level security: which tables hide rows from which role.

Operations run with row_security = off, so PostgreSQL raises an error where a policy would hide rows. A live view runs
in the session of its reader, which has no such setting, and with the rights of its owner: so the view itself looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.sql import quote_identifier, quote_literal
from calc_analytics.errors import CalcAnalyticsError

# The policies of the table `c` do not apply to the role `r`, as PostgreSQL's check_enable_rls() decides.
_IS_EXEMPT = """(r.rolsuper or r.rolbypassrls
                or (pg_has_role(r.oid, c.relowner, 'USAGE') and not c.relforcerowsecurity))"""
# The role with whose rights the view `v` reads.
_READS_AS = """case when exists (select from pg_options_to_table(v.reloptions)
                              where option_name = 'security_invoker' and cast(option_value as boolean))
               then current_user else pg_get_userbyid(v.relowner) end"""


class RowsHidden(CalcAnalyticsError):
    """A policy would hide rows of a table from the role, so that what it counts would be wrong."""


@dataclass(frozen=True)
class Hidden:
    """A table whose policies apply to a role; `is_owner`: only because the table forces them on its owner."""

    table: str
    role: str
    is_owner: bool

    @property
    def sql(self) -> str:
        """The statement that exempts the role."""
        if self.is_owner:
            return f"alter table {self.table} no force row level security"
        return f"alter role {quote_identifier(self.role)} bypassrls"


def hidden(connection: Connection, tables: Sequence[str], views: Sequence[str] = ()) -> list[Hidden]:
    """Those of the tables whose policies apply to the current role, or to the role with whose rights a view reads."""
    rows = connection.execute(_HIDDEN, {"tables": list(tables), "views": list(views)}).all()
    return [Hidden(*row) for row in rows]


def require_exempt(connection: Connection, tables: Sequence[str]) -> None:
    """Raises `RowsHidden` if a policy of one of the tables applies to the current role."""
    found = hidden(connection, tables)
    if found:
        names, statements = (
            ", ".join(each.table for each in found),
            "; ".join(dict.fromkeys(each.sql for each in found)),
        )
        raise RowsHidden(
            f"row-level security would hide rows of {names} from the role '{found[0].role}': exempt it with "
            f"'{statements}'; nothing was changed"
        )


def hides_from_view_sql(tables: Sequence[str], view: str, schema: str) -> str:
    """SQL: a policy of one of the tables applies to the role with whose rights the view reads.

    The tables are bound when the view is created; the view is looked up when it is read.
    """
    oids = ", ".join(f"cast({quote_literal(table)} as regclass)" for table in tables)
    return f"""exists (
            select from pg_class c where c.oid in ({oids}) and c.relrowsecurity and not exists (
                select from pg_class v join pg_roles r on r.rolname = {_READS_AS}
                where v.relname = {quote_literal(view)}
                  and v.relnamespace = cast({quote_literal(schema)} as regnamespace) and {_IS_EXEMPT}
            )
        )"""


_HIDDEN = text(
    f"""
    select cast(cast(c.oid as regclass) as text) as table, cast(r.rolname as text) as role,
           pg_has_role(r.oid, c.relowner, 'USAGE') as is_owner
    from unnest(cast(:tables as text[])) with ordinality as t (name, n) join pg_class c on c.oid = to_regclass(t.name)
    join pg_roles r on r.rolname = current_user or r.rolname in (
        select {_READS_AS} from pg_class v
        where v.oid in (select to_regclass(w.name) from unnest(cast(:views as text[])) as w (name))
    )
    where c.relrowsecurity and not {_IS_EXEMPT}
    order by t.n, r.rolname <> current_user, r.rolname
    """
)
