"""Every Dagster object by name, and nothing else. Importing this does nothing; Dagster calls `defs` to load it."""

import warnings

from dagster import (
    BetaWarning,
    Definitions,
    PreviewWarning,
    define_asset_job,
    definitions,
    in_process_executor,
    with_source_code_references,
)

from calc_analytics import logs
from calc_analytics.config import process_settings
from calc_analytics.orchestration.archive import archive_asset
from calc_analytics.orchestration.assets import calculation_logs, rollup_assets
from calc_analytics.orchestration.checks import rollup_checks
from calc_analytics.orchestration.cron import freshness_policy
from calc_analytics.orchestration.housekeeping import daily_housekeeping, housekeeping_job
from calc_analytics.orchestration.names import ROLLUP_JOB
from calc_analytics.orchestration.partitions import daily_partitions
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.schedules import hourly_schedule
from calc_analytics.orchestration.sensors import new_log_batches_sensor
from calc_analytics.orchestration.summary import summary_assets
from calc_analytics.rollups import chosen_log


@definitions
def defs() -> Definitions:
    """The code location. Reads the settings (rollups, partitions and schedule depend on them), connects to nothing."""
    settings = process_settings()
    logs.configure(settings.log_format, settings.log_level)
    log, partitions = chosen_log(settings.rollups), daily_partitions(settings)
    with warnings.catch_warnings():
        # Backfill policies, partitioned checks and code references are new in Dagster 1.13, and relied upon.
        warnings.simplefilter("ignore", BetaWarning)
        warnings.simplefilter("ignore", PreviewWarning)
        freshness = freshness_policy(settings.cron)
        assets = [rollup_assets(log, partitions, freshness), *summary_assets(log, freshness)]
        located = with_source_code_references(assets)
        checks = rollup_checks(log, partitions)
        archives = [archive_asset(log, partitions)] if settings.archive_url is not None else []
    rollup_job = define_asset_job(
        ROLLUP_JOB,
        selection=[key for each in assets for key in each.keys],
        description="Recounts days from the log in every rollup, evaluates their checks and computes the summary. The "
        "hourly schedule runs it for today and yesterday, the sensor for days that are not built; launch it by hand "
        "for any days.",
    )
    return Definitions(
        assets=[calculation_logs, *located, *archives],
        asset_checks=[checks],
        jobs=[rollup_job, housekeeping_job],
        schedules=[hourly_schedule(settings), daily_housekeeping(settings)],
        sensors=[new_log_batches_sensor(partitions)],
        resources={"database": RollupDatabase()},
        executor=in_process_executor,
    )
