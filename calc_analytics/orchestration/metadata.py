"""Tables and domain reports as Dagster metadata: what an operator reads about assets and partitions."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import (
    CodeReferencesMetadataValue,
    LocalFileCodeReference,
    MarkdownMetadataValue,
    MetadataValue,
    TableColumn,
    TableColumnConstraints,
    TableSchema,
)

from calc_analytics.config import project_root
from calc_analytics.orchestration.partitions import consecutive
from calc_analytics.rollup.declaration import type_to_sql
from calc_analytics.rollups import LOCALITIES, STATS

# The names under which a picture is shown, and the reason where a day's further figures could not be read.
PICTURE, FURTHER_FIGURES = "last_30_days", "further_figures"

if TYPE_CHECKING:
    from pandas import DataFrame
    from sqlalchemy import Table

    from calc_analytics.rollup.database import Database
    from calc_analytics.rollup.declaration import Rollup
    from calc_analytics.rollup.reports import SkippedDay


def table_metadata(table: "Table") -> dict[str, Any]:
    """Of an asset's definition: the table's name, and its columns with types and descriptions."""
    columns = [
        TableColumn(
            column.name,
            type_to_sql(column.type).lower(),
            description=column.comment,
            constraints=TableColumnConstraints(
                nullable=bool(column.nullable), other=["primary key"] if column.primary_key else []
            ),
        )
        for column in table.columns
    ]
    return {
        "dagster/column_schema": TableSchema(columns),
        "dagster/table_name": table.name,
    }


def runbook() -> Path | None:
    """The runbook in the checkout; None where docs/ is not installed."""
    file = project_root() / "docs" / "runbook.md"
    return file if file.is_file() else None


def runbook_reference() -> dict[str, Any]:
    """The runbook, shown under "Source code", where Dagster adds the asset's function."""
    file = runbook()
    references = [LocalFileCodeReference(file_path=str(file), label="runbook.md")] if file else []
    return {"dagster/code_references": CodeReferencesMetadataValue(code_references=list(references))}


def _link() -> dict[str, Any]:
    """The runbook, for an event's metadata; nothing where it is not installed."""
    file = runbook()
    return {"runbook": MetadataValue.path(str(file))} if file else {}


def day_metadata(
    declared: "Rollup",
    measures: Mapping[str, int],
    keys: int,
    ratios: Mapping[str, float],
    seconds: float | None = None,
    counted: int | None = None,
) -> dict[str, Any]:
    """A day's totals; how long the rebuild or the refreshes took, the log rows that these refreshes counted, and the
    runbook."""
    return {
        **({} if counted is None else {"rows_counted": counted}),
        **{name: measures[name] for name in declared.measure_names},
        name_of_keys(declared): keys,
        **ratios,
        **({} if seconds is None else {"duration_seconds": round(seconds, 4)}),
        **_link(),
    }


def further_figures(
    db: "Database", declared: "Rollup", days: Sequence[date], warn: Callable[[str], object]
) -> dict[date, dict[str, Any]]:
    """Figures of each day that its totals do not give, for the rollup that has the days' pictures; a line with the
    reason where they cannot be read."""
    from calc_analytics.readers.day_figures import day_figures

    found: dict[date, dict[str, Any]] = {day: {} for day in days}
    for span in consecutive(sorted(days)) if has_pictures(declared) else ():
        try:
            found.update(day_figures(db, span[0], span[-1]))
        except Exception as error:
            reason = _warn_of(error, f"the further figures of {_in_words(span)} were not read", warn)
            found.update({day: {FURTHER_FIGURES: f"not read: {reason}"} for day in span})
    return found


def _in_words(span: Sequence[date]) -> str:
    return str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}"


def has_pictures(declared: "Rollup") -> bool:
    """Whether the rollup's days have a picture: that of the API's table, which has one row per publisher and day."""
    return declared.name == STATS.name


def newest_day(db: "Database", declared: "Rollup", day: date, warn: Callable[[str], object]) -> dict[str, Any]:
    """What the newest day of a run shows besides its figures; once per run, since events are stored."""
    if has_pictures(declared):
        return picture(db, day, warn)
    return _localities(db, day, warn) if declared.name == LOCALITIES.name else {}


def _localities(db: "Database", day: date, warn: Callable[[str], object]) -> dict[str, Any]:
    """The day's largest localities as a table; a line with the reason where they cannot be read."""
    import pandas

    from calc_analytics.readers.day_figures import top_localities

    try:
        table = pandas.DataFrame(top_localities(db, day))
    except Exception as error:
        return {"top_localities": f"not read: {_warn_of(error, f'the localities of {day} were not read', warn)}"}
    if table.empty:
        return {}
    for name in ("share", "cache_hit_ratio"):
        table[name] = table[name].map("{:.0%}".format)
    return {"top_localities": preview(table)}


def _warn_of(error: Exception, failed: str, warn: Callable[[str], object]) -> str:
    """The reason in one line, after a warning. What is shown beside the numbers must not fail: these are stored."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    warn(f"{failed}: {reason}")
    return reason


def preview(table: "DataFrame") -> MarkdownMetadataValue:
    """The first rows, as many as Dagster's pages show without a click; in columns without padding, which takes room."""
    from calc_analytics.readers.pictures import CHARACTERS

    rows = [list(table.columns), ["-:"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    lines = [f"|{'|'.join(row)}|" for row in rows]
    ends = accumulate(len(line) + 1 for line in lines)
    return MetadataValue.md("\n".join(line for line, end in zip(lines, ends, strict=True) if end <= CHARACTERS))


def picture(db: "Database", last: date, warn: Callable[[str], object]) -> dict[str, Any]:
    """The 30 days up to `last` as an image in the page; a line with the reason where it cannot be drawn."""
    from calc_analytics.readers.pictures import trend_picture

    try:
        return {PICTURE: MetadataValue.md(trend_picture(db, last))}
    except Exception as error:
        return {PICTURE: f"not drawn: {_warn_of(error, f'the picture of {last} was not drawn', warn)}"}


def name_of_keys(declared: "Rollup") -> str:
    """'publishers' for a rollup with the single key publisher_id; 'keys' for one with several."""
    (first, *more) = declared.keys
    return f"{first.removesuffix('_id')}s" if not more else "keys"


def left_metadata(db: "Database", declared: "Rollup", left: "Sequence[SkippedDay]") -> dict[date, dict[str, Any]]:
    """Days that were not rebuilt: what their statistics hold, and the reason."""
    from calc_analytics.rollup.figures import day_ratios, day_totals

    totals = day_totals(db, declared, [each.day for each in left]) if left else {}
    ratios = day_ratios(db, declared, totals) if left else {}
    held = {day: day_metadata(declared, each, each["keys"], ratios[day]) for day, each in totals.items()}
    return {each.day: {**held.get(each.day, {}), **_reason(each)} for each in left}


def _reason(left: "SkippedDay") -> dict[str, Any]:
    deleted = max(left.counted_rows - left.log_rows, 0)
    return {
        **({"rows_without_logs": deleted} if deleted else {}),
        "not_rebuilt": describe_left(left),
        **_link(),
    }


def describe_left(left: "SkippedDay") -> str:
    """One line: the reason why the day was not recounted, or by which decision its statistics were kept."""
    if left.reason not in ("keep", "announced"):
        return str(left)
    by = "LOGS_KEPT_DAYS" if left.reason == "announced" else "the option keep"
    return (
        f"{left.day} of {left.rollup} keeps its statistics by {by}: {left.deleted_rows:,} of {left.counted_rows:,} "
        "counted log rows are deleted."
    )


def previews(db: "Database", declared: "Rollup", days: Sequence[date]) -> dict[date, dict[str, Any]]:
    """Each day's largest rows as a table, for rollups with a single key."""
    if len(declared.keys) > 1 or not days:
        return {day: {} for day in days}
    import pandas

    from calc_analytics.rollup.figures import top_keys

    name = f"top_{name_of_keys(declared)}"
    empty = MetadataValue.md("no calculations on this day")
    found: dict[date, dict[str, Any]] = {day: {name: empty} for day in days}
    largest = pandas.DataFrame(top_keys(db, declared, days))
    if largest.empty:
        return found
    if "cache_hits" in largest:
        largest["cache_hit_ratio"] = (largest["cache_hits"] / largest[declared.count]).map("{:.0%}".format)
    for day, table in largest.groupby("date"):
        found[day] = {name: preview(table.drop(columns="date"))}
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
