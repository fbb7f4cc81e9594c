"""The commands that count and compare, without Dagster: `refresh`, `rollup`, `verify`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date

import click

from calc_analytics import days
from calc_analytics.cli import terminal
from calc_analytics.cli.opening import open_database, with_settings
from calc_analytics.cli.options import as_json, from_day, only_rollups, single_days, to_day
from calc_analytics.cli.terminal import print_report
from calc_analytics.config import Settings
from calc_analytics.database.server import is_read_only
from calc_analytics.engines.archived import archived_rows
from calc_analytics.rollup import ledger, unseen
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.figures import has_logs, require_real_days
from calc_analytics.rollup.judge import Decision
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh as refresh_once
from calc_analytics.rollup.reports import RebuildReport, RefreshReport, VerifyReport, refusals
from calc_analytics.rollup.status import different_days
from calc_analytics.rollup.verify import verify as verify_days


@click.command()
@as_json
@with_settings
def refresh(settings: Settings, as_json: bool) -> None:
    """Count the new log rows, once, without Dagster.

    Prints the rows counted and the days they belong to. The cost depends on the new rows, not on the size of
    the log. A large backlog is counted in steps, each a transaction of its own. Days that were never built are
    left to `rollup`.

    \b
    Changes:     adds the new rows to the statistics of their days
    Example:     calc-analytics refresh
    Exit codes:  0 done; 1 the database refused, nothing is half counted
    """
    db = open_database(settings)
    print_report(refresh_with_progress(db), as_json, terminal.show_refresh)


def refresh_with_progress(db: Database) -> RefreshReport:
    """Counts the new rows, with a progress bar."""
    with terminal.bar("counting new rows", None) as advance:
        return refresh_once(db, progress=lambda step: advance(step.rows + sum(step.waiting_by_day.values())))


@click.command()
@single_days("rebuild")
@from_day
@to_day
@only_rollups
@click.option("--keep", is_flag=True, help="Keep the statistics: the missing log rows were deleted on purpose.")
@click.option(
    "--allow-shrink",
    is_flag=True,
    help="Recount the log rows that are left, even if that lowers the statistics for good.",
)
@as_json
@with_settings
def rollup(
    settings: Settings,
    single: tuple[str, ...],
    first: str | None,
    last: str | None,
    names: tuple[str, ...],
    keep: bool,
    allow_shrink: bool,
    as_json: bool,
) -> None:
    """Recount whole days from the log, without Dagster.

    Without --day or --from: today, yesterday, and all days that wait for a rebuild. Running it twice changes
    nothing. A day whose log rows were pruned is recounted from the archive at ARCHIVE_URL, if they are there. A day
    with fewer rows than were counted is left alone until you decide: name the day, and add --keep (keep its
    statistics) or --allow-shrink (recount what is left).

    \b
    Changes:     counts new rows, then replaces the statistics of these days
    Examples:    calc-analytics rollup --from 2026-01-01 --to 2026-01-31
                 calc-analytics rollup --day 2026-01-15 --keep
    Exit codes:  0 done; 1 a day that you named was left alone, or another day
                 needs a decision
    """
    named = _chosen(single, first, last, settings)
    decision = _decision(keep, allow_shrink, named is not None)
    db = open_database(settings)
    chosen = db.log.only(names or None).names
    _require_real(db, named, settings)
    refresh_with_progress(db)
    wanted = _days_to_rebuild(db, chosen) if named is None else sorted(set(named))
    with terminal.bar("rebuilding days", len(wanted)) as advance:
        report = rebuild(
            db,
            wanted,
            chosen,
            decision=decision,
            archived=archived_rows(db, settings),
            progress=lambda chunk: advance(len(_days_of(chunk))),
        )
    print_report(report, as_json, terminal.show_rebuild, named is not None)
    failed = report.failed if named is None else report.refused
    for line in refusals(failed):
        click.echo(f"error: {line}", err=True)
    sys.exit(1 if failed else 0)


def _days_of(chunk: RebuildReport) -> set[date]:
    """The days of a chunk: rebuilt, refused and kept ones."""
    return {*chunk.days, *(each.day for each in [*chunk.refused, *chunk.kept])}


def _decision(keep: bool, allow_shrink: bool, is_named: bool) -> Decision:
    """The decision about days whose log rows differ from what was counted; `UsageError` unless days are named."""
    if keep and allow_shrink:
        raise click.UsageError("--keep and --allow-shrink exclude each other")
    if (keep or allow_shrink) and not is_named:
        raise click.UsageError(f"{'--keep' if keep else '--allow-shrink'}: name the days with --day or --from")
    if not is_named:
        return Decision.AUTOMATIC
    return Decision.KEEP if keep else Decision.ALLOW_SHRINK if allow_shrink else Decision.NONE


def _days_to_rebuild(db: Database, chosen: Sequence[str]) -> list[date]:
    """Today, yesterday, and the days that wait for a rebuild in one of these rollups, recorded or not."""
    unseen.record_days(db)
    waiting = _concerning(ledger.days_by_status(db, ledger.WAITING), chosen)
    return sorted({*days.today_and_yesterday(db.timezone), *waiting})


def _concerning(found: Mapping[date, Sequence[str]], chosen: Sequence[str]) -> list[date]:
    """The days of `found` that name one of these rollups."""
    return [day for day, names in found.items() if set(names) & set(chosen)]


@click.command()
@single_days("prove")
@from_day
@to_day
@only_rollups
@as_json
@with_settings
def verify(
    settings: Settings,
    single: tuple[str, ...],
    first: str | None,
    last: str | None,
    names: tuple[str, ...],
    as_json: bool,
) -> None:
    """Prove that statistics equal the log, day by day.

    The result is recorded. Without --day or --from: every counted day. Exact while writers run: the difference
    is zero, or something has to be resolved, and the line names the command. Of pruned days the totals are
    compared, deleted rows included, and a checksum. Health, `status` and the Dagster UI show the result.

    \b
    Changes:     no statistics; records the proof of each day
    Example:     calc-analytics verify --day 2026-01-15
    Exit codes:  0 no difference; 1 a difference, or days with log rows that
                 were never built
    """
    named = _chosen(single, first, last, settings)
    db = open_database(settings)
    chosen = db.log.only(names or None).names
    _require_real(db, named, settings)
    wanted = _days_to_prove(db, chosen) if named is None else sorted(set(named))
    with terminal.bar("comparing days and rollups", len(wanted) * len(chosen)) as advance:
        report = verify_days(db, wanted, chosen, progress=lambda proof: advance(1))
    if named is None:
        report = _with_days_left_out(report, db, chosen)
    print_report(report, as_json, terminal.show_verify, named or [])
    is_unbuilt = named is not None and report.never_built
    is_incomplete = is_unbuilt or report.waiting or report.overflowed or report.nothing_built
    sys.exit(1 if report.different or report.archive or is_incomplete else 0)


def _days_to_prove(db: Database, chosen: Sequence[str]) -> list[date]:
    """Every counted day, every day that was set aside, and days with statistics that were never counted (an audit).

    On a standby nothing can be recorded, so neither the audit nor the search for unseen days runs.
    """
    if not is_read_only(db.engine):
        audit(db)
        unseen.record_days(db)
    counted = _concerning(ledger.days_by_status(db, [*ledger.COUNTED, "overflow"]), chosen)
    return sorted({*counted, *_concerning(different_days(db), chosen)})


def _with_days_left_out(report: VerifyReport, db: Database, chosen: Sequence[str]) -> VerifyReport:
    """The report, with the days that could not be compared."""
    waiting = _concerning(ledger.days_by_status(db, ledger.WAITING), chosen)
    return replace(
        report,
        waiting=sorted({*waiting, *unseen.Search().days(db)}),
        overflowed=_concerning(ledger.days_by_status(db, ["overflow"]), chosen),
        nothing_built=not any(proof.is_built for proof in report.days) and has_logs(db),
    )


def _chosen(single: tuple[str, ...], first: str | None, last: str | None, settings: Settings) -> list[date] | None:
    """The days that the options name; None if there are none."""
    if last and first is None:
        raise click.UsageError("--to needs --from")
    chosen = [days.parse_day(text) for text in single]
    if first is not None:
        begin, end = days.parse_day(first), days.parse_day(last) if last else days.today(settings.timezone)
        if not last and end < begin:
            raise click.UsageError(f"--from {begin} lies after today ({end})")
        chosen += days.days_between(begin, end)
    return chosen or None


def _require_real(db: Database, named: Sequence[date] | None, settings: Settings) -> None:
    """Raises `NoSuchDays` for a named day before the first partition or after today that has no rows at all."""
    if named is not None:
        require_real_days(db, named, settings.start_date, days.today(settings.timezone))
