"""The names by which Dagster knows the project's sensor, schedules and jobs. They are part of its stored record:
a new name is a new object without a history."""

from calc_analytics.database.tables import publisher_usage_summary

SENSOR = "new_log_batches"
SCHEDULE = "hourly_rollup"
HOUSEKEEPING = "daily_housekeeping"

# The asset that is computed from the rollups: its table's name.
SUMMARY = publisher_usage_summary.name

# The job of the rollups and their checks, which sensor and schedule request.
ROLLUP_JOB = "rollup_job"
HOUSEKEEPING_JOB = "housekeeping"
JOBS = (ROLLUP_JOB, HOUSEKEEPING_JOB)

# The asset of the archive, which is there if ARCHIVE_URL is set.
ARCHIVE = "calculation_logs_archive"
