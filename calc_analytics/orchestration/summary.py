"""The asset `publisher_usage_summary`: one table for reports and exports, computed from the rollups.

The run of today that the schedule starts computes it after the rollups, in the same process: no further run, no
further tick. Dagster's declarative automation would need a sensor of its own, with a tick every 30 seconds.
"""

from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    FreshnessPolicy,
    MarkdownMetadataValue,
    MaterializeResult,
    MetadataValue,
    asset,
)

from calc_analytics.database.tables import publisher_usage_summary
from calc_analytics.days import today
from calc_analytics.orchestration.assets import GROUP
from calc_analytics.orchestration.metadata import picture, preview, runbook_reference, table_metadata
from calc_analytics.orchestration.names import SUMMARY
from calc_analytics.orchestration.resources import RollupDatabase
from calc_analytics.orchestration.retries import TRANSIENT_ERRORS, as_dagster_failure
from calc_analytics.plurals import number
from calc_analytics.rollups import LATENCY, LOCALITIES, STATS

if TYPE_CHECKING:
    from pandas import DataFrame

    from calc_analytics.readers.summary import Summary
    from calc_analytics.rollup.declaration import Log

# What a materialization shows of the best publishers, and how a value is written. Few columns, so that many rows fit.
COLUMNS = {
    "publisher_id": "{}",
    "last_30_days": "{:,}",
    "month_change": "{:+.0%}",
    "cache_hit_ratio": "{:.0%}",
    "p95_response_time_ms": "{:.0f}",
}
DESCRIPTION = f"""Calculations of each publisher, as of counted_at: today, by month, of the last 30 days and of all
time, with change, rank, cache-hit ratio, response times and top locality.

Grain: one row per publisher. Source: the rollups. Materializing replaces all rows in one transaction, in a second or
two; readers do not wait. Computed every hour, with the schedule's rebuild of today. For numbers of this moment query
the view publisher_usage. In SQL: select * from {SUMMARY} order by rank."""


def summary_assets(log: "Log", freshness: FreshnessPolicy) -> list[AssetsDefinition]:
    """The asset, unless the rollup that it is about is not kept."""
    if STATS.name not in log.names:
        return []

    @asset(
        name=SUMMARY,
        deps=[AssetKey(each.name) for each in (STATS, LOCALITIES, LATENCY) if each.name in log.names],
        description=DESCRIPTION,
        group_name=GROUP,
        kinds={"postgres", "pandas"},
        owners=["team:analytics"],
        tags={"layer": "readers"},
        metadata={**table_metadata(publisher_usage_summary), **runbook_reference()},
        freshness_policy=freshness,
        retry_policy=TRANSIENT_ERRORS,
    )
    def summary(context: AssetExecutionContext, database: RollupDatabase) -> MaterializeResult:
        """Replaces the table by what the rollups hold now."""
        from calc_analytics.readers.summary import refresh_summary

        db = database.db
        with as_dagster_failure():
            done = refresh_summary(db)
            context.log.info(f"wrote {number(len(done.table), 'publisher')} in {done.seconds:.2f} s")
            drawn = picture(db, today(db.timezone), context.log.warning)
            return MaterializeResult(metadata={**_metadata(done), **drawn})

    return [summary]


def _metadata(done: "Summary") -> dict[str, Any]:
    """The figures of all publishers, which the UI plots over time, and the first rows."""
    return {
        **done.figures,
        "dagster/row_count": len(done.table),
        "duration_seconds": round(done.seconds, 4),
        **({"counted_at": MetadataValue.timestamp(done.counted_at)} if done.counted_at else {}),
        "first_publishers": _preview(done.table) if len(done.table) else MetadataValue.md("no calculations yet"),
    }


def _preview(table: "DataFrame") -> MarkdownMetadataValue:
    """The first rows, as many as are shown without a click; what is null is empty."""
    shown = table[list(COLUMNS)].astype(object)
    text = shown.apply(lambda column: column.map(COLUMNS[column.name].format, na_action="ignore"))
    return preview(text.astype(object).where(shown.notna(), ""))
