"""The commands that delete: `prune` (old log rows, statistics stay) and `erase` (one publisher, everywhere)."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import partial

import click

from calc_analytics import days
from calc_analytics.archive import checking
from calc_analytics.archive.erasing import count_archived, erase_archived
from calc_analytics.archive.place import archive_of
from calc_analytics.archive.report import ArchiveErasure
from calc_analytics.cli import terminal
from calc_analytics.cli.counting import refresh_with_progress
from calc_analytics.cli.opening import open_database, with_settings
from calc_analytics.cli.options import Integer, IntegerRange, as_json
from calc_analytics.cli.terminal import confirm, print_report
from calc_analytics.config import Settings
from calc_analytics.database.log_partitions import Partition
from calc_analytics.plurals import number
from calc_analytics.rollup import retention
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.dropping import droppable
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

UNLESS_ARCHIVED = "so that only archived log rows are deleted, or add --even-if-not-archived. Nothing was deleted"


@click.command()
@click.option(
    "--older-than",
    "keep_days",
    metavar="DAYS",
    required=True,
    type=IntegerRange(0, 100_000),
    help="Keep the log rows of today and of this many days before.",
)
@click.option(
    "--only-partitions", is_flag=True, help="Drop whole partitions of the log table, and delete nothing else."
)
@click.option("--even-if-not-archived", is_flag=True, help="Delete counted log rows whether they are archived or not.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@with_settings
def prune(
    settings: Settings, keep_days: int, only_partitions: bool, even_if_not_archived: bool, yes: bool, as_json: bool
) -> None:
    """Delete old log rows that are counted; statistics stay.

    Only log rows of days that are counted in every rollup are deleted; with ARCHIVE_URL only those of days that are
    archived, after their files were compared with them. If days are archived, ARCHIVE_URL has to be set. Deletes in
    small batches, alongside writers; it may be stopped and repeated. Days that were never built, or that differ from
    their log, keep their log rows. Late rows of a pruned day are still added to its statistics, and `verify` still
    compares its totals and a checksum. The role needs the right to delete from calculation_logs.

    A partition of the log table all of whose rows may be deleted is dropped instead, by a role that owns it. It asks
    for the locks for moments only, and names the sessions that are in the way.

    \b
    Changes:     counts new rows, then deletes log rows for good; what was
                 deleted is in the ledger and the journal
    Example:     calc-analytics prune --older-than 90
    Exit codes:  0 done; 1 not confirmed or refused, a partition is in use,
                 or the archive of a day is not what it should be
    """
    db, before = open_database(settings), days.today(settings.timezone) - timedelta(days=keep_days)
    if even_if_not_archived:
        db = replace(db, archive_url=None)
    archive = None if even_if_not_archived else archive_of(db, UNLESS_ARCHIVED)
    refresh_with_progress(db)
    now = retention.days_before(db, before)
    partitions, _ = droppable(db, now)
    there = now.prunable
    if only_partitions:
        whole = {day for each in partitions for day in now.days_of(each, db.timezone)}
        there = {day: rows for day, rows in there.items() if day in whole}
    if (there or partitions) and not yes:
        confirm(_describe_prune(there, partitions, before), "Nothing was deleted.")
    with terminal.bar("deleting log rows", sum(there.values())) as advance:
        prove = partial(checking.prove_day, archive) if archive is not None else None
        report = retention.prune(db, before, progress=advance, prove_archived=prove, only_partitions=only_partitions)
    print_report(report, as_json, terminal.show_prune)
    sys.exit(1 if report.refused or report.busy else 0)


def _describe_prune(there: Mapping[date, int], partitions: Sequence[Partition], before: date) -> str:
    rows, of_days = number(sum(there.values()), "counted log row"), number(len(there), "day")
    names = ", ".join(each.name for each in partitions)
    whole = f", and drop {names} with theirs" if partitions else ""
    return f"Delete {rows} of {of_days} before {before}{whole} for good?"


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
    Statistics of rollups that ROLLUPS leaves out are erased as well. With ARCHIVE_URL, files that hold the
    publisher's rows are written again without them, and the old files are deleted. The journal keeps a receipt:
    the publisher's number, and how many rows of which table and day.

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
    archive = archive_of(db, "so that they are erased from the archive too. Nothing was erased")
    held = holdings(db, keys, also)
    archived = count_archived(archive, keys) if archive is not None else ArchiveErasure()
    if not yes:
        _confirm(held, archived.rows)
    with terminal.bar("erasing log rows", None) as advance:
        # What an interrupted erasure left may be in the archive alone.
        report = EraseReport(keys, {})
        if held.tables or not (archived.rows or archived.problems):
            report = erase_keys(db, keys, also=also, even_if_writing=even_if_writing, progress=advance)
        left = [each.day for each in report.left]
        files = erase_archived(archive, keys, left, advance) if archive is not None else ArchiveErasure()
    _show_erasure(report, files, as_json)
    is_incomplete = report.left or files.problems or report.open_writers or (report.arrived and not even_if_writing)
    for line in [*report.problems, *files.problems]:
        click.echo(f"{'error' if is_incomplete else 'note'}: {line}", err=True)
    sys.exit(1 if is_incomplete else 0)


def _confirm(held: Holdings, archived: Mapping[date, int]) -> None:
    if held.tables or archived:
        rows = [f"{held.rows(name):,} of {name}" for name in held.tables]
        rows += [f"{sum(archived.values()):,} of the archive"] * bool(archived)
        confirm(f"Erase {describe_keys(held.keys)} for good: {', '.join(rows)}?", "Nothing was erased.")


def _show_erasure(report: EraseReport, files: ArchiveErasure, as_json: bool) -> None:
    """Prints what was erased from the database, and from the archive."""
    if as_json:
        click.echo(json.dumps({**report.as_dict(), "archive": files.as_dict()}))
        return
    show_erased(report)
    if files.rows:
        rows, of_days = number(sum(files.rows.values()), "row"), number(len(files.rows), "day")
        click.echo(f"archive: {rows} of {of_days} erased")


def _show_plan(db: Database, keys: Keys, also: list[Rollup], as_json: bool) -> None:
    """Prints what would be erased, and the days that would be left; raises `NothingToErase`."""
    held = holdings(db, keys, also)
    archive = archive_of(db, "so that they are erased from the archive too. Nothing was erased")
    archived = count_archived(archive, keys) if archive is not None else ArchiveErasure()
    if not (held.tables or archived.rows or archived.problems):
        raise NothingToErase(f"{describe_keys(keys)} has no log rows and no statistics: nothing was erased")
    problems = [*map(str, would_be_left(db, keys, held.days)), *archived.problems]
    if as_json:
        plan = {**held.as_dict(), "archive": {str(day): rows for day, rows in archived.rows.items()}}
        click.echo(json.dumps({**plan, "problems": problems}))
        return
    if archived.rows:
        click.echo(f"  {'the archive':<34}{number(sum(archived.rows.values()), 'row'):>17}")
    for line in [*_plan(held), *problems]:
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
