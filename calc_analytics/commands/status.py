"""status"""

import click


@click.command()
def status() -> None:
    """status"""
