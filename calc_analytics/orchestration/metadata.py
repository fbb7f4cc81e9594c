"""Domain reports as Dagster metadata: what the operator reads on a run's and a partition's page."""

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from dagster import MetadataValue

if TYPE_CHECKING:
    from calc_analytics.rollup.database import Database
    from calc_analytics.rollup.declaration import Rollup
    from calc_analytics.rollup.reports import Refused


def day_metadata(
    declared: "Rollup", measures: dict[str, int], keys: int, seconds: float | None = None, added: int | None = None
) -> dict[str, Any]:
    """A day's totals (rows are log rows), how long the rebuild or the refreshes took, and the rows these just added."""
    return {
        "rows": measures[declared.count],
        **({} if added is None else {"rows_added": added}),
        name_of_keys(declared): keys,
        **{name: measures[name] for name in declared.measure_names},
        **({} if seconds is None else {"duration_seconds": round(seconds, 4)}),
    }


def name_of_keys(declared: "Rollup") -> str:
    """'publishers' for a rollup with the single key publisher_id; 'keys' for one with several."""
    (first, *more) = declared.keys
    return f"{first.removesuffix('_id')}s" if not more else "keys"


def left_metadata(db: "Database", declared: "Rollup", left: "Sequence[Refused]") -> dict[date, dict[str, Any]]:
    """Days that a rebuild left as they are: what their statistics hold, and why."""
    from calc_analytics.rollup.figures import day_totals

    totals = day_totals(db, declared, [each.day for each in left]) if left else {}
    held = {day: day_metadata(declared, measures, measures["keys"]) for day, measures in totals.items()}
    return {each.day: {**held.get(each.day, {}), **_why(each)} for each in left}


def _why(left: "Refused") -> dict[str, Any]:
    gone = max(left.counted_rows - left.log_rows, 0)
    return {**({"rows_without_logs": gone} if gone else {}), "left_as_it_is": describe_left(left)}


def describe_left(left: "Refused") -> str:
    """One line: why the day was not recounted, or by which decision its statistics were kept."""
    if left.reason not in ("keep", "announced"):
        return str(left)
    by = "LOGS_KEPT_DAYS" if left.reason == "announced" else "the option keep"
    return (
        f"{left.day} of {left.rollup} keeps its statistics by {by}: {left.deleted_rows:,} of {left.counted_rows:,} "
        "counted log rows are deleted."
    )


def previews(db: "Database", declared: "Rollup", days: Sequence[date]) -> dict[date, dict[str, Any]]:
    """Each day's largest rows as a table, of a rollup with a single key; of others there is no table."""
    if len(declared.keys) > 1 or not days:
        return {day: {} for day in days}
    import pandas

    from calc_analytics.rollup.figures import top_keys

    name = f"top_{name_of_keys(declared)}"
    nothing = MetadataValue.md("no calculations on this day")
    found: dict[date, dict[str, Any]] = {day: {name: nothing} for day in days}
    largest = pandas.DataFrame(top_keys(db, declared, days))
    if largest.empty:
        return found
    if "cache_hits" in largest:
        largest["cache_hit_rate"] = (largest["cache_hits"] / largest[declared.count]).map("{:.0%}".format)
    for day, table in largest.groupby("date"):
        found[day] = {name: MetadataValue.md(table.drop(columns="date").to_markdown(index=False))}
    return found


def log_metadata(db: "Database", counted: int | None = None) -> dict[str, Any]:
    """The log table's size (PostgreSQL's estimate) and how far behind the statistics are."""
    from calc_analytics.rollup.figures import log_figures

    figures = log_figures(db)
    return {
        "estimated_rows": figures.estimated_rows,
        "uncounted_rows": figures.uncounted_rows,
        "lag_seconds": round(figures.lag_seconds, 3),
        **({"rows_without_a_day": figures.rows_without_a_day} if figures.rows_without_a_day else {}),
        **({} if counted is None else {"rows_counted": counted}),
    }
