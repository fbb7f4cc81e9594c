"""The log's rows, the same in every database, and the reference: a GROUP BY of every row that was ever committed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import psycopg

from benchmarks.common import COLUMNS
from calc_analytics.rollups import STATS

# Rows of today are spread from midnight to this instant: some systems count no row of the future.
NOW = datetime.now(timezone.utc)
TODAY = NOW.date()
YESTERDAY = TODAY - timedelta(days=1)
MIDNIGHT = datetime.combine(TODAY, datetime.min.time(), timezone.utc)
PUBLISHERS, LOCALITIES = 200, 50
KEYS = ("publisher_id", "date")
MEASURES = tuple(STATS.measure_names)
DATE = "(created_at at time zone 'UTC')::date"
# As the API creates it.
LOG_TABLE = """
    create table calculation_logs (
        id bigserial primary key, publisher_id integer not null, locality_id bigint not null,
        date_calculated date not null, cache_hit boolean not null default false, response_time_ms smallint,
        zman_count smallint, source smallint not null, created_at timestamptz not null default now()
    )
"""
# What was deleted from the log, which the reference counts as well.
DELETED_TABLE = "create table deleted_rows as select * from calculation_logs where false"
TARGET_TABLE = f"""
    create table peer_stats (
        publisher_id integer, date date, {", ".join(f"{name} bigint not null default 0" for name in MEASURES)},
        primary key (publisher_id, date)
    )
"""


def grouped(source: str, condition: str = "true") -> str:
    """The aggregate that every system keeps: six measures per publisher and day, in the order of the target."""
    measures = STATS.measure_selects
    return f"select publisher_id, {DATE} as date, {measures} from {source} where {condition} group by 1, 2"


def upsert(aggregate: str, target: str = "peer_stats", before: str = "") -> str:
    """Adds an aggregate's groups to the target's. `before`: the statement's WITH."""
    sums = ", ".join(f"{name} = {target}.{name} + excluded.{name}" for name in MEASURES)
    columns = ", ".join((*KEYS, *MEASURES))
    return (
        f"{before} insert into {target} ({columns}) {aggregate} on conflict (publisher_id, date) do update set {sums}"
    )


def replace(aggregate: str, target: str = "peer_stats") -> str:
    """Puts an aggregate's groups in the place of the target's."""
    values = ", ".join(f"{name} = excluded.{name}" for name in MEASURES)
    columns = ", ".join((*KEYS, *MEASURES))
    return f"insert into {target} ({columns}) {aggregate} on conflict (publisher_id, date) do update set {values}"


def fill(connection: psycopg.Connection, table: str, count: int, begin: datetime, end: datetime, order: str) -> None:
    """That many rows between two instants, by time or at random; the same in each call."""
    place = "n::double precision / {}" if order == "by time" else "random()"
    with connection.transaction():
        connection.execute("select setseed(0.5)")
        connection.execute(
            f"""
            insert into {table} ({COLUMNS})
            select 1 + floor({PUBLISHERS} * random() ^ 3)::int, 281184 + floor({LOCALITIES} * random() ^ 2)::int,
                   '2030-01-01', random() < 0.6, floor(random() ^ 3 * 400)::int, 30, 1 + floor(random() * 3)::int,
                   %s::timestamptz + {place.format(count)} * (%s::timestamptz - %s::timestamptz)
            from generate_series(0, {count - 1}) n
            """,
            [begin, end, begin],
        )


def lines(count: int, seed: int) -> str:
    """Rows of today for COPY, the same for the same seed."""
    rng = random.Random(seed)
    span = (NOW - MIDNIGHT).total_seconds()
    made = []
    for n in range(count):
        publisher, locality = 1 + int(PUBLISHERS * rng.random() ** 3), 281_184 + int(LOCALITIES * rng.random() ** 2)
        hit, took = "t" if n % 5 < 3 else "f", int(rng.random() ** 3 * 400)
        at = (MIDNIGHT + timedelta(seconds=span * rng.random())).isoformat()
        made.append(f"{publisher}\t{locality}\t2030-01-01\t{hit}\t{took}\t30\t{1 + n % 3}\t{at}\n")
    return "".join(made)


def copy(connection: psycopg.Connection, text: str) -> None:
    """Writes `lines` as the API does, in one COPY."""
    with connection.cursor().copy(f"copy calculation_logs ({COLUMNS}) from stdin") as writing:
        writing.write(text)


def insert(connection: psycopg.Connection, publishers: Sequence[int], at: datetime, id_: int | None = None) -> None:
    """One row per publisher, in one statement; with an id if one was drawn before."""
    columns, value = (f"id, {COLUMNS}", f"{id_}, ") if id_ is not None else (COLUMNS, "")
    connection.execute(
        f"insert into calculation_logs ({columns}) "
        f"select {value}publisher, 281184, '2030-01-01', true, 7, 30, 1, %s from unnest(%s::int[]) publisher",
        [at, list(publishers)],
    )


@dataclass(frozen=True)
class Difference:
    """How a target differs from the reference: publisher-days that are wrong, rows that are missing, rows too many."""

    days: int
    missing: int
    surplus: int


def compare(connection: psycopg.Connection, target: str) -> Difference:
    """Compares every measure of every publisher and day with the reference."""
    columns = ", ".join(COLUMNS.split(", "))
    every_row = f"(select {columns} from calculation_logs union all select {columns} from deleted_rows) every_row"
    wrong = " or ".join(f"coalesce(t.{name}, 0) <> coalesce(r.{name}, 0)" for name in MEASURES)
    count = MEASURES[0]
    difference = f"coalesce(t.{count}, 0) - coalesce(r.{count}, 0)"
    found = connection.execute(
        f"""
        select count(*), coalesce(sum(greatest(-({difference}), 0)), 0), coalesce(sum(greatest({difference}, 0)), 0)
        from (select * from {target}) t full join ({grouped(every_row)}) r
          on t.publisher_id = r.publisher_id and t.date = r.date
        where {wrong}
        """
    ).fetchone()
    assert found is not None
    return Difference(*(int(value) for value in found))
