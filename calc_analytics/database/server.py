"""Facts about the server and the connected role, read from its settings and catalogs. Nothing is changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.engine import transaction
from calc_analytics.database.sql import quote_identifier

JOURNAL_SEQUENCE = "rollup_journal_id_seq"


@dataclass(frozen=True)
class Server:
    """The server that answered: its version, and whether it is read-only, as a standby is: nothing is counted.

    `resets` are the statements that undo what makes it read-only; none on a standby.
    """

    version: str
    version_number: int
    is_read_only: bool
    resets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Role:
    """The connected role: what it lacks, as GRANT statements, and what it may do beyond what is needed."""

    name: str
    is_superuser: bool
    missing: list[str]
    may_prune: bool
    sees_others: bool


@dataclass(frozen=True)
class Connections:
    """Of the server: how many may connect, and how many are connected."""

    allowed: int
    used: int


def describe_server(engine: Engine) -> Server:
    """The server that this engine reaches; the cheapest question there is."""
    statement = """
        select split_part(current_setting('server_version'), ' ', 1) as version,
               cast(current_setting('server_version_num') as int) as number,
               current_setting('transaction_read_only') = 'on' as is_read_only
    """
    with transaction(engine) as connection:
        row = connection.execute(text(statement)).one()
    return Server(row.version, row.number, row.is_read_only)


def is_read_only(engine: Engine) -> bool:
    """Whether transactions are read-only there."""
    return describe_server(engine).is_read_only


def read_role(engine: Engine, log: str, needed: Mapping[str, Sequence[str]]) -> Role:
    """What the connected role may do: rights that come by membership count. `needed` has rights by table and view."""
    with transaction(engine) as connection:
        row = connection.execute(text(_ROLE), {"source": log, "sequence": JOURNAL_SEQUENCE}).one()
        name, grants = quote_identifier(row.role), []
        for table, rights in needed.items():
            lacking = connection.execute(text(_LACKING), {"name": table, "rights": list(rights)}).scalars().all()
            if lacking:
                grants.append(f"grant {', '.join(lacking).lower()} on {table} to {name}")
    if not row.may_use_sequence:
        grants.append(f"grant usage on sequence {JOURNAL_SEQUENCE} to {name}")
    if not row.may_create_temporary:
        grants.append(f"grant temporary on database {quote_identifier(row.database)} to {name}")
    if not row.may_read_control:
        grants.append(f"grant execute on function pg_control_system() to {name}")
    return Role(row.role, row.is_superuser, grants, row.may_prune, row.sees_others)


def read_only_settings(engine: Engine) -> list[str]:
    """The statements that undo what makes transactions of this role read-only here; none on a standby."""
    with transaction(engine) as connection:
        return list(connection.execute(text(_READ_ONLY_SETTINGS)).scalars())


def clock(engine: Engine) -> datetime:
    """What time it is on the server."""
    with transaction(engine) as connection:
        now: datetime = connection.execute(text("select clock_timestamp()")).scalar_one()
    return now


def utc_offsets(engine: Engine, timezone: str, instants: Sequence[datetime]) -> list[float]:
    """The zone's offset from UTC at each of these instants, in seconds, as PostgreSQL knows it."""
    statement = """
        select extract(epoch from (at at time zone :tz) - (at at time zone 'UTC'))
        from unnest(cast(:instants as timestamptz[])) with ordinality as i (at, n) order by n
    """
    with transaction(engine) as connection:
        found = connection.execute(text(statement), {"tz": timezone, "instants": list(instants)})
        return [float(seconds) for seconds in found.scalars()]


def connections(engine: Engine) -> Connections:
    """How full the server is. Every role sees the sessions of the others."""
    statement = """
        select cast(current_setting('max_connections') as int)
               - cast(current_setting('superuser_reserved_connections') as int) as allowed,
               (select count(*) from pg_stat_activity where backend_type = 'client backend') as used
    """
    with transaction(engine) as connection:
        row = connection.execute(text(statement)).one()
    return Connections(row.allowed, row.used)


_READ_ONLY_SETTINGS = """
    select format('alter %s reset default_transaction_read_only', case
               when d.setrole = 0 then format('database %I', current_database())
               when d.setdatabase = 0 then format('role %I', current_user)
               else format('role %I in database %I', current_user, current_database()) end)
    from pg_db_role_setting d cross join unnest(d.setconfig) as setting
    where not pg_is_in_recovery() and starts_with(setting, 'default_transaction_read_only=')
      and d.setdatabase in (0, (select oid from pg_database where datname = current_database()))
      and d.setrole in (0, (select oid from pg_roles where rolname = current_user))
    order by d.setrole, d.setdatabase
"""
_ROLE = """
    select current_user as role, current_database() as database,
           (select rolsuper from pg_roles where rolname = current_user) as is_superuser,
           has_database_privilege(current_database(), 'TEMPORARY') as may_create_temporary,
           has_function_privilege('pg_control_system()', 'EXECUTE') as may_read_control,
           coalesce(has_table_privilege(to_regclass(:source), 'DELETE'), false) as may_prune,
           coalesce(has_sequence_privilege(to_regclass(:sequence), 'USAGE'), true) as may_use_sequence,
           pg_has_role('pg_read_all_stats', 'USAGE') as sees_others
"""
# Nothing is lacking of what does not exist.
_LACKING = """
    select wanted from unnest(cast(:rights as text[])) as wanted
    where not has_table_privilege(to_regclass(:name), wanted)
"""
