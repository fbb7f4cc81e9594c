"""Pictures, previews and plotted numbers of days and of the summary: what an operator sees, against the raw logs."""

import logging
import random
import re
from datetime import date, datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy
import pandas
import pytest
from dagster import AssetKey, AssetRecordsFilter, DagsterInstance, Definitions, MetadataValue
from sqlalchemy import text

from calc_analytics.config import process_settings
from calc_analytics.orchestration import metadata
from calc_analytics.orchestration.cursor import Cursor
from calc_analytics.orchestration.events import report_days
from calc_analytics.orchestration.partitions import daily_partitions
from calc_analytics.readers import day_figures as day_figures_module
from calc_analytics.readers import pictures
from calc_analytics.readers.day_figures import day_figures
from calc_analytics.readers.pictures import TrendDay, draw_trend, read_trend
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.follow import FollowReport
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import LOG
from calc_analytics_tests.logs import execute, random_rows, row, utc, write

STATS, SUMMARY = AssetKey("calculation_stats_daily"), AssetKey("publisher_usage_summary")
LOCALITIES = AssetKey("calculation_locality_stats_daily")
P95 = "p95_response_time_ms"
DAY = date(2026, 3, 20)
DAYS = [DAY - timedelta(days=n) for n in range(40)]


@pytest.fixture
def logs(db: Database, connect) -> Database:
    """Forty days of rows at random instants, one of them without any."""
    rows = random_rows(random.Random(3), 2_000, utc(2026, 2, 9), utc(2026, 3, 21))
    write(connect(), [each for each in rows if each[-1].date() != DAY - timedelta(days=4)])
    rebuild(db, DAYS)
    return db


def raw(db: Database) -> pandas.DataFrame:
    with db.engine.begin() as connection:
        frame = pandas.DataFrame(connection.execute(text("select * from calculation_logs")).mappings().all())
    return frame.assign(date=pandas.to_datetime(frame["created_at"], utc=True).dt.date)


def run(location: Definitions, instance: DagsterInstance, first: date, last: date) -> Any:
    ends = {"start": str(first), "end": str(last)}
    tags = {f"dagster/asset_partition_range_{end}": day for end, day in ends.items()}
    return location.resolve_job_def("rollup_job").execute_in_process(instance=instance, tags=tags)


def shown(instance: DagsterInstance, asset: AssetKey, day: date | None = None) -> dict[str, MetadataValue]:
    """The metadata of the latest materialization."""
    records = AssetRecordsFilter(asset, asset_partitions=[str(day)] if day else None)
    (record,) = instance.fetch_materializations(records, limit=1).records
    return dict(record.asset_materialization.metadata)


def image(markdown: MetadataValue | str) -> dict[str, Any]:
    """The image inside of Markdown that Dagster shows without a click: the heights of each color's bars by day, and the
    points of the line, both in pixels from the bottom of their part."""
    written = markdown if isinstance(markdown, str) else str(markdown.value)
    assert len(written) < 1_000
    found = re.fullmatch(r"!\[last 30 days\]\(data:image/svg\+xml,([^()\s]+)\) [\w,.:; ()-]+", written)
    assert found, written
    picture = ElementTree.fromstring(unquote(found.group(1)))
    bars, line = {}, []
    for path in picture:
        if path.get("fill") == "none":
            line = points(path.get("d", ""))
        else:
            bars[path.get("fill")] = heights(path.get("d", ""))
    return {"bars": bars, "line": line, "size": (picture.get("width"), picture.get("height"))}


def points(path: str) -> list[int]:
    """The heights of a line's points, from the top of the image."""
    found: list[int] = []
    for start, steps in re.findall(r"M\d+,(\d+)l?([^M]*)", path):
        found.append(int(start))
        for across, down in re.findall(r"(\d+),?(-?\d+)", steps):
            assert across == "8"
            found.append(found[-1] + int(down))
    return found


def heights(outline: str) -> list[int]:
    """The height of each of the 30 bars of an outline."""
    found, top = [], 0
    for step, number in re.findall(r"([vh])(-?\d+)", outline):
        top -= int(number) if step == "v" else 0
        found += [top] * (int(number) // 8 if step == "h" else 0)
    assert len(found) == 30
    return found


def test_the_picture_shows_what_pandas_counts_in_the_logs(logs):
    frame, days = raw(logs), read_trend(logs, DAY)
    assert [day.date for day in days] == DAYS[29::-1]
    for day in days:
        of = frame[frame["date"] == day.date]
        sources = [int((of["source"] == source).sum()) for source in (1, 2, 3)]
        assert [day.calculations, day.source_web, day.source_api, day.source_external, day.other] == [
            len(of), *sources, len(of) - sum(sources),
        ]  # fmt: skip
        times = of["response_time_ms"].dropna()
        assert day.p95_ms == (pytest.approx(numpy.percentile(times, 95), rel=0.01) if len(times) else None)


def test_figures_of_a_day_equal_pandas_and_are_left_out_where_the_day_is_not_built(logs):
    frame = raw(logs)
    expected = {}
    for day in DAYS[:10]:
        of = frame[frame["date"] == day]
        if len(of):
            p95 = numpy.percentile(of["response_time_ms"].dropna(), 95)
            expected[day] = {
                "p95_response_time_ms": pytest.approx(p95, rel=0.01),
                "localities": of["locality_id"].nunique(),
            }
    assert day_figures(logs, DAYS[9], DAY) == expected
    execute(logs, f"update rollup_days set status = 'stale' where date = '{DAY}' and rollup like '%locality%'")
    assert set(day_figures(logs, DAY, DAY)[DAY]) == {"p95_response_time_ms"}


def test_a_run_of_several_days_has_one_picture_at_its_newest_and_numbers_at_each(location, instance, logs):
    run(location, instance, DAYS[2], DAY)
    picture = image(shown(instance, STATS, DAY)[metadata.PICTURE])
    assert all(max(bars) <= 40 for bars in picture["bars"].values())
    assert next(max(bars) for bars in picture["bars"].values()) == 40
    assert len(picture["line"]) == 29, "a day without rows has no percentile"
    for day in (DAYS[1], DAYS[2]):
        assert metadata.PICTURE not in shown(instance, STATS, day)
    for day in DAYS[:3]:
        numbers = {name: value.value for name, value in shown(instance, STATS, day).items()}
        assert {"cache_hit_ratio", "average_response_time_ms", "p95_response_time_ms", "localities"} <= set(numbers)
        assert numbers["top_publishers"].startswith("|")
    for other in LOG.names[1:]:
        assert metadata.PICTURE not in shown(instance, AssetKey(other), DAY)
    assert "top_localities" not in shown(instance, LOCALITIES, DAYS[1])
    frame = raw(logs)
    counts = frame[frame["date"] == DAY]["locality_id"].value_counts()
    lines = str(shown(instance, LOCALITIES, DAY)["top_localities"].value).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {int(each[1]): int(each[2]) for each in cells} == dict(counts)
    assert [each[3] for each in cells] == [f"{count / counts.sum():.0%}" for count in sorted(counts, reverse=True)]


def test_the_summary_has_numbers_to_plot_a_preview_and_a_picture(location, instance, db, connect):
    now = datetime.now(timezone.utc)
    write(connect(), [row(now, publisher=n, cache_hit=n < 10, locality_id=n % 3) for n in range(25)])
    location.resolve_job_def("rollup_job").execute_in_process(instance=instance, partition_key=str(now.date()))
    event = shown(instance, SUMMARY)
    assert image(event[metadata.PICTURE])["bars"]["steelblue"][-1] == 40
    numbers = {name: value.value for name, value in event.items() if isinstance(value.value, int | float)}
    assert numbers.pop("duration_seconds") > 0
    assert numbers.pop("counted_at") > 0
    assert numbers == {
        "calculations": 25,
        "calculations_today": 25,
        "publishers": 25,
        "localities": 3,
        "cache_hit_ratio": 0.4,
        "average_response_time_ms": 10.0,
        "p95_response_time_ms": 10.0,
        "dagster/row_count": 25,
    }
    header, *lines = str(event["first_publishers"].value).splitlines()
    assert header.split("|")[1:-1] == ["publisher_id", "last_30_days", "month_change", "cache_hit_ratio", P95]
    assert lines == ["|-:|-:|-:|-:|-:|", *(f"|{n}|1||{'100' if n < 10 else '0'}%|10|" for n in range(25))]


def test_previews_have_as_many_rows_as_dagster_shows_without_a_click():
    """It shows Markdown of fewer than 1,000 characters, whatever the numbers are."""
    columns = ["publisher_id", "last_30_days", "month_change", "cache_hit_ratio", P95]
    table = pandas.DataFrame(
        [[10**6 + n, f"{10**9:,}", "+123%", "60%", "32767"] for n in range(1_000)], columns=columns
    )
    written = str(metadata.preview(table).value)
    lines = written.splitlines()
    assert 1_000 - len(lines[-1]) - 1 <= len(written) < 1_000
    assert len(lines) - 2 >= 20
    assert lines[2:] == [f"|{10**6 + n}|1,000,000,000|+123%|60%|32767|" for n in range(len(lines) - 2)]
    wide = pandas.DataFrame([["1" * 2_000]], columns=["a"])
    assert str(metadata.preview(wide).value) == "|a|\n|-:|"


def test_a_picture_that_cannot_be_drawn_is_a_line_and_the_rebuild_succeeds(location, instance, logs, monkeypatch):
    def fail(days: object) -> bytes:
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr(pictures, "draw_trend", fail)
    result = run(location, instance, DAYS[1], DAY)
    assert result.success
    assert shown(instance, STATS, DAY)[metadata.PICTURE].value == "not drawn: RuntimeError: no fonts"
    today = datetime.now(timezone.utc).date()
    warned = [entry.user_message for entry in instance.all_logs(result.run_id) if "picture" in entry.user_message]
    assert warned == [f"the picture of {day} was not drawn: RuntimeError: no fonts" for day in (DAY, today)]


def test_a_picture_whose_numbers_cannot_be_read_is_a_line(logs, owner):
    execute(logs, "drop function platform_days(date, date) cascade")
    warned: list[str] = []
    line = metadata.picture(logs, DAY, warned.append)[metadata.PICTURE]
    assert line.startswith("not drawn: ")
    assert "platform_days" in line
    assert warned == [f"the picture of {DAY} was {line}"]


# What the readers' figures and tables of a day are read from, and what an outage of it is called.
FUNCTIONS = {
    "platform_percentiles_by_day(date, date)": metadata.FURTHER_FIGURES,
    "platform_top_localities(date, date, integer)": "top_localities",
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("outage", ["dropped", "slow"])
def test_a_run_succeeds_without_what_is_shown_beside_the_numbers(
    location, instance, logs, monkeypatch, function: str, outage: str
):
    """The days are rebuilt and stored by then."""
    break_function(logs, function, outage, monkeypatch)
    result = run(location, instance, DAYS[1], DAY)
    assert result.success
    asset, name = (STATS if "percentiles" in function else LOCALITIES), FUNCTIONS[function]
    line, reason = str(shown(instance, asset, DAY)[name].value), REASONS[outage]
    assert re.match(f"not read: DatabaseError: .*{reason}", line)
    warned = [
        entry for entry in instance.all_logs(result.run_id) if re.search(f"not read.*{reason}", entry.user_message)
    ]
    assert {entry.level for entry in warned} == {logging.WARNING}
    assert len([entry for entry in warned if str(DAY) in entry.user_message]) == 1
    assert "total_calculations" in shown(instance, asset, DAY)


@pytest.mark.parametrize("outage", ["dropped", "slow"])
def test_a_tick_reports_its_days_without_the_further_figures(database, db, connect, monkeypatch, capfd, outage: str):
    write(connect(), [row(datetime.now(timezone.utc), publisher=n) for n in range(4)])
    report = FollowReport(probes=1)
    report.add(refresh(db))
    break_function(db, "platform_percentiles_by_day(date, date)", outage, monkeypatch)
    events, _ = report_days(db, report, {}, Cursor(), daily_partitions(process_settings()))
    (of_stats,) = [each for each in events if each.asset_key == STATS]
    assert of_stats.metadata["rows_counted"].value == 4
    assert re.match(f"not read: DatabaseError: .*{REASONS[outage]}", of_stats.metadata[metadata.FURTHER_FIGURES].value)
    assert re.search(f"WARNING events failed=.*not read: .*{REASONS[outage]}", capfd.readouterr().err)


REASONS = {"dropped": "does not exist", "slow": "statement timeout"}


def break_function(db: Database, function: str, outage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drops the function, or makes it wait for longer than the limit (which is shorter here)."""
    if outage == "dropped":
        execute(db, f"drop function {function}")
        return
    execute(db, SLOW[function])
    monkeypatch.setattr(day_figures_module, "LIMIT", text("set local statement_timeout = '500ms'"))


PERCENTILES = "measured bigint, p50_ms float8, p90_ms float8, p95_ms float8, p99_ms float8, counted_at timestamptz"
SLOW = {
    "platform_percentiles_by_day(date, date)": f"""
        create or replace function platform_percentiles_by_day(first_day date, last_day date)
        returns table (date date, {PERCENTILES}, complete boolean) language sql stable as $$
            select first_day, 1, 1, 1, 1, 1, now(), pg_sleep(60) is not null $$
    """,
    "platform_top_localities(date, date, integer)": """
        create or replace function platform_top_localities(first_day date, last_day date, n integer default 5)
        returns table (rank bigint, locality_id bigint, calculations bigint, share float8, cache_hits bigint,
                       cache_hit_ratio float8, counted_at timestamptz, complete boolean) language sql stable as $$
            select 1, 1, 1, 1, 1, 1, now(), pg_sleep(60) is not null $$
    """,
}


def test_events_of_the_sensor_have_the_numbers_and_no_picture(database, db, connect):
    now = datetime.now(timezone.utc)
    write(connect(), [row(now, publisher=n, locality_id=n) for n in range(4)])
    report = FollowReport(probes=1)
    report.add(refresh(db))
    events, _ = report_days(db, report, {}, Cursor(), daily_partitions(process_settings()))
    (of_stats,) = [each for each in events if each.asset_key == STATS]
    assert metadata.PICTURE not in of_stats.metadata
    assert of_stats.metadata["localities"].value == 4
    assert of_stats.metadata["p95_response_time_ms"].value == 10.0
    assert not [each for each in events if "svg" in str(each.metadata)]


def days(calculations: int, ms: float | None) -> list[TrendDay]:
    return [TrendDay(day, calculations, calculations, 0, 0, ms) for day in DAYS[29::-1]]


def restless(rng: random.Random) -> list[TrendDay]:
    """The most that a picture has to draw: every day is another, of every source."""
    parts = [[rng.randint(1, 10**9) for _ in range(4)] for _ in range(30)]
    shown = zip(DAYS[29::-1], parts, strict=True)
    return [TrendDay(day, sum(part), *part[:3], rng.uniform(1, 32767)) for day, part in shown]


@pytest.mark.parametrize(
    ("shape", "bars"),
    [
        (days(0, None), {}),
        (days(1, 0.0), {"steelblue": 40}),
        (days(2**40, 32767.0), {"steelblue": 40}),
        ([*days(0, None)[:-1], TrendDay(DAY, 5, 0, 0, 0, None)], {"silver": 40}),
    ],
    ids=["nothing", "little", "much", "only-unknown"],
)
def test_any_numbers_make_a_picture(shape: list[TrendDay], bars: dict[str, int]):
    drawn = image(draw_trend(shape))
    assert {color: heights[-1] for color, heights in drawn["bars"].items()} == bars
    assert len(drawn["line"]) == sum(day.p95_ms is not None for day in shape)


def test_a_picture_fits_into_what_dagster_shows_whatever_the_days_are():
    rng = random.Random(2)
    for _ in range(200):
        shape = restless(rng)
        drawn = image(draw_trend(shape))
        assert list(drawn["bars"]) == ["steelblue"], "of all sources together"
        assert len(drawn["line"]) == 30


def test_a_picture_is_of_what_was_counted():
    shape = [TrendDay(day, 400 + 10 * n, 300, 100, 0, 5.0 + n) for n, day in enumerate(DAYS[29::-1])]
    drawn = image(draw_trend(shape))
    greatest = 400 + 10 * 29
    assert drawn["bars"]["steelblue"] == [round(40 * 300 / greatest)] * 30
    assert drawn["bars"]["orange"] == [round(40 * 400 / greatest)] * 30
    assert drawn["bars"]["silver"] == [round(40 * day.calculations / greatest) for day in shape]
    assert "seagreen" not in drawn["bars"]
    bottom = 40 + 14 + 2
    assert [bottom - y for y in drawn["line"]] == [round(14 * day.p95_ms / 34) for day in shape]
    assert "16,350 calculations" in draw_trend(shape)
    assert "34 ms at most" in draw_trend(shape)
