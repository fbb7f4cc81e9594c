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
from calc_analytics.rollup.erasure import NothingToErase, erase
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import HOURS, LATENCY, LOCALITIES, LOG, STATS
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
    whole = min(day.day - 1, (month - before).days)
    this_so_far, last_so_far = ({first + timedelta(days=n) for n in range(whole)} for first in (month, before))
    times, localities = of["response_time_ms"].dropna(), recent["locality_id"].value_counts()
    most = min(localities[localities == localities.max()].index) if len(localities) else None
    this_to_date, to_date = (int(of["date"].isin(each).sum()) for each in (this_so_far, last_so_far))
    return {
        "today": (of["date"] == day).sum(),
        "this_month": (of["date"] >= month).sum(),
        "last_month": ((of["date"] >= before) & (of["date"] < month)).sum(),
        "last_month_to_date": to_date,
        "month_change": pytest.approx(this_to_date / to_date - 1) if to_date else None,
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
        days = set(raw(logs)["date"])  # of which the first may have no rows in the other zone
        execute(logs, f"update rollup_state set timezone = '{zone}'")
        logs = Database(logs.engine, LOG, zone)
        rebuild(logs, sorted({*days, *raw(logs)["date"]}))
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


def without_a_time(db: Database, day: date, name: str, status: str) -> None:
    """The day is not built in the histogram, which holds nothing of it."""
    execute(db, f"update rollup_days set status = '{status}' where date = '{day}' and rollup = '{name}'")
    execute(db, f"delete from {name} where date = '{day}'")


def add_predecessors_day(db: Database, day: date) -> None:
    """A day whose log rows were gone before the project kept its table: in no other rollup, and with other rows."""
    execute(db, f"delete from calculation_logs where created_at >= '{day} 00:00Z' and created_at < '{day} 24:00Z'")
    for rollup in LOG.rollups[1:]:
        execute(db, f"delete from {rollup.name} where date = '{day}'")
        execute(db, f"delete from rollup_days where date = '{day}' and rollup = '{rollup.name}'")
    execute(db, f"update rollup_days set status = 'frozen', counted = null where date = '{day}'")
    execute(db, f"update {STATS.name} set total_calculations = 1000, total_response_time_ms = 1 where date = '{day}'")


UNKNOWN_DAYS = (today("UTC") - timedelta(days=40), today("UTC") - timedelta(days=50))


@pytest.fixture
def partly_timed(logs) -> Database:
    """One day is pending in the histogram, and one is a predecessor's."""
    pending, frozen = UNKNOWN_DAYS
    without_a_time(logs, pending, LATENCY.name, "pending")
    add_predecessors_day(logs, frozen)
    return logs


def test_days_whose_rows_without_a_time_are_not_known_are_in_no_average(partly_timed):
    refreshed, found = refresh_summary(partly_timed), stored(partly_timed)
    frame = raw(partly_timed)
    known = frame[~frame["date"].isin(UNKNOWN_DAYS)]
    for publisher, of in known.groupby("publisher_id"):
        times = of["response_time_ms"].dropna()
        wanted = pytest.approx(times.mean()) if len(times) else None
        assert found[publisher]["average_response_time_ms"] == wanted, publisher
        assert not found[publisher]["complete"]
    average = pytest.approx(known["response_time_ms"].mean(), rel=1e-3)
    assert refreshed.figures["average_response_time_ms"] == average


def test_a_publisher_of_whom_no_days_times_are_known_has_no_average(db, connect):
    """Two rows, one without a time, of which the histogram lacks both: 20 ms must not become 10."""
    write(connect(), [row(NOW, response_time_ms=20), row(NOW, response_time_ms=None)])
    refresh(db)
    without_a_time(db, today("UTC"), LATENCY.name, "pending")
    assert "average_response_time_ms" not in refresh_summary(db).figures
    assert stored(db)[1]["average_response_time_ms"] is None
    rebuild(db, [today("UTC")])
    assert refresh_summary(db).figures["average_response_time_ms"] == 20.0
    assert stored(db)[1]["average_response_time_ms"] == 20.0


@pytest.mark.parametrize("rollup", [STATS, LOCALITIES, LATENCY])
def test_it_is_complete_if_each_rollup_that_its_columns_are_of_is_built(logs, rollup):
    execute(logs, f"update rollup_days set status = 'stale' where rollup = '{HOURS.name}'")
    older = "update rollup_days set status = 'stale' where date < current_date - 29 and rollup in"
    execute(logs, f"{older} ('{LOCALITIES.name}', '{LATENCY.name}')")
    refresh_summary(logs)
    assert {each["complete"] for each in stored(logs).values()} == {True}
    execute(logs, f"update rollup_days set status = 'stale' where rollup = '{rollup.name}' and date = current_date - 9")
    refresh_summary(logs)
    assert {each["complete"] for each in stored(logs).values()} == {False}


def test_rows_of_no_calculations_are_not_the_first_or_last_day(logs):
    """An erasure by another key, or another program, may leave a row of zeros."""
    for day in ("2020-01-01", "2035-01-01"):
        execute(logs, f"insert into {STATS.name} (publisher_id, date) select n, '{day}' from generate_series(1, 8) n")
    refresh_summary(logs)
    frame, found = raw(logs), stored(logs)
    assert set(found) == set(frame["publisher_id"])
    for publisher, of in frame.groupby("publisher_id"):
        dates = (found[publisher]["first_date"], found[publisher]["last_date"])
        assert dates == (of["date"].min(), of["date"].max())


@pytest.mark.parametrize(
    ("day", "this_month", "last_month"),
    [
        (date(2026, 3, 1), [], []),
        (date(2026, 3, 2), [1], [1]),
        (date(2026, 3, 20), range(1, 20), range(1, 20)),
        (date(2026, 3, 31), range(1, 29), range(1, 29)),
        (date(2026, 1, 15), range(1, 15), range(1, 15)),
    ],
)
def test_the_months_are_compared_by_as_many_whole_days(day: date, this_month, last_month):
    limits = summary._days(day)
    for first, last, numbers in (
        (limits["month"], limits["month_to"], this_month),
        (limits["last_month"], limits["last_month_to"], last_month),
    ):
        assert first.day == 1
        assert [first + timedelta(days=n) for n in range((last - first).days + 1)] == [
            first.replace(day=number) for number in numbers
        ]


@pytest.mark.parametrize("days", ["all built", "partly built"])
def test_it_agrees_with_the_view(logs, owner, days: str):
    if days == "partly built":
        without_a_time(logs, UNKNOWN_DAYS[0], LATENCY.name, "pending")
        add_predecessors_day(logs, UNKNOWN_DAYS[1])
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
        assert each["complete"], "a column without its rollup is null, which waits for no day"


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


def test_a_row_that_an_interrupted_erasure_left_is_erased_and_the_message_says_so(db, owner, connect):
    write(connect(), [row(NOW, publisher=n) for n in range(2)])
    refresh(db)
    refresh_summary(db)
    execute(db, "update publisher_usage_summary set publisher_id = 7 where publisher_id = 0")
    place = Database(owner, LOG, "UTC")
    with pytest.raises(NothingToErase, match="erased 1 row of publisher_usage_summary only"):
        erase(place, {"publisher_id": 7})
    with pytest.raises(NothingToErase, match="nothing was erased"):
        erase(place, {"publisher_id": 7})
    assert set(stored(db)) == {1}


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
