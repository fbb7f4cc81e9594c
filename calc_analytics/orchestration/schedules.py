"""The hourly safety net: today and yesterday are recounted and proven in every rollup, whatever the sensor did."""

from dagster import (
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    schedule,
)

from calc_analytics.config import Settings
from calc_analytics.days import today_and_yesterday
from calc_analytics.orchestration.assets import ROLLUP_JOB, automatic


def hourly_schedule(settings: Settings) -> ScheduleDefinition:
    """`hourly_rollup`: on by default, at ROLLUP_CRON in the reporting time zone."""

    @schedule(
        name="hourly_rollup",
        cron_schedule=settings.cron,
        job_name=ROLLUP_JOB,
        execution_timezone=settings.timezone,
        default_status=DefaultScheduleStatus.RUNNING,
        description="Recounts and checks today and yesterday in every rollup, whatever the sensor did.",
    )
    def hourly_rollup(context: ScheduleEvaluationContext) -> list[RunRequest]:
        """Recounts and checks today and yesterday, as the scheduler in the API server was meant to do."""
        at = context.scheduled_execution_time
        days = [day for day in today_and_yesterday(settings.timezone, at) if day >= settings.start_date]
        return automatic([str(day) for day in days], at.isoformat())

    return hourly_rollup
