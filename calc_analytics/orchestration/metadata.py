"""Domain reports as Dagster metadata: what the operator reads on a run's and a partition's page."""

from datetime import date
from typing import Any

from dagster import MetadataValue

from calc_analytics import rollup
from calc_analytics.orchestration.resources import RollupDatabase


def day_metadata(
    measures: dict[str, int], publishers: int, seconds: float | None = None, added: int | None = None
) -> dict[str, Any]:
    """A day's totals (rows are log rows); for a rebuild how long it took, for refreshes the rows just added."""
    return {
        "rows": measures["total_calculations"],
        **({} if added is None else {"rows_added": added}),
        "publishers": publishers,
        **{name: value for name, value in measures.items() if name != "keys"},
        **({} if seconds is None else {"duration_seconds": round(seconds, 4)}),
    }


def preview(database: RollupDatabase, day: date) -> MetadataValue:
    """The day's busiest publishers as a table."""
    import pandas

    table = pandas.DataFrame(rollup.figures.top_keys(database.engine, database.rollup, day))
    if table.empty:
        return MetadataValue.md("no calculations on this day")
    table["cache_hit_rate"] = (table["cache_hits"] / table["total_calculations"]).map("{:.0%}".format)
    return MetadataValue.md(table.to_markdown(index=False))


def log_metadata(database: RollupDatabase, counted: int | None = None) -> dict[str, Any]:
    """The log table's size (PostgreSQL's estimate) and how far behind the statistics are."""
    figures = rollup.figures.log_figures(database.engine, database.rollup, database.timezone)
    return {
        "estimated_rows": figures.estimated_rows,
        "uncounted_rows": figures.uncounted_rows,
        "lag_seconds": round(figures.lag_seconds, 3),
        **({} if counted is None else {"rows_counted": counted}),
    }
