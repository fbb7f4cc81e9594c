"""Facts about tables, from PostgreSQL's catalogs: whether one is there, its columns, types and size."""

from collections.abc import Collection

from sqlalchemy import text
from sqlalchemy.engine import Connection

from calc_analytics.database.sql import quote_identifier

# The integer types, with the bits that hold a value besides its sign.
BITS = {"smallint": 15, "integer": 31, "bigint": 63}


def exists(connection: Connection, name: str) -> bool:
    """Whether the search_path finds a table or view of that name."""
    return bool(connection.execute(text("select to_regclass(:name) is not null"), {"name": name}).scalar())


def is_own_table(connection: Connection, name: str, columns: Collection[str]) -> bool:
    """Whether the search_path finds a table of that name which has these columns, and which the role may alter.

    Another program may have a table or view in place of a rollup's that is not kept.
    """
    is_ours = bool(connection.execute(text(_IS_OWNED_TABLE), {"table": name}).scalar())
    return is_ours and set(columns) <= column_names(connection, name)


def has_rows(connection: Connection, name: str) -> bool:
    """Whether the table has any row."""
    return bool(connection.execute(text(f"select exists (select from {quote_identifier(name)})")).scalar())


def column_names(connection: Connection, table: str) -> set[str]:
    """The names of the table's columns."""
    return set(connection.execute(text(_COLUMNS), {"table": table}).scalars())


def integer_types(connection: Connection, table: str) -> dict[str, str]:
    """The types of the table's integer columns: smallint, integer or bigint."""
    return {row.name: row.type for row in connection.execute(text(_INTEGERS), {"table": table})}


def size(connection: Connection, table: str) -> int:
    """Bytes of the table, its partitions and their indexes."""
    return int(connection.execute(text(_SIZE), {"table": table}).scalar_one())


def is_partitioned_by(connection: Connection, table: str, column: str) -> bool:
    """Whether the table, or one of its partitions, is partitioned by that column."""
    return bool(connection.execute(text(_IN_PARTITION_KEY), {"table": table, "column": column}).scalar())


_IS_OWNED_TABLE = """
    select exists (
        select from pg_class
        where oid = to_regclass(:table) and relkind in ('r', 'p') and pg_has_role(relowner, 'USAGE')
    )
"""
_COLUMNS = """
    select attname from pg_attribute where attrelid = to_regclass(:table) and attnum > 0 and not attisdropped
"""
_INTEGERS = """
    select attname as name, format_type(atttypid, null) as type from pg_attribute
    where attrelid = to_regclass(:table) and attnum > 0 and not attisdropped and atttypid in (20, 21, 23)
    order by attnum
"""
_SIZE = """
    select coalesce(sum(pg_total_relation_size(relid)), 0)
    from (select relid from pg_partition_tree(to_regclass(:table)) union select to_regclass(:table)) tables
"""
_IN_PARTITION_KEY = """
    select exists (
        select from pg_partitioned_table p
        join pg_attribute a on a.attrelid = p.partrelid and a.attnum = any(cast(p.partattrs as int2[]))
        where p.partrelid in (select relid from pg_partition_tree(to_regclass(:table))) and a.attname = :column
    )
"""
