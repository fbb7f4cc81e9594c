"""The report: its numbers against raw logs, its page, its files, its command, and its form over HTTP."""

import base64
import json
import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy
import pandas
import psycopg
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from playwright.sync_api import Browser
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Engine

from calc_analytics import days
from calc_analytics.cli.main import main
from calc_analytics.config import Settings
from calc_analytics.database.engine import engine_for
from calc_analytics.operations import reports
from calc_analytics.operations.http import Service
from calc_analytics.orchestration import history
from calc_analytics.processes.supervisor import free_port
from calc_analytics.readers import export
from calc_analytics.readers import page as page_module
from calc_analytics.readers.names import LONGEST
from calc_analytics.readers.page import render
from calc_analytics.readers.questions import NotKept, UnknownPublisher
from calc_analytics.readers.report import read_report
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.declaration import Rollup
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollups import LATENCY, LOG, STATS
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.integration.test_disclosure import inside
from calc_analytics_tests.integration.test_page import TOO_FAINT
from calc_analytics_tests.integration.test_service import SECRET, serving, serving_of
from calc_analytics_tests.logs import copy_rows, execute, random_rows, row, stored, utc, write

ZONE = "Asia/Jerusalem"
# Summer time ends there on 25 October.
FIRST, LAST = date(2025, 10, 20), date(2025, 11, 2)
NOON = utc(2025, 10, 27, 12)
TOKEN = "correct-horse"
MARKUP = "<script>alert(1)</script> & \"Co\" </title><b onclick='x()'>"
HEBREW, ARABIC, LONG = "לוח זמנים (ישראל)", "القاهرة ‮reversed", "A long name " * 16 + "W" * 200
Connect = Callable[[], psycopg.Connection]


def frame_of(engine: Engine) -> pandas.DataFrame:
    """The raw log rows, with their day, hour and weekday in the zone; None stays NaN."""
    columns = "publisher_id, locality_id, cache_hit, response_time_ms, source, created_at"
    with engine.begin() as connection:
        rows = connection.execute(text(f"select {columns} from calculation_logs")).all()
    frame = pandas.DataFrame(rows, columns=columns.split(", "))
    local = pandas.to_datetime(frame["created_at"], utc=True).dt.tz_convert(ZoneInfo(ZONE))
    return frame.assign(
        date=local.dt.date,
        hour=local.dt.hour,
        weekday=local.dt.isocalendar().day,
        cache_hit=frame["cache_hit"].astype(int),
        response_time_ms=frame["response_time_ms"].astype(float),
    )


@pytest.fixture(scope="module")
def numbers(server_url: URL, maintenance: Callable[[str], None]) -> Iterator[Database]:
    """Random rows of five weeks in a zone with summer time, counted; for tests that change nothing."""
    name = f"calc_analytics_report_{os.getpid()}"
    maintenance(f'create database "{name}"')
    db = Database(engine_for(server_url.set(database=name)), LOG, ZONE)
    install(db)
    rows = random_rows(random.Random(7), 4_000, utc(2025, 9, 29), utc(2025, 11, 4))
    with psycopg.connect(
        db.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    ) as connection:
        copy_rows(connection, rows)
    rebuild(db, days.days_between(date(2025, 9, 28), date(2025, 11, 4)))
    yield db
    db.engine.dispose()
    maintenance(f'drop database "{name}" with (force)')


@pytest.mark.parametrize("publisher", [None, 3])
def test_its_totals_and_days_are_those_of_the_raw_logs(numbers: Database, publisher: int | None):
    logs = frame_of(numbers.engine)
    logs = logs[logs["publisher_id"] == publisher] if publisher else logs
    found = read_report(numbers, publisher, FIRST, LAST)
    inside_, before = (
        logs[logs["date"].between(*each)] for each in ((FIRST, LAST), (date(2025, 10, 6), date(2025, 10, 19)))
    )
    for totals, expected in ((found.totals, inside_), (found.totals_before, before)):
        assert totals.calculations == len(expected) > 0
        assert totals.cache_hits == expected["cache_hit"].sum()
        assert totals.cache_hit_ratio == pytest.approx(expected["cache_hit"].mean())
        assert totals.average_response_time_ms == pytest.approx(expected["response_time_ms"].mean())
        sources = [totals.source_web, totals.source_api, totals.source_external, totals.source_unknown]
        assert sources == [(expected["source"] == source).sum() for source in (1, 2, 3, 9)]
    by_day = inside_.groupby("date").agg(calculations=("source", "size"), hits=("cache_hit", "sum"))
    assert list(found.days["date"]) == days.days_between(FIRST, LAST)
    assert list(found.days["calculations"]) == list(by_day["calculations"])
    assert list(found.days["cache_hit_ratio"]) == pytest.approx(list(by_day["hits"] / by_day["calculations"]))
    assert (found.complete, found.reading.timezone) == (True, ZONE)


@pytest.mark.parametrize("publisher", [None, 3])
def test_its_hours_localities_and_publishers_are_those_of_the_raw_logs(numbers: Database, publisher: int | None):
    logs = frame_of(numbers.engine)
    logs = logs[logs["date"].between(FIRST, LAST)]
    logs = logs[logs["publisher_id"] == publisher] if publisher else logs
    found = read_report(numbers, publisher, FIRST, LAST)
    cells = logs.groupby(["weekday", "hour"]).size()
    expected = [int(cells.get((weekday, hour), 0)) for weekday in range(1, 8) for hour in range(24)]
    assert list(found.hours["calculations"]) == expected
    assert_ranked(found.top_localities, logs.groupby("locality_id")["cache_hit"])
    assert (found.top_publishers is None) == (publisher is not None)
    if found.top_publishers is not None:
        assert_ranked(found.top_publishers, logs.groupby("publisher_id")["cache_hit"])


def assert_ranked(top: pandas.DataFrame, groups: Any) -> None:
    """The table has all groups, the largest first, with their share of all."""
    sizes = groups.size()
    assert dict(zip(top["id"], top["calculations"], strict=True)) == sizes.to_dict()
    assert list(top["calculations"]) == sorted(sizes, reverse=True)
    assert list(top["share"]) == pytest.approx(list(top["calculations"] / sizes.sum()))
    assert list(top["cache_hit_ratio"]) == pytest.approx([groups.mean()[key] for key in top["id"]])


def assert_percentiles(found: Any, times: pandas.Series) -> None:
    """Those of numpy: exact below 128 ms, within one per cent above."""
    known = times.dropna()
    assert found.measured == len(known)
    for name, share in (("p50_ms", 50), ("p90_ms", 90), ("p95_ms", 95), ("p99_ms", 99)):
        assert getattr(found, name) == pytest.approx(numpy.percentile(known, share), rel=0.01)


def test_its_percentiles_are_those_of_numpy_per_day_and_merged_per_week(numbers: Database):
    logs = frame_of(numbers.engine)
    of_days = read_report(numbers, 3, FIRST, LAST)
    logs = logs[logs["publisher_id"] == 3]
    assert_percentiles(of_days.percentiles, logs[logs["date"].between(FIRST, LAST)]["response_time_ms"])
    for each in of_days.percentiles_over_time.itertuples():
        assert_percentiles(each, logs[logs["date"] == each.first_day]["response_time_ms"])
    of_weeks = read_report(numbers, 3, date(2025, 7, 1), LAST).percentiles_over_time
    assert [each.weekday() for each in of_weeks["first_day"][1:]] == [0] * (len(of_weeks) - 1)
    for each in of_weeks.itertuples():
        times = logs[logs["date"].between(each.first_day, each.last_day)]["response_time_ms"]
        if len(times.dropna()):
            assert_percentiles(each, times)
        else:
            assert (each.measured, numpy.isnan(each.p50_ms)) == (0, True)


def read_back(
    write_: Any, db: Database, publisher: int | None, first: date | None = None, last: date | None = None
) -> bytes:
    """What the export writes."""
    file = BytesIO()
    with export.day_table(db, publisher, first, last) as table:
        write_(table, file)
    return file.getvalue()


def test_the_table_of_the_platform_has_a_row_per_publisher_and_day_as_the_raw_logs_do(numbers: Database):
    logs = frame_of(numbers.engine)
    groups = logs[logs["date"].between(FIRST, LAST)].groupby(["publisher_id", "date"])
    table = pyarrow.parquet.read_table(BytesIO(read_back(export.write_parquet, numbers, None, FIRST, LAST)))
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == export.COLUMNS
    found = table.to_pandas().set_index(["publisher_id", "date"])
    assert list(found.index) == list(groups.size().index)
    assert list(found["calculations"]) == list(groups.size())
    assert list(found["measured"]) == list(groups["response_time_ms"].count())
    assert list(found["average_response_time_ms"]) == pytest.approx(
        list(groups["response_time_ms"].mean()), nan_ok=True
    )
    assert list(found["source_api"]) == list(groups["source"].apply(lambda each: (each == 2).sum()))
    about = json.loads(table.schema.metadata[b"calc_analytics"])
    assert (about["publisher_id"], about["first_day"], about["timezone"]) == (None, "2025-10-20", ZONE)


def test_csv_and_parquet_of_a_publisher_have_each_day_and_nothing_where_there_is_nothing(numbers: Database):
    period = (date(2025, 11, 3), date(2025, 11, 8))
    table = pyarrow.parquet.read_table(BytesIO(read_back(export.write_parquet, numbers, 3, *period)))
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == {**export.COLUMNS, **export.PERCENTILES}
    assert table.column("date").to_pylist() == days.days_between(*period)
    last = table.to_pylist()[-1]
    assert (last["calculations"], last["cache_hit_ratio"], last["p95_ms"]) == (0, None, None)
    header, *lines = read_back(export.write_csv, numbers, 3, *period).decode().splitlines()
    assert header == ",".join(table.schema.names)
    assert lines[-1] == "2025-11-08,3,0,0,,0,,0,0,0,true,,,,"
    assert [int(line.split(",")[2]) for line in lines] == table.column("calculations").to_pylist()


@pytest.mark.parametrize("rollup", [STATS, LATENCY])
def test_both_tables_say_the_same_of_a_day_that_waits(named: Database, today: date, rollup: Rollup):
    """A day that the histogram does not hold is not complete, and how many rows have a time is not known."""
    waits = f"update rollup_days set status = 'pending' where date = '{today}' and rollup = '{rollup.name}'"
    execute(named, waits)
    tables = [
        pyarrow.parquet.read_table(BytesIO(read_back(export.write_parquet, named, publisher))).to_pylist()
        for publisher in (None, 7)
    ]
    whole, own = ({each["date"]: each for each in table if each["publisher_id"] == 7} for table in tables)
    for day, is_known in ((today, False), (today - days.ONE_DAY, True)):
        assert own[day]["calculations"] > 0
        assert {name: own[day][name] for name in export.COLUMNS} == whole[day]
        assert own[day]["complete"] == is_known
        assert own[day]["measured"] == (own[day]["calculations"] if is_known else None)
        assert own[day]["average_response_time_ms"] == (10.0 if is_known else None)


def test_the_json_is_the_report_in_plain_values(numbers: Database):
    found, file = read_report(numbers, None, FIRST, LAST), BytesIO()
    export.write_json(found, file)
    plain = json.loads(file.getvalue())
    assert plain["publisher"] is None
    assert (
        plain["totals"]["calculations"]
        == sum(day["calculations"] for day in plain["days"])
        == found.totals.calculations
    )
    assert sum(each["calculations"] for each in plain["hours"]) == found.totals.calculations
    assert sum(each["calculations"] for each in plain["top_publishers"]) == found.totals.calculations
    assert (plain["before"]["first_day"], plain["before"]["last_day"]) == ("2025-10-06", "2025-10-19")
    assert plain["counted_at"] == found.reading.counted_at.isoformat()
    empty = export.as_plain(read_report(numbers, 3, date(2025, 12, 1), date(2025, 12, 2)))
    assert (empty["days"][0]["cache_hit_ratio"], empty["percentiles"]["p50_ms"]) == (None, None)
    assert "NaN" not in json.dumps(empty)


class Parsed(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def words(page: str) -> str:
    """The text of the page, in one line."""
    body = re.sub(r"<(style|title|desc)\b.*?</\1>", "", page, flags=re.S)
    return " ".join(unescape(re.sub("<[^>]+>", " ", body)).split())


def assert_self_contained(page: str) -> None:
    """No script, no style attribute, nothing that is loaded, each id once, at most 1 MB."""
    elements = Parsed(page).elements
    assert {tag for tag, _ in elements} & {"script", "iframe", "object", "embed", "img", "base", "form", "a"} == set()
    attributes = [(tag, name, value or "") for tag, found in elements for name, value in found.items()]
    assert [each for each in attributes if each[1].startswith("on") or each[1] in ("style", "src", "srcset")] == []
    addresses = [value for _, name, value in attributes if name in ("href", "xlink:href")]
    assert [value for value in addresses if not value.startswith("data:")] == []
    assert "url(" not in page
    assert "@import" not in page
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labels = [value for _, name, value in attributes if name == "aria-labelledby"]
    assert {word for value in labels for word in value.split()} <= set(ids)
    assert len(page.encode()) <= 1_000_000


def test_the_page_needs_nothing_but_itself_and_is_the_same_each_time(numbers: Database):
    found = read_report(numbers, None, FIRST, LAST)
    page = render(found)
    assert_self_contained(page)
    assert page == render(read_report(numbers, None, FIRST, LAST))
    shown = words(page)
    for expected in (
        f"2025-10-20 to 2025-11-02, 14 days, in the time zone {ZONE}",
        f"{found.reading.counted_at.astimezone(ZoneInfo(ZONE)):%Y-%m-%d %H:%M:%S}",
        f"{found.totals.calculations:,}",
        "Top publishers",
        "Top localities",
        "95th percentile",
    ):
        assert expected in shown
    assert "Not complete" not in shown
    assert page.count('role="img"') == 2 * len(("trend", "ratio", "percentiles", "hours"))


def test_the_page_is_the_same_in_another_process_with_other_settings_of_matplotlib(numbers: Database, tmp_path: Path):
    (tmp_path / "matplotlibrc").write_text("svg.fonttype: path\naxes.facecolor: red\nfont.size: 30\naxes.grid: False\n")
    url = numbers.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    command = [sys.executable, "-m", "calc_analytics.cli", "report", "--publisher", "3"]
    done = subprocess.run(
        [*command, "--from", str(FIRST), "--to", str(LAST)],
        env={"DATABASE_URL": url, "PATH": "", "HOME": "/sys", "PYTHONHASHSEED": "5", "ROLLUP_TIMEZONE": ZONE},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"atplotlib" not in done.stderr, "there is no folder for its cache"
    assert done.stdout.decode() == render(read_report(numbers, 3, FIRST, LAST))


@pytest.fixture
def today() -> date:
    return datetime.now(timezone.utc).date()


@pytest.fixture
def named(db: Database, owner: Engine, connect: Connect, today: date) -> Database:
    """Calculations of today and yesterday of three publishers with names of every kind."""
    noon = datetime(today.year, today.month, today.day, tzinfo=timezone.utc)
    rows = [row(noon - timedelta(hours=n), publisher=7 + n % 3, locality_id=1 + n % 4) for n in range(24)]
    connection = connect()
    write(connection, rows)
    rebuild(db, days.days_between(today - days.ONE_DAY, today))
    connection.execute("create table publishers (id integer primary key, name text)")
    connection.execute("create table localities (id bigint primary key, name varchar)")
    insert = "insert into {} values (%s, %s)"
    for table, names in (("publishers", {7: MARKUP, 8: HEBREW, 9: None}), ("localities", {1: ARABIC, 2: LONG, 3: " "})):
        connection.cursor().executemany(insert.format(table), list(names.items()))
        connection.execute(f"grant select on {table} to {ROLE}")
    connection.commit()
    return db


def test_names_of_any_kind_are_shown_as_text(named: Database):
    platform = render(read_report(named, None, None, None))
    assert_self_contained(platform)
    for expected in (
        "<bdi>&lt;script&gt;alert(1)",
        f"<bdi>{HEBREW}</bdi>",
        "<bdi>publisher 9</bdi>",
        "<bdi>locality 4</bdi>",
    ):
        assert expected in platform
    assert "<bdi>القاهرة reversed</bdi>" in platform, "a control character cannot turn what follows it"
    assert "<bdi>locality 3</bdi>" in platform, "a blank name is none"
    (long,) = re.findall("<bdi>(A long name [^<]*)</bdi>", platform)
    assert (len(long), long[-1]) == (LONGEST, "…")
    own = render(read_report(named, 7, None, None))
    assert_self_contained(own)
    assert "<h1>Calculations of <bdi>&lt;script&gt;" in own
    assert "<title>Calculations of \u2068&lt;script&gt;" in own
    assert export.as_plain(read_report(named, 8, None, None))["publisher"] == {"id": 8, "name": HEBREW}


@pytest.mark.parametrize(
    "change",
    [
        "drop table publishers",
        "revoke select on publishers from {role}",
        "alter table publishers rename name to title",
        "alter table publishers alter id type text",
        "alter table publishers alter name type bytea using null",
        "alter table publishers enable row level security",
        "drop table publishers; create view publishers as select 7 as id, (1 / 0)::text as name",
        "drop table publishers; create view publishers as select 7 as id, pg_sleep(60)::text as name",
    ],
)
def test_a_table_of_names_that_cannot_be_read_is_no_error(named: Database, owner: Engine, change: str):
    for statement in change.split("; "):
        execute(owner, statement.format(role=ROLE))
    if "view" in change:
        execute(owner, f"grant select on publishers to {ROLE}")
    found = read_report(named, 7, None, None)
    assert (found.label, found.totals.calculations) == ("publisher 7", 8)
    assert "Top localities" in words(render(found))


def test_a_table_of_names_that_is_locked_does_not_hold_up_the_report(named: Database, connect: Connect):
    locker = connect()
    locker.execute("lock table publishers")
    assert read_report(named, 7, None, None).label == "publisher 7"
    locker.rollback()
    assert read_report(named, 8, None, None).label == HEBREW


def test_all_its_numbers_are_of_one_instant(named: Database, connect: Connect, today: date):
    """Rows are counted between its first statement and the others."""
    late = []

    def count_more(*_: Any) -> None:
        if not late:
            late.append(True)
            write(connect(), [row(datetime.now(timezone.utc), publisher=7)] * 100)
            assert refresh(named).rows == 100

    def after_reading(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "rollup_reading()" in statement:
            count_more()

    event.listen(named.engine, "after_cursor_execute", after_reading)
    found = read_report(named, 7, None, None)
    event.remove(named.engine, "after_cursor_execute", after_reading)
    assert late
    assert found.totals.calculations == found.days["calculations"].sum() == found.hours["calculations"].sum() == 8
    assert read_report(named, 7, None, None).totals.calculations == 108


def test_days_that_are_not_built_are_shown(named: Database, today: date):
    execute(
        named,
        f"update rollup_days set status = 'pending' where date = '{today}' and rollup = 'calculation_stats_hourly'",
    )
    found = read_report(named, 7, None, None)
    assert (found.complete, found.incomplete_days) == (False, (today,))
    shown = f"Not complete. 1 day of the period is not built, or found to differ ({today}): the numbers may be wrong"
    assert shown in words(render(found))
    assert export.as_plain(found)["incomplete_days"] == [str(today)]
    assert read_report(named, 7, None, today - days.ONE_DAY).complete


def test_a_rollup_that_is_not_kept_is_named_instead_of_shown_as_zero(named: Database, owner: Engine):
    execute(owner, f"update rollup_state set rollups = array['{STATS.name}', 'calculation_locality_stats_daily']")
    found = read_report(named, 7, None, None)
    shown = words(render(found))
    assert found.complete
    for name in ("calculation_latency_daily", "calculation_stats_hourly"):
        assert f"Not kept: the setting ROLLUPS leaves out {name} ." in shown
    assert "Not kept: the setting ROLLUPS leaves out calculation_locality" not in shown
    assert read_back(export.write_csv, named, 7).decode().splitlines()[-1].split(",")[5:7] == ["", ""]
    assert ",," in read_back(export.write_csv, named, None).decode().splitlines()[-1]
    assert found.totals.average_response_time_ms is None, "only the histogram knows which calculations are measured"
    execute(owner, "update rollup_state set rollups = array['calculation_locality_stats_daily']")
    with pytest.raises(NotKept, match="reports need calculation_stats_daily, which ROLLUPS leaves out"):
        read_report(named, 7, None, None)


def test_a_period_without_calculations_says_so_and_an_unknown_publisher_is_an_error(named: Database, today: date):
    found = read_report(named, 7, date(2020, 1, 1), date(2020, 1, 31))
    page = render(found)
    assert_self_contained(page)
    assert f"No calculations in this period. There are calculations from {today - days.ONE_DAY} to {today}." in words(
        page
    )
    with pytest.raises(UnknownPublisher, match="no calculation of publisher 5 was ever counted"):
        read_report(named, 5, None, None)
    with pytest.raises(UnknownPublisher):
        read_report(named, 2**70, None, None)


def test_a_database_without_any_calculation_has_a_report(db: Database):
    page = render(read_report(db, None, None, None))
    assert_self_contained(page)
    assert "No calculation was ever counted." in words(page)
    assert read_back(export.write_csv, db, None).decode().count("\n") == 1
    table = pyarrow.parquet.read_table(BytesIO(read_back(export.write_parquet, db, None)))
    assert (table.num_rows, table.schema.names) == (0, list(export.COLUMNS))


def test_one_calculation_is_enough_and_nothing_is_compared_with_nothing(db: Database, connect: Connect, today: date):
    write(connect(), [row(datetime.now(timezone.utc), publisher=7, response_time_ms=None)])
    rebuild(db, [today])
    page = render(read_report(db, 7, None, None))
    assert_self_contained(page)
    shown = words(page)
    assert "no calculations before" in shown
    assert "No calculation of this period has a response time." in shown
    assert "nan" not in shown.lower().split()
    assert "%" not in shown.split("Trend")[0].replace("0.0\u00a0%", "").replace("0.0 %", "")


def test_in_a_browser_it_fits_phone_and_desk_in_light_and_dark_and_breaks_no_policy(
    named: Database, browser: Browser, tmp_path: Path
):
    (tmp_path / "report.html").write_text(render(read_report(named, None, None, None)))
    address = (tmp_path / "report.html").as_uri()
    for scheme, width in (("light", 320), ("dark", 320), ("light", 1280), ("dark", 1280)):
        opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        requested, said = [], []
        opened.on("request", lambda request, seen=requested: seen.append(request.url))
        opened.on("console", lambda message, seen=said: seen.append(message.text))
        opened.goto(address)
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert (
            opened.evaluate(
                "(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)(document.querySelector('.scroll'))"
            )
            <= 0
        )
        assert opened.evaluate(TOO_FAINT) == []
        assert [each for each in requested if not each.startswith("data:")] == [address]
        assert said == [], "the policy was violated"
        size = "narrow" if width == 320 else "wide"
        assert opened.locator(".picture svg:visible").count() == opened.locator(f".picture svg.{size}").count() == 4
        opened.close()


@pytest.fixture
def calc(database: URL, named: Database) -> Callable[..., Result]:
    """Runs `calc-analytics report` with these words."""
    return lambda *words_: CliRunner().invoke(main, ["report", *words_])


def refused(result: Result, code: int = 1) -> str:
    """The one line on standard error; nothing was written to standard output."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.count("\n") == (1 if code == 1 else 4)
    return result.stderr


def test_the_command_writes_each_format(calc: Callable[..., Result], named: Database, tmp_path: Path):
    expected = render(read_report(named, 7, None, None))
    assert calc("--publisher", "7").stdout == expected
    for name, begin in {"a.html": "\n<!doctype", "a.csv": "date,publisher", "a.JSON": "{", "a": "\n<!doctype"}.items():
        done = calc("--publisher", "7", "--output", str(tmp_path / name))
        assert (done.exit_code, done.stdout) == (0, ""), done.output
        assert done.stderr.startswith(f"{tmp_path / name}: publisher 7, ")
        assert (tmp_path / name).read_text().lstrip().startswith(begin.lstrip())
    done = calc("--format", "parquet", "--output", str(tmp_path / "days"))
    assert pyarrow.parquet.read_table(tmp_path / "days").num_rows == len(stored(named)), done.output
    assert json.loads(calc("--format", "json", "--output", "-").stdout)["top_publishers"][0]["id"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.JSON", "a.csv", "a.html", "days"]


def test_what_is_wrong_is_one_line(calc: Callable[..., Result], tmp_path: Path):
    assert "no calculation of publisher 5 was ever counted" in refused(calc("--publisher", "5"))
    assert "the range ends (2025-01-01) before it begins (2025-02-01)" in refused(
        calc("--from", "2025-02-01", "--to", "2025-01-01")
    )
    assert "'soon' is not a day" in refused(calc("--from", "soon"))
    assert "a report at most 3,660" in refused(calc("--from", "1900-01-01"))
    assert "No such file or directory" in refused(calc("--output", str(tmp_path / "missing" / "a.html")))
    assert re.search("Permission denied|not permitted", refused(calc("--output", "/sys/report.html")))
    assert "No space left on device" in refused(calc("--output", "/dev/full"))
    assert "Is a directory" in refused(calc("--output", str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_when_the_report_is_whole_and_stays_after_an_error(
    calc: Callable[..., Result], named: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, link = tmp_path / "report.csv", tmp_path / "latest.csv"
    file.write_text("old")
    link.symlink_to(file)
    original = export._batches

    def broken(*arguments: Any) -> Iterator[Any]:
        yield next(original(*arguments))
        raise OSError(104, "Connection reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(export, "_batches", broken)
        assert "internal error: ConnectionResetError: [Errno 104]" in refused(calc("--output", str(link)))
    assert (file.read_text(), sorted(path.name for path in tmp_path.iterdir())) == ("old", ["latest.csv", "report.csv"])
    assert calc("--output", str(link)).exit_code == 0
    assert file.read_text().startswith("date,")
    assert link.is_symlink()
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask
    file.chmod(0o600)
    assert calc("--output", str(link)).exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600, "a file that others may not read stays so"


@pytest.mark.parametrize("format_", ["html", "csv", "parquet", "json"])
@pytest.mark.parametrize("is_piped", [False, True])
def test_a_disk_that_is_full_is_one_line(database: URL, named: Database, tmp_path: Path, format_: str, is_piped: bool):
    """No file of the process may be longer than 200 bytes."""
    file = tmp_path / "report"
    file.write_text("old")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "calc_analytics.cli",
            "report",
            "--format",
            format_,
            *(["--output", file] * (not is_piped)),
        ],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
        capture_output=True,
        text=True,
        check=False,
    )
    place = "to standard output" if is_piped else file
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: cannot write {place}: File too large\n")
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


def test_a_template_that_is_missing_is_not_an_error_of_the_output(
    calc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    page_module._style.cache_clear()
    monkeypatch.setattr(page_module, "FOLDER", tmp_path)
    error = refused(calc("--output", str(tmp_path / "a.html")))
    page_module._style.cache_clear()
    assert "error: internal error: FileNotFoundError: [Errno 2]" in error
    assert "cannot write" not in error


def test_parquet_is_not_written_to_a_terminal(calc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    from calc_analytics.cli import report as command

    monkeypatch.setattr(command, "_is_terminal", lambda: True)
    assert "parquet is not text" in refused(calc("--format", "parquet"), 2)
    assert calc("--format", "csv").exit_code == 0


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A DAGSTER_HOME of the test's own, for the service."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    history.instance.cache_clear()
    yield
    history.instance.cache_clear()


def code_of(answer: Any) -> str:
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"code", "message"}
    return str(answer["error"]["code"])


def test_over_http_it_is_closed_until_there_is_a_token_and_opens_with_it_only(database: URL, named: Database):
    settings = Settings.from_environment()
    with serving(settings) as closed:
        for path in ("/report", "/report/publishers/7", "/report/publishers/none"):
            status, answer = closed.ask(path, Authorization=f"Bearer {TOKEN}")
            assert (status, code_of(answer)) == (403, "forbidden")
    with serving(replace(settings, report_token=TOKEN)) as served:
        bearer, basic = f"Bearer {TOKEN}", "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()
        wrong = [None, "Bearer", "Bearer no", f"Bearer {TOKEN}x", TOKEN, "Basic x", f"Basic {TOKEN}", "Digest a"]
        wrong += ["Basic " + base64.b64encode(each).decode() for each in (TOKEN.encode(), b"me:no", b"\xff:\xfe")]
        for header in wrong:
            status, answer = served.ask("/report", **({"Authorization": header} if header else {}))
            assert (status, code_of(answer)) == (401, "unauthorized")
            assert served.headers["www-authenticate"].startswith("Basic realm=")
        assert served.ask(f"/report?token={TOKEN}")[0] == 401
        for header in (bearer, basic):
            status, page = served.ask("/report/publishers/7", Authorization=header)
            assert (status, page) == (200, render(read_report(named, 7, None, None)))
        assert served.headers["cache-control"] == "no-store"
        assert served.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in served.headers["content-security-policy"]
        _, page = served.ask("/report?from=2026-01-01&to=2026-01-31", Authorization=bearer)
        assert "2026-01-01 to 2026-01-31, 31 days" in words(page)
        expected = {
            "/report/publishers/5": 404,
            "/report/publishers/seven": 404,
            f"/report/publishers/{2**63}": 404,
            f"/report/publishers/{'9' * 6000}": 404,
            "/report/publishers/7/": 404,
            "/report?from=soon": 400,
            "/report?from=": 400,
            "/report?from=2026-02-01&to=2026-01-01": 400,
            "/report?from=1900-01-01": 400,
        }
        for path, wanted in expected.items():
            status, answer = served.ask(path, Authorization=bearer)
            assert (path, status, code_of(answer)) == (path, wanted, "not_found" if wanted == 404 else "bad_request")
            assert TOKEN not in json.dumps(answer)
        execute(named, "alter function rollup_reading() rename to elsewhere")
        status, answer = served.ask("/report", Authorization=bearer)
        assert (status, code_of(answer)) == (503, "unavailable")
        assert [word for word in inside(database) if word in json.dumps(answer)] == []


def test_over_http_one_report_is_computed_at_a_time(database: URL, named: Database, connect: Connect):
    settings = replace(Settings.from_environment(), report_token=TOKEN)
    service = Service(settings)
    with service.reports._busy, serving_of(service) as served:
        status, answer = served.ask("/report", Authorization=f"Bearer {TOKEN}")
        assert (status, code_of(answer), served.headers["retry-after"]) == (429, "too_many_requests", "2")


def test_over_http_all_statements_of_a_report_have_one_deadline(
    database: URL, named: Database, owner: Engine, monkeypatch: pytest.MonkeyPatch
):
    """Each statement is short enough, all together are not; afterwards another report can be computed."""
    settings = replace(Settings.from_environment(), report_token=TOKEN)
    monkeypatch.setattr(reports, "READING_SECONDS", 2.0)
    execute(owner, "alter function rollup_days_complete(text, date, date) rename to is_complete")
    execute(
        owner,
        "create function rollup_days_complete(rollup_name text, first_day date, last_day date) returns boolean "
        "language sql as $$ select pg_sleep(0.06) is not null and is_complete(rollup_name, first_day, last_day) $$",
    )
    with serving(settings) as served:
        for _ in range(2):
            started = time.monotonic()
            status, answer = served.ask("/report/publishers/7", Authorization=f"Bearer {TOKEN}")
            assert (status, code_of(answer)) == (503, "unavailable")
            assert "the database took too long to answer" in answer["error"]["message"]
            assert 2.0 <= time.monotonic() - started < 4.0
        execute(owner, "drop function rollup_days_complete(text, date, date)")
        execute(owner, "alter function is_complete(text, date, date) rename to rollup_days_complete")
        assert served.ask("/report/publishers/7", Authorization=f"Bearer {TOKEN}")[0] == 200


def test_over_http_names_that_are_slow_do_not_take_the_reports_time(database: URL, named: Database, owner: Engine):
    execute(owner, "drop table publishers")
    execute(owner, "create view publishers as select 7 as id, pg_sleep(60)::text as name")
    execute(owner, f"grant select on publishers to {ROLE}")
    settings, started = replace(Settings.from_environment(), report_token=TOKEN), time.monotonic()
    with serving(settings) as served:
        status, page = served.ask("/report/publishers/7", Authorization=f"Bearer {TOKEN}")
    assert (status, "publisher 7" in words(page)) == (200, True)
    assert time.monotonic() - started < 10


def test_over_http_a_database_that_is_down_is_503_and_nothing_of_it_is_shown():
    url = f"postgresql://me:{SECRET}@127.0.0.1:{free_port()}/db"
    settings = replace(Settings.from_environment({"DATABASE_URL": url}), report_token=TOKEN)
    with serving(settings) as served:
        status, answer = served.ask("/report", Authorization=f"Bearer {TOKEN}")
        assert (status, code_of(answer)) == (503, "unavailable")
        assert "the database is unreachable" in answer["error"]["message"]
        assert [word for word in ("127.0.0.1", SECRET, "me:", "/db") if word in json.dumps(answer)] == []


@pytest.mark.long
def test_two_hundred_publishers_and_four_hundred_days_are_one_small_page(db: Database, owner: Engine, today: date):
    fill(owner, today, publishers=200, number_of_days=400)
    found = read_report(db, None, today - 399 * days.ONE_DAY, today)
    page = render(found)
    assert_self_contained(page)
    assert len(page.encode()) < 400_000
    assert found.totals.calculations == found.days["calculations"].sum() == 200 * 400 * 12
    table = pyarrow.parquet.read_table(BytesIO(read_back(export.write_parquet, db, None, found.period.first, today)))
    assert table.num_rows == 200 * 400
    ten_years = render(read_report(db, None, today - 3659 * days.ONE_DAY, today))
    assert_self_contained(ten_years)


def fill(owner: Engine, today: date, publishers: int, number_of_days: int) -> None:
    """Statistics as the rollups would have them: twelve calculations of each publisher and day, in all four tables."""
    values = {
        "stats_daily": "total_calculations, cache_hits, source_web) select p, date, 12, 6, 9",
        "locality_stats_daily": "total_calculations, cache_hits, locality_id) select p, date, 12, 6, p % 50",
        "stats_hourly": "total_calculations, hour) select p, date, 12, cast(date as timestamp) at time zone 'UTC'",
        "latency_daily": "source, calculations, response_time_ms) select p, date, 1, 12, 8",
    }
    for table, columns in values.items():
        execute(
            owner,
            f"insert into calculation_{table} (publisher_id, date, {columns} "
            f"from generate_series(1, {publishers}) p cross join "
            f"(select date '{today}' - n as date from generate_series(0, {number_of_days - 1}) n) d",
        )


def test_a_rollup_that_is_not_kept_is_named_and_its_old_rows_are_in_no_report(named: Database, owner: Engine):
    install(replace(named, engine=owner, log=LOG.only([STATS.name])))
    found = export.as_plain(read_report(named, 7, None, None))
    assert found["not_kept"] == [name for name in LOG.names if name != STATS.name]
    assert found["totals"]["calculations"] > 0
    assert (found["percentiles"]["measured"], found["top_localities"]) == (0, [])
    assert found["totals"]["average_response_time_ms"] is None


def test_days_that_differ_are_named(named: Database, owner: Engine, today: date):
    execute(owner, f"update rollup_days set difference = 3 where date = '{today}' and rollup = '{STATS.name}'")
    assert read_report(named, 7, None, None).incomplete_days == (today,)
