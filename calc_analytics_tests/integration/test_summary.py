"""The table `publisher_usage_summary` equals what pandas computes from the raw log rows, and what the view shows."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy
import pandas
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.database.log_columns import UnfitTable
from calc_analytics.days import today
from calc_analytics.readers import summary
from calc_analytics.readers.summary import refresh_summary
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.erasure import erase
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import LATENCY, LOCALITIES, LOG
from calc_analytics_tests.logs import execute, random_rows, row, write

NOW = datetime.now(timezone.utc)
BIG = 2**60 + 1


@pytest.fixture
def logs(db: Database, connect) -> Database:
    """A hundred days of rows, of seven publishers, all days built. One has no response time at all and localities that
    no double precision number holds, one has no row of the last 30 days."""
    rng = random.Random(7)
    rows = random_rows(rng, 3_000, NOW - timedelta(days=100), NOW, publishers=5)
    rows += [
        row(NOW - timedelta(days=3 * n), publisher=6, response_time_ms=None, locality_id=BIG + n % 3) for n in range(9)
    ]
    rows.append(row(NOW - timedelta(days=60), publisher=7))
    write(connect(), rows)
    refresh(db)
    rebuild(db, sorted({each[-1].date() for each in rows}))
    return db


def raw(db: Database) -> pandas.DataFrame:
    """The log rows with their day in the reporting time zone."""
    with db.engine.begin() as connection:
        rows = connection.execute(text("select * from calculation_logs")).mappings().all()
    frame = pandas.DataFrame([dict(each) for each in rows])
    frame["date"] = pandas.to_datetime(frame["created_at"], utc=True).dt.tz_convert(db.timezone).dt.date
    return frame


def expected(of: pandas.DataFrame, day: date) -> dict[str, Any]:
    """The figures of one publisher's rows, by the columns' descriptions alone."""
    month, recent = day.replace(day=1), of[(of["date"] > day - timedelta(days=30)) & (of["date"] <= day)]
    before = (month - timedelta(days=1)).replace(day=1)
    so_far = [before + timedelta(days=n) for n in range(day.day) if before + timedelta(days=n) < month]
    times, localities = of["response_time_ms"].dropna(), recent["locality_id"].value_counts()
    most = min(localities[localities == localities.max()].index) if len(localities) else None
    this_month, to_date = int((of["date"] >= month).sum()), int(of["date"].isin(so_far).sum())
    return {
        "today": (of["date"] == day).sum(),
        "this_month": this_month,
        "last_month": ((of["date"] >= before) & (of["date"] < month)).sum(),
        "last_month_to_date": to_date,
        "month_change": pytest.approx(this_month / to_date - 1) if to_date else None,
        "last_30_days": len(recent),
        "all_time": len(of),
        "source_web": (of["source"] == 1).sum(),
        "source_api": (of["source"] == 2).sum(),
        "source_external": (of["source"] == 3).sum(),
        "cache_hit_ratio": pytest.approx(of["cache_hit"].mean()),
        "average_response_time_ms": pytest.approx(times.mean()) if len(times) else None,
        "localities": len(localities) or None,
        "top_locality_id": most,
        "top_locality_share": pytest.approx(localities[most] / len(recent)) if len(localities) else None,
        "first_date": of["date"].min(),
        "last_date": of["date"].max(),
        "complete": True,
    }


def stored(db: Database) -> dict[int, dict[str, Any]]:
    """The table's rows by publisher."""
    with db.engine.begin() as connection:
        rows = connection.execute(text("select * from publisher_usage_summary")).mappings()
        return {each["publisher_id"]: dict(each) for each in rows}


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati"])
def test_each_row_equals_what_pandas_computes_from_the_logs(logs, url, zone: str):
    if zone != "UTC":
        execute(logs, f"update rollup_state set timezone = '{zone}'")
        logs = Database(logs.engine, LOG, zone)
        rebuild(logs, sorted(set(raw(logs)["date"])))
    refresh_summary(logs)
    frame, found = raw(logs), stored(logs)
    assert set(found) == set(frame["publisher_id"])
    for publisher, of in frame.groupby("publisher_id"):
        wanted = expected(of, today(zone))
        assert {name: found[publisher][name] for name in wanted} == wanted, publisher
    order = sorted(found.values(), key=lambda each: (-each["last_30_days"], -each["all_time"], each["publisher_id"]))
    assert [each["rank"] for each in order] == list(range(1, 8))


def test_percentiles_are_within_one_per_cent_of_numpys(logs):
    refresh_summary(logs)
    frame, found = raw(logs), stored(logs)
    recent = frame[frame["date"] > today("UTC") - timedelta(days=30)]
    for publisher, of in recent.groupby("publisher_id"):
        times = of["response_time_ms"].dropna()
        for name, rank in {"p50_response_time_ms": 50, "p95_response_time_ms": 95}.items():
            wanted = numpy.percentile(times, rank) if len(times) else None
            assert found[publisher][name] == (None if wanted is None else pytest.approx(wanted, rel=0.01))


def test_it_agrees_with_the_view(logs, owner):
    refresh_summary(logs)
    with owner.begin() as connection:
        view = {
            each["publisher_id"]: dict(each)
            for each in connection.execute(text("select * from publisher_usage")).mappings()
        }
    found = stored(logs)
    assert set(found) == set(view)
    for publisher, wanted in view.items():
        assert {name: found[publisher][name] for name in wanted} == {
            name: pytest.approx(value) if isinstance(value, float) else value for name, value in wanted.items()
        }


def test_figures_of_all_publishers_equal_the_platforms(logs, owner):
    figures = refresh_summary(logs).figures
    with owner.begin() as connection:
        platform = connection.execute(text("select * from platform_usage")).mappings().one()
    frame = raw(logs)
    assert figures == {
        "calculations": platform["all_time"],
        "calculations_today": platform["today"],
        "publishers": 7,
        "localities": frame[frame["date"] > today("UTC") - timedelta(days=30)]["locality_id"].nunique(),
        "cache_hit_ratio": pytest.approx(platform["cache_hit_ratio"], rel=1e-3),
        "average_response_time_ms": pytest.approx(platform["average_response_time_ms"], rel=1e-3),
        "p95_response_time_ms": pytest.approx(platform["p95_response_time_ms"], rel=1e-3),
    }


def test_a_second_refresh_replaces_the_rows_and_moves_counted_at(logs, connect):
    first = refresh_summary(logs)
    write(connect(), [row(NOW, publisher=9)])
    refresh(logs)
    second = refresh_summary(logs)
    assert second.counted_at > first.counted_at
    assert {each["counted_at"] for each in stored(logs).values()} == {second.counted_at}
    assert set(stored(logs)) == {1, 2, 3, 4, 5, 6, 7, 9}


def test_without_logs_the_table_is_empty_and_has_no_ratios(db):
    summary = refresh_summary(db)
    assert stored(db) == {}
    assert summary.figures == {"calculations": 0, "calculations_today": 0, "publishers": 0, "localities": 0}


def test_what_needs_a_rollup_that_is_not_kept_is_null(logs, owner):
    rest = LOG.only([name for name in LOG.names if name not in (LATENCY.name, LOCALITIES.name)])
    install(Database(owner, rest, "UTC"))
    refresh_summary(Database(logs.engine, rest, "UTC"))
    nothing = ("average_response_time_ms", "p50_response_time_ms", "p95_response_time_ms", "localities")
    for each in stored(logs).values():
        assert [each[name] for name in (*nothing, "top_locality_id", "top_locality_share")] == [None] * 6
        assert each["all_time"] > 0
        assert not each["complete"]


def test_a_refresh_that_fails_leaves_the_rows_as_they_were(logs):
    refresh_summary(logs)
    before = stored(logs)
    execute(logs, "alter table publisher_usage_summary add constraint no check (publisher_id < 5) not valid")
    with pytest.raises(Exception, match="violates check constraint"):
        refresh_summary(logs)
    assert stored(logs) == before


def test_an_erased_publisher_has_no_row_at_once(db, owner, connect):
    write(connect(), [row(NOW - timedelta(days=n % 2), publisher=n) for n in range(6)])
    refresh(db)
    refresh_summary(db)
    assert set(stored(db)) == {0, 1, 2, 3, 4, 5}
    erase(Database(owner, LOG, "UTC"), {"publisher_id": 2}, even_if_writing=True)
    assert set(stored(db)) == {0, 1, 3, 4, 5}
    assert refresh_summary(db).figures["publishers"] == 5


def test_an_erasure_waits_for_a_summary_that_has_read_the_publisher(db, owner, connect, monkeypatch):
    """The row that the summary writes meanwhile is deleted as well."""
    write(connect(), [row(NOW, publisher=n) for n in range(3)])
    refresh(db)
    has_read, may_write, table = threading.Event(), threading.Event(), summary._table

    def slowly(*given: Any) -> Any:
        has_read.set()
        assert may_write.wait(30)
        return table(*given)

    monkeypatch.setattr(summary, "_table", slowly)
    with ThreadPoolExecutor(2) as pool:
        computing = pool.submit(refresh_summary, db)
        assert has_read.wait(30)
        erasing = pool.submit(erase, Database(owner, LOG, "UTC"), {"publisher_id": 2}, even_if_writing=True)
        while not is_waited_for(owner):
            assert not erasing.done()
        may_write.set()
        assert set(computing.result().table["publisher_id"]) == {0, 1, 2}
        assert erasing.result().left == []
    assert set(stored(db)) == {0, 1}


def is_waited_for(engine: Engine) -> bool:
    """Whether a session waits for a lock on the table."""
    waiting = (
        "select exists (select from pg_locks where not granted and relation = 'publisher_usage_summary'::regclass)"
    )
    with engine.begin() as connection:
        return bool(connection.exec_driver_sql(waiting).scalar_one())


def test_another_programs_table_of_that_name_is_refused_and_stays(owner):
    execute(owner, "drop table publisher_usage_summary")
    execute(owner, "create table publisher_usage_summary as select 1 as theirs")
    with pytest.raises(UnfitTable, match="publisher_usage_summary was not created by this project"):
        install(Database(owner, LOG, "UTC"))
    with owner.begin() as connection:
        assert connection.execute(text("select theirs from publisher_usage_summary")).scalars().all() == [1]
