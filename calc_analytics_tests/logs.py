"""Log rows for tests, and the oracle: what pandas says the statistics of those rows are.

The oracle shares nothing with the SQL under test: it reads raw rows and groups them by itself, with Python's own
time zone database and its own rounding of response times.
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

from calc_analytics.rollup.database import Database

COLUMNS = ("publisher_id", "locality_id", "date_calculated", "cache_hit", "response_time_ms", "source", "created_at")
MEASURES = [
    "total_calculations",
    "cache_hits",
    "total_response_time_ms",
    "source_web",
    "source_api",
    "source_external",
]
STATS = "calculation_stats_daily"
FORMS: dict[str, tuple[list[str], list[str]]] = {
    STATS: (["publisher_id"], MEASURES),
    "calculation_locality_stats_daily": (["publisher_id", "locality_id"], MEASURES[:3]),
    "calculation_stats_hourly": (["publisher_id", "hour"], MEASURES),
    "calculation_latency_daily": (["publisher_id", "source", "response_time_ms"], ["calculations"]),
}
"""The keys besides `date`, and the measures, of each target table; its live view has the same."""
OWNER: dict[str, Any] = {}
"""User name and password of the role that owns the tables; the session's server says."""
Row = tuple[Any, ...]
Statistics = dict[tuple[Any, ...], tuple[int, ...]]
"""The keys, then the date, to the measures; both in the order of FORMS."""


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
    """Rows at random instants of [begin, end), in several localities, with null and long response times and an
    unknown source among them."""
    span = (end - begin).total_seconds()
    return [
        row(
            begin + timedelta(seconds=rng.uniform(0, span)),
            publisher=rng.randint(1, publishers),
            locality_id=rng.choice([281184, 293397, 5128581, 2**40]),
            cache_hit=rng.random() < 0.6,
            response_time_ms=rng.choice([None, *range(0, 400, 7), 1023, 4097, 32767]),
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


def oracle(
    place: Engine | Database, zone: str | None = None, days: Iterable[date] | None = None, relation: str = STATS
) -> Statistics:
    """The statistics of all committed log rows (of those days), by pandas; days in that zone, or in the database's."""
    return _grouped(_frame(place, zone, days), relation)


def oracles(place: Engine | Database, zone: str | None = None) -> dict[str, Statistics]:
    """The same for every rollup, by name."""
    frame = _frame(place, zone, None)
    return {relation: _grouped(frame, relation) for relation in FORMS}


def _frame(place: Engine | Database, zone: str | None, days: Iterable[date] | None) -> pandas.DataFrame:
    """The log rows with every key and every measure."""
    zone = zone or (place.timezone if isinstance(place, Database) else "UTC")
    columns = "publisher_id, locality_id, cache_hit, response_time_ms, source, created_at"
    with _engine(place).begin() as connection:
        rows = connection.execute(text(f"select {columns} from calculation_logs")).all()
    frame = pandas.DataFrame(rows, columns=columns.split(", "))
    instants = pandas.to_datetime(frame["created_at"], utc=True)
    frame["date"] = instants.dt.tz_convert(ZoneInfo(zone)).dt.date
    if days is not None:
        chosen = frame["date"].isin(list(days))
        frame, instants = frame[chosen], instants[chosen]
    return frame.assign(
        hour=instants.dt.floor("h"),
        total_calculations=1,
        calculations=1,
        cache_hits=frame["cache_hit"].astype(int),
        total_response_time_ms=frame["response_time_ms"].astype(float).fillna(0).astype(int),
        response_time_ms=[round_down(value) for value in frame["response_time_ms"]],
        source_web=(frame["source"] == 1).astype(int),
        source_api=(frame["source"] == 2).astype(int),
        source_external=(frame["source"] == 3).astype(int),
    )


def _grouped(frame: pandas.DataFrame, relation: str) -> Statistics:
    keys, measures = FORMS[relation]
    if frame.empty:
        return {}
    sums = frame.groupby([*keys, "date"])[measures].sum()
    return {
        tuple(_plain(value) for value in key): tuple(int(value) for value in values)
        for key, values in zip(sums.index, sums.to_numpy(), strict=True)
    }


def _plain(value: Any) -> Any:
    return value.to_pydatetime() if isinstance(value, pandas.Timestamp) else value


def round_down(milliseconds: float | None) -> int:
    """The response time with all but its seven leading binary digits made zero; -1 for none or a negative one."""
    if milliseconds is None or pandas.isna(milliseconds) or milliseconds < 0:
        return -1
    dropped = max(int(milliseconds).bit_length() - 7, 0)
    return int(milliseconds) >> dropped << dropped


def execute(place: Engine | Database, statement: str) -> None:
    """One statement as the owner of the tables, outside any transaction: what the API or an administrator does."""
    owner = sqlalchemy.create_engine(_engine(place).url.set(**OWNER), isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        connection.execute(text(statement))
    owner.dispose()


def stored(place: Engine | Database, relation: str = STATS) -> Statistics:
    """The contents of the table (or of the live view)."""
    keys, measures = FORMS[relation.removesuffix("_live")]
    with _engine(place).begin() as connection:
        rows = connection.execute(text(f"select {', '.join([*keys, 'date', *measures])} from {relation}")).all()
    found = {tuple(row[: len(keys) + 1]): tuple(row[len(keys) + 1 :]) for row in rows}
    assert len(found) == len(rows), f"{relation} holds a key twice"
    return found


def all_stored(place: Engine | Database) -> dict[str, Statistics]:
    """What every target holds."""
    return {relation: stored(place, relation) for relation in FORMS}


def live(place: Engine | Database, relation: str = STATS) -> Statistics:
    """The contents of the live view."""
    return stored(place, f"{relation}_live")


def assert_exact(place: Engine | Database, zone: str | None = None) -> None:
    """Every target and every live view equals pandas, and the rollups agree with each other."""
    expected = oracles(place, zone)
    assert {relation: stored(place, relation) for relation in FORMS} == expected
    assert {relation: live(place, relation) for relation in FORMS} == expected
    assert disagreements(place) == []


def assert_live(place: Engine | Database, zone: str | None = None) -> None:
    """Every live view equals pandas, and the stored rollups agree with each other."""
    assert {relation: live(place, relation) for relation in FORMS} == oracles(place, zone)
    assert disagreements(place) == []


def disagreements(place: Engine | Database) -> list[Any]:
    """Publishers and days of which localities, hours or response times do not add up to the publisher's totals, read
    in one statement, so of one commit."""
    names = ", ".join(MEASURES)
    nothing = "null, " * 5
    statement = f"""
        select publisher_id, date, array_agg(kind order by kind) as kinds from (
            select 'stats' as kind, publisher_id, date, {names} from {STATS}
            union all
            select 'hours', publisher_id, date, {", ".join(f"sum({name})" for name in MEASURES)}
            from calculation_stats_hourly group by 2, 3
            union all
            select 'localities', publisher_id, date, {", ".join(f"sum({name})" for name in MEASURES[:3])},
                   null, null, null
            from calculation_locality_stats_daily group by 2, 3
            union all
            select 'latency', publisher_id, date, sum(calculations), {nothing.removesuffix(", ")}
            from calculation_latency_daily group by 2, 3
        ) totals
        group by publisher_id, date
        having count(*) <> 4 or {" or ".join(f"min({name}) <> max({name})" for name in MEASURES)}
        order by 1, 2
    """
    with _engine(place).begin() as connection:
        return list(connection.execute(text(statement)).all())


def _engine(place: Engine | Database) -> Engine:
    return place.engine if isinstance(place, Database) else place
