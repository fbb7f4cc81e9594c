"""The sensor: refreshes inside the tick, and requests runs for what takes long (rebuilds, checks).

Dagster's daemon checks sensors every five seconds and starts a tick only if the interval has passed since the last one
began, which with five seconds is at every second check. So a tick follows the logs until just before that check, and
the follower's thread bridges the time between two ticks.
"""

import threading
from functools import lru_cache
from typing import TYPE_CHECKING

from dagster import (
    DefaultSensorStatus,
    PartitionsDefinition,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from calc_analytics import logs
from calc_analytics.orchestration.archive import report_archived
from calc_analytics.orchestration.cursor import Cursor
from calc_analytics.orchestration.events import report_days
from calc_analytics.orchestration.names import ROLLUP_JOB, SENSOR
from calc_analytics.orchestration.repetitions import request_repetitions
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.run_requests import request_checks, request_rebuilds
from calc_analytics.orchestration.wiped import report_wiped
from calc_analytics.plurals import number

if TYPE_CHECKING:
    from calc_analytics.rollup.database import Database
    from calc_analytics.rollup.follow import Follower, FollowReport
    from calc_analytics.rollup.patrol import Patrol

INTERVAL_SECONDS = 5
# How long a tick follows the logs: until just before the next one begins.
FOLLOW_SECONDS = 9.5
# How long the follower continues without a tick; a tick that overruns delays the next by five seconds.
LINGER_SECONDS = 10

DESCRIPTION = """Adds new log rows to the statistics within a second of each batch, and proves built days in turn.

Ticks follow each other without a gap, every ten seconds. Rows are counted inside the tick, so a grey (skipped) tick is
normal: it counted the new rows and needed no run; its message says how many rows. A green tick requested runs:
rebuilds of days that are not built, checks of days that differ or no longer do, a killed run once more. A red tick
failed; it is repeated within seconds, and nothing is lost or counted twice. While the sensor is off, statistics are as
old as the last hourly run."""

stopping = threading.Event()


@lru_cache(maxsize=4)
def _follower(db: "Database", debounce_seconds: float) -> "Follower":
    """One per database and setting, for the life of the process."""
    from calc_analytics.rollup.follow import Follower

    return Follower(db, debounce_seconds, stopping, logs.log_refresh)


@lru_cache(maxsize=4)
def _patrol(db: "Database") -> "Patrol":
    """One per database, for the life of the process."""
    from calc_analytics.rollup.patrol import Patrol

    return Patrol(db, stopping, lambda operation, error: logs.log_failure(operation, error, db=db))


def new_log_batches_sensor(partitions: PartitionsDefinition) -> SensorDefinition:
    """`new_log_batches`, on by default."""

    @sensor(
        name=SENSOR,
        job_name=ROLLUP_JOB,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=DefaultSensorStatus.RUNNING,
        description=DESCRIPTION,
    )
    def new_log_batches(context: SensorEvaluationContext, database: RollupDatabase) -> SensorResult:
        """One tick: audits and proofs that are due, the new rows, run requests and events."""
        before, db = Cursor.parse(context.cursor), database.db
        _patrol(db).walk()
        with logs.record_failures("refresh", db=db):
            follower = _follower(db, database.settings.debounce_seconds)
            report = follower.follow(0 if before is None else FOLLOW_SECONDS, LINGER_SECONDS)
        rebuilds, cursor = request_rebuilds(db, before, partitions)
        differing = _differing(db)
        checks, cursor = request_checks(context.instance, db, differing, cursor, partitions)
        cursor = report_wiped(context.instance, db, cursor, partitions)
        events, cursor = report_days(db, report, differing, cursor, partitions)
        archived, cursor = report_archived(db, cursor, partitions)
        origin = context.code_location_origin
        repeated = request_repetitions(context.instance, origin.location_name if origin else None)
        requests = [*rebuilds, *checks, *repeated]
        return SensorResult(
            run_requests=requests,
            asset_events=[*events, *archived],
            skip_reason=None if requests else SkipReason(_summary(report)),
            cursor=cursor.text(),
        )

    return new_log_batches


def _differing(db: "Database") -> dict[str, list[str]]:
    """The days that differ, when last compared, and in which rollups."""
    from calc_analytics.rollup.status import different_days

    return {str(day): names for day, names in different_days(db).items()}


def _summary(report: "FollowReport") -> str:
    if not report.refreshes:
        return f"no new log rows: compared the logs with the stored snapshot {report.probes} times"
    return f"counted {report.rows:,} rows in {number(report.refreshes, 'refresh')}; no run is needed"
