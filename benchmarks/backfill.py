"""A backfill of 90 days of 100,000 rows through the real Dagster, compared with one bare GROUP BY and a run per day.

python -m benchmarks.backfill
"""

import time
from datetime import date, timedelta

from benchmarks.common import execute, fill, median_seconds, parse_size, plain, seconds, show
from benchmarks.running import Running, eventually, fresh_copy, run_up
from calc_analytics.days import days_between, today
from calc_analytics.orchestration.assets import REBUILD
from calc_analytics.orchestration.checks import CHECKS
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import LOG, STATS

DAYS, ROWS_PER_DAY, SINGLE_RUNS = 90, 100_000, 6
LAUNCH = """
mutation ($days: [String!], $assets: [AssetKeyInput!]) {
  launchPartitionBackfill(backfillParams: {
    assetSelection: $assets, partitionNames: $days
  }) { ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } }
}
"""
STATUS = "query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
STEPS = """
query { runsOrError { ... on Runs { results {
  runId startTime endTime status tags { key value } stepStats { stepKey startTime endTime }
} } } }
"""


def main() -> None:
    """Prints seconds and rows per second."""
    rows_per_day = parse_size(__doc__, "--rows-per-day", ROWS_PER_DAY, "log rows of each day")
    last = today("UTC") - timedelta(days=10)
    days = days_between(last - timedelta(days=DAYS - 1), last)
    with fresh_copy() as copy, run_up(copy, Running) as up:
        engine = up.engine()
        for day in days:
            fill(engine, day, rows_per_day)
        # Counted by the sensor as they came; a rebuild counts them again from the rows.
        db = Database(engine, LOG, "UTC")
        refresh(db)
        execute(engine, "vacuum analyze calculation_logs")
        with plain(engine) as reader:
            bare = median_seconds(lambda: seconds(lambda: reader.execute(range_sql(days)).fetchall()), 5)
        domain = median_seconds(lambda: seconds(lambda: rebuild(db, days)), 3)
        whole, runs = backfill(up, days)
        each = backfill_each(up, days[:SINGLE_RUNS])
    rows = DAYS * rows_per_day
    steps = [step for run in runs for step in run["stepStats"]]
    rebuilding = sum(s["endTime"] - s["startTime"] for s in steps if s["stepKey"] == REBUILD)
    proving = sum(s["endTime"] - s["startTime"] for s in steps if s["stepKey"] == CHECKS)
    per_day = each / SINGLE_RUNS * DAYS
    running = max(run["endTime"] for run in runs) - min(run["startTime"] for run in runs)
    table = [
        ("one bare GROUP BY over the range, for one table", bare),
        ("rebuild by itself (calc-analytics rollup), all four tables", domain),
        (f"the asset's steps ({len(runs)} runs): rebuild, events, previews", rebuilding),
        ("the checks' step of each run: proof of every day in every rollup", proving),
        ("the runs, from start to end", running),
        ("the backfill, from click to the last run's end", whole),
        (f"a run per day, from start to end; {SINGLE_RUNS} measured, times {DAYS / SINGLE_RUNS:.0f}", per_day),
    ]
    show(
        f"A backfill of {DAYS} days of {rows_per_day:,} rows",
        ("", "seconds", "rows/s", "share of the bare throughput"),
        [(name, f"{took:.1f}", f"{rows / took:,.0f}", f"{bare / took:.0%}") for name, took in table],
    )
    print(f"\ntimes faster than a run per day: {per_day / running:.1f}")


def range_sql(days: list[date]) -> str:
    """What an engineer would type over the whole range."""
    return f"""
        select publisher_id, (created_at at time zone 'UTC')::date, {STATS.measure_selects} from calculation_logs
        where created_at >= '{days[0]} 00:00Z' and created_at < '{days[-1]} 24:00Z' group by 1, 2
    """


def backfill(up: Running, days: list[date]) -> tuple[float, list[dict]]:
    """Launches a backfill as the UI does; seconds until its last run has ended, and its runs."""
    started = time.time()
    launched = launch(up, days)
    await_end(up, launched)
    tag = {"key": "dagster/backfill", "value": launched}
    runs = [run for run in up.graphql(STEPS)["runsOrError"]["results"] if tag in run["tags"]]
    return max(run["endTime"] for run in runs) - started, runs


def backfill_each(up: Running, days: list[date]) -> float:
    """A run for each day, all asked for at once; seconds from the first one's start to the last one's end."""
    launched = [launch(up, [day]) for day in days]
    for each in launched:
        await_end(up, each)
    tags = [{"key": "dagster/backfill", "value": each} for each in launched]
    runs = [r for r in up.graphql(STEPS)["runsOrError"]["results"] if any(tag in r["tags"] for tag in tags)]
    return max(run["endTime"] for run in runs) - min(run["startTime"] for run in runs)


def launch(up: Running, days: list[date]) -> str:
    """The backfill's id."""
    return str(
        up.graphql(LAUNCH, days=[str(day) for day in days], assets=[{"path": [name]} for name in LOG.names])[
            "launchPartitionBackfill"
        ]["backfillId"]
    )


def await_end(up: Running, backfill_id: str) -> None:
    """Waits until the backfill has succeeded."""
    eventually(lambda: status(up, backfill_id) == "COMPLETED_SUCCESS", "the backfill's end", 900)


def status(up: Running, backfill_id: str) -> str:
    """Where the backfill stands."""
    return str(up.graphql(STATUS, id=backfill_id)["partitionBackfillOrError"]["status"])


if __name__ == "__main__":
    main()
