"""What readers wait for: the SQL contract over 1,000 publishers, 400 days and 50 million log rows' worth of statistics.

python -m benchmarks.readers          # about ten minutes, most of it making the statistics
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta

import psycopg

from benchmarks.common import DAY, execute, median_seconds, parse_size, plain, project_database, seconds, show
from calc_analytics.days import days_between
from calc_analytics.readers.day_figures import day_figures
from calc_analytics.readers.page import render
from calc_analytics.readers.pictures import trend_picture
from calc_analytics.readers.report import read_report
from calc_analytics.readers.summary import refresh_summary
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.usual import judge_counts
from calc_analytics.rollups import HOURS, LATENCY, LOCALITIES, STATS

PUBLISHERS, LOCALITIES_EACH, DAYS, ROWS = 1_000, 50, 400, 50_000_000
RAW_ROWS, ROWS_OF_RAW_DAY = 5_000_000, 125_000
REPEATS = 21
YEAR_AGO = DAY - timedelta(days=364)
# One day of log rows: publishers and localities are skewed (Zipf), hits are fast, misses have a tail.
ROWS_OF_A_DAY = """
    create temporary table day_rows as
    select publisher_id, 1 + (publisher_id * 37 + floor({localities} ^ random())::int) % 5000 as locality_id, is_hit,
           case when random() < 0.02 then null
                else least(exp(case when is_hit then 1.0 else 3.6 end + 0.5 * random_normal())
                           * case when not is_hit and random() < 0.01 then 5 + 15 * random() else 1 end, 32767)::int
           end as ms,
           1 + floor(3 * random() ^ 2)::int as source,
           timestamptz '{day} 00:00Z' + 86400 * (random() + random()) / 2 * interval '1 second' as created_at
    from (select floor({publishers} ^ random())::int as publisher_id, random() < 0.6 as is_hit
          from generate_series(1, {rows})) r
"""
SIX = """count(*), count(*) filter (where is_hit), coalesce(sum(ms), 0), count(*) filter (where source = 1),
         count(*) filter (where source = 2), count(*) filter (where source = 3)"""
THREE = "count(*), count(*) filter (where is_hit), coalesce(sum(ms), 0)"


INTO_LOGS = """
    insert into calculation_logs
        (publisher_id, locality_id, date_calculated, cache_hit, response_time_ms, source, created_at)
    select publisher_id, locality_id, created_at::date, is_hit, ms, source, created_at
    from day_rows order by day_rows.created_at
"""
SCAN = """
    select locality_id, count(*) as calculations from calculation_logs
    where publisher_id = {} group by locality_id order by 2 desc limit 5
"""
TOP = "select * from publisher_top_localities({}, '{}', '{}', 5)"
BUCKET = """case when ms is null then -1 when ms < 128 then ms
                 else ms >> (floor(log(2, ms))::int - 6) << (floor(log(2, ms))::int - 6) end"""
KEYS = {
    STATS: ("publisher_id",),
    LOCALITIES: ("publisher_id", "locality_id"),
    HOURS: ("publisher_id", "date_bin('1 hour', created_at, timestamptz '2000-01-01Z')"),
    LATENCY: ("publisher_id", "source", BUCKET),
}
MEASURES = {STATS: SIX, LOCALITIES: THREE, HOURS: SIX, LATENCY: "count(*)"}


def main() -> None:
    """Prints the size of the statistics, then milliseconds of each question, of the first publisher, which has 13 % of
    all rows, and of a middling one."""
    rows = parse_size(__doc__, "--rows", ROWS, "log rows' worth of statistics")
    with project_database() as db:
        fill(db, DAYS, rows // DAYS)
        with plain(db.engine) as connection:
            show(f"Statistics of {rows:,} log rows", ("table", "rows", "MB"), list(sizes(connection, db.log.names)))
            columns = ("", "first publisher", "middling publisher")
            show("One publisher, milliseconds (median of 21)", columns, list(of_publishers(connection)))
            show("Platform, milliseconds (median of 3)", ("", ""), list(of_platform(connection)))
            show(f"Top localities of a publisher, {RAW_ROWS:,} raw log rows", ("", ""), list(of_raw_logs(connection)))
        show("Report and runs, seconds (median of 3)", ("", ""), list(of_runs(db)))


def fill(db: Database, days: int, rows: int) -> None:
    """Statistics of that many days in all four tables, each day built, as the rollups would have them."""
    with plain(db.engine) as connection:
        for day in days_between(DAY - timedelta(days=days - 1), DAY):
            with connection.transaction():
                fill_day(connection, day, rows)
    for name in (*db.log.names, "rollup_days"):
        execute(db.engine, f"vacuum analyze {name}")


def fill_day(connection: psycopg.Connection, day: date, rows: int) -> None:
    """One day of each table, in the order of the keys, as a rebuild writes it."""
    of_day = ROWS_OF_A_DAY.format(day=day, rows=rows, publishers=PUBLISHERS, localities=LOCALITIES_EACH)
    connection.execute(of_day.encode())
    for rollup, keys in KEYS.items():
        groups = ", ".join(str(n) for n in range(1, len(keys) + 1))
        measured = f"select {', '.join(keys)}, date '{day}', {MEASURES[rollup]} from day_rows"
        statement = f"insert into {rollup.name} ({rollup.columns}) {measured} group by {groups} order by {groups}"
        connection.execute(statement.encode())
        connection.execute(
            "insert into rollup_days (rollup, date, status, timezone) values (%s, %s, 'built', 'UTC')",
            (rollup.name, day),
        )
    connection.execute("drop table day_rows")


def sizes(connection: psycopg.Connection, names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Rows and megabytes, with indexes, of each table."""
    for name in names:
        found = connection.execute(
            f"select count(*), pg_total_relation_size('{name}') / 1e6 from {name}".encode()
        ).fetchone()
        assert found is not None
        yield name, f"{found[0]:,}", f"{found[1]:,.0f}"


def of_publishers(connection: psycopg.Connection) -> Iterator[tuple[str, str, str]]:
    """Each question of one publisher."""
    for question in (
        "select * from publisher_usage where publisher_id = {}",
        "select * from publisher_trend({}, 7)",
        TOP,
        "select * from publisher_percentiles({}, current_date - 29, current_date)",
        "select * from publisher_percentiles({}, '{}', '{}')",
    ):
        first, middling = (milliseconds(connection, question.format(n, YEAR_AGO, DAY), REPEATS) for n in (1, 30))
        yield question.format("N", "a year ago", "today").removeprefix("select * from "), first, middling


def of_platform(connection: psycopg.Connection) -> Iterator[tuple[str, str]]:
    """Each question about all publishers."""
    for question in (
        "select * from platform_usage",
        "select * from publisher_usage",
        "select * from platform_trend(7)",
        "select * from platform_days('{}', '{}')",
        "select * from platform_top_localities('{}', '{}')",
        "select * from platform_top_publishers('{}', '{}')",
        "select * from platform_hours('{}', '{}')",
        "select * from platform_percentiles('{}', '{}')",
        "select * from platform_percentiles_by_day('{}', '{}')",
    ):
        shown = question.format("a year ago", "today").removeprefix("select * from ")
        yield shown, milliseconds(connection, question.format(YEAR_AGO, DAY), 3)


def of_raw_logs(connection: psycopg.Connection) -> Iterator[tuple[str, str]]:
    """The same question to raw log rows, as pages ask it without statistics; of two publishers."""
    days = RAW_ROWS // ROWS_OF_RAW_DAY
    for day in days_between(DAY - timedelta(days=days - 1), DAY):
        of_day = ROWS_OF_A_DAY.format(day=day, rows=ROWS_OF_RAW_DAY, publishers=PUBLISHERS, localities=LOCALITIES_EACH)
        connection.execute(of_day.encode())
        connection.execute(INTO_LOGS)
        connection.execute("drop table day_rows")
    connection.execute("vacuum analyze calculation_logs")
    for name, publisher in (("first publisher", 1), ("middling publisher", 30)):
        scan = milliseconds(connection, SCAN.format(publisher), 5)
        asked = milliseconds(connection, TOP.format(publisher, DAY - timedelta(days=days - 1), DAY), REPEATS)
        yield f"{name}: scan of raw logs", f"{scan} ms"
        yield f"{name}: publisher_top_localities", f"{asked} ms, {float(scan) / float(asked):.0f} times as fast"


def of_runs(db: Database) -> Iterator[tuple[str, str]]:
    """The report, and what runs compute besides counting."""
    yesterday = DAY - timedelta(days=1)
    works: dict[str, Callable[[], object]] = {
        "report of the platform over a year, as HTML": lambda: render(read_report(db, None, YEAR_AGO, DAY)),
        "publisher_usage_summary": lambda: refresh_summary(db),
        "the picture of the last 30 days": lambda: trend_picture(db, DAY),
        "p95 and localities of a day": lambda: day_figures(db, DAY, DAY),
        "p95 and localities of 100 days": lambda: day_figures(db, DAY - timedelta(days=99), DAY),
        "usual_total of a day": lambda: judge_counts(db, STATS, [yesterday]),
        "usual_total of 100 days": lambda: judge_counts(db, STATS, [yesterday - timedelta(days=n) for n in range(100)]),
    }
    for name, work in works.items():
        work()
        yield name, f"{median_seconds(functools.partial(seconds, work), 3):.2f}"


def milliseconds(connection: psycopg.Connection, question: str, times: int) -> str:
    """The median, all rows fetched, after one call that is not counted."""
    connection.execute(question.encode()).fetchall()
    return (
        f"{1e3 * median_seconds(lambda: seconds(lambda: connection.execute(question.encode()).fetchall()), times):.1f}"
    )


if __name__ == "__main__":
    main()
