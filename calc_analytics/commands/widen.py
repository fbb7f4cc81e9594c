"""`calc-analytics widen`: one command for a column that became too narrow, in the log and in the statistics."""

from dataclasses import replace

import click

from calc_analytics.commands.opening import open_database
from calc_analytics.config import Settings
from calc_analytics.plurals import number
from calc_analytics.rollup import widen as widening
from calc_analytics.rollups import LOG


@click.command()
@click.argument("column")
@click.option(
    "--to",
    "to",
    type=click.Choice(["integer", "bigint"]),
    default="bigint",
    show_default=True,
    help="The type that the column gets, unless it is wider already.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def widen(column: str, to: str, yes: bool) -> None:
    """Give COLUMN a wider type in the log table and in every table of statistics that holds its values.

    For example response_time_ms, publisher_id, or total_calculations. In one transaction the live views are dropped and
    created again, with their owner, grants and comments. PostgreSQL rewrites the tables, and keeps readers and writers
    out as long as that takes. Days that were set aside are then rebuilt. The role must own the tables.
    """
    db = replace(open_database(Settings.from_environment()), log=LOG)
    changes = widening.plan(db, column, to)
    if not changes:
        click.echo(f"nothing to do: {column} is {to}, or wider, everywhere")
        return
    for change in changes:
        size = f"{change.bytes / 1024**2:,.1f} MB"
        click.echo(f"{change.describe()} (rewrites {size}; readers and writers of {change.table} wait meanwhile)")
    if not yes:
        click.confirm("Widen now?", abort=True)
    done = widening.widen(db, column, to)
    click.echo(f"{number(len(done), 'column')} widened; live views keep their grants")
    if waiting := widening.waiting_days(db):
        click.echo(f"{number(len(waiting), 'day')} to be rebuilt: run 'calc-analytics rollup'")
