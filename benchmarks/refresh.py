"""A refresh of new rows, compared with the same aggregate-upsert written by hand and with the SQL of the whole day.

python -m benchmarks.refresh          # about four minutes
"""

import time
from functools import partial

import psycopg

from benchmarks.common import (
    DAY,
    MAIN_ONLY,
    WHOLE_DAY,
    copy_rows,
    execute,
    fill,
    median_seconds,
    parse_size,
    plain,
    project_database,
    seconds,
    show,
)
from calc_analytics.database.log_index import summarize
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import LOG, STATS

ROWS, GROWTH = 1_000_000, 5
BATCHES = (5_000, 100)
ROUNDS = 31
# The floor: the rows are known by their ids; begin, one statement, commit, as an engineer would type it.
BY_HAND = f"""
    insert into by_hand ({STATS.columns})
    select publisher_id, (created_at at time zone 'UTC')::date, {STATS.measure_selects}
    from calculation_logs where id > %s group by 1, 2
    on conflict (publisher_id, date) do update
    set {STATS.each_measure("{name} = by_hand.{name} + excluded.{name}")}
"""


def main() -> None:
    """Prints medians and ratios."""
    first = parse_size(__doc__, "--rows", ROWS, f"log rows of today, and {GROWTH} times as many in the second half")
    rows: list[tuple[object, ...]] = []
    with project_database() as db:
        execute(db.engine, "create table whole_day (like calculation_stats_daily including all)")
        execute(db.engine, "create table by_hand (like calculation_stats_daily including all)")
        there = 0
        for size in (first, GROWTH * first):
            install(Database(db.engine, LOG, "UTC"))
            fill(db.engine, DAY, size, first=there)
            there = size
            refresh(db)
            summarize(db.engine)
            execute(db.engine, "vacuum analyze calculation_logs")
            rows += measure(db, size)
    columns = ("rows today", "new rows", "", "median", "against the floor", "per target row")
    show("A refresh", columns, rows)


def measure(db: Database, size: int) -> list[tuple[object, ...]]:
    """The table's rows for the day's present size."""
    rows: list[tuple[object, ...]] = []
    writer, reader = plain(db.engine), plain(db.engine)
    main_only = Database(db.engine, MAIN_ONLY, "UTC")
    floors = {}
    for log_db, name in ((db, "all four tables"), (main_only, "calculation_stats_daily alone")):
        install(log_db)
        rebuild(log_db, [DAY])
        for batch in BATCHES:
            floors[batch] = median_seconds(partial(by_hand, log_db, writer, batch), ROUNDS)
            took, keys = refreshed(log_db, writer, batch)
            touched = f"{took / keys * 1e6:.1f} µs" if log_db is db else ""
            rows.append(line(size, batch, f"refresh, {name}", took, floors[batch], touched))
    for batch in BATCHES:
        rows.append(line(size, batch, "floor: the aggregate-upsert typed by hand", floors[batch], floors[batch]))
    copy_rows(writer, BATCHES[0])
    view = "select sum(total_calculations) from calculation_stats_daily_live"
    live = median_seconds(lambda: seconds(lambda: reader.execute(view).fetchone()), ROUNDS)
    rows.append(line(size, BATCHES[0], "live view, one query", live, floors[BATCHES[0]]))
    whole = WHOLE_DAY.format(target="whole_day")
    by_day = median_seconds(lambda: seconds(lambda: reader.execute(whole)), 5)
    rows.append(line(size, BATCHES[0], "whole-day SQL", by_day, floors[BATCHES[0]]))
    writer.close()
    reader.close()
    return rows


def line(size: int, batch: int, name: str, took: float, floor: float, touched: str = "") -> tuple[object, ...]:
    """A row of the table."""
    return f"{size:,}", f"{batch:,}", name, f"{took * 1e3:.2f} ms", f"{took / floor:.2f}", touched


def by_hand(db: Database, writer: psycopg.Connection, batch: int) -> float:
    """Seconds of the floor, from begin to commit; its rows are counted and summarized afterwards."""
    last = writer.execute("select max(id) from calculation_logs").fetchone()
    copy_rows(writer, batch)
    took = seconds(lambda: typed(writer, last[0] if last else 0))
    refresh(db)
    if batch >= BATCHES[0]:
        summarize(db.engine)
    return took


def typed(writer: psycopg.Connection, last: int) -> None:
    """The statement between begin and commit."""
    writer.execute("begin")
    writer.execute(BY_HAND, [last], prepare=True)
    writer.execute("commit")


def refreshed(db: Database, writer: psycopg.Connection, batch: int) -> tuple[float, int]:
    """Median seconds of a refresh of a batch, and how many target rows it touches. As in the follower, the index is
    brought up to the table's end every 5,000 rows, and ages are not noted in most refreshes."""
    keys = 0

    def one() -> float:
        nonlocal keys
        copy_rows(writer, batch)
        started = time.perf_counter()
        report = refresh(db, step_rows=None, sampled=False)
        took = time.perf_counter() - started
        assert report.rows == batch
        keys = sum(day.keys for day in report.counted)
        if batch >= BATCHES[0]:
            summarize(db.engine)
        return took

    return median_seconds(one, ROUNDS), keys


if __name__ == "__main__":
    main()
