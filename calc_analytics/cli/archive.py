"""The command `archive`: writes counted days to Parquet, and proves what was written."""

import sys
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial

import click

from calc_analytics import days
from calc_analytics.archive.checking import check as check_archive
from calc_analytics.archive.forgetting import Forgotten, forget, forgettable
from calc_analytics.archive.place import Archive
from calc_analytics.archive.report import ArchiveReport, CheckReport
from calc_analytics.archive.writing import Replacing, rows_to_drop
from calc_analytics.archive.writing import archive as archive_days
from calc_analytics.cli import terminal
from calc_analytics.cli.counting import refresh_with_progress
from calc_analytics.cli.opening import open_database, with_settings
from calc_analytics.cli.options import as_json, from_day, single_days, to_day
from calc_analytics.cli.terminal import confirm, print_report
from calc_analytics.config import Settings
from calc_analytics.plurals import number


@click.command()
@single_days("archive")
@from_day
@to_day
@click.option("--check", "is_check", is_flag=True, help="Write nothing: prove the archive's files.")
@click.option(
    "--replace", "is_replacing", is_flag=True, help="Write the files of these days anew: their log rows were corrected."
)
@click.option("--allow-shrink", is_flag=True, help="With --replace: drop archived rows that the log no longer has.")
@click.option(
    "--forget", "is_forgetting", is_flag=True, help="Forget which days are archived, to start at another ARCHIVE_URL."
)
@click.option("--yes", is_flag=True, help="Do not ask before archived rows are dropped, or days forgotten.")
@as_json
@with_settings
def archive(
    settings: Settings,
    single: tuple[str, ...],
    first: str | None,
    last: str | None,
    is_check: bool,
    is_replacing: bool,
    allow_shrink: bool,
    is_forgetting: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Write counted days to Parquet files at ARCHIVE_URL.

    Without --day or --from: every day that is over and built, and has rows that are not archived. Running it twice
    changes nothing. Late rows of an archived day become a further file. A day's files hold exactly the log rows
    that are counted; a day that differs from its log is left. It may be stopped at any moment and repeated.

    --check compares every file with its checksum, counts rows, finds files that do not belong there, and compares
    with the log rows that are still there.

    --replace --allow-shrink drops archived rows that the log no longer has, for good: it counts them, and asks.

    --forget is for another time zone, for a copy of a database, and for an archive that is lost: days are archived
    again at another ARCHIVE_URL. No file changes, but the old ones are not used any more: days cannot be rebuilt
    from them, and `erase` does not reach them.

    \b
    Changes:     adds files to the archive; with --replace, writes a day's
                 files anew; with --forget, the database alone
    Examples:    calc-analytics archive
                 calc-analytics archive --check
    Exit codes:  0 done; 1 a day was left, not confirmed, or a file is not what
                 it should be
    """
    named = _chosen(single, first, last, settings)
    if is_check + is_replacing + is_forgetting > 1:
        raise click.UsageError("--check, --replace and --forget exclude each other")
    replacing = _replacing(is_replacing, allow_shrink, named is not None)
    place = Archive(open_database(settings))
    if is_forgetting:
        _forget(place, named, yes, as_json)
    elif is_check:
        _check(place, named, as_json)
    else:
        _archive(place, named, replacing, yes, as_json)


def _replacing(is_replacing: bool, allow_shrink: bool, is_named: bool) -> Replacing:
    """Whether files are written anew; `UsageError` unless days are named."""
    if allow_shrink and not is_replacing:
        raise click.UsageError("--allow-shrink needs --replace")
    if is_replacing and not is_named:
        raise click.UsageError("--replace: name the days with --day or --from")
    if not is_replacing:
        return Replacing.NO
    return Replacing.ALLOW_SHRINK if allow_shrink else Replacing.WHOLE


def _chosen(single: Sequence[str], first: str | None, last: str | None, settings: Settings) -> list[date] | None:
    """The days of --day or of --from and --to; None if none is named. A range ends yesterday unless --to says else."""
    if last and not first:
        raise click.UsageError("--to needs --from")
    if single and first:
        raise click.UsageError("--day and --from exclude each other")
    if first:
        end = days.parse_day(last) if last else days.today(settings.timezone) - days.ONE_DAY
        return days.days_between(days.parse_day(first), end)
    return [days.parse_day(each) for each in single] or None


def _archive(place: Archive, named: list[date] | None, replacing: Replacing, yes: bool, as_json: bool) -> None:
    store = place.store  # the setting is there, before rows are counted
    refresh_with_progress(place.db)
    if replacing is Replacing.ALLOW_SHRINK and not yes:
        _confirm(rows_to_drop(place, named or []))
    with terminal.bar(f"archiving to {store.address.shown}", None) as advance:
        report = archive_days(place, named, replacing=replacing, progress=advance)
    print_report(report, as_json, show_archived)
    for left in report.left:
        click.echo(f"error: {left}", err=True)
    sys.exit(1 if report.left else 0)


def _confirm(dropped: Mapping[date, int]) -> None:
    """Asks before archived rows, which may be the only copy, are dropped; raises `NotConfirmed`."""
    if dropped:
        rows = number(sum(dropped.values()), "archived row")
        confirm(f"Drop {rows} of {', '.join(map(str, dropped))} for good?", "Nothing was archived.")


def _forget(place: Archive, named: list[date] | None, yes: bool, as_json: bool) -> None:
    found = forgettable(place, named)
    if found.rows and not yes:
        confirm(_describe_forgetting(found), "Nothing was forgotten.")
    forget(place, list(found.rows))
    print_report(found, as_json, partial(show_forgotten, is_all=named is None))


def _describe_forgetting(found: Forgotten) -> str:
    said = ["The files stay, but erase and rollup will not use them any more"]
    if found.with_deletions:
        days_ = number(len(found.with_deletions), "day")
        said.append(f"Log rows of {days_} were deleted, so the files may have the only copy")
    if found.to_be_erased:
        days_ = number(len(found.to_be_erased), "day")
        said.append(f"An erasure of {days_} is unfinished, so files may still have its rows")
    if found.with_leftovers:
        days_ = number(len(found.with_leftovers), "day")
        said.append(f"Files of {days_} are to be deleted, and will not be")
    rows, of_days = number(sum(found.rows.values()), "archived row"), number(len(found.rows), "day")
    return f"{'. '.join(said)}. Forget {rows} of {of_days}?"


def show_forgotten(found: Forgotten, is_all: bool = True) -> None:
    """Prints how many days are not archived any more."""
    if not found.rows:
        click.echo("no day is archived: nothing was forgotten")
        return
    step = "Set ARCHIVE_URL to another place" if is_all else "Move the folders of these days away"
    click.echo(
        f"{number(len(found.rows), 'day')} forgotten; their files stay. {step}, and run 'calc-analytics archive'"
    )


def _check(place: Archive, named: list[date] | None, as_json: bool) -> None:
    with terminal.bar(f"reading {place.store.address.shown}", None) as advance:
        report = check_archive(place, named, progress=advance)
    print_report(report, as_json, show_checked)
    for problem in report.problems:
        click.echo(f"error: {problem}", err=True)
    sys.exit(1 if report.problems else 0)


def show_archived(report: ArchiveReport) -> None:
    """Prints a line per day that was written, and the sums."""
    for each in report.archived:
        missing = f"; {each.missing:,} counted rows were deleted before" if each.missing else ""
        size = f"{each.bytes / max(each.rows, 1):.1f} bytes each"
        files = number(each.files, "file")
        click.echo(f"  {each.day}  {number(each.rows, 'row')}, {size}; {each.total:,} in {files}{missing}")
    archived, unchanged = number(len(report.archived), "day"), number(len(report.unchanged), "day")
    click.echo(
        f"{archived} archived, {number(report.rows, 'row')} in {report.seconds:.2f} s to {report.place}"
        + (f"; {unchanged} unchanged" if report.unchanged else "")
    )


def show_checked(report: CheckReport) -> None:
    """Prints what was proven."""
    rows, of_days = number(report.rows, "row"), number(len(report.days), "day")
    problems = number(len(report.problems), "problem")
    click.echo(
        f"{of_days} with {rows} proven in {report.seconds:.2f} s, {report.compared:,} of them by the log: {problems}"
    )
