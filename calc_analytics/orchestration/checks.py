"""The asset checks: evaluated with every rebuild, and on demand from the UI, for the partitions of the run."""

from collections.abc import Callable
from datetime import date
from typing import Any

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetsDefinition,
    PartitionsDefinition,
    asset_check,
)

from calc_analytics.orchestration.partitions import as_days
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.retries import TRANSIENT_ERRORS, failing_in_one_line
from calc_analytics.rollup.figures import cache_hits_above_total, unknown_sources
from calc_analytics.rollup.verify import verify


def stats_checks(stats: AssetsDefinition, partitions: PartitionsDefinition) -> list[AssetChecksDefinition]:
    """The three checks on `calculation_stats_daily`."""
    options: dict[str, Any] = {"asset": stats, "partitions_def": partitions, "retry_policy": TRANSIENT_ERRORS}

    @asset_check(**options)
    def stats_match_logs(context: AssetCheckExecutionContext, database: RollupDatabase) -> AssetCheckResult:
        """Proves the day: statistics equal the logs visible in the stored snapshot. Zero difference, or a bug."""
        return _checked(context, lambda days: _match(database, days))

    @asset_check(**options)
    def source_breakdown_complete(context: AssetCheckExecutionContext, database: RollupDatabase) -> AssetCheckResult:
        """Web, API and external calculations add up to the total; warns with the source codes nobody knows."""
        return _checked(context, lambda days: _breakdown(database, days))

    @asset_check(**options)
    def cache_hits_within_total(context: AssetCheckExecutionContext, database: RollupDatabase) -> AssetCheckResult:
        """No publisher has more cache hits than calculations."""
        return _checked(context, lambda days: _cache_hits(database, days))

    return [stats_match_logs, source_breakdown_complete, cache_hits_within_total]


def _checked(
    context: AssetCheckExecutionContext, evaluate: Callable[[list[date]], AssetCheckResult]
) -> AssetCheckResult:
    with failing_in_one_line():
        return evaluate(as_days(context.op_execution_context.partition_keys))


def _match(database: RollupDatabase, days: list[date]) -> AssetCheckResult:
    report = verify(database.engine, database.rollup, database.timezone, days)
    wrong = [str(day.day) for day in [*report.different, *report.never_built]]
    return AssetCheckResult(
        passed=not wrong,
        description=f"differs: {', '.join(wrong)}" if wrong else "statistics equal logs: zero difference",
        metadata={
            "days_compared": len(days),
            "log_rows": sum(day.log_rows for day in report.days),
            "counted_rows": sum(day.counted_rows for day in report.days),
            "difference": report.difference,
            "duration_seconds": round(report.seconds, 4),
        },
    )


def _breakdown(database: RollupDatabase, days: list[date]) -> AssetCheckResult:
    missing, codes = unknown_sources(database.engine, database.timezone, days)
    seen = ", ".join(f"{code} ({rows:,} rows)" for code, rows in sorted(codes.items())) or "none left in the logs"
    return AssetCheckResult(
        passed=missing == 0,
        severity=AssetCheckSeverity.WARN,
        description=f"{missing:,} calculations of unknown source: {seen}" if missing else "every source is known",
        metadata={"unknown_rows": missing, "unknown_sources": {str(code): rows for code, rows in codes.items()}},
    )


def _cache_hits(database: RollupDatabase, days: list[date]) -> AssetCheckResult:
    wrong = cache_hits_above_total(database.engine, days)
    return AssetCheckResult(
        passed=not wrong,
        description="; ".join(f"publisher {key} on {day}" for day, key in wrong[:10]) or "cache hits within totals",
        metadata={"publishers_above_total": len(wrong)},
    )
