"""The live view: the table's columns, and equal to the logs at every step of the orchestrator."""

import random
from datetime import date, timedelta

import pytest
from sqlalchemy import text

from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import LOG, STATS
from calc_analytics_tests.logs import assert_live, copy_rows, random_rows, row, stored, utc, write

COLUMNS = """
    select column_name, data_type from information_schema.columns where table_name = :name order by ordinal_position
"""


@pytest.mark.parametrize("rollup", LOG.rollups, ids=LOG.names)
def test_it_has_the_tables_columns_and_types(db, rollup: Rollup):
    with db.engine.begin() as connection:
        view = connection.execute(text(COLUMNS), {"name": rollup.live_view}).all()
        table = connection.execute(text(COLUMNS), {"name": rollup.name}).all()
    if rollup is STATS:  # the API's own table: what works with the one works with the other
        assert view == table
    assert sorted(view) == sorted(table)


def test_a_new_day_is_in_the_view_before_any_refresh(db, connect):
    write(connect(), [row(utc(2026, 3, 1, 12), publisher=n) for n in range(5)])
    assert stored(db) == {}
    assert_live(db)


@pytest.mark.long
def test_it_equals_the_logs_at_every_step_of_random_work(db, connect):
    rng, days = random.Random(5), [date(2026, 3, 1) + timedelta(days=n) for n in range(3)]
    rebuild(db, days)
    writers = [connect() for _ in range(3)]
    steps = {
        "write": lambda writer: copy_rows(writer, random_rows(rng, 5, utc(2026, 3, 1), utc(2026, 3, 4))),
        "commit": lambda writer: writer.commit(),
        "rollback": lambda writer: writer.rollback(),
        "refresh": lambda writer: refresh(db),
        "rebuild": lambda writer: rebuild(db, rng.sample(days, 2)),
    }
    for _ in range(150):
        step = rng.choices(list(steps), weights=[6, 4, 1, 3, 1])[0]
        steps[step](rng.choice(writers))
        assert_live(db)
