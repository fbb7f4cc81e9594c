"""The command `history`: prints the journal of what changed the numbers, when, by how much, and by whom."""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import click

from calc_analytics import days
from calc_analytics.cli import terminal
from calc_analytics.cli.opening import open_database, with_settings
from calc_analytics.cli.options import DAY, NAMES, IntegerRange, as_json
from calc_analytics.config import Settings
from calc_analytics.operations.words import ago
from calc_analytics.plurals import number
from calc_analytics.rollup import journal
from calc_analytics.rollup.journal import JournalEntry
from calc_analytics.rollups import LOG

WIDTH = 100
INDENT = " " * 21
# Days of an entry that are shown; --day shows any other.
SHOWN_DAYS = 5
# Operations with an entry per day and rollup, and the longest time between two entries of one command.
PER_DAY = ("keep", "deletion", "verify")
ONE_COMMAND = timedelta(seconds=10)
REASONS = {
    "differs": "its log rows are not those that were counted",
    "overflow": "a value does not fit its column",
}


@click.command()
@click.option("--day", metavar=DAY, help="Only what was done to this day.")
@click.option("--rollup", metavar="NAME", help=f"Only what was done to this rollup. They are {NAMES}.")
@click.option("--limit", default=50, show_default=True, type=IntegerRange(1, 100_000), help="Entries to show.")
@as_json
@with_settings
def history(settings: Settings, day: str | None, rollup: str | None, limit: int, as_json: bool) -> None:
    """Show what changed the numbers, when, and by whom.

    Newest first. Every operation writes its entry to the journal in its own transaction. Refreshes are summed
    up per minute (after 30 days: per day), proofs that found no difference per hour.

    \b
    Changes:     nothing
    Example:     calc-analytics history --day 2026-01-15
    Exit codes:  0 done; 1 an error
    """
    wanted = days.parse_day(day) if day is not None else None
    db = open_database(settings)
    if rollup is not None:
        db.log.rollup(rollup)  # an unknown name is an error, not an empty history
    entries = journal.history(db, wanted, rollup, limit)
    if as_json:
        click.echo(json.dumps({"entries": [entry.as_dict() for entry in entries]}))
    else:
        click.echo("\n".join(lines(entries, wanted, rollup, limit)))


def lines(entries: list[JournalEntry], day: date | None, rollup: str | None, limit: int) -> Iterator[str]:
    """The journal, line by line, in 100 columns."""
    if not entries:
        yield "the journal has no such entry"
        return
    yield click.style(f"{'when (UTC)':<21}{'what':<10}{'days':<25}{'rows':>11}  by", dim=True)
    for entry in _merged(entries):
        yield from _entry(entry, day, rollup)
    if len(entries) == limit:
        yield click.style(f"{number(limit, 'entry')} shown: --limit shows more", dim=True)


def _merged(entries: Iterable[JournalEntry]) -> Iterator[JournalEntry]:
    """The entries; those that one command wrote per day and rollup are merged."""
    last: JournalEntry | None = None
    for entry in entries:
        if last is not None and _belong_together(last, entry):
            days = {day: {**entry.days.get(day, {}), **last.days.get(day, {})} for day in {*entry.days, *last.days}}
            last = replace(last, days=days, seconds=last.seconds + entry.seconds)
        else:
            if last is not None:
                yield last
            last = entry
    if last is not None:
        yield last


def _belong_together(newer: JournalEntry, older: JournalEntry) -> bool:
    """Whether one command wrote both entries: same operation and author, close in time, different days or rollups."""
    is_same = (newer.operation, newer.by, newer.detail) == (older.operation, older.by, older.detail)
    is_soon = newer.at - older.at < ONE_COMMAND
    if not (newer.operation in PER_DAY and is_same and is_soon and newer.days and older.days):
        return False
    return not any(set(done) & set(newer.days.get(day, {})) for day, done in older.days.items())


def _entry(entry: JournalEntry, day: date | None, rollup: str | None) -> Iterator[str]:
    done = {key: value for key, value in sorted(entry.days.items()) if day is None or key == str(day)}
    what = f"{entry.operation:<10}"
    if entry.failed or _needs_attention(entry):
        what = click.style(what, fg="red")
    rows = _rows(entry, done, is_part=day is not None)
    yield f"{entry.at:%Y-%m-%d %H:%M:%S}  {what}{_span(list(done)):<25}{rows:>11}  {entry.by}"
    for detail in details(entry, done, rollup):
        yield from textwrap.wrap(detail, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT + "  ")


def _needs_attention(entry: JournalEntry) -> bool:
    """Whether the entry reports a difference or a refused day."""
    return entry.operation in ("refuse", "overflow") or (entry.operation in ("verify", "audit") and bool(entry.days))


def _span(done: list[str]) -> str:
    """'2026-03-01', or the first and the last of several."""
    return "" if not done else done[0] if len(done) == 1 else f"{done[0]} to {done[-1]}"


def _rows(entry: JournalEntry, done: Mapping[str, Any], is_part: bool) -> str:
    """Log rows of the entry, or only of the days that are shown."""
    rows = sum(_rows_of_day(value) for value in done.values()) if is_part else entry.rows
    return f"{rows:,}" if rows else ""


def _rows_of_day(done: Any) -> int:
    """Log rows of one day of an entry: of a refresh the number itself, of a rebuild what the day has after it, of an
    archiving those that were written, of an erasure those that were erased."""
    if not isinstance(done, Mapping):
        return int(done)
    if all(isinstance(each, int) for each in done.values()):
        return int(done.get(LOG.name, 0))
    return max((int(each.get("after", each.get("rows", 0))) for each in done.values()), default=0)


def details(entry: JournalEntry, done: Mapping[str, Any], rollup: str | None = None) -> Iterator[str]:
    """What was done: a line for the entry, or one for each day and each result in it."""
    if entry.failed:
        yield f"failed: {entry.detail}"
    elif not done:
        yield _of_all(entry)
    elif entry.operation == "erase":
        yield from _of_erased(entry, done, rollup)
    elif all(not isinstance(value, Mapping) for value in done.values()):
        yield _of_rows(entry, done)
    else:
        yield from _of_days(entry, done, rollup)
    if entry.detail and done and not entry.failed and entry.operation != "erase":
        yield entry.detail


def _of_all(entry: JournalEntry) -> str:
    """An entry that is about no single day."""
    match entry.operation:
        case "verify":
            return f"{number(entry.operations, 'comparison')} in {entry.seconds:.2f} s, no difference"
        case "audit":
            return f"{number(entry.operations, 'audit')} in {entry.seconds:.2f} s, no difference"
        case "rebase":
            return f"counting started afresh: every built day is to be rebuilt; {entry.detail}"
        case "rollups":
            return f"the rollups that are kept were changed: {entry.detail}"
        case _:
            return entry.detail or f"{number(entry.operations, 'operation')} in {entry.seconds:.2f} s"


def _of_rows(entry: JournalEntry, done: Mapping[str, Any]) -> str:
    """An entry of which the journal keeps rows per day: refreshes and deletions, summed up."""
    per_day = f"; {_by_day(done)}" if len(done) > 1 else ""
    if entry.operation != "refresh":
        return f"deleted in {number(entry.operations, 'batch')}, {entry.seconds:.2f} s; statistics stay{per_day}"
    oldest = "" if entry.oldest_seconds is None else f"; the oldest row was counted after {ago(entry.oldest_seconds)}"
    return f"counted in {number(entry.operations, 'refresh')}, {entry.seconds:.2f} s{oldest}{per_day}"


def _of_erased(entry: JournalEntry, done: Mapping[str, Any], rollup: str | None) -> Iterator[str]:
    """The receipt of an erasure: what was erased, how many rows of which table."""
    tables: dict[str, int] = {}
    for of_day in done.values():
        for name, rows in of_day.items():
            if rollup in (None, name):
                tables[name] = tables.get(name, 0) + int(rows)
    yield f"erased {entry.detail}: " + ", ".join(f"{rows:,} of {name}" for name, rows in tables.items())


def _by_day(done: Mapping[str, Any]) -> str:
    """Rows of the last few days, and how many more days there are."""
    shown = ", ".join(f"{day} {int(rows):,}" for day, rows in list(done.items())[-SHOWN_DAYS:])
    more = len(done) - SHOWN_DAYS
    return f"by day: {shown}" + (f" and {number(more, 'more day')}" if more > 0 else "")


def _of_days(entry: JournalEntry, done: Mapping[str, Any], rollup: str | None) -> Iterator[str]:
    """Results per day and rollup; rollups with the same result are named together."""
    for day, results in list(done.items())[:SHOWN_DAYS]:
        alike: dict[str, list[str]] = {}
        for name, result in results.items():
            if rollup in (None, name):
                alike.setdefault(_result(entry.operation, result), []).append(name)
        start = f"{day} " if len(done) > 1 else ""
        for change, names in alike.items():
            yield f"{start}{change} ({terminal.named(names)})"
    if len(done) > SHOWN_DAYS:
        yield f"and {number(len(done) - SHOWN_DAYS, 'more day')}: --day shows one"


def _result(operation: str, result: Mapping[str, Any]) -> str:
    """What was done to a day of a rollup, or what was found."""
    match dict(result):
        case {"before": before, "after": after, **rest}:
            change = (
                f"{number(after, 'row')}, as before" if before == after else f"{before:,} -> {number(after, 'row')}"
            )
            return f"recounted: {change}" + (f"; from {rest['source']} by {rest['engine']}" if rest else "")
        case {"rows": rows, "bytes": size, "files": files}:
            return f"archived: {number(rows, 'row')}, {number(size, 'byte')}; {number(files, 'file')}"
        case {"log_rows": log_rows, "counted": counted, "deleted": deleted}:
            by = " by LOGS_KEPT_DAYS" if operation == "deletion" else ""
            return f"{number(log_rows, 'log row')}, {counted:,} counted, {deleted:,} noted as deleted{by}"
        case {"refused": "archive", "detail": detail}:
            return f"not rebuilt: {detail}"
        case {"refused": "overflow", "column": column, "value": value}:
            return f"not rebuilt: {value:,} does not fit the column {column}"
        case {"refused": reason}:
            return f"not rebuilt: {REASONS.get(reason, reason)}"
        case {"column": column, "value": value, "type": type_}:
            return f"set aside: {value:,} does not fit the column {column} ({type_})"
        case {"difference": difference, **rest}:
            finding = str(rest.get("finding", "statistics_changed")).replace("_", " ")
            return f"difference {difference:,}: {finding}"
        case other:
            return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in other.items())
