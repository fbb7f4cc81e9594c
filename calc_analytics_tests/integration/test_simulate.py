"""Made-up traffic looks like the API's; the demo shows what becomes of it."""

import io
import threading
from datetime import date, datetime, timedelta, timezone

import pytest
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.engine import Engine

from calc_analytics.cli import terminal
from calc_analytics.config import Settings
from calc_analytics.processes import demo
from calc_analytics.processes.simulate import RHYTHM, WEEK, Traffic, relative_load, simulate, write_history
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.figures import day_totals
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.status import different_days, recent_days
from calc_analytics.rollups import LATENCY, LOG, STATS

SHAPE = """
    select count(*) as rows, count(distinct xact_id) as batches, max(batch) as largest, avg(hit) as hits,
           avg(missing) as missing, count(distinct publisher_id) as publishers, max(share) as top, avg(late) as late
    from (
        select *, count(*) over (partition by xact_id) as batch, cache_hit::int as hit,
               (response_time_ms is null)::int as missing,
               count(*) over (partition by publisher_id)::float / count(*) over () as share,
               (created_at < now() - interval '5 minutes')::int as late
        from calculation_logs) l
"""


def test_batches_writers_and_shares_are_the_apis(engine, url):
    report = simulate(url, Traffic(rate=8_000, writers=4, late_share=0.02, seed=1), rows=6_000)
    assert report.rows == 6_000
    with engine.begin() as connection:
        shape = connection.execute(text(SHAPE)).one()
    assert (shape.rows, shape.batches) == (6_000, report.batches)
    assert shape.largest == 100
    assert 0.57 < shape.hits < 0.63
    assert 0.01 < shape.missing < 0.03
    assert 150 < shape.publishers <= 200
    assert 0.14 < shape.top < 0.20, "Zipf: the first of 200 has 17 %"
    assert 0.01 < shape.late < 0.03


def test_a_slow_writer_sends_what_it_has_once_a_second(engine, url):
    report = simulate(url, Traffic(rate=20, writers=1), seconds=2.5)
    assert 1 <= report.batches <= 4
    assert 20 * (report.batches - 1) <= report.rows <= 20 * report.batches


def test_what_came_in_before_the_end_is_written_too(engine, url):
    report = simulate(url, Traffic(rate=40, writers=2), seconds=0.5)
    assert report.batches == 2
    assert 0 < report.rows <= 20


@pytest.mark.parametrize("zone", ["UTC", "Asia/Jerusalem"])
def test_history_has_a_daily_rhythm_and_stays_within_its_days(engine, url, zone: str):
    day = date(2026, 3, 3)
    assert write_history(url, [day], 4_000, Traffic(rate=1, writers=1, seed=1), zone) == 4_000
    with engine.begin() as connection:
        hours = connection.execute(
            text(
                "select extract(hour from created_at at time zone :zone)::int as hour, count(*) as rows, "
                "min((created_at at time zone :zone)::date) as first, "
                "max((created_at at time zone :zone)::date) as last "
                "from calculation_logs group by 1"
            ),
            {"zone": zone},
        ).all()
    assert {(hour.first, hour.last) for hour in hours} == {(day, day)}
    rows = {hour.hour: hour.rows for hour in hours}
    assert rows[RHYTHM.index(max(RHYTHM))] > 3 * rows[RHYTHM.index(min(RHYTHM))]


def test_history_of_today_ends_now(engine, url):
    now = datetime.now(timezone.utc)
    write_history(url, [now.date()], 500, Traffic(rate=1, writers=1), "UTC", now)
    with engine.begin() as connection:
        last = connection.execute(text("select max(created_at) from calculation_logs")).scalar()
    assert last is None or last <= now + timedelta(seconds=1)


RATE = 0.05


@pytest.fixture
def owned(owner: Engine) -> Database:
    """The demo writes log rows as well."""
    return Database(owner, LOG, "UTC")


def write_demo_history(db: Database, count: int) -> None:
    demo.write_days(db, demo.missing_history(db, count), RATE, threading.Event(), lambda rows: None)


def test_the_demo_counts_its_history_in_every_rollup_and_a_second_demo_adds_nothing(owned):
    for _ in range(2):
        write_demo_history(owned, 2)
    found = recent_days(owned, 10)
    assert len(found) == 3 * len(owned.log.rollups)
    assert {day.status for day in found} == {"built"}
    past = [day for day in found if day.day != max(each.day for each in found)]
    assert {(day.day, day.rows) for day in past} == {(day.day, demo.rows_of(day.day, RATE, "UTC")) for day in past}
    assert demo.first_partition(owned, Settings()) == min(day.day for day in found)


def test_the_demos_history_and_its_live_rows_have_the_same_rate():
    """Over the week before today: as many rows as live rows would be at the same hours, but for growth and noise."""
    today = datetime.now(timezone.utc).date()
    hours = [datetime(2026, 3, 2 + day, hour, tzinfo=timezone.utc) for day in range(7) for hour in range(24)]
    live = sum(relative_load(at) * 3600 for at in hours)
    history = sum(demo.rows_of(today - timedelta(days=n), 1, "UTC") for n in range(7))
    assert 0.9 < history / live < 1.05
    assert demo.rows_of(today, 1, "UTC") == round(86_400 * WEEK[today.weekday()])
    a_month_before = today - timedelta(days=28)
    assert 0.7 < demo.rows_of(a_month_before, 1, "UTC") / demo.rows_of(today, 1, "UTC") < 0.9


def test_what_is_written_looks_like_a_service(engine, url):
    """The cache improves over the weeks, response times have a tail, kinds of publishers differ in their sources."""
    now = datetime.now(timezone.utc)
    long_ago = now.date() - timedelta(days=30)
    write_history(url, [long_ago, now.date() - timedelta(days=1)], 8_000, Traffic(rate=1, writers=1, seed=1))
    statement = """
        select cast(created_at at time zone 'UTC' as date) as day, avg(cache_hit::int) as hits,
               percentile_cont(0.5) within group (order by response_time_ms) as p50,
               percentile_cont(0.995) within group (order by response_time_ms) as p995,
               avg((source = 1)::int) filter (where publisher_id % 3 = 0) as web_of_sites,
               avg((source = 3)::int) filter (where publisher_id % 3 = 2) as external_of_partners,
               count(distinct locality_id) filter (where publisher_id = 1) as localities
        from calculation_logs group by 1 order by 1
    """
    with engine.begin() as connection:
        past, recent = connection.execute(text(statement)).all()
    assert 0.47 < past.hits < 0.55 < recent.hits < 0.65
    assert past.p50 < 20
    assert past.p995 > 10 * past.p50
    assert past.web_of_sites > 0.7
    assert past.external_of_partners > 0.5
    assert past.localities > 3


def test_the_demo_prints_live_totals_and_the_proof_of_all_rollups(owned, capsys):
    write_demo_history(owned, 1)
    counted = 0
    with terminal.live_table() as draw:
        for frame in demo.live(owned, 200, 3.5, threading.Event()):
            counted += refresh(owned).rows
            draw(*frame)
    message = capsys.readouterr().out
    assert "calculations · " in message
    assert " rows written live · verify: difference 0 in 4 rollups at " in message
    assert counted > 0
    assert different_days(owned) == {}


@pytest.mark.parametrize(
    ("rollup", "headings"),
    [
        (STATS, ["day", "publishers", "total", "cached", "web", "API", "external", "avg ms"]),
        (LATENCY, ["day", "rows", "calculations"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_table_of_totals_has_a_column_for_each_measure_in_80_columns(db, url, rollup, headings: list[str]):
    write_history(url, [date(2026, 3, 3)], 1_000, Traffic(rate=1, writers=1, seed=1))
    refresh(db)
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal.totals_table(rollup, day_totals(db, rollup, [date(2026, 3, 3)]), "caption"))
    title, columns = console.file.getvalue().splitlines()[:2]  # type: ignore[attr-defined]
    assert title.strip() == rollup.name
    assert " ".join(columns.split()) == " ".join(headings)
    assert "1,000" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_busy_day_of_the_demo_fits_80_columns():
    """As many rows as a Friday has at the highest rate."""
    sums = dict.fromkeys(STATS.measure_names, 1_252_800) | dict.fromkeys(STATS.measure_names[1:], 752_000)
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal.totals_table(STATS, {date(2026, 3, 6): {"keys": 200, **sums}}, "caption"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert "1,252,800" in shown
