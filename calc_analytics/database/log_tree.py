"""The tables that hold log rows: the log table, its partitions at any depth, and tables that inherit from it.

A query of the log table reads all of them. A partition that is being detached is no longer one of them.
"""

from sqlalchemy import text
from sqlalchemy.engine import Connection

# CTE `tree`: a row per table; `path` is its name with its schema, `name` as short as the search path allows, and
# after `detach` it is none of them. The parameter :source is the log table's name.
TREE = """
    tree as (
        with recursive members as (
            select cast(to_regclass(:source) as oid) as oid, cast(null as oid) as parent, 0 as depth
            union all
            select i.inhrelid, i.inhparent, m.depth + 1
            from members m join pg_inherits i on i.inhparent = m.oid and not i.inhdetachpending
        )
        select c.oid, m.parent, m.depth, c.relkind, c.relispartition, c.relname, c.relowner, n.nspname as schema,
               format('%I.%I', n.nspname, c.relname) as path, cast(cast(c.oid as regclass) as text) as name,
               case when m.parent is null then ''
                    when c.relispartition then format('alter table %s detach partition %s',
                                                      cast(m.parent as regclass), cast(c.oid as regclass))
                    else format('alter table %s no inherit %s', cast(c.oid as regclass), cast(m.parent as regclass))
                    end as detach
        from (select distinct on (oid) oid, parent, depth from members order by oid, depth) m
        join pg_class c on c.oid = m.oid join pg_namespace n on n.oid = c.relnamespace
    )
"""


def paths(connection: Connection, log: str) -> list[str]:
    """The names of these tables, with their schemas, as SQL identifiers; the log table first."""
    statement = text(f"with {TREE} select path from tree order by depth, path")
    return list(connection.execute(statement, {"source": log}).scalars())


def identities(connection: Connection, log: str) -> list[int]:
    """Which tables these are; changes when one is attached, detached or exchanged."""
    return list(connection.execute(text(f"with {TREE} select oid from tree order by oid"), {"source": log}).scalars())
