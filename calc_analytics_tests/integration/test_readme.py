"""The queries that the README gives to the API team return what an independent computation over the log rows says."""

import math
import random
import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.config import project_root
from calc_analytics.days import days_between
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics_tests.logs import COLUMNS, Row, random_rows, write

API_TEAM = (project_root() / "README.md").read_text().split("\n## For the API team\n")[1].split("\n## ")[0]
QUERIES = re.findall(r"^    -- ([^\n]+)\n((?:    [^\n]*\n)+?)(?=\n|    --)", API_TEAM, re.MULTILINE)
PUBLISHER, DAYS = 2, 20


@pytest.fixture
def rows(db: Database, connect: Callable[[], psycopg.Connection]) -> list[Row]:
    """Log rows of the last days, of which those of the last minutes are not counted yet."""
    now, rng = datetime.now(timezone.utc), random.Random(5)
    counted = random_rows(rng, 2_000, now - timedelta(days=DAYS), now)
    write(connect(), counted)
    rebuild(db, days_between((now - timedelta(days=DAYS)).date(), now.date()))
    later = random_rows(rng, 200, now.replace(hour=0, minute=0, second=0, microsecond=0), now)
    write(connect(), later)
    return [each for each in (*counted, *later) if value(each, "publisher_id") == PUBLISHER]


def value(row: Row, column: str) -> Any:
    return row[COLUMNS.index(column)]


def answer(engine: Engine, title: str) -> list[Any]:
    """The rows of the query below the comment that begins like that."""
    (query,) = [sql for comment, sql in QUERIES if comment.startswith(title)]
    with engine.begin() as connection:
        return list(connection.execute(text(query.rstrip().rstrip(";")), {"publisher": PUBLISHER}))


def of_today(rows: list[Row]) -> list[Row]:
    today = datetime.now(timezone.utc).date()
    return [each for each in rows if value(each, "created_at").date() == today]


def test_there_are_four_queries():
    assert len(QUERIES) == 4


def test_today_is_exact_at_the_moment_of_the_query(engine: Engine, rows: list[Row]):
    ((total, ratio),) = answer(engine, "today")
    today = of_today(rows)
    assert total == len(today) > 0
    assert ratio == pytest.approx(sum(value(each, "cache_hit") for each in today) / len(today))


def test_the_last_thirty_days_have_a_row_each(db: Database, engine: Engine, rows: list[Row]):
    rebuild(db, [datetime.now(timezone.utc).date()])
    found = answer(engine, "the last 30 days")
    expected = Counter(value(each, "created_at").date() for each in rows)
    assert len(found) == 30
    assert {day: total for day, total in found if total} == expected


def test_the_response_times_of_this_month_are_those_that_are_known(db: Database, engine: Engine, rows: list[Row]):
    rebuild(db, [datetime.now(timezone.utc).date()])
    ((average, p95),) = answer(engine, "average and 95th percentile")
    measured = [value(each, "response_time_ms") for each in of_this_month(rows)]
    times = sorted(each for each in measured if each is not None)
    # The histogram rounds each value down by at most 1.6 %.
    assert sum(times) / len(times) * 0.984 <= average <= sum(times) / len(times)
    exact = times[math.ceil(0.95 * len(times)) - 1]
    assert exact * 0.984 <= p95 <= exact


def test_the_localities_of_this_month_are_the_most_frequent_ones(db: Database, engine: Engine, rows: list[Row]):
    rebuild(db, [datetime.now(timezone.utc).date()])
    expected = Counter(value(each, "locality_id") for each in of_this_month(rows))
    assert answer(engine, "the ten localities") == sorted(expected.items(), key=lambda item: (-item[1], item[0]))


def of_this_month(rows: list[Row]) -> list[Row]:
    first = datetime.now(timezone.utc).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return [each for each in rows if value(each, "created_at") >= first]
