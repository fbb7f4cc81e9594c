"""The command group: the list of commands, and errors in one line.

An error that the user can fix is one line on standard error and exit code 1; wrong usage is exit code 2; Ctrl-C is
130. With `--json`, standard output is one JSON object.
"""

import signal
import sys
import traceback
from typing import Any

import click

from calc_analytics import __version__
from calc_analytics.cli.archive import archive
from calc_analytics.cli.counting import refresh, rollup, verify
from calc_analytics.cli.deleting import erase, prune
from calc_analytics.cli.doctor import doctor
from calc_analytics.cli.history import history
from calc_analytics.cli.partitions import partitions
from calc_analytics.cli.report import report
from calc_analytics.cli.running import demo, serve, simulate, up
from calc_analytics.cli.schema import migrate, rebase, widen
from calc_analytics.cli.status import status
from calc_analytics.database.embedded import data_folder, writable
from calc_analytics.errors import CalcAnalyticsError

COMMANDS = (
    up,
    demo,
    simulate,
    serve,
    migrate,
    rebase,
    widen,
    refresh,
    rollup,
    verify,
    archive,
    partitions,
    prune,
    erase,
    report,
    history,
    status,
    doctor,
)


class OneLineErrors(click.Group):
    """Prints errors as one line, with exit code 1; Ctrl-C is exit code 130."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which a new user meets them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the subcommand."""
        try:
            return super().invoke(ctx)
        except CalcAnalyticsError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)
        except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            click.echo(f"error: internal error: {message} ({_write_traceback(error)})", err=True)
            sys.exit(1)


def _write_traceback(error: Exception) -> str:
    """Writes the stack trace of an internal error to a file; returns a note of where it is."""
    log = writable(data_folder()) / "logs" / "cli.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            file.writelines(traceback.format_exception(error))
    except OSError as refused:
        return f"details could not be written to {log}: {refused.strerror}"
    return f"details in {log}"


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Exact daily statistics of calculation_logs, and the proof that they equal the log.

    \b
    Try it:          calc-analytics demo
    Your database:   export DATABASE_URL=postgresql://user:password@host/database
                     calc-analytics migrate && calc-analytics up
    Build history:   calc-analytics rollup --from 2026-01-01
    Prove it:        calc-analytics verify
    What changed:    calc-analytics history
    To look at:      calc-analytics report --output report.html

    Without DATABASE_URL an embedded PostgreSQL is used; its data is in .calc_analytics/ of the project folder.

    Exit codes: 0 done; 1 an error (one line on standard error), or a problem was found; 2 wrong usage; 130 Ctrl-C.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


for command in COMMANDS:
    main.add_command(command)
