"""What people see in a terminal: tables, progress bars, the demo's growing table. rich is imported when used."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

from calc_analytics.rollup.reports import DayCount, PruneReport, RebuildReport, RefreshReport, VerifyReport

MEASURES = {
    "total_calculations": "total",
    "cache_hits": "cached",
    "source_web": "web",
    "source_api": "API",
    "source_external": "external",
}


def say(text: str, error: bool = False) -> None:
    """One line to the terminal, unbroken (a pipe gets it unchanged)."""
    import click

    click.echo(text, err=error)


@contextmanager
def bar(description: str, total: float | None) -> Iterator[Any]:
    """A progress bar on standard error; the value is called with the steps just done. Silent in a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda steps: progress.advance(task, steps)


def show_refresh(report: RefreshReport) -> None:
    """Rows counted and days touched, one line each."""
    say(f"{report.rows:,} rows counted in {report.seconds * 1000:.1f} ms")
    for day in report.counted:
        say(f"  {day.day}  +{_figures(day)}")
    for day in report.unbuilt:
        say(f"  {day.day}  {day.rows:,} rows wait: never built, run 'calc-analytics rollup --day {day.day}'")


def show_rebuild(report: RebuildReport) -> None:
    """What each day has now, and the days that were refused (on standard error)."""
    for day in report.rebuilt:
        say(f"  {day.day}  {_figures(day)}")
    say(f"{len(report.rebuilt):,} days rebuilt, {report.rows:,} rows in {report.seconds:.2f} s")
    for refused in report.refused:
        say(f"error: {refused}", error=True)


def show_prune(report: PruneReport) -> None:
    """Rows deleted per day, and the days that keep their logs."""
    for day, rows in report.rows_by_day.items():
        say(f"  {day}  {rows:,} rows deleted, statistics kept")
    for day in report.not_built:
        say(f"  {day}  not built, so its logs stay: run 'calc-analytics rollup --day {day}'")
    say(f"{report.rows:,} rows of {len(report.rows_by_day):,} days deleted in {report.seconds:.2f} s")


def show_verify(report: VerifyReport) -> None:
    """Each day's comparison and the verdict."""
    for day in report.days:
        if day.proven:
            verdict = f"equal with the {day.pruned_rows:,} rows that were deleted" if day.pruned_rows else "equal"
            verdict += "".join(f"; {rows:,} {name.replace('_', ' ')}" for name, rows in day.suspects.items())
        elif day.built:
            verdict = f"DIFFERENT for {day.differing_keys:,} publishers: {day.differences}"
            if day.log_rows + day.pruned_rows < day.counted_rows:
                verdict += f"; were logs deleted? 'calc-analytics rollup --day {day.day}' compares and notes it"
        elif day.status == "overflow":
            verdict = f"a counter exceeds its column: run 'calc-analytics rollup --day {day.day}' to see which"
        elif day.status == "kept":
            verdict = "left as a predecessor counted it: its logs were deleted"
        else:
            verdict = f"never built: run 'calc-analytics rollup --day {day.day}'"
        say(f"  {day.day}  logs {day.log_rows:>11,}  stats {day.counted_rows:>11,}  {verdict}")
    if report.nothing_built:
        say(
            "error: no day is built, so nothing is proven: run 'calc-analytics rollup' (today, yesterday and days that "
            "wait) or 'calc-analytics rollup --from DAY'",
            error=True,
        )
    if report.waiting:
        say(f"{len(report.waiting):,} days wait for a rebuild and were not compared: run 'calc-analytics rollup'")
    if report.overflowed:
        days = ", ".join(map(str, report.overflowed))
        say(f"not counted, because a counter exceeds its column: {days}; 'calc-analytics rollup --day DAY' says which")
    say(f"{len(report.days):,} days compared in {report.seconds:.2f} s: difference {report.difference:,}")


def _figures(day: DayCount) -> str:
    return f"{day.rows:,} rows, {day.keys:,} publishers, {day.measures['cache_hits']:,} cache hits"


def totals_table(title: str, totals: dict[date, dict[str, int]], caption: str) -> Any:
    """A rich table of measures per day, newest first; fits 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
    for heading in ["day", "publishers", *MEASURES.values(), "avg ms"]:
        table.add_column(heading, justify="left" if heading == "day" else "right", no_wrap=True)
    for day in sorted(totals, reverse=True):
        row = totals[day]
        average = row["total_response_time_ms"] / max(row["total_calculations"], 1)
        table.add_row(str(day), f"{row['keys']:,}", *(f"{row[name]:,}" for name in MEASURES), f"{average:.1f}")
    return table


def totals_line(totals: dict[date, dict[str, int]], caption: str) -> str:
    """The newest day's totals in one line, for a pipe."""
    day = max(totals, default=None)
    figures = f"{day}  {totals[day]['total_calculations']:,} calculations" if day else "no statistics yet"
    return f"{figures} · {caption}"
