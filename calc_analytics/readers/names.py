"""Names of publishers and localities, from other programs' tables `publishers` and `localities`, where they exist.

Such a table may be missing, locked, slow, of another form, or one that the role may not read: then there are no names,
and no error.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

LONGEST = 300
PUBLISHERS, LOCALITIES = "publishers", "localities"
_LIMITS = "select set_config('statement_timeout', '1s', true), set_config('lock_timeout', '500ms', true)"
# Control characters, and those that change the direction of the text around them.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]+")


@dataclass(frozen=True)
class Entity:
    """A publisher or a locality: its id, its name if that is known, and what it is: 'publisher' or 'locality'."""

    id: int
    name: str | None
    kind: str

    @property
    def label(self) -> str:
        """The name, or 'publisher 7'."""
        return self.name or f"{self.kind} {self.id}"


def find_names(connection: Connection, table: str, ids: Iterable[int]) -> dict[int, str]:
    """The names that the table (columns `id` and `name`) has for these ids; empty if it cannot be read.

    The caller's transaction goes on as before. Raises `DBAPIError` only if the connection is lost.
    """
    wanted = list(ids)
    if not wanted:
        return {}
    savepoint = connection.begin_nested()
    try:
        connection.exec_driver_sql(_LIMITS)
        rows = connection.execute(text(_NAMES.format(table=table)), {"ids": wanted, "longest": LONGEST + 1}).all()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return {}
    finally:
        # The limits end with it.
        if savepoint.is_active:
            savepoint.rollback()
    return _clean({row.id: row.name for row in rows})


def _clean(names: Mapping[int, str | None]) -> dict[int, str]:
    """Names in one line of at most `LONGEST` characters; blank ones are left out."""
    found = {key: " ".join(_UNSHOWN.sub(" ", name).split()) for key, name in names.items() if name}
    return {key: name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for key, name in found.items() if name}


_NAMES = """
    select cast(id as bigint) as id, left(cast(name as text), :longest) as name
    from {table} where id = any(cast(:ids as bigint[]))
"""
