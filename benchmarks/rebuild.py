"""A rebuild of a day of five million rows beside the bare SELECT … GROUP BY of that day.

python -m benchmarks.rebuild
"""

from collections.abc import Callable
from functools import partial

from sqlalchemy.engine import Engine

from benchmarks.common import BARE, DAY, ROLLUP, execute, fill, median_seconds, plain, project_database, seconds, show
from calc_analytics.days import ONE_DAY
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import verify

ROWS = 5_000_000
ROUNDS = 7


def main() -> None:
    """Prints medians, first with the day alone in the table, then with as many rows of the next day."""
    with project_database() as engine:
        rows = []
        for days in (1, 2):
            fill(engine, DAY + ONE_DAY * (days - 1), ROWS)
            refresh(engine, ROLLUP, "UTC")
            execute(engine, "vacuum analyze calculation_logs")
            took = measure(engine)
            bare = took["bare SELECT … GROUP BY"]
            for name, value in took.items():
                rows.append((f"{days * ROWS:,}", name, f"{value:.2f} s", f"{value / bare:.2f}"))
        show("A day of 5,000,000 rows", ("rows in the table", "", "median", "ratio"), rows)


def measure(engine: Engine) -> dict[str, float]:
    """Medians in seconds."""
    reader = plain(engine)
    works: dict[str, Callable[[], object]] = {
        "bare SELECT … GROUP BY": lambda: reader.execute(BARE).fetchall(),
        "rebuild": lambda: rebuild(engine, ROLLUP, "UTC", [DAY]),
        "verify": lambda: verify(engine, ROLLUP, "UTC", [DAY]),
    }
    return {name: median_seconds(partial(seconds, work), ROUNDS) for name, work in works.items()}


if __name__ == "__main__":
    main()
