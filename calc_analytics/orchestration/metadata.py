"""Domain reports as Dagster metadata: what the operator reads on a run's and a partition's page."""

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from dagster import MetadataValue

from calc_analytics import rollup
from calc_analytics.orchestration.resources import RollupDatabase

if TYPE_CHECKING:
    from calc_analytics.rollup.reports import Shrunk


def day_metadata(
    measures: dict[str, int], publishers: int, seconds: float | None = None, added: int | None = None
) -> dict[str, Any]:
    """A day's totals (rows are log rows), how long the rebuild or the refreshes took, and the rows these just added."""
    return {
        "rows": measures["total_calculations"],
        **({} if added is None else {"rows_added": added}),
        "publishers": publishers,
        **{name: value for name, value in measures.items() if name != "keys"},
        **({} if seconds is None else {"duration_seconds": round(seconds, 4)}),
    }


def kept_metadata(database: RollupDatabase, kept: "Sequence[Shrunk]") -> dict[date, dict[str, Any]]:
    """Days that were left as they are because their logs were deleted: their figures, and why."""
    totals = rollup.figures.day_totals(database.engine, database.rollup, [day.day for day in kept])
    return {
        day.day: {
            **day_metadata(totals[day.day], totals[day.day]["keys"]),
            "rows_without_logs": day.counted_rows - day.raw_rows,
            "left_as_it_is": str(day),
        }
        for day in kept
        if day.day in totals
    }


def previews(database: RollupDatabase, days: Sequence[date]) -> dict[date, MetadataValue]:
    """Each day's busiest publishers as a table."""
    import pandas

    found: dict[date, MetadataValue[Any]] = dict.fromkeys(days, MetadataValue.md("no calculations on this day"))
    busiest = pandas.DataFrame(rollup.figures.top_keys(database.engine, database.rollup, days))
    if not busiest.empty:
        busiest["cache_hit_rate"] = (busiest["cache_hits"] / busiest["total_calculations"]).map("{:.0%}".format)
        for day, table in busiest.groupby("date"):
            found[day] = MetadataValue.md(table.drop(columns="date").to_markdown(index=False))
    return found


def log_metadata(database: RollupDatabase, counted: int | None = None) -> dict[str, Any]:
    """The log table's size (PostgreSQL's estimate) and how far behind the statistics are."""
    figures = rollup.figures.log_figures(database.engine, database.rollup, database.timezone)
    return {
        "estimated_rows": figures.estimated_rows,
        "uncounted_rows": figures.uncounted_rows,
        "lag_seconds": round(figures.lag_seconds, 3),
        **({"rows_without_a_day": figures.rows_without_a_day} if figures.rows_without_a_day else {}),
        **({} if counted is None else {"rows_counted": counted}),
    }
