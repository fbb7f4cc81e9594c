"""The commands that delete: `prune` (old log rows, statistics stay) and `erase` (one publisher, everywhere)."""

import json
import sys
from collections.abc import Iterator
from datetime import timedelta

import click

from calc_analytics import days
from calc_analytics.cli import terminal
from calc_analytics.cli.counting import refresh_with_progress
from calc_analytics.cli.opening import open_database, with_settings
from calc_analytics.cli.options import Integer, IntegerRange, as_json
from calc_analytics.cli.terminal import confirm, print_report
from calc_analytics.config import Settings
from calc_analytics.plurals import number
from calc_analytics.rollup import retention
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.erasure import (
    EraseReport,
    Holdings,
    Keys,
    NothingToErase,
    day_name,
    describe_keys,
    holdings,
    would_be_left,
)
from calc_analytics.rollup.erasure import erase as erase_keys
from calc_analytics.rollups import LOG


@click.command()
@click.option(
    "--older-than",
    "keep_days",
    metavar="DAYS",
    required=True,
    type=IntegerRange(0, 100_000),
    help="Keep the log rows of today and of this many days before.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@with_settings
def prune(settings: Settings, keep_days: int, yes: bool, as_json: bool) -> None:
    """Delete old log rows that are counted; statistics stay.

    Only log rows of days that are counted in every rollup are deleted. Deletes in small batches, alongside
    writers; it may be stopped and repeated. Days that were never built, or that differ from their log, keep
    their log rows. Late rows of a pruned day are still added to its statistics, and `verify` still compares its
    totals and a checksum. The role needs the right to delete from calculation_logs.

    \b
    Changes:     counts new rows, then deletes log rows for good; what was
                 deleted is in the ledger and the journal
    Example:     calc-analytics prune --older-than 90
    Exit codes:  0 done; 1 not confirmed or refused
    """
    db, before = open_database(settings), days.today(settings.timezone) - timedelta(days=keep_days)
    refresh_with_progress(db)
    there = retention.prunable(db, before)
    rows, of_days = number(sum(there.values()), "counted log row"), number(len(there), "day")
    if there and not yes:
        confirm(f"Delete {rows} of {of_days} before {before} for good?", "Nothing was deleted.")
    with terminal.bar("deleting log rows", sum(there.values())) as advance:
        report = retention.prune(db, before, progress=advance)
    print_report(report, as_json, terminal.show_prune)


@click.command()
@click.option("--publisher", metavar="N", required=True, type=Integer(), help="The publisher_id to erase.")
@click.option("--dry-run", is_flag=True, help="Show what would be erased, per table and day, and change nothing.")
@click.option("--even-if-writing", is_flag=True, help="Erase the rows that exist, even if the publisher still writes.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@with_settings
def erase(settings: Settings, publisher: int, dry_run: bool, even_if_writing: bool, yes: bool, as_json: bool) -> None:
    """Erase one publisher: its log rows and its statistics.

    The opposite of `prune`, which keeps statistics. Other publishers keep their numbers, even on pruned days.
    Statistics of rollups that ROLLUPS leaves out are erased as well. The journal keeps a receipt: the publisher's
    number, and how many rows of which table and day.

    It refuses while the publisher still writes: rows of the last 15 minutes, rows that arrive while it runs, or open
    transactions that have written log rows. Rows that arrive later are counted as new. A day that differs is left
    as it is, since erasing would hide the difference. It runs in batches, alongside writers, and may be stopped and
    repeated. The role needs the right to delete from calculation_logs.

    \b
    Changes:     deletes rows of calculation_logs and of every statistics table,
                 for good
    Look first:  calc-analytics erase --publisher 7 --dry-run
    Example:     calc-analytics erase --publisher 7
    Afterwards:  calc-analytics verify && calc-analytics history
    Exit codes:  0 erased; 1 something was left, not confirmed, or refused
    """
    db, keys = open_database(settings), {"publisher_id": publisher}
    also = [rollup for rollup in LOG.rollups if rollup.name not in db.log.names]
    if dry_run:
        _show_plan(db, keys, also, as_json)
        return
    if not yes:
        _confirm(holdings(db, keys, also))
    with terminal.bar("erasing log rows", None) as advance:
        report = erase_keys(db, keys, also=also, even_if_writing=even_if_writing, progress=advance)
    print_report(report, as_json, show_erased)
    is_incomplete = report.left or report.open_writers or (report.arrived and not even_if_writing)
    for line in report.problems:
        click.echo(f"{'error' if is_incomplete else 'note'}: {line}", err=True)
    sys.exit(1 if is_incomplete else 0)


def _confirm(held: Holdings) -> None:
    if held.tables:
        rows = ", ".join(f"{held.rows(name):,} of {name}" for name in held.tables)
        confirm(f"Erase {describe_keys(held.keys)} for good: {rows}?", "Nothing was erased.")


def _show_plan(db: Database, keys: Keys, also: list[Rollup], as_json: bool) -> None:
    """Prints what would be erased, and the days that would be left; raises `NothingToErase`."""
    held = holdings(db, keys, also)
    if not held.tables:
        raise NothingToErase(f"{describe_keys(keys)} has no log rows and no statistics: nothing was erased")
    left = would_be_left(db, keys, held.days)
    if as_json:
        problems = [str(each) for each in left]
        click.echo(json.dumps({**held.as_dict(), "problems": problems}))
        return
    for line in [*_plan(held), *map(str, left)]:
        click.echo(line)


def _plan(held: Holdings) -> Iterator[str]:
    for name in held.tables:
        yield f"  {name:<34}{number(held.rows(name), 'row'):>17}"
    log, *others = held.tables if LOG.name in held.tables else (LOG.name, *held.tables)
    for day in held.days:
        logs = held.tables.get(log, {}).get(day, 0)
        stored = sum(held.tables[name].get(day, 0) for name in others)
        yield f"  {day_name(day):<12}{number(logs, 'log row')}, {number(stored, 'row')} of statistics"
    yield f"{describe_keys(held.keys)}: {number(len(held.days), 'day')} would be erased; nothing was changed"


def show_erased(report: EraseReport) -> None:
    """Prints the erased rows per day, and the sums."""
    for day, tables in sorted(report.erased.items()):
        logs, stored = tables.get(LOG.name, 0), sum(rows for name, rows in tables.items() if name != LOG.name)
        click.echo(f"  {day:<12}{number(logs, 'log row')}, {number(stored, 'row')} of statistics erased")
    rows, days = number(report.rows(LOG.name), "log row"), number(len(report.erased), "day")
    click.echo(f"{describe_keys(report.keys)}: {rows} and the statistics of {days} erased in {report.seconds:.2f} s")
