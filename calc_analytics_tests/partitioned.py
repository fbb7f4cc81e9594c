"""What tests of a partitioned log share: the table, its months, and rows in them."""

from collections.abc import Iterable
from datetime import date
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.rollup.database import Database
from calc_analytics.rollup.ledger import waiting_days
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh

COLUMNS = """
    id bigserial, publisher_id integer not null, locality_id bigint not null, date_calculated date not null,
    cache_hit boolean not null default false, response_time_ms smallint, zman_count smallint,
    source smallint not null, created_at timestamptz not null default now(),
    xact_id bigint default txid_current(), primary key (id, created_at)
"""
LOGS = f"create table calculation_logs ({COLUMNS}) partition by range (created_at)"


def month(number: int, of: str = "calculation_logs", more: str = "") -> str:
    """The statement that adds a month of 2026."""
    bounds = f"from ('2026-{number:02}-01Z') to ('2026-{number + 1:02}-01Z')"
    return f"create table calculation_logs_2026_{number:02} partition of {of} for values {bounds} {more}"


def run(place: Engine | Database, *statements: str) -> None:
    """Runs the statements, each in a transaction."""
    engine = place.engine if isinstance(place, Database) else place
    for statement in statements:
        with engine.begin() as connection:
            connection.execute(text(statement.replace(":", r"\:")))


def scalar(place: Engine | Database, statement: str) -> Any:
    """The single value that the query returns."""
    engine = place.engine if isinstance(place, Database) else place
    with engine.begin() as connection:
        return connection.execute(text(statement.replace(":", r"\:"))).scalar()


def write_days(db: Database, days: Iterable[date], rows: int = 10) -> None:
    """So many rows, of several publishers, localities and hours, for each of these days."""
    for day in days:
        run(
            db,
            "insert into calculation_logs (publisher_id, locality_id, date_calculated, cache_hit, response_time_ms, "
            "source, created_at) select i % 5, i % 3, '2030-01-01', i % 2 = 0, i % 300, 1 + i % 3, "
            f"cast('{day} 00:00Z' as timestamptz) + i * interval '{86_399 // rows} seconds' "
            f"from generate_series(1, {rows}) i",
        )


def count_days(db: Database, days: Iterable[date]) -> None:
    """Writes rows of these days, and builds them in every rollup."""
    write_days(db, days)
    refresh(db)
    rebuild(db, waiting_days(db))


def partitions(place: Engine | Database) -> list[str]:
    """The names of all tables that hold log rows, besides the log table."""
    names = scalar(
        place,
        "select array_agg(cast(relid as text) order by cast(relid as text)) from pg_partition_tree('calculation_logs') "
        "where level > 0",
    )
    return names or []
