"""A refresh of 5,000 new rows, and the live view over them, however big the day; beside the whole-day SQL.

python -m benchmarks.refresh
"""

from sqlalchemy.engine import Engine

from benchmarks.common import (
    DAY,
    ROLLUP,
    WHOLE_DAY,
    copy_rows,
    execute,
    fill,
    median_seconds,
    plain,
    project_database,
    seconds,
    show,
)
from calc_analytics.rollup.index import summarize
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh

NEW_ROWS = 5_000
SIZES = (1_000_000, 5_000_000)
ROUNDS = 31


def main() -> None:
    """Prints medians and ratios."""
    measured = {}
    with project_database() as engine:
        rebuild(engine, ROLLUP, "UTC", [DAY])
        execute(engine, "create table whole_day (like calculation_stats_daily including all)")
        there = 0
        for size in SIZES:
            fill(engine, DAY, size, first=there)
            refresh(engine, ROLLUP, "UTC")
            summarize(engine, ROLLUP)
            execute(engine, "vacuum analyze calculation_logs")
            measured[size], there = measure(engine), size
    small, big = (measured[size] for size in SIZES)
    rows = [
        (name, f"{small[name] * 1e3:,.1f} ms", f"{big[name] * 1e3:,.1f} ms", f"{big[name] / small[name]:.2f}",
         f"{big['whole-day SQL'] / big[name]:,.0f}")
        for name in small
    ]  # fmt: skip
    columns = ("", "1M rows today", "5M rows today", "5M / 1M", "times cheaper than the whole day, 5M")
    show("After a COPY of 5,000 rows", columns, rows)
    print(f"\nlive view / refresh at 5M: {big['live view, one query'] / big['refresh']:.2f}")


def measure(engine: Engine) -> dict[str, float]:
    """Medians in seconds at the day's present size."""
    writer = plain(engine)
    reader = plain(engine)

    def one_refresh() -> float:
        copy_rows(writer, NEW_ROWS)
        took = seconds(lambda: refresh(engine, ROLLUP, "UTC"))
        summarize(engine, ROLLUP)
        return took

    def one_view() -> float:
        copy_rows(writer, NEW_ROWS)
        took = seconds(lambda: reader.execute("select * from calculation_stats_daily_live").fetchall())
        refresh(engine, ROLLUP, "UTC")
        summarize(engine, ROLLUP)
        return took

    whole_day = WHOLE_DAY.format(target="whole_day")
    one_refresh()
    return {
        "refresh": median_seconds(one_refresh, ROUNDS),
        "live view, one query": median_seconds(one_view, ROUNDS),
        "whole-day SQL": median_seconds(lambda: seconds(lambda: reader.execute(whole_day)), 5),
    }


if __name__ == "__main__":
    main()
