"""What the operations return: small, frozen, and shown alike by the CLI, Dagster and `--json`."""

from calc_analytics.rollup.reports.audits import AuditDifference, AuditReport
from calc_analytics.rollup.reports.counts import LOG_ROWS, DayCount, RefreshReport
from calc_analytics.rollup.reports.proofs import DayProof, VerifyReport
from calc_analytics.rollup.reports.prunes import PruneReport
from calc_analytics.rollup.reports.rebuilds import RebuildReport, SkippedDay, refusals

__all__ = [
    "LOG_ROWS",
    "AuditDifference",
    "AuditReport",
    "DayCount",
    "DayProof",
    "PruneReport",
    "RebuildReport",
    "RefreshReport",
    "SkippedDay",
    "VerifyReport",
    "refusals",
]
