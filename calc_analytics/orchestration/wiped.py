"""Reports days again that Dagster no longer shows as materialized, after `dagster asset wipe` for example.

The statistics do not depend on Dagster's record, so nothing is rebuilt.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from dagster import AssetKey, DagsterInstance, PartitionsDefinition

from calc_analytics.orchestration.cursor import Cursor
from calc_analytics.orchestration.partitions import keys_of

if TYPE_CHECKING:
    from calc_analytics.rollup.database import Database

LOOK_SECONDS = 60
# Materializations that one search reports; the next tick searches again if there may be more.
PER_LOOK = 400


def report_wiped(instance: DagsterInstance, db: "Database", cursor: Cursor, partitions: PartitionsDefinition) -> Cursor:
    """The cursor with the built days that have no materialization, searched for once a minute, newest first.

    The first search is a minute after the first tick: until then days are reported for the first time.
    """
    from calc_analytics.rollup.ledger import days_by_status

    now = time.time()
    if not cursor.looked_for_wiped_at:
        return replace(cursor, looked_for_wiped_at=now)
    if now - cursor.looked_for_wiped_at < LOOK_SECONDS:
        return cursor
    built = days_by_status(db, ["built"])
    missing = _missing(instance, db, built, set(keys_of(built, partitions)))
    found = {key: dict(seconds) for key, seconds in cursor.built_elsewhere.items()}
    for key, name in missing[:PER_LOOK]:
        found.setdefault(key, {}).setdefault(name, None)
    looked_at = now if len(missing) <= PER_LOOK else now - LOOK_SECONDS
    return replace(cursor, built_elsewhere=found, looked_for_wiped_at=looked_at)


def _missing(
    instance: DagsterInstance, db: "Database", built: Mapping[date, list[str]], keys: set[str]
) -> list[tuple[str, str]]:
    """Partitions that are built in a rollup and not materialized, with the rollup's name; newest first."""
    materialized = {name: instance.get_materialized_partitions(AssetKey(name)) for name in db.log.names}
    pairs = [(str(day), name) for day, names in built.items() for name in names if str(day) in keys]
    return sorted(((key, name) for key, name in pairs if key not in materialized[name]), reverse=True)
