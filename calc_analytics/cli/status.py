"""`calc-analytics status`: what is fresh, what lags, which transactions are open, and what to type, on one screen."""

import json
import time
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING

import click

from calc_analytics.cli.opening import with_settings
from calc_analytics.cli.options import only_rollups
from calc_analytics.config import Settings

if TYPE_CHECKING:
    from calc_analytics.database.writers import Writer
    from calc_analytics.operations.findings import Finding
    from calc_analytics.operations.status import Status
    from calc_analytics.rollup.status import Days, DayStatus

DEADLINE_SECONDS = 10.0
WATCH_SECONDS = 2.0
NAME_WIDTH = 13
COLOURS = {"differs": "red", "overflow": "red", "pruned": "cyan", "built": None}


@click.command()
@click.option("--days", "shown_days", default=7, show_default=True, type=click.IntRange(0, 1000), help="Days to list.")
@only_rollups
@click.option("--watch", is_flag=True, help="Ask again every two seconds, until Ctrl-C.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text; with --watch one per line."
)
@with_settings
def status(settings: Settings, shown_days: int, names: tuple[str, ...], watch: bool, as_json: bool) -> None:
    """Show what is fresh, what lags, and which transactions are open.

    Per day how it was built and proven and which rollup differs, the lag in rows and seconds, the last refresh,
    rebuild and proof, Dagster's heartbeats. A part that does not answer is reported as such.

    \b
    Changes:     nothing
    Example:     calc-analytics status --watch
    Exit codes:  0 healthy; 1 unhealthy, or a part did not answer
    """
    from calc_analytics.operations.probes import Prober
    from calc_analytics.operations.sources import Sources
    from calc_analytics.operations.status import report

    sources, prober = Sources(settings), Prober(DEADLINE_SECONDS)
    found = report(sources, prober, shown_days, names)
    while watch:
        if not as_json:
            click.clear()
        _print(found, as_json)
        try:
            time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return
        found = report(sources, prober, shown_days, names)
    _print(found, as_json)
    raise SystemExit(0 if found.health.healthy else 1)


def _print(found: "Status", as_json: bool) -> None:
    click.echo(json.dumps(found.as_dict()) if as_json else "\n".join(lines(found)))


def lines(found: "Status") -> Iterator[str]:
    """The report, line by line: 100 columns are enough."""
    health = found.health
    word = click.style("healthy", fg="green") if health.healthy else click.style("unhealthy", fg="red", bold=True)
    yield f"{click.style('calc_analytics', bold=True)} is {word} at {found.at:%Y-%m-%d %H:%M:%S} UTC"
    yield f"{found.database or 'no database'}, days in {found.timezone}"
    if health.wrong or health.notes:
        yield ""
        yield from _findings(health.wrong, "!!", "red")
        yield from _findings(health.notes, "--", "yellow")
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
        if finding.level == "ok":
            yield f"  {click.style('ok', fg='green')}  {finding.name:<{NAME_WIDTH}} {finding.fact}"


def _findings(findings: "list[Finding]", mark: str, colour: str) -> Iterator[str]:
    """What was found and what to type; a fact that several probes share is printed once."""
    for fact in dict.fromkeys(finding.fact for finding in findings):
        alike = [finding for finding in findings if finding.fact == fact]
        names = ", ".join(finding.name for finding in alike)
        shown = f"{names}:" if len(alike) > 1 else f"{names:<{NAME_WIDTH}}"
        yield f"  {click.style(mark, fg=colour, bold=True)}  {shown} {fact}"
        if alike[0].command:
            yield f"      {'':<{NAME_WIDTH}} {click.style('-> ' + alike[0].command, bold=True)}"


def _counting(found: "Status") -> Iterator[str]:
    from calc_analytics.operations.words import ago
    from calc_analytics.plurals import number
    from calc_analytics.rollup.status import LAG_ROWS_LIMIT

    if found.lag is None or found.refreshed is None or found.days is None:
        above = {finding.fact for finding in found.health.wrong}
        unknown = next((error for error in found.errors.values() if error not in above), "see above")
        yield f"  counting   not known: {unknown}"
        return
    days = found.together
    rows = f"{number(found.lag.rows, 'row')}" + " or more" * (found.lag.rows >= LAG_ROWS_LIMIT)
    waiting = f", the oldest for {ago(found.lag.seconds)} at most" if found.lag.rows else ""
    yield f"  lag        {rows} wait{'s' if found.lag.rows == 1 else ''} to be counted{waiting}"
    last = f"refresh {_when(found.refreshed.at, found)} · rebuild {_when(days.rebuilt_at, found)}"
    yield f"  last       {last} · verify {_when(days.verified_at, found)} · audit {_when(days.audited_at, found)}"
    oldest = f"; the oldest proof is from {_when(days.oldest_proof_at, found)}" if days.oldest_proof_at else ""
    yield f"  proofs     difference {days.difference:,}{oldest}"
    yield from _sums(found.days)


def _sums(days: "Mapping[str, Days]") -> Iterator[str]:
    """The days on record by state, the best first, one line for the rollups that have the same."""
    alike: dict[str, list[str]] = {}
    for name, each in days.items():
        counts = ", ".join(f"{count:,} {state}" for state, count in reversed(each.by_state.items())) or "none"
        explained = counts.replace("pruned", "pruned (log rows deleted, statistics kept)")
        alike.setdefault(explained, []).append(name)
    for n, (counts, names) in enumerate(alike.items()):
        of = "" if len(alike) == 1 else f" of {', '.join(names)}"
        yield f"  {'days' if n == 0 else '':<11}{counts}{of}"
    waiting = max((each.waiting for each in days.values()), default=0)
    if waiting:
        yield f"             {waiting:,} wait{'s' if waiting == 1 else ''} for a rebuild -> calc-analytics rollup"


def _days(recent: "list[DayStatus]", found: "Status") -> Iterator[str]:
    """One line per day, newest first; a second one names the rollups to which its word applies, if not to all."""
    from calc_analytics.operations.words import in_rollups

    yield click.style(
        f"  {'day':<12}{'status':<10}{'rows':>12}{'statistics':>12}   {'counted':<13}{'built':<23}proven", dim=True
    )
    by_day: dict[date, list[DayStatus]] = {}
    for each in recent:
        by_day.setdefault(each.day, []).append(each)
    for day in sorted(by_day, reverse=True):
        word = worst_word(by_day[day])
        yield _day_line(word, by_day[day], found)
        concerned = [each.rollup for each in by_day[day] if each.word == word]
        if word == "differs" or len(concerned) < len(by_day[day]):
            yield f"  {'':<12}{word} in {in_rollups(concerned, len(by_day[day]))}"


def worst_word(days: "list[DayStatus]") -> str:
    """The worst word that one of the rollups has for the day."""
    from calc_analytics.rollup.status import STATES

    return min((each.word for each in days), key=STATES.index)


def _day_line(word: str, rollups: "list[DayStatus]", found: "Status") -> str:
    newest = max((each for each in rollups if each.built_at), key=lambda each: str(each.built_at), default=None)
    built = f"{_when(newest.built_at, found)} ({newest.method})" if newest else "never"
    verified = [each.verified_at for each in rollups]
    difference = sum(max(each.difference or 0, each.audit_difference or 0) for each in rollups)
    proven = "never" if None in verified else _when(min(at for at in verified if at), found)
    if word == "differs":
        proven = click.style(f"{proven}: {difference:,}", fg="red", bold=True)
    counted = _when(max((each.counted_at for each in rollups if each.counted_at), default=None), found)
    shown = click.style(f"{word:<10}", fg=COLOURS.get(word, "yellow"))
    rows, stored = max(each.rows for each in rollups), sum(each.keys for each in rollups)
    return f"  {rollups[0].day!s:<12}{shown}{rows:>12,}{stored:>12,}   {counted:<13}{built:<23}{proven}"


def _writers(writers: "list[Writer]", found: "Status") -> Iterator[str]:
    from calc_analytics.operations.words import ago

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
    yield f"  They delay no other rows; their own are counted when they commit. Last counted: {counted}."


def _when(at: datetime | None, found: "Status") -> str:
    """'12 s ago', by the server's clock where it is known."""
    from calc_analytics.operations.words import ago

    now = found.refreshed.now if found.refreshed else found.at
    return "never" if at is None else f"{ago(max((now - at).total_seconds(), 0.0))} ago"
