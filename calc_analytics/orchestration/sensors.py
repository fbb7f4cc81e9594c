"""The sensor: does the small work in place (refreshes) and asks for runs where the work is big (rebuilds).

Dagster's daemon looks every five seconds and starts a tick only if the interval has passed since the last one began,
which with five seconds is at every second look. So a tick follows the logs until just before that look.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from datetime import date, datetime

from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    DefaultSensorStatus,
    JobDefinition,
    PartitionsDefinition,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from calc_analytics.days import today_and_yesterday
from calc_analytics.orchestration.assets import calculation_logs
from calc_analytics.orchestration.metadata import day_metadata, log_metadata
from calc_analytics.orchestration.partitions import keys_of
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.rollup.figures import built_by_others, day_totals, log_figures
from calc_analytics.rollup.follow import Followed, follow
from calc_analytics.rollup.verify import waiting_days

INTERVAL_SECONDS = 5
DAEMON_LOOP_SECONDS = 5
STATS = AssetKey("calculation_stats_daily")
# A requested rebuild that has not built its day by then is asked for again.
ASK_AGAIN_SECONDS = 300
DAYS_PER_TICK = 10
# Days built on the command line since the last tick that one tick puts on record.
EVENTS_PER_TICK = 100

stopping = threading.Event()


@dataclass
class Cursor:
    """What a tick leaves for the next.

    `asked`: when (epoch seconds) a rebuild of a day was last asked for. `reported`: up to which instant builds by
    others than Dagster (the command line) are on record as materializations.
    """

    asked: dict[str, float] = field(default_factory=dict)
    reported: datetime | None = None

    @classmethod
    def parse(cls, text: str | None) -> "Cursor | None":
        """The cursor of the last tick; None on a first start, or if it is not one of ours."""
        try:
            values = json.loads(text or "")
            reported = values.get("reported")
            asked = {str(day): float(at) for day, at in values["asked"].items()}
            return cls(asked, datetime.fromisoformat(reported) if reported else None)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def text(self) -> str:
        """The form Dagster stores."""
        reported = self.reported.isoformat() if self.reported else None
        return json.dumps({"asked": self.asked, "reported": reported}, sort_keys=True)


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
        settings, cursor = database.settings, Cursor.parse(context.cursor)
        started = time.monotonic()
        followed = follow(
            database.engine,
            database.rollup,
            settings.timezone,
            seconds=follow_seconds(interval_seconds) if cursor else 0,
            debounce_seconds=settings.debounce_seconds,
            stopping=stopping.is_set,
        )
        wanted = set(waiting_days(database.engine, database.rollup))
        if cursor is None:
            wanted.update(today_and_yesterday(settings.timezone))
        before = cursor or Cursor()
        asked = _to_ask(wanted, before, partitions)
        others = built_by_others(database.engine, database.rollup, before.reported, EVENTS_PER_TICK)
        rows_by_day = {**dict.fromkeys((day for day, _ in others), 0), **followed.rows_by_day}
        return SensorResult(
            run_requests=[RunRequest(partition_key=day) for day in asked.new],
            asset_events=_events(database, rows_by_day, partitions, time.monotonic() - started),
            skip_reason=None if asked.new else SkipReason(_summary(followed)),
            cursor=Cursor(asked.all, max((at for _, at in others), default=before.reported)).text(),
        )

    return new_log_batches


def follow_seconds(interval_seconds: int) -> float:
    """How long a tick follows the logs: until just before the next can begin; only at the default interval."""
    return 2 * DAEMON_LOOP_SECONDS - 0.5 if interval_seconds <= INTERVAL_SECONDS else 0.0


@dataclass(frozen=True)
class _Asked:
    new: list[str]
    all: dict[str, float]


def _to_ask(wanted: set[date], cursor: Cursor, partitions: PartitionsDefinition) -> _Asked:
    """Which rebuilds to request now: wanted, a partition, and not asked for in the last five minutes."""
    keys, now = keys_of(sorted(wanted), partitions), time.time()
    still = {key: at for key, at in cursor.asked.items() if key in keys and now - at < ASK_AGAIN_SECONDS}
    new = [key for key in keys if key not in still][-DAYS_PER_TICK:]
    return _Asked(new, {**still, **dict.fromkeys(new, now)})


def _events(
    database: RollupDatabase, rows_by_day: dict[date, int], partitions: PartitionsDefinition, seconds: float
) -> list[AssetMaterialization | AssetObservation]:
    """One materialization per touched day and one observation of the logs; nothing for an idle tick."""
    if not rows_by_day:
        return []
    days = sorted(rows_by_day)
    totals, keys = day_totals(database.engine, database.rollup, days), set(keys_of(days, partitions))
    events: list[AssetMaterialization | AssetObservation] = [
        AssetMaterialization(
            STATS,
            partition=str(day),
            metadata=day_metadata(totals[day], totals[day]["keys"], seconds, rows_by_day[day]),
        )
        for day in days
        if str(day) in keys and day in totals
    ]
    figures = log_figures(database.engine, database.rollup, database.timezone)
    return [*events, AssetObservation(calculation_logs.key, metadata=log_metadata(figures, sum(rows_by_day.values())))]


def _summary(followed: Followed) -> str:
    if not followed.refreshes:
        return f"no new log rows: compared the logs with the stored snapshot {followed.probes} times"
    return f"counted {followed.rows:,} rows in {followed.refreshes} refreshes; no day is waiting for a rebuild"
