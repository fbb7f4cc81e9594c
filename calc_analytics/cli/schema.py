"""The commands that change tables: `migrate`, `rebase`, `widen`."""

from collections.abc import Sequence
from datetime import date

import click

from calc_analytics.cli.opening import make_ready, open_database, with_settings
from calc_analytics.cli.terminal import confirm
from calc_analytics.config import Settings, redact_url
from calc_analytics.database.engine import transaction
from calc_analytics.database.schemas import Place
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.plurals import number
from calc_analytics.rollup import install, ledger, status
from calc_analytics.rollup import widen as widening
from calc_analytics.rollup.database import Database


@click.command()
@with_settings
def migrate(settings: Settings) -> None:
    """Create the project's tables, or adopt the API's.

    Prints what became of each table. Safe to repeat, and safe while the API writes: every row stays, and
    writers are not blocked. In old databases city_id is renamed to locality_id. The rollups that ROLLUPS names
    are switched on, the others off. Tables are found, and created, by the role's search_path. The role must own
    calculation_logs.

    \b
    Changes:     adds the column xact_id and an index to calculation_logs;
                 creates tables, views and functions
    Example:     DATABASE_URL=postgresql://owner@host/api calc-analytics migrate
    Exit codes:  0 ready; 1 refused, nothing was changed, the line on standard
                 error says why
    """
    places: list[Place] = []
    db = make_ready(settings, always=True, report=places.append)
    zone = ledger.stored_timezone(db)
    click.echo(f"ready: {redact_url(db.engine.url)}, days in {zone}")
    click.echo(f"rollups: {', '.join(db.log.names)}")
    for place in places:
        print_place(place)
    if _is_to_be_rebased(db):
        click.echo(f"{db.log.name} is not what was counted: run 'calc-analytics rebase', then 'calc-analytics rollup'")
    elif waiting := ledger.waiting_days(db):
        click.echo(f"{_wait(waiting)}: run 'calc-analytics rollup'")
    if zone != settings.timezone:
        click.echo(f"ROLLUP_TIMEZONE is {settings.timezone}: set it to {zone}, or run 'calc-analytics rebase'")


def _is_to_be_rebased(db: Database) -> bool:
    """Whether the log is another table, or in another cluster, than the one that was counted."""
    try:
        status.refreshed(db)
    except (ledger.ClusterChanged, ledger.LogReplaced):
        return True
    except CalcAnalyticsError:
        return False
    return False


def print_place(place: Place) -> None:
    """Prints what became of one table."""
    click.echo(f"  {place.line}")


def _wait(waiting: Sequence[date]) -> str:
    """'1 day waits for a rebuild', '2 days wait for a rebuild'."""
    return f"{number(len(waiting), 'day')} {'waits' if len(waiting) == 1 else 'wait'} for a rebuild"


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_settings
def rebase(settings: Settings, yes: bool) -> None:
    """Start counting afresh after a restore or a new time zone.

    For a dump restored into another cluster, a log table that was replaced, or a new ROLLUP_TIMEZONE.
    Statistics stay until each day is rebuilt, and `calc-analytics rollup` rebuilds them. Days whose log rows
    were pruned keep their statistics.

    \b
    Changes:     marks every built day for a rebuild; drops and adds the column
                 xact_id (instantly); no log row changes
    Example:     calc-analytics rebase --yes && calc-analytics rollup
    Exit codes:  0 done; 1 not confirmed or refused, nothing was changed
    """
    if not yes:
        confirm("Mark every built day for a rebuild?")
    db = open_database(settings)
    install.rebase(db)
    click.echo(f"{_wait(ledger.waiting_days(db))}: run 'calc-analytics rollup'")
    with transaction(db.engine) as connection:
        archived, others = ledger.count_by_zone(connection, db)
    if archived:
        days = number(archived, "archived day")
        click.echo(f"{days} to be compared with the log: run 'calc-analytics archive', before and after the rollup")
    if others:
        click.echo(
            f"{number(others, 'day')} archived as days of another time zone: run 'calc-analytics archive --forget' and "
            "set ARCHIVE_URL to another place, or set ROLLUP_TIMEZONE back and rebase again"
        )


@click.command()
@click.argument("column")
@click.option(
    "--to",
    "to",
    type=click.Choice(["integer", "bigint"]),
    default="bigint",
    show_default=True,
    help="The new type; columns that are wider already stay.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_settings
def widen(settings: Settings, column: str, to: str, yes: bool) -> None:
    """Give COLUMN a wider type in the log and in the statistics.

    The log table, and every statistics table that holds its values. For example response_time_ms, publisher_id,
    or total_calculations. One transaction alters the tables and creates their live views again, with owner,
    grants and comments. Readers and writers wait while PostgreSQL rewrites a table; its size is shown first.
    The role must own the tables.

    \b
    Changes:     the type of the column; days that were set aside because a
                 value was too large wait for a rebuild
    Example:     calc-analytics widen response_time_ms --to integer
    Exit codes:  0 done, or nothing to do; 1 not confirmed or refused, nothing
                 was changed
    """
    db = open_database(settings, every_rollup=True)
    changes = widening.plan(db, column, to)
    if not changes:
        click.echo(f"nothing to do: {column} is {to}, or wider, everywhere")
        return
    for change in changes:
        size = f"{change.bytes / 1024**2:,.1f} MB"
        click.echo(f"{change.describe()} (rewrites {size}; readers and writers of {change.table} wait while this runs)")
    if not yes:
        confirm("Widen now?")
    done = widening.widen(db, column, to)
    click.echo(f"{number(len(done), 'column')} widened; live views keep their grants")
    if waiting := widening.waiting_days(db):
        click.echo(f"{number(len(waiting), 'day')} to be rebuilt: run 'calc-analytics rollup'")
