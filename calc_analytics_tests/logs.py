"""Log rows for tests, and the oracle: what pandas says the statistics of those rows are.

The oracle shares nothing with the SQL under test: it reads raw rows and groups them by itself, with Python's own
time zone database.
"""

import random
from collections.abc import Iterable
from datetime import date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pandas
import psycopg
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.engine import Engine

COLUMNS = ("publisher_id", "locality_id", "date_calculated", "cache_hit", "response_time_ms", "source", "created_at")
MEASURES = [
    "total_calculations",
    "cache_hits",
    "total_response_time_ms",
    "source_web",
    "source_api",
    "source_external",
]
OWNER: dict[str, Any] = {}
"""User name and password of the role that owns the tables; the session's server says."""
Row = tuple[Any, ...]
Statistics = dict[tuple[int, date], tuple[int, ...]]
"""(publisher_id, date) to the measures in the order of MEASURES."""


def row(created_at: datetime, publisher: int = 1, **changes: Any) -> Row:
    """One log row, written by a web user without a cache hit in 10 ms unless `changes` say otherwise."""
    values = {
        "publisher_id": publisher,
        "locality_id": 281184,
        "date_calculated": date(2030, 1, 1),
        "cache_hit": False,
        "response_time_ms": 10,
        "source": 1,
        "created_at": created_at,
        **changes,
    }
    return tuple(values[column] for column in COLUMNS)


def random_rows(rng: random.Random, count: int, begin: datetime, end: datetime, publishers: int = 5) -> list[Row]:
    """Rows at random instants of [begin, end), with null response times and a source nobody knows among them."""
    span = (end - begin).total_seconds()
    return [
        row(
            begin + timedelta(seconds=rng.uniform(0, span)),
            publisher=rng.randint(1, publishers),
            cache_hit=rng.random() < 0.6,
            response_time_ms=rng.choice([None, *range(0, 400, 7), 32767]),
            source=rng.choice([1, 1, 2, 3, 9]),
        )
        for _ in range(count)
    ]


def copy_rows(connection: psycopg.Connection, rows: Iterable[Row], table: str = "calculation_logs") -> None:
    """Writes rows by COPY, as the API does, into the connection's open transaction."""
    with connection.cursor().copy(f"copy {table} ({', '.join(COLUMNS)}) from stdin") as copy:
        for values in rows:
            copy.write_row(values)


def write(connection: psycopg.Connection, rows: Iterable[Row]) -> None:
    """Writes rows by COPY and commits."""
    copy_rows(connection, rows)
    connection.commit()


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    """An instant in UTC."""
    return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)


def oracle(engine: Engine, zone: str = "UTC", days: Iterable[date] | None = None) -> Statistics:
    """The statistics of all committed log rows (of those days), by pandas."""
    columns = "publisher_id, cache_hit, response_time_ms, source, created_at"
    with engine.begin() as connection:
        rows = connection.execute(text(f"select {columns} from calculation_logs")).all()
    frame = pandas.DataFrame(rows, columns=columns.split(", "))
    if frame.empty:
        return {}
    frame["date"] = pandas.to_datetime(frame["created_at"], utc=True).dt.tz_convert(ZoneInfo(zone)).dt.date
    if days is not None:
        frame = frame[frame["date"].isin(list(days))]
    frame = frame.assign(
        total_calculations=1,
        cache_hits=frame["cache_hit"].astype(int),
        total_response_time_ms=frame["response_time_ms"].astype(float).fillna(0).astype(int),
        source_web=(frame["source"] == 1).astype(int),
        source_api=(frame["source"] == 2).astype(int),
        source_external=(frame["source"] == 3).astype(int),
    )
    sums = frame.groupby(["publisher_id", "date"])[MEASURES].sum()
    return {key: tuple(int(value) for value in values) for key, *values in sums.itertuples()}


def execute(engine: Engine, statement: str) -> None:
    """One statement as the owner of the tables, outside any transaction: what the API or an administrator does."""
    owner = sqlalchemy.create_engine(engine.url.set(**OWNER), isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        connection.execute(text(statement))
    owner.dispose()


def stored(engine: Engine, relation: str = "calculation_stats_daily") -> Statistics:
    """What the table (or the live view) says."""
    with engine.begin() as connection:
        rows = connection.execute(text(f"select publisher_id, date, {', '.join(MEASURES)} from {relation}")).all()
    assert len({(r.publisher_id, r.date) for r in rows}) == len(rows), f"{relation} holds a key twice"
    return {(r.publisher_id, r.date): tuple(r[2:]) for r in rows}


def live(engine: Engine) -> Statistics:
    """What the live view says."""
    return stored(engine, "calculation_stats_daily_live")
