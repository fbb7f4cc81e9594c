"""Options that several commands have."""

import math
from collections.abc import Callable
from typing import Any

import click

from calc_analytics.rollups import LOG

UI_PORT, SERVICE_PORT = 3000, 8080
DAY = "YYYY-MM-DD"
NAMES = ", ".join(LOG.names)


class AsciiDigits(click.ParamType):
    """A number without other scripts' digits and without underscores, which Python's int() and float() read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or a usage error."""
        if not str(value).isascii() or "_" in str(value):
            self.fail(f"{value!r} is not a number written with the digits 0 to 9.", param, ctx)
        return super().convert(value, param, ctx)


class Integer(AsciiDigits, click.types.IntParamType):
    """Any whole number."""


class IntegerRange(AsciiDigits, click.IntRange):
    """A whole number within limits."""


class FiniteRange(AsciiDigits, click.FloatRange):
    """A number within limits; `nan` and infinity are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a usage error."""
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
    return click.option(name, default=default, show_default=True, type=IntegerRange(1, 65535), help=help_text)


ui_port_option = port_option("--ui-port", UI_PORT, "Port of the Dagster UI on 127.0.0.1.")
service_port_option = port_option(
    "--service-port", SERVICE_PORT, "Port of the HTTP service (page, health, metrics, alerts, trigger) on 127.0.0.1."
)


def _require_host(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Refuses an empty address, which would mean every address of the machine."""
    if not value.strip():
        raise click.BadParameter("give an address; 0.0.0.0 stands for every address of this machine.", ctx, param)
    return value


host_option = click.option(
    "--host", default="127.0.0.1", show_default=True, callback=_require_host, help="Address to listen on."
)
