"""The hourly safety net: today and yesterday are recounted and checked in every rollup."""

from dagster import (
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    schedule,
)

from calc_analytics.config import Settings
from calc_analytics.days import today_and_yesterday
from calc_analytics.orchestration.assets import automatic
from calc_analytics.orchestration.names import ROLLUP_JOB, SCHEDULE
from calc_analytics.rollups import chosen_log

DESCRIPTION = """Recounts today and yesterday from the log in every rollup and evaluates their checks: the safety net
below the sensor, which normally has counted everything before. Two runs per tick, of which that of
today also computes publisher_usage_summary, at ROLLUP_CRON in the reporting time
zone (by default every hour). Days whose log is not what was counted are not changed; their checks fail."""


def hourly_schedule(settings: Settings) -> ScheduleDefinition:
    """`hourly_rollup`: on by default, at ROLLUP_CRON in the reporting time zone."""

    @schedule(
        name=SCHEDULE,
        cron_schedule=settings.cron,
        job_name=ROLLUP_JOB,
        execution_timezone=settings.timezone,
        default_status=DefaultScheduleStatus.RUNNING,
        description=DESCRIPTION,
    )
    def hourly_rollup(context: ScheduleEvaluationContext) -> list[RunRequest]:
        """A run for each of today and yesterday in the reporting time zone."""
        at = context.scheduled_execution_time
        days = [day for day in today_and_yesterday(settings.timezone, at) if day >= settings.start_date]
        return automatic([str(day) for day in days], chosen_log(settings.rollups).names, at.isoformat())

    return hourly_rollup
