"""COMMENT ON tables and columns: the descriptions of `tables.py`, so that psql shows what Dagster's UI shows.

Only a migration sets them, as the owner of the tables. Comments that the API has on its own tables stay, and another
program's table in place of a rollup's gets none: by the comment `deploy/uninstall.sql` knows the project's own.
"""

from sqlalchemy import Table, text
from sqlalchemy.engine import Connection
from sqlalchemy.schema import SetColumnComment, SetTableComment

from calc_analytics.database import relations
from calc_analytics.database.tables import calculation_logs, calculation_stats_daily, metadata

API_TABLES = (calculation_logs.name, calculation_stats_daily.name)


def describe_tables(connection: Connection) -> None:
    """Sets each comment that is missing or another, on the tables and columns that exist; safe to repeat."""
    tables = [table for table in metadata.sorted_tables if _is_own(connection, table)]
    names = [table.name for table in tables]
    found = {(row.table, row.column): row.comment for row in connection.execute(_COMMENTS, {"names": names})}
    for table in tables:
        if table.comment and _may_set(found, table.name, "", table.comment):
            connection.execute(SetTableComment(table))
        for column in table.columns:
            if column.comment and _may_set(found, table.name, column.name, column.comment):
                connection.execute(SetColumnComment(column))


def _is_own(connection: Connection, table: Table) -> bool:
    """Whether it has the declared columns; later revisions add those with `added_by`."""
    columns = [column.name for column in table.columns if "added_by" not in column.info]
    return relations.is_own_table(connection, table.name, columns)


def _may_set(found: dict[tuple[str, str], str | None], table: str, column: str, comment: str) -> bool:
    """Whether it exists and lacks the comment; `column` is empty for the table's own."""
    if (table, column) not in found:
        return False
    before = found[table, column]
    return before is None or (before != comment and table not in API_TABLES)


_COMMENTS = text(
    """
    with tables as (
        select name, cast(to_regclass(quote_ident(name)) as oid) as oid
        from unnest(cast(:names as text[])) as n (name)
    )
    select name as table, '' as column, obj_description(oid, 'pg_class') as comment from tables where oid is not null
    union all
    select name, cast(attname as text), col_description(oid, attnum)
    from tables join pg_attribute on attrelid = oid
    where attnum > 0 and not attisdropped
    """
)
