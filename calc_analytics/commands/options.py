"""Options that several commands have."""

from collections.abc import Callable
from typing import Any

import click

UI_PORT, SERVICE_PORT = 3000, 8080


def port_option(name: str, default: int, help_text: str) -> Callable[[Any], Any]:
    """An option that takes a port's number."""
    return click.option(name, default=default, show_default=True, type=click.IntRange(1, 65535), help=help_text)
