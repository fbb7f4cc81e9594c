"""A rebuild of a day of five million rows, compared with the bare SELECT … GROUP BY of that day.

python -m benchmarks.rebuild
"""

from collections.abc import Callable
from functools import partial

from benchmarks.common import (
    BARE,
    DAY,
    execute,
    fill,
    median_seconds,
    parse_size,
    plain,
    project_database,
    seconds,
    show,
)
from calc_analytics.days import ONE_DAY
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import STATS

ROWS = 5_000_000
ROUNDS = 5


def main() -> None:
    """Prints medians, first with the day alone in the table, then with as many rows of the day before."""
    day_rows = parse_size(__doc__, "--rows", ROWS, "log rows of the day")
    with project_database() as db:
        rows = []
        for days in (1, 2):
            fill(db.engine, DAY - ONE_DAY * (days - 1), day_rows, rows_per_transaction=20_000)
            refresh(db)
            execute(db.engine, "vacuum analyze calculation_logs")
            took = measure(db)
            for name, value in took.items():
                bare = took["bare SELECT … GROUP BY, all four" if "four" in name else "bare SELECT … GROUP BY"]
                rows.append((f"{days * day_rows:,}", name, f"{value:.2f} s", f"{value / bare:.2f}"))
        show(f"A day of {day_rows:,} rows", ("rows in the table", "", "median", "ratio"), rows)


def measure(db: Database) -> dict[str, float]:
    """Medians in seconds."""
    reader = plain(db.engine)
    bares = [bare_of(db, rollup.name) for rollup in db.log.rollups]
    works: dict[str, Callable[[], object]] = {
        "bare SELECT … GROUP BY": lambda: reader.execute(BARE).fetchall(),
        "rebuild of calculation_stats_daily": lambda: rebuild(db, [DAY], [STATS.name]),
        "verify of calculation_stats_daily": lambda: verify(db, [DAY], [STATS.name]),
        "bare SELECT … GROUP BY, all four": lambda: [reader.execute(bare).fetchone() for bare in bares],
        "rebuild, all four": lambda: rebuild(db, [DAY]),
        "verify, all four": lambda: verify(db, [DAY]),
    }
    return {name: median_seconds(partial(seconds, work), ROUNDS) for name, work in works.items()}


def bare_of(db: Database, name: str) -> str:
    """The bare query of another rollup; its groups are counted, not fetched."""
    rollup = db.log.rollup(name)
    return f"""
        select count(*) from (
            select {rollup.key_selects}, {rollup.measure_selects} from calculation_logs
            where created_at >= '{DAY} 00:00Z' and created_at < '{DAY} 24:00Z' group by {rollup.group_by}) g
    """


if __name__ == "__main__":
    main()
