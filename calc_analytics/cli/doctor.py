"""`calc-analytics doctor`: what is misconfigured, why it matters, and the command that resolves it."""

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from calc_analytics.cli.opening import open_database, with_settings
from calc_analytics.cli.options import SERVICE_PORT, UI_PORT, port_option
from calc_analytics.config import Settings
from calc_analytics.database.engine import transaction
from calc_analytics.plurals import number
from calc_analytics.rollup.database import Database

if TYPE_CHECKING:
    from calc_analytics.operations.findings import Finding

DEADLINE_SECONDS = 15.0
MARKS = {"ok": ("ok", "green"), "note": ("--", "yellow"), "wrong": ("!!", "red")}


@click.command()
@port_option("--ui-port", UI_PORT, "The port that `up` is to use for the UI.")
@port_option("--service-port", SERVICE_PORT, "And for the HTTP service.")
@click.option(
    "--partitioning", is_flag=True, help="Print the statements that partition the log table by month, and nothing else."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@with_settings
def doctor(settings: Settings, ui_port: int, service_port: int, partitioning: bool, as_json: bool) -> None:
    """Find what is misconfigured, and name the command that resolves it.

    Both databases, settings, permissions, the log table's index, writers that bypass xact_id, clocks, time
    zone, retention, ports. Each finding: the fact, why it matters, what to type.

    --partitioning prints statements for psql: they make the log table one that is partitioned by month, with the
    present table as its first partition, while the API writes.

    \b
    Changes:     nothing
    Example:     calc-analytics doctor
    Exit codes:  0 nothing is wrong; 1 something is wrong
    """
    if partitioning:
        click.echo(_partitioning(open_database(settings)), nl=False)
        return
    from calc_analytics.operations.doctor import Ports, examine
    from calc_analytics.operations.probes import Prober
    from calc_analytics.operations.sources import Sources

    sources = Sources(settings)
    found = examine(sources, Prober(DEADLINE_SECONDS), Ports(ui_port, service_port))
    wrong = sum(finding.level == "wrong" for finding in found)
    if as_json:
        click.echo(json.dumps({"wrong": wrong, "findings": [finding.as_dict() for finding in found]}))
    else:
        click.echo("\n".join(lines(found)))
    raise SystemExit(1 if wrong else 0)


def _partitioning(db: Database) -> str:
    """The statements, for psql."""
    from calc_analytics.database.partitioning import propose

    with transaction(db.engine) as connection:
        views = [each.live_view for each in db.log.rollups]
        return propose(connection, db.log.name, db.log.event_time, views, datetime.now(timezone.utc))


def lines(found: "list[Finding]") -> Iterator[str]:
    """The findings by part, and the verdict."""
    part = ""
    for finding in found:
        mark, colour = MARKS[finding.level]
        shown = "" if finding.name == part else finding.name
        part = finding.name
        yield f"  {click.style(mark, fg=colour)}  {shown:<12} {finding.fact}"
        if finding.why:
            yield f"      {'':<12} {finding.why}"
        for command in finding.command.splitlines():
            yield f"      {'':<12} {click.style('-> ' + command, bold=True)}"
    yield ""
    wrong, notes = (sum(finding.level == level for finding in found) for level in ("wrong", "note"))
    verdict = (
        click.style(f"{wrong} wrong", fg="red", bold=True) if wrong else click.style("nothing is wrong", fg="green")
    )
    yield f"{verdict}, {number(notes, 'note')}"
