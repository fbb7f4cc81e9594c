"""The command `partitions`: lists the log's partitions, and creates the next ones."""

import json
from collections.abc import Iterator
from datetime import datetime, timezone

import click

from calc_analytics.cli.opening import open_database, with_settings
from calc_analytics.cli.options import IntegerRange, as_json
from calc_analytics.config import Settings
from calc_analytics.database.partitions_ahead import create_ahead
from calc_analytics.plurals import number
from calc_analytics.rollup.partitions import PartitionsReport, PartitionState, read_partitions
from calc_analytics.rollups import LOG


@click.command()
@click.option(
    "--create", "is_creating", is_flag=True, help="Create what is missing of the current and next partitions."
)
@click.option(
    "--ahead",
    metavar="N",
    type=IntegerRange(0, 1000),
    help="With --create: how many after the current one. Default: 1 month, 2 weeks or 8 days.",
)
@as_json
@with_settings
def partitions(settings: Settings, is_creating: bool, ahead: int | None, as_json: bool) -> None:
    """List the log table's partitions; create the next ones.

    For each: its range in UTC, rows (PostgreSQL's estimate), size, whether its days are counted and archived, and
    whether `prune` may drop it, or why not.

    --create continues the months, weeks or days of the newest partitions. Running it twice changes nothing, and
    neither do two at once. It stops no writer. Without a partition for a row, and without a default partition, the
    API's INSERT fails: run it daily. Where pg_partman creates them, it creates none. The role must own the log table.

    \b
    Changes:     nothing; with --create adds partitions
    Examples:    calc-analytics partitions
                 calc-analytics partitions --create
    Exit codes:  0 done; 1 an error
    """
    if ahead is not None and not is_creating:
        raise click.UsageError("--ahead is for --create")
    db, now = open_database(settings), datetime.now(timezone.utc)
    created = create_ahead(db.engine, db.log.name, db.log.event_time, db.timezone, ahead, now) if is_creating else []
    report = read_partitions(db, now)
    if as_json:
        found = report.as_dict() if report else {"partitions": []}
        click.echo(json.dumps({"partitioned": report is not None, "created": created, **found}))
        return
    for name in created:
        click.echo(f"created partition {name}")
    if is_creating and not created:
        click.echo("no partition was missing")
    if not is_creating:
        click.echo("\n".join(lines(report)))


def lines(report: PartitionsReport | None) -> Iterator[str]:
    """A line per partition, and up to when rows have one."""
    if report is None:
        yield f"{LOG.name} is not partitioned: 'calc-analytics doctor --partitioning' shows how to change that"
        return
    width = max((len(each.name) for each in report.partitions), default=9)
    for each in report.partitions:
        held = f"{each.rows:>13,} rows {_size(each.bytes):>9}"
        yield f"  {each.name:<{width}}  {_range(each):<37}  {held}  {_state(each)}"
    outlook = report.outlook
    if not report.is_by_time:
        yield f"{number(len(report.partitions), 'partition')}, not by ranges of time"
    elif outlook.until is None:
        yield "every row from now on has a partition"
    else:
        otherwise = "then the default partition takes them" if outlook.has_default else "then the API's INSERT fails"
        yield f"rows have a partition until {outlook.until:%Y-%m-%d %H:%M} UTC; {otherwise}"
    if outlook.created_by:
        yield f"pg_partman (schema {outlook.created_by}) creates the next ones"


def _range(partition: PartitionState) -> str:
    if partition.is_default:
        return "default"
    if partition.lower is None and partition.upper is None:
        return ""
    lower, upper = (f"{at:%Y-%m-%d %H:%M}" if at else "…" for at in (partition.lower, partition.upper))
    return f"{lower} to {upper}"


def _size(size: int) -> str:
    """'1.2 GB'."""
    for unit, factor in (("GB", 2**30), ("MB", 2**20)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 2**10:.0f} kB"


def _state(partition: PartitionState) -> str:
    words = ["counted" if partition.is_counted else "not counted"]
    if partition.is_archived is not None:
        words.append("archived" if partition.is_archived else "not archived")
    words.append("droppable" if partition.reason is None else f"not droppable: {partition.reason}")
    return ", ".join(words)
