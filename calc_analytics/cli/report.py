"""The command `report`: a report of a publisher or of the platform as HTML, CSV, Parquet or JSON."""

import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import IO, Any

import click

from calc_analytics import days
from calc_analytics.cli.opening import open_database, with_settings
from calc_analytics.cli.options import DAY, Integer
from calc_analytics.cli.output import open_output
from calc_analytics.config import Settings
from calc_analytics.plurals import number
from calc_analytics.rollup.database import Database

FORMATS = ("html", "csv", "parquet", "json")
BINARY = ("parquet",)


@click.command()
@click.option("--publisher", metavar="N", type=Integer(), help="Default: the platform.")
@click.option("--from", "first", metavar=DAY, help="First day, included. Default: 29 days before the last.")
@click.option("--to", "last", metavar=DAY, help="Last day, included. Default: today.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="Default: what the name of the file ends with, or html.",
)
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Default, and '-': standard output.")
@with_settings
def report(
    settings: Settings,
    publisher: int | None,
    first: str | None,
    last: str | None,
    format_: str | None,
    output: Path | None,
) -> None:
    """Write a report of one publisher, or of the platform.

    All numbers are of one instant, and exact up to then. `html` is one page to read, send or print, without
    network: totals and their change, trend by source, hours of the week, response times, cache hits, top
    localities and publishers. `json` has the same numbers. `csv` and `parquet` have a row for each day of the
    publisher; without --publisher a row for each publisher and day with calculations.

    \b
    Changes:     no statistics; FILE is replaced once the report is whole
    Examples:    calc-analytics report --output report.html
                 calc-analytics report --from 2026-01-01 --output days.parquet
                 calc-analytics report --publisher 7 --format json
    Exit codes:  0 done; 1 an error, for example an unknown publisher
    """
    target = None if output is None or str(output) == "-" else output
    chosen = format_ or _format_of(target)
    if chosen in BINARY and target is None and _is_terminal():
        raise click.UsageError(f"{chosen} is not text: give a file with --output, or a pipe")
    begin, end = (None if text is None else days.parse_day(text) for text in (first, last))
    db = open_database(settings)
    with open_output(target) as sink:
        about = _write(db, publisher, begin, end, chosen, sink)
    if target is not None:
        click.echo(f"{target}: {about}", err=True)


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _format_of(target: Path | None) -> str:
    """That of the file's ending; a device or a file without an ending is HTML."""
    ending = target.suffix.lower().removeprefix(".") if target else ""
    if ending and ending not in (*FORMATS, "htm"):
        raise click.UsageError(f"no format has the ending .{ending}: add --format {', '.join(FORMATS[:-1])} or json")
    return ending if ending in FORMATS else "html"


def _write(
    db: Database, publisher: int | None, first: date | None, last: date | None, format_: str, sink: IO[bytes]
) -> str:
    """Writes the report; returns what it is about, in one line."""
    from calc_analytics.readers import export

    if format_ in ("csv", "parquet"):
        with export.day_table(db, publisher, first, last) as table:
            write: Callable[[Any, IO[bytes]], None] = export.write_csv if format_ == "csv" else export.write_parquet
            write(table, sink)
            return _about(publisher, table.period.in_words, table.incomplete_days)
    from calc_analytics.readers.report import read_report

    found = read_report(db, publisher, first, last)
    if format_ == "json":
        export.write_json(found, sink)
    else:
        from calc_analytics.readers.page import render

        sink.write(render(found).encode())
    return _about(publisher, found.period.in_words, found.incomplete_days)


def _about(publisher: int | None, period: str, incomplete: tuple[date, ...]) -> str:
    whose = "all publishers" if publisher is None else f"publisher {publisher}"
    missing = f"; {number(len(incomplete), 'day')} not built, so the numbers may be too low" if incomplete else ""
    return f"{whose}, {period}{missing}"
