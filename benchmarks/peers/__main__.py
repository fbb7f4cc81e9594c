"""Compares this project with its alternatives on one server: speed, cost for writers, freshness, and wrong rows.

python -m benchmarks.peers                                # at most twenty minutes
python -m benchmarks.peers --with-dbt --with-sqlmesh      # installs these two from PyPI first
python -m benchmarks.peers --short                        # a minute: whether it works, not how fast
python -m benchmarks.peers --write                        # also writes the tables and the picture of docs/comparison.md

What is not installed is listed with the package that brings it. Linux: CPU times are read from /proc.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from benchmarks.peers import picture, tables
from benchmarks.peers.scale import FULL, SHORT, Scale
from benchmarks.peers.server import Server, running_server
from benchmarks.peers.stage import make_few_rows
from benchmarks.peers.systems import SYSTEMS, find, leave_out_broken
from benchmarks.peers.tables import Results
from benchmarks.peers.workloads import backlog, open_writer, refreshing, writing, wrong_rows
from calc_analytics.config import project_root

T = TypeVar("T")


def main() -> None:
    """Prints the tables; with `--write`, puts them and the picture into docs/."""
    arguments = parse()
    with running_server(arguments.bin) as server:
        results = measure(server, SHORT if arguments.short else FULL, arguments.options)
    text = tables.render(results)
    print(text)
    if arguments.write:
        tables.write(project_root() / "docs" / "comparison.md", text)
        picture.draw(results, project_root() / "docs" / "comparison.svg")


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a minute: small tables, few rounds")
    parser.add_argument("--write", action="store_true", help="write docs/comparison.md and its picture")
    parser.add_argument("--bin", type=Path, help="folder of PostgreSQL's programs (default: Debian's 15, or embedded)")
    for system in SYSTEMS:
        if system.option:
            meaning = f"install and measure {system.name}"
            parser.add_argument(system.option, action="append_const", dest="options", const=system.option, help=meaning)
    parser.set_defaults(options=[])
    arguments = parser.parse_args()
    if arguments.bin is not None and not (arguments.bin / "initdb").is_file():
        parser.error(f"--bin {arguments.bin} has no initdb: name the folder of PostgreSQL's server programs")
    if arguments.short and arguments.write:
        parser.error("--write is for a whole run: leave out --short")
    return arguments


def measure(server: Server, scale: Scale, options: Iterable[str]) -> Results:
    """Every workload, one after the other."""
    started = time.monotonic()
    make_few_rows(server, scale.few_rows)
    found = leave_out_broken(server, find(server, set(options)))
    return Results(
        server=f"PostgreSQL {server.version()}, {platform.system()}, {platform.python_implementation()} "
        f"{platform.python_version()}",
        scale=scale,
        found=found,
        wrong_rows=_timed("wrong rows", lambda: wrong_rows.measure(server, found)),
        open_writers=_timed("open writer", lambda: list(open_writer.measure(server, found, scale))),
        writings=_timed("writing", lambda: writing.measure(server, found, scale)),
        refreshings=_timed("refreshing", lambda: list(refreshing.measure(server, found, scale))),
        backlogs=_timed("backlog", lambda: list(backlog.measure(server, found, scale))),
        seconds=time.monotonic() - started,
    )


def _timed(name: str, work: Callable[[], T]) -> T:
    started = time.monotonic()
    result = work()
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
