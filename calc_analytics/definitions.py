"""Every Dagster object by name, and nothing else. Importing this does nothing; Dagster calls `defs` to load it."""

import warnings

from dagster import BetaWarning, Definitions, PreviewWarning, define_asset_job, definitions, in_process_executor

from calc_analytics.config import Settings
from calc_analytics.orchestration.alerts import check_failure_alerts, run_failure_alerts
from calc_analytics.orchestration.assets import calculation_logs, stats_asset
from calc_analytics.orchestration.checks import stats_checks
from calc_analytics.orchestration.cron import freshness_policy
from calc_analytics.orchestration.housekeeping import daily_housekeeping, housekeeping_job
from calc_analytics.orchestration.partitions import daily_partitions
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.schedules import hourly_schedule
from calc_analytics.orchestration.sensors import new_log_batches_sensor


@definitions
def defs() -> Definitions:
    """The code location. Reads the settings (partitions and schedule depend on them) but connects to nothing."""
    settings = Settings.from_environment()
    partitions = daily_partitions(settings)
    with warnings.catch_warnings():
        # Backfill policies and partitioned checks are new in Dagster 1.13, and relied upon.
        warnings.simplefilter("ignore", BetaWarning)
        warnings.simplefilter("ignore", PreviewWarning)
        calculation_stats_daily = stats_asset(partitions, freshness_policy(settings.cron))
        checks = stats_checks(calculation_stats_daily, partitions)
    rollup_job = define_asset_job(
        "rollup_job",
        selection=[calculation_stats_daily],
        description="Recounts days from the raw logs and proves them with the three checks.",
    )
    return Definitions(
        assets=[calculation_logs, calculation_stats_daily],
        asset_checks=checks,
        jobs=[rollup_job, housekeeping_job],
        schedules=[hourly_schedule(rollup_job, partitions, settings), daily_housekeeping(settings)],
        sensors=[
            new_log_batches_sensor(rollup_job, partitions),
            run_failure_alerts(settings),
            check_failure_alerts(settings),
        ],
        resources={"database": RollupDatabase()},
        executor=in_process_executor,
    )
