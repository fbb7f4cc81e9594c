"""Disk space: of the log, of each table of statistics, and of what the project adds to the log.

python -m benchmarks.disk          # about two minutes
"""

import argparse
from datetime import date, timedelta

import psycopg

from benchmarks.common import DAY, execute, plain, project_database, show
from calc_analytics.days import days_between
from calc_analytics.plurals import number
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.refresh import refresh

DAYS, ROWS_PER_DAY, PUBLISHERS, LOCALITIES = 20, 50_000, 200, 50
# Rows between two refreshes: updates in place leave dead rows, as streaming does.
ROWS_PER_REFRESH = 1_000
SIZES = """
    select pg_relation_size(name), pg_indexes_size(name), pg_total_relation_size(name)
    from cast(%s as regclass) as r (name)
"""


def main() -> None:
    """Prints bytes after the rows were written and counted as a stream, and vacuumed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=DAYS, help=f"days of {ROWS_PER_DAY:,} rows (default: {DAYS})")
    days = parser.parse_args().days
    with project_database() as db:
        with plain(db.engine) as connection:
            for day in days_between(DAY - timedelta(days=days), DAY - timedelta(days=1)):
                stream(db, connection, day)
            for name in ["calculation_logs", *db.log.names, "rollup_days", "rollup_journal"]:
                execute(db.engine, f"vacuum analyze {name}")
            report(db, connection)


def stream(db: Database, connection: psycopg.Connection, day: date) -> None:
    """One day's rows in the order of time, counted every `ROWS_PER_REFRESH`."""
    for first in range(0, ROWS_PER_DAY, ROWS_PER_REFRESH):
        connection.execute(
            f"""
            insert into calculation_logs (publisher_id, locality_id, date_calculated, cache_hit, response_time_ms,
                                          zman_count, source, created_at)
            select 1 + floor({PUBLISHERS} * random() ^ 2)::int, 281184 + floor({LOCALITIES} * random() ^ 2)::int,
                   '2030-01-01', random() < 0.6, floor(random() ^ 3 * 400)::int, 30, 1 + floor(random() * 3)::int,
                   timestamptz '{day} 00:00Z' + n * (interval '24 hours' / {ROWS_PER_DAY})
            from generate_series({first}, {first + ROWS_PER_REFRESH - 1}) n
            """
        )
        refresh(db)


def report(db: Database, connection: psycopg.Connection) -> None:
    """The tables that can be pasted into README.md."""
    logs = rows_in(connection, "calculation_logs")
    publisher_days = rows_in(connection, "calculation_stats_daily")
    lines = []
    for name in ("calculation_logs", *db.log.names, "rollup_days", "rollup_journal"):
        rows, (table, indexes, total) = rows_in(connection, name), sizes(connection, name)
        per_key = f"{total / publisher_days:,.0f} B" if name in db.log.names else ""
        lines.append((f"`{name}`", f"{rows:,}", mb(table), mb(indexes), mb(total * 1e6 / logs), per_key))
    columns = ("table", "rows", "table size", "its indexes", "per million log rows", "per publisher and day")
    days = number(rows_in(connection, "rollup_days") // len(db.log.names), "day")
    show(f"{days}, {PUBLISHERS} publishers, {ROWS_PER_DAY:,} log rows a day", columns, lines)
    brin = scalar(
        connection,
        "select sum(pg_relation_size(indexrelid)) from pg_stat_user_indexes where indexrelname like %s",
        "calculation_logs_rollup_idx%",
    )
    column = scalar(connection, "select sum(pg_column_size(xact_id)) from calculation_logs")
    show("What the project adds to the log", ("", "size"), [("xact_id", mb(column)), ("BRIN index", mb(brin))])


def rows_in(connection: psycopg.Connection, table: str) -> int:
    """How many rows the table has."""
    return scalar(connection, f"select count(*) from {table}")


def sizes(connection: psycopg.Connection, table: str) -> tuple[int, int, int]:
    """Bytes of the table itself, of its indexes, and of everything."""
    row = connection.execute(SIZES, (table,)).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def scalar(connection: psycopg.Connection, statement: str, *parameters: str) -> int:
    """The one number that the statement returns."""
    row = connection.execute(statement, parameters or None).fetchone()
    assert row is not None
    return int(row[0])


def mb(size: float) -> str:
    """Megabytes (10⁶ bytes); small sizes with a digit more."""
    return f"{size / 1e6:,.2f} MB" if size < 1e7 else f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
