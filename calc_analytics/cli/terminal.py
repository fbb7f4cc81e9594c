"""What terminals show: reports, questions, progress bars, the table of the demo. rich is imported when it is used."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any, TypeVar

import click

from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.plurals import number
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.reports import (
    DayProof,
    PruneReport,
    RebuildReport,
    RefreshReport,
    SkippedDay,
    VerifyReport,
    refusals,
)

T = TypeVar("T")
# Headings of measures with long names. Of the sum of response times the average is shown.
HEADINGS = {
    "total_calculations": "total",
    "cache_hits": "cached",
    "source_web": "web",
    "source_api": "API",
    "source_external": "external",
}
SUM_OF_TIMES = "total_response_time_ms"
KEPT = {
    "keep": "as decided",
    "announced": "LOGS_KEPT_DAYS announced the deletion",
    "pruned": "some of its log rows were deleted",
}


class NotConfirmed(CalcAnalyticsError):
    """The question before a change was answered with no, or there is no terminal to answer it."""


def confirm(question: str, unchanged: str = "Nothing was changed.") -> None:
    """Asks on the terminal; raises `NotConfirmed`, with the sentence `unchanged`, unless the answer is yes."""
    if not has_terminal():
        raise NotConfirmed(f"there is no terminal to answer '{question}': add --yes to confirm. {unchanged}")
    try:
        if click.confirm(question):
            return
    except click.Abort:
        click.echo(err=True)
    raise NotConfirmed(f"not confirmed. {unchanged}")


def has_terminal() -> bool:
    """Whether a person can answer questions."""
    return sys.stdin.isatty()


def print_report(report: Any, as_json: bool, show: Callable[..., None], *more: Any) -> None:
    """Prints the report as one JSON object, or calls `show(report, *more)`."""
    click.echo(json.dumps(report.as_dict())) if as_json else show(report, *more)


def named(rollups: Sequence[str]) -> str:
    """The name of the one rollup, or '4 rollups'."""
    return rollups[0] if len(rollups) == 1 else number(len(rollups), "rollup")


@contextmanager
def bar(description: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error, if that is a terminal. Yields a function that takes the steps just done.

    Without a total it shows the steps done and the elapsed time.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    done = TextColumn("{task.completed:,.0f}") if total is None else MofNCompleteColumn()
    clock = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), done, clock)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda steps: progress.advance(task, steps)


def show_refresh(report: RefreshReport) -> None:
    """Prints the rows counted, and a line for each day."""
    click.echo(f"{number(report.rows, 'row')} counted in {report.seconds * 1000:.1f} ms")
    for day, counts in _by_day(report.counted).items():
        keys = sum(count.keys for count in counts)
        rows = number(report.rows_by_day[day], "row")
        click.echo(
            f"  {day}  +{rows} into {number(keys, 'statistics row')} of {named([count.rollup for count in counts])}"
        )
    for misfit in report.misfits:
        click.echo(f"  {misfit.day}  set aside in {misfit.rollup}: {misfit}. {misfit.advice}")
    for day, counts in _by_day(report.unbuilt).items():
        where = named([count.rollup for count in counts])
        rows = number(report.waiting_by_day[day], "row")
        command = f"calc-analytics rollup --day {day}"
        click.echo(f"  {day}  {rows} not counted in {where}, because the day is not built: run '{command}'")


def show_rebuild(report: RebuildReport, is_named: bool) -> None:
    """Prints the rows of each day, and the days that were kept or refused.

    With `is_named` the user named the days: the caller prints every refused one as an error.
    """
    for day, counts in _by_day(report.rebuilt).items():
        for (rows, before), alike in _grouped(counts, lambda count: (count.rows, count.rows_before)).items():
            change = "" if rows == before else f" ({before:,} before)"
            source = f", from {alike[0].source} by {alike[0].engine}" if alike[0].engine else ""
            click.echo(f"  {day}  {number(rows, 'row')} in {named([count.rollup for count in alike])}{change}{source}")
    _show_kept(report.kept)
    failed = report.refused if is_named else report.failed
    for line in refusals([each for each in report.refused if each not in failed]):
        click.echo(f"  {line}")
    click.echo(f"{number(len(report.days), 'day')} rebuilt, {number(report.rows, 'row')} in {report.seconds:.2f} s")


def _show_kept(kept: Sequence[SkippedDay]) -> None:
    for day, of_day in _by_day(kept).items():
        for reason, alike in _grouped(of_day, _kept).items():
            click.echo(f"  kept: {day} in {named([each.rollup for each in alike])}: {reason}")


def _kept(each: SkippedDay) -> str:
    counts = f"{number(each.log_rows, 'log row')}, {each.counted_rows:,} counted"
    return f"{counts}, {each.deleted_rows:,} noted as deleted ({KEPT.get(each.reason, each.reason)})"


def show_prune(report: PruneReport) -> None:
    """Prints the rows deleted per day, and the days that keep their log rows."""
    for day, rows in report.rows_by_day.items():
        click.echo(f"  {day}  {number(rows, 'row')} deleted, statistics kept")
    for day in report.not_built:
        click.echo(
            f"  {day}  not built in every rollup, so its log rows stay: 'calc-analytics rollup --day {day}' says why"
        )
    for day in report.different:
        click.echo(f"  {day}  differs from its log, so its log rows stay: run 'calc-analytics verify --day {day}'")
    for day in report.not_archived:
        click.echo(f"  {day}  not archived, so its log rows stay: run 'calc-analytics archive --day {day}'")
    for day, reason in report.refused.items():
        click.echo(f"  {day}  its log rows stay: {reason}")
    for name, rows in report.dropped.items():
        word = "emptied" if name in report.kept else "dropped"
        click.echo(f"  {word} partition {name} ({number(rows, 'row')})")
    for name, reason in report.kept.items():
        click.echo(f"  partition {name} was not dropped: {reason}")
    if report.busy:
        click.echo("  run the command again when these sessions have ended")
    days, dropped = number(len(report.rows_by_day), "day"), sum(report.dropped.values())
    whole = f", {dropped:,} of them with {number(len(report.dropped), 'partition')}" if report.dropped else ""
    click.echo(f"{number(report.rows, 'row')} of {days} deleted{whole} in {report.seconds:.2f} s")


def show_verify(report: VerifyReport, asked: Sequence[date]) -> None:
    """Prints a line per equal day, a line per rollup that is not equal, and the sum of differences."""
    for day, proofs in _by_day(report.days).items():
        if all(proof.is_proven for proof in proofs):
            click.echo(f"  {_equal(day, proofs)}")
        elif all(proof.status == "frozen" and not proof.is_different for proof in proofs):
            click.echo(
                f"  {day}  frozen in {named([proof.rollup for proof in proofs])}: statistics kept, log rows gone"
            )
        else:
            for proof in _needing_a_line(proofs, report):
                click.echo(f"  {proof.describe()}")
    if empty := set(asked) - {proof.day for proof in report.days}:
        click.echo(f"{number(len(empty), 'day')} without log rows and without statistics")
    for unbalanced in report.archive:
        click.echo(f"  {unbalanced}")
    _show_not_compared(report)
    compared = {proof.day for proof in report.days if proof.is_built or proof.is_different or proof.status == "frozen"}
    archive = f"; the archive of {number(len(report.archive), 'day')} does not add up" if report.archive else ""
    difference = f"difference {report.difference:,}{archive}"
    click.echo(f"{number(len(compared), 'day')} compared in {report.seconds:.2f} s: {difference}")


def _equal(day: date, proofs: Sequence[DayProof]) -> str:
    """'2026-03-01  logs 1,234  equal in 4 rollups', with deleted and suspect rows if there are any."""
    deleted = max(proof.deleted_rows for proof in proofs)
    suspects = {name: rows for proof in proofs for name, rows in proof.suspects.items()}
    logs = max(proof.log_rows for proof in proofs)
    line = f"{day}  logs {logs:>11,}  equal in {named([proof.rollup for proof in proofs])}"
    line += f" with the {number(deleted, 'row')} deleted since" if deleted else ""
    return line + "".join(f"; {name.replace('_', ' ')}: {rows:,}" for name, rows in suspects.items())


def _needing_a_line(proofs: Sequence[DayProof], report: VerifyReport) -> Iterator[DayProof]:
    """The proofs that need a line: unproven ones, except waiting days, which are summed up below."""
    for proof in proofs:
        is_summed_up = proof.day in report.waiting and not proof.is_different and proof.finding != "overflow"
        if not proof.is_proven and not is_summed_up:
            yield proof


def _show_not_compared(report: VerifyReport) -> None:
    if report.nothing_built:
        click.echo(
            "error: no day is built, so nothing is proven: run 'calc-analytics rollup' (today, yesterday and days that "
            "wait) or 'calc-analytics rollup --from DAY'",
            err=True,
        )
    if report.waiting:
        days = number(len(report.waiting), "day")
        verb = "waits" if len(report.waiting) == 1 else "wait"
        click.echo(f"{days} {verb} for a rebuild: run 'calc-analytics rollup'")
    if report.overflowed:
        overflowed = ", ".join(map(str, report.overflowed))
        click.echo(f"not counted, because a value exceeds its column: {overflowed}")


def _by_day(items: Sequence[T]) -> dict[date, list[T]]:
    """Items that have a day, by day, oldest first."""
    found = _grouped(items, lambda each: each.day)  # type: ignore[attr-defined]
    return dict(sorted(found.items()))


def _grouped(items: Sequence[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Items with the same key together, in the order of the first."""
    found: dict[Any, list[T]] = {}
    for each in items:
        found.setdefault(key(each), []).append(each)
    return found


@contextmanager
def live_table() -> Iterator[Callable[[Rollup, dict[date, dict[str, int]], str], None]]:
    """Yields a function that shows totals by day: in a terminal it redraws a table, elsewhere it prints a line."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        yield lambda rollup, totals, caption: click.echo(totals_line(rollup, totals, caption))
        return
    with Live(console=console, auto_refresh=False) as screen:
        yield lambda rollup, totals, caption: screen.update(totals_table(rollup, totals, caption), refresh=True)


def totals_table(rollup: Rollup, totals: dict[date, dict[str, int]], caption: str) -> Any:
    """A rich table of a rollup's measures per day, newest first; 80 columns hold a day of a million rows."""
    from rich import box
    from rich.table import Table

    shown = [name for name in rollup.measure_names if name != SUM_OF_TIMES]
    key = "publishers" if rollup.keys == ("publisher_id",) else "rows"
    headings = ["day", key, *(HEADINGS.get(name, name.replace("_", " ")) for name in shown)]
    table = Table(title=rollup.name, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in headings + ["avg ms"] * (SUM_OF_TIMES in rollup.measure_names):
        table.add_column(heading, justify="left" if heading == "day" else "right", no_wrap=True)
    for day in sorted(totals, reverse=True):
        row = totals[day]
        average = [f"{row[SUM_OF_TIMES] / max(row[rollup.count], 1):.1f}"] if SUM_OF_TIMES in row else []
        table.add_row(str(day), f"{row['keys']:,}", *(f"{row[name]:,}" for name in shown), *average)
    return table


def totals_line(rollup: Rollup, totals: dict[date, dict[str, int]], caption: str) -> str:
    """The newest day's totals in one line, for a pipe."""
    day = max(totals, default=None)
    figures = f"{day}  {number(totals[day][rollup.count], 'calculation')}" if day else "no statistics yet"
    return f"{figures} · {caption}"
