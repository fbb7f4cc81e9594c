"""Whether Dagster may keep its tables in a database: no table of another program has the name of one of them.

Dagster recognizes its tables by their names alone, and expects no other revision than its own in `alembic_version`.
"""

import re
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import URL, Connection, Engine

from calc_analytics.config import redact_url
from calc_analytics.database.engine import engine_for, transaction, with_timeouts
from calc_analytics.errors import CalcAnalyticsError

# Columns that each of these tables has had in every version of Dagster.
COLUMNS = {
    "asset_check_executions": {"asset_key", "check_name", "evaluation_event"},
    "asset_daemon_asset_evaluations": {"evaluation_id", "asset_key", "asset_evaluation_body"},
    "asset_event_tags": {"asset_key", "key", "event_id"},
    "asset_keys": {"asset_key", "last_materialization"},
    "backfill_tags": {"backfill_id", "key"},
    "bulk_actions": {"key", "status", "body"},
    "concurrency_limits": {"concurrency_key", "limit"},
    "concurrency_slots": {"concurrency_key", "step_key"},
    "daemon_heartbeats": {"daemon_type", "daemon_id"},
    "dynamic_partitions": {"partitions_def_name", "partition"},
    "event_logs": {"run_id", "event", "dagster_event_type"},
    "instance_info": {"run_storage_id"},
    "instigators": {"selector_id", "instigator_body"},
    "job_ticks": {"job_origin_id", "tick_body"},
    "jobs": {"job_origin_id", "job_body"},
    "kvs": {"key", "value"},
    "pending_steps": {"concurrency_key", "step_key"},
    "run_tags": {"run_id", "key", "value"},
    "runs": {"run_id", "pipeline_name", "run_body"},
    "secondary_indexes": {"name", "migration_completed"},
    "snapshots": {"snapshot_id", "snapshot_body"},
}
REVISIONS = "alembic_version"


class SharedDatabase(CalcAnalyticsError):
    """Dagster's database has another program's tables under the names that Dagster uses."""


def require_room(url: URL) -> None:
    """Raises `SharedDatabase` if the database has a table that Dagster would take for its own."""
    engine = engine_for(with_timeouts(url), "calc_analytics")
    try:
        with transaction(engine) as connection:
            taken = _taken(connection)
    finally:
        engine.dispose()
    if taken:
        raise SharedDatabase(
            f"{redact_url(url)} has {', '.join(taken)}, not of Dagster: set DAGSTER_POSTGRES_URL to a database of its "
            "own, which is created if it is missing"
        )


def _taken(connection: Connection) -> list[str]:
    found = {row.name: set(row.columns) for row in connection.execute(text(_FOUND), {"names": [*COLUMNS, REVISIONS]})}
    taken = [name for name, columns in COLUMNS.items() if name in found and not columns <= found[name]]
    if REVISIONS in found:
        stored = connection.execute(text(f"select * from {REVISIONS}")).scalars().all()
        taken += [REVISIONS] if set(map(str, stored)) - _revisions() else []
    return sorted(taken)


def _revisions() -> set[str]:
    """The revisions of Dagster's own migrations, from its files."""
    spec = find_spec("dagster")
    folder = Path(str(spec and spec.origin)).parent / "_core" / "storage" / "alembic" / "versions"
    texts = (file.read_text() for file in folder.glob("*.py"))
    return {found.group(1) for each in texts if (found := re.search(r'^revision = "(\w+)"', each, re.M))}


def sessions(engine: Engine, name: str) -> list[str]:
    """The applications that are connected to the database and whose names begin like that."""
    with transaction(engine) as connection:
        return list(connection.execute(text(_SESSIONS), {"name": f"{name} "}).scalars())


_SESSIONS = """
    select distinct application_name from pg_stat_activity
    where datname = current_database() and starts_with(application_name, :name) order by 1
"""
_FOUND = """
    select cast(c.relname as text) as name,
           array(select cast(attname as text) from pg_attribute a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns
    from pg_class c where c.relname = any(cast(:names as text[])) and pg_table_is_visible(c.oid)
      and c.relkind in ('r', 'p', 'v', 'm', 'f')
"""
