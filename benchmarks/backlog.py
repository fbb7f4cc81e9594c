"""A backlog of 3M rows over 40 days, in any order, compared with the bare GROUP BYs of the same rows.

python -m benchmarks.backlog          # about four minutes
"""

import resource
import subprocess
import sys

from benchmarks.common import (
    COLUMNS,
    MAIN_ONLY,
    execute,
    median_seconds,
    parse_size,
    plain,
    project_database,
    seconds,
    show,
)
from calc_analytics.rollup import ledger
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Log, Rollup
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import LOG

ROWS, DAYS, TRANSACTION = 3_000_000, 40, 5_000
FIRST = "timestamptz '2026-03-01 00:00Z'"
# n is the row's place in the table, u its place in time or among publishers.
ORDERS = {
    "in the order of time": ("1 + floor(200 * random() ^ 3)::int", f"{FIRST} + n * interval '40 days' / {ROWS}"),
    "publisher by publisher": (f"1 + n * 200 / {ROWS}", f"{FIRST} + random() * interval '40 days'"),
    "at random": ("1 + floor(200 * random() ^ 3)::int", f"{FIRST} + random() * interval '40 days'"),
}
COUNT = """
import sys
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import LOG
from sqlalchemy.engine import make_url
import resource, time
names = sys.argv[2].split(",")
db = Database(engine_for(make_url(sys.argv[1])), LOG.only(names), "UTC")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
steps = []
started = time.perf_counter()
report = refresh(db, progress=lambda step: steps.append(step.rows))
took = time.perf_counter() - started
print(took, report.rows, len(steps), max(steps), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def main() -> None:
    """Prints seconds, ratios and the client's memory."""
    count = parse_size(__doc__, "--rows", ROWS, "log rows of the backlog")
    rows = []
    for order in ORDERS:
        for log, name in ((MAIN_ONLY, "calculation_stats_daily alone"), (LOG, "all four tables")):
            rows.append((order, name, *measure(order, log, count)))
    columns = ("", "", "bare GROUP BY", "written", "refresh", "ratio", "steps", "rows in the largest", "client memory")
    show(f"A backlog of {count:,} rows over {DAYS} days", columns, rows)


def measure(order: str, log: Log, count: int) -> tuple[str, ...]:
    """Seconds of the bare queries (one for each rollup, with its days), of the same with their groups written to empty
    tables, and of the refresh in a process of its own."""
    publisher, instant = ORDERS[order]
    with project_database(log) as db:
        with plain(db.engine) as connection:
            for begin in range(0, count, TRANSACTION):
                connection.execute(
                    f"""
                    insert into calculation_logs ({COLUMNS})
                    select {publisher}, 281184 + floor(50 * random() ^ 2)::int, '2030-01-01', random() < 0.6,
                           floor(random() ^ 3 * 400)::int, 30, 1 + floor(random() * 3)::int, {instant}
                    from generate_series({begin}, {begin + TRANSACTION - 1}) n
                    """
                )
            execute(db.engine, "vacuum analyze calculation_logs")
            bare = median_seconds(lambda: seconds(lambda: [connection.execute(sql).fetchone() for sql in bares(db)]), 3)
            written = seconds(lambda: [connection.execute(sql) for sql in writes(db)])
            execute(db.engine, f"truncate {', '.join(log.names)}")
        url = db.engine.url.render_as_string(hide_password=False)
        done = subprocess.run(
            [sys.executable, "-c", COUNT, url, ",".join(log.names)], stdout=subprocess.PIPE, text=True, check=True
        )
        took, counted, steps, largest, memory = done.stdout.split()
        assert int(counted) == count
        assert verify(db, ledger.built_days(db)).difference == 0
    times = (f"{bare:.2f} s", f"{written:.2f} s", f"{float(took):.2f} s", f"{float(took) / bare:.1f}")
    return (*times, steps, f"{int(largest):,}", f"{memory} MB")


def bares(db: Database) -> list[str]:
    """What an engineer would type to count the rows once, for each rollup; the groups are counted, not fetched."""
    return [f"select count(*) from ({grouped(rollup)}) g" for rollup in db.log.rollups]


def writes(db: Database) -> list[str]:
    """The same, with the groups written to the empty tables: what no refresh can avoid."""
    return [f"insert into {each.name} ({each.columns}) {grouped(each)}" for each in db.log.rollups]


def grouped(rollup: Rollup) -> str:
    """The bare GROUP BY of a rollup, by day."""
    return (
        f"select {rollup.key_selects}, (created_at at time zone 'UTC')::date as date, {rollup.measure_selects} "
        f"from calculation_logs group by {rollup.group_by}, date"
    )


if __name__ == "__main__":
    main()
    print(f"\npeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
