"""`calc-analytics status`: in one look what is fresh, what lags, who holds an old transaction, and what to type."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import click

from calc_analytics.config import Settings

if TYPE_CHECKING:
    from calc_analytics.rollup.status import DayStatus, Writer
    from calc_analytics.service.health import Finding
    from calc_analytics.service.status import Status

DEADLINE_SECONDS = 10.0
WATCH_SECONDS = 2.0


@click.command()
@click.option("--days", "shown_days", default=7, show_default=True, type=click.IntRange(0, 1000), help="Days to list.")
@click.option("--watch", is_flag=True, help="Ask again every two seconds, until Ctrl-C.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text; with --watch one per line."
)
def status(shown_days: int, watch: bool, as_json: bool) -> None:
    """Show what is fresh, what lags, and who holds an old transaction.

    Per day how it was built and proven, the lag in rows and seconds, the last refresh, rebuild and proof, Dagster's
    heartbeats. Says what is down and goes on with the rest. Exit code 1 unless all is well.
    """
    from calc_analytics.service.probes import Prober
    from calc_analytics.service.sources import Sources
    from calc_analytics.service.status import report

    sources, prober = Sources(Settings.from_environment()), Prober(DEADLINE_SECONDS)
    found = report(sources, prober, shown_days)
    while watch:
        if not as_json:
            click.clear()
        _print(found, as_json)
        try:
            time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return
        found = report(sources, prober, shown_days)
    _print(found, as_json)
    raise SystemExit(0 if found.health.healthy else 1)


def _print(found: "Status", as_json: bool) -> None:
    click.echo(json.dumps(found.as_dict())) if as_json else click.echo("\n".join(lines(found)))


def lines(found: "Status") -> Iterator[str]:
    """The report, line by line: 100 columns are enough."""
    health = found.health
    word = click.style("healthy", fg="green") if health.healthy else click.style("NOT HEALTHY", fg="red", bold=True)
    yield f"{click.style('calc_analytics', bold=True)} is {word} at {found.at:%Y-%m-%d %H:%M:%S} UTC"
    yield f"{found.database or 'no database'}, days in {found.timezone}"
    if health.wrong:
        yield ""
        yield from _wrong(health.wrong)
    yield ""
    yield from _counting(found)
    if found.recent:
        yield ""
        yield from _days(found.recent, found)
    if found.writers is not None:
        yield ""
        yield from _writers(found.writers, found)
    yield ""
    for finding in health.findings:
        if finding.ok:
            yield f"  {click.style('ok', fg='green')}  {finding.name:<10} {finding.compared}"


def _wrong(wrong: "list[Finding]") -> Iterator[str]:
    """What is wrong and what to type; what several probes say alike is said once."""
    for said in dict.fromkeys(finding.compared for finding in wrong):
        alike = [finding for finding in wrong if finding.compared == said]
        names = ", ".join(finding.name for finding in alike)
        yield f"  {click.style('!!', fg='red', bold=True)}  {names + ':' if len(alike) > 1 else names:<10} {said}"
        if alike[0].next_command:
            yield f"      {'':<10} {click.style('-> ' + alike[0].next_command, bold=True)}"


def _counting(found: "Status") -> Iterator[str]:
    from calc_analytics.rollup.status import LAG_ROWS_LIMIT
    from calc_analytics.service.words import ago

    if found.lag is None or found.refreshed is None or found.days is None:
        said = {finding.compared for finding in found.health.wrong}
        unknown = next((trouble for trouble in found.trouble.values() if trouble not in said), "see above")
        yield f"  counting   not known: {unknown}"
        return
    rows = f"{found.lag.rows:,}" + " or more" * (found.lag.rows >= LAG_ROWS_LIMIT)
    waiting = f", the oldest for {ago(found.lag.seconds)} at most" if found.lag.rows else ""
    yield f"  lag        {rows} rows wait to be counted{waiting}"
    proof = f"difference {found.days.difference:,}"
    verified = f"{_when(found.days.verified_at, found)}, {proof}" if found.days.verified_at else "never"
    last = f"refresh {_when(found.refreshed.at, found)} · rebuild {_when(found.days.rebuilt_at, found)} · verify "
    yield f"  last       {last}{verified}"
    by_status = ", ".join(f"{number:,} {name}" for name, number in sorted(found.days.by_status.items())) or "none"
    yield f"  days       {by_status}; {found.days.sealed:,} sealed (their logs are deleted, their statistics kept)"
    if found.days.waiting:
        yield f"             {found.days.waiting:,} wait for a rebuild -> calc-analytics rollup"


def _days(recent: "list[DayStatus]", found: "Status") -> Iterator[str]:
    yield click.style(
        f"  {'day':<12}{'status':<10}{'rows':>12}{'publishers':>12}   {'counted':<13}{'built':<23}proven", dim=True
    )
    for day in recent:
        built = f"{_when(day.built_at, found)} ({day.method})" if day.built_at else "never"
        proven = f"{_when(day.verified_at, found)}: {day.difference:,}" if day.verified_at else "never"
        word = "sealed" if day.sealed_at and day.status == "built" else day.status
        colour = {"built": None, "sealed": "cyan"}.get(word, "yellow")
        shown = click.style(f"{word:<10}", fg=colour)
        if day.difference and day.status == "built":
            proven = click.style(proven, fg="red", bold=True)
        counted = _when(day.counted_at, found)
        yield f"  {day.day!s:<12}{shown}{day.rows:>12,}{day.keys:>12,}   {counted:<13}{built:<23}{proven}"


def _writers(writers: "list[Writer]", found: "Status") -> Iterator[str]:
    from calc_analytics.service.words import ago

    if not writers:
        yield "  no open transaction has written anything"
        return
    yield click.style(
        f"  {'pid':<9}{'age':<9}{'state':<22}{'application':<26}open transactions that have written", dim=True
    )
    for writer in writers:
        age = "hidden" if writer.seconds is None else ago(writer.seconds)
        who = writer.application or writer.name or "?"
        what = "log rows" if writer.writes_logs else "other tables"
        yield f"  {writer.pid or '-':<9}{age:<9}{writer.state or '?':<22}{who[:25]:<26}{what} (role {writer.user})"
    counted = _when(found.refreshed.at, found) if found.refreshed else "unknown"
    yield f"  None of them delays the statistics: others' rows are counted (last {counted}), theirs when they commit."


def _when(at: datetime | None, found: "Status") -> str:
    """'12 s ago', by the server's clock where it is known."""
    from calc_analytics.service.words import ago

    now = found.refreshed.now if found.refreshed else found.at
    return "never" if at is None else f"{ago(max((now - at).total_seconds(), 0.0))} ago"
