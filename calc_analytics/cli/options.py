"""Options that several commands have."""

import math
from collections.abc import Callable
from typing import Any

import click

from calc_analytics.rollups import LOG

UI_PORT, SERVICE_PORT = 3000, 8080
DAY = "YYYY-MM-DD"
NAMES = ", ".join(LOG.names)


def _require_ascii(kind: click.ParamType, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> None:
    """Refuses other scripts' digits, and underscores, which Python's int() and float() read."""
    if not str(value).isascii() or "_" in str(value):
        kind.fail(f"{value!r} is not a number written with the digits 0 to 9.", param, ctx)


class Whole(click.IntRange):
    """A whole number, within limits if there are any."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or a usage error."""
        _require_ascii(self, value, param, ctx)
        return int(super().convert(value, param, ctx))


class Finite(click.FloatRange):
    """A number that is neither `nan` nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a usage error."""
        _require_ascii(self, value, param, ctx)
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
from_day = click.option("--from", "first", metavar=DAY, help="First day, included.")
to_day = click.option("--to", "last", metavar=DAY, help="Last day, included. Default: today.")
only_rollups = click.option(
    "--rollup",
    "names",
    metavar="NAME",
    multiple=True,
    help=f"A rollup; may be given several times. Default: all. They are {NAMES}.",
)


def single_days(purpose: str) -> Callable[[Any], Any]:
    """An option that takes days."""
    return click.option(
        "--day", "single", metavar=DAY, multiple=True, help=f"A day to {purpose}; may be given several times."
    )


def port_option(name: str, default: int, help_text: str) -> Callable[[Any], Any]:
    """An option that takes a port's number."""
    return click.option(name, default=default, show_default=True, type=Whole(1, 65535), help=help_text)


ui_port_option = port_option("--ui-port", UI_PORT, "Port of the Dagster UI on 127.0.0.1.")
service_port_option = port_option(
    "--service-port", SERVICE_PORT, "Port of the HTTP service (health, metrics, trigger) on 127.0.0.1."
)


def _require_host(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Refuses an empty address, which would mean every address of the machine."""
    if not value.strip():
        raise click.BadParameter("give an address; 0.0.0.0 stands for every address of this machine.", ctx, param)
    return value


host_option = click.option(
    "--host", default="127.0.0.1", show_default=True, callback=_require_host, help="Address to listen on."
)
