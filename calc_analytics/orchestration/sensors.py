"""The sensor: does the small work in place (refreshes) and asks for runs where the work is big (rebuilds).

Dagster's daemon looks every five seconds and starts a tick only if the interval has passed since the last one began,
which with five seconds is at every second look. So a tick follows the logs until just before that look, and the
follower's thread bridges the time between two ticks.
"""

import threading
import time
from dataclasses import replace
from datetime import date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    DefaultSensorStatus,
    JobDefinition,
    PartitionsDefinition,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from calc_analytics import rollup, telemetry
from calc_analytics.days import today_and_yesterday
from calc_analytics.orchestration.assets import automatic, calculation_logs
from calc_analytics.orchestration.checks import streamed_evaluations
from calc_analytics.orchestration.cursor import Cursor
from calc_analytics.orchestration.metadata import day_metadata, log_metadata, previews
from calc_analytics.orchestration.partitions import as_days, keys_of
from calc_analytics.orchestration.resources import RollupDatabase

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from calc_analytics.rollup.declaration import Rollup
    from calc_analytics.rollup.follow import Followed, Follower

INTERVAL_SECONDS = 5
DAEMON_LOOP_SECONDS = 5
# How long the follower goes on without a tick; a tick that overruns delays the next by five seconds.
LINGER_SECONDS = 10
STATS = AssetKey("calculation_stats_daily")
# A requested rebuild that has not built its day by then is asked for again.
ASK_AGAIN_SECONDS = 300
DAYS_PER_TICK = 10
# Under steady load, events tell of a day this often: with checks and observation, 600 rows of the event log an hour.
TELL_SECONDS = 30
# Days built on the command line since the last tick that one tick puts on record.
DAYS_BUILT_BY_OTHERS_PER_TICK = 50

Events = list[AssetMaterialization | AssetObservation | AssetCheckEvaluation]

stopping = threading.Event()


@lru_cache(maxsize=4)
def _follower(engine: "Engine", declared: "Rollup", timezone: str, debounce_seconds: float) -> "Follower":
    """One per database and setting, for the life of the process."""
    return rollup.follow.Follower(engine, declared, timezone, debounce_seconds, stopping, telemetry.refreshed)


def new_log_batches_sensor(
    job: JobDefinition | UnresolvedAssetJobDefinition,
    partitions: PartitionsDefinition,
    interval_seconds: int = INTERVAL_SECONDS,
) -> SensorDefinition:
    """`new_log_batches`, on by default. With a longer interval a tick refreshes once instead of streaming."""

    @sensor(
        name="new_log_batches",
        job=job,
        minimum_interval_seconds=interval_seconds,
        default_status=DefaultSensorStatus.RUNNING,
    )
    def new_log_batches(context: SensorEvaluationContext, database: RollupDatabase) -> SensorResult:
        """Keeps built days exact within about a second of each batch, and asks for runs for days never built."""
        before = Cursor.parse(context.cursor)
        with telemetry.failures_noted("refresh"):
            followed = _follow(database, 0 if before is None else follow_seconds(interval_seconds), interval_seconds)
        wanted = set(rollup.verify.waiting_days(database.engine, database.rollup))
        if before is None:
            wanted.update(today_and_yesterday(database.timezone))
        requested, cursor = _ask(wanted, before or Cursor(), partitions)
        events, cursor = _tell(database, followed, cursor, partitions, by_day=_takes_evaluations_by_day(context))
        return SensorResult(
            run_requests=automatic(requested),
            asset_events=events,
            skip_reason=None if requested else SkipReason(_summary(followed)),
            cursor=cursor.text(),
        )

    return new_log_batches


def follow_seconds(interval_seconds: int) -> float:
    """How long a tick follows the logs: until just before the next can begin; only at the default interval."""
    return 2 * DAEMON_LOOP_SECONDS - 0.5 if interval_seconds <= INTERVAL_SECONDS else 0.0


def _follow(database: RollupDatabase, seconds: float, interval_seconds: int) -> "Followed":
    """Streams for `seconds`; with an interval above the default, one refresh."""
    if interval_seconds > INTERVAL_SECONDS:
        followed = rollup.follow.Followed(probes=1)
        report = rollup.refresh.refresh(database.engine, database.rollup, database.timezone)
        telemetry.refreshed(report)
        followed.add(report)
        return followed
    debounce = database.settings.debounce_seconds
    return _follower(database.engine, database.rollup, database.timezone, debounce).follow(seconds, LINGER_SECONDS)


def _ask(wanted: set[date], cursor: Cursor, partitions: PartitionsDefinition) -> tuple[list[str], Cursor]:
    """Which rebuilds to request now: wanted, a partition, and not asked for in the last five minutes."""
    keys, now = keys_of(sorted(wanted), partitions), time.time()
    still = {key: at for key, at in cursor.asked.items() if key in keys and now - at < ASK_AGAIN_SECONDS}
    new = [key for key in keys if key not in still][-DAYS_PER_TICK:]
    return new, replace(cursor, asked={**still, **dict.fromkeys(new, now)})


def _takes_evaluations_by_day(context: SensorEvaluationContext) -> bool:
    """Whether the daemon stores events with `orchestration.storage`; Dagster's own storage would refuse them."""
    used = context.instance_ref.storage_data if context.instance_ref else None
    return used is not None and used.class_name == "CalcAnalyticsStorage"


def _tell(
    database: RollupDatabase, followed: "Followed", cursor: Cursor, partitions: PartitionsDefinition, *, by_day: bool
) -> tuple[Events, Cursor]:
    """The events of this tick: at once after a quiet time, then every 30 seconds at most."""
    untold = dict(cursor.untold)
    for day, rows in followed.rows_by_day.items():
        untold[str(day)] = untold.get(str(day), 0) + rows
    since = cursor.built_by_others_until
    others = rollup.figures.built_by_others(
        database.engine,
        database.rollup,
        datetime.fromisoformat(since) if since else None,
        DAYS_BUILT_BY_OTHERS_PER_TICK,
    )
    for day, _ in others:
        untold.setdefault(str(day), 0)
    since = others[-1][1].isoformat() if others else since
    seconds = cursor.untold_seconds + followed.seconds
    cursor = replace(cursor, untold=untold, untold_seconds=seconds, built_by_others_until=since)
    if not untold or time.time() - cursor.told_at < TELL_SECONDS:
        return [], cursor
    events = _events(database, cursor, partitions, by_day=by_day)
    return events, replace(cursor, untold={}, untold_seconds=0.0, told_at=time.time())


def _events(database: RollupDatabase, cursor: Cursor, partitions: PartitionsDefinition, *, by_day: bool) -> Events:
    """A materialization and the checks of each touched day, and an observation of the logs."""
    touched = as_days(keys_of([date.fromisoformat(key) for key in cursor.untold], partitions))
    totals = rollup.figures.day_totals(database.engine, database.rollup, touched)
    days = [day for day in touched if day in totals]
    tables = previews(database, days)
    described = {
        day: day_metadata(totals[day], totals[day]["keys"], cursor.untold_seconds, cursor.untold[str(day)])
        for day in days
    }
    return [
        *(
            AssetMaterialization(STATS, partition=str(day), metadata={**figures, "top_publishers": tables[day]})
            for day, figures in described.items()
        ),
        *streamed_evaluations(database, STATS, days, by_day=by_day),
        AssetObservation(calculation_logs.key, metadata=log_metadata(database, sum(cursor.untold.values()))),
    ]


def _summary(followed: "Followed") -> str:
    if not followed.refreshes:
        return f"no new log rows: compared the logs with the stored snapshot {followed.probes} times"
    return f"counted {followed.rows:,} rows in {followed.refreshes} refreshes; no day is waiting for a rebuild"
