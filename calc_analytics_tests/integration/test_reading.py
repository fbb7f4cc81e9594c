"""The SQL contract for readers (docs/reading.md): every documented query against pandas and numpy on raw log rows."""

import random
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy
import pandas
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from calc_analytics.config import project_root
from calc_analytics.database.contract import FUNCTIONS, VIEWS, NameTaken
from calc_analytics.database.engine import engine_for
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.erasure import erase
from calc_analytics.rollup.install import install
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.widen import widen
from calc_analytics.rollups import LATENCY, LOG, STATS
from calc_analytics_tests.logs import COLUMNS, execute, random_rows, row, utc, write

PAGE = (project_root() / "docs" / "reading.md").read_text()
DOCUMENTED = {name: sql.strip() for name, sql in re.findall(r"```sql\n-- (\w+)\n(.*?);\n```", PAGE, re.S)}
FILE = (project_root() / "deploy" / "queries.sql").read_text()
OF_SQLC = {name: sql.strip() for name, sql in re.findall(r"-- name: (\w+) :\w+\n(.*?);", FILE, re.S)}
FIRST, LAST, ZONE = date(2026, 1, 20), date(2026, 2, 10), "Asia/Jerusalem"
PERCENTILES = {"p50_ms": 50, "p90_ms": 90, "p95_ms": 95, "p99_ms": 99}


class Raw:
    """The log rows that were ever written, and what pandas says of them."""

    def __init__(self, rows: list[tuple[Any, ...]], zone: str) -> None:
        frame = pandas.DataFrame(rows, columns=list(COLUMNS))
        local = pandas.to_datetime(frame["created_at"], utc=True).dt.tz_convert(ZoneInfo(zone))
        self.frame = frame.assign(
            date=local.dt.date, weekday=local.dt.day_of_week + 1, hour=local.dt.hour,
            ms=pandas.to_numeric(frame["response_time_ms"]).astype(float),
        )  # fmt: skip
        self.today = datetime.now(ZoneInfo(zone)).date()

    def of(self, publisher: int | None, first: date | None = None, last: date | None = None) -> pandas.DataFrame:
        """The rows of a publisher (None: all) in those days."""
        frame = self.frame
        if publisher is not None:
            frame = frame[frame["publisher_id"] == publisher]
        return frame if first is None else frame[(frame["date"] >= first) & (frame["date"] <= last)]


def measures(rows: pandas.DataFrame) -> dict[str, Any]:
    """What the contract calls one row of measures."""
    measured, count = rows["ms"].dropna(), len(rows)
    return {
        "calculations": count,
        "cache_hits": int(rows["cache_hit"].sum()),
        "cache_hit_ratio": rows["cache_hit"].mean() if count else None,
        "average_response_time_ms": measured.mean() if len(measured) else None,
        "source_web": int((rows["source"] == 1).sum()),
        "source_api": int((rows["source"] == 2).sum()),
        "source_external": int((rows["source"] == 3).sum()),
    }


def usage(raw: Raw, publisher: int | None) -> list[dict[str, Any]]:
    rows, today = raw.of(publisher), raw.today
    month = today.replace(day=1)
    last = (month - timedelta(days=1)).replace(day=1)
    recent = raw.of(publisher, today - timedelta(days=29), today)
    return [
        {
            "today": int((rows["date"] == today).sum()),
            "this_month": int(((rows["date"] >= month) & (rows["date"] <= today)).sum()),
            "last_month": int(((rows["date"] >= last) & (rows["date"] < month)).sum()),
            "all_time": len(rows),
            "cache_hit_ratio": measures(rows)["cache_hit_ratio"],
            "average_response_time_ms": measures(rows)["average_response_time_ms"],
            "p95_response_time_ms": percentiles(recent)["p95_ms"],
        }
    ]


def percentiles(rows: pandas.DataFrame) -> dict[str, Any]:
    measured = rows["ms"].dropna().to_numpy()
    found = numpy.percentile(measured, list(PERCENTILES.values())) if len(measured) else [None] * len(PERCENTILES)
    return {"measured": len(measured), **dict(zip(PERCENTILES, found, strict=True))}


def top(rows: pandas.DataFrame, key: str, n: int) -> list[dict[str, Any]]:
    groups = rows.groupby(key).agg(calculations=("cache_hit", "size"), hits=("cache_hit", "sum")).reset_index()
    groups = groups.sort_values(["calculations", key], ascending=[False, True]).head(n)
    return [
        {
            "rank": rank,
            key: each[key],
            "calculations": each.calculations,
            "share": each.calculations / len(rows),
            "cache_hit_ratio": each.hits / each.calculations,
        }
        for rank, (_, each) in enumerate(groups.iterrows(), 1)
    ]


def by_day(raw: Raw, publisher: int | None, first: date, last: date, work: Callable[[pandas.DataFrame], dict]) -> list:
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    return [{"date": day, **work(raw.of(publisher, day, day))} for day in days]


def of_all(rows: pandas.DataFrame) -> list[dict[str, Any]]:
    return [
        {"publisher_id": publisher, "date": day, **measures(group), "measured": int(group["ms"].notna().sum())}
        for (publisher, day), group in rows.groupby(["publisher_id", "date"])
    ]


def weeks(raw: Raw, publisher: int | None) -> list[dict[str, Any]]:
    mondays = sorted({day - timedelta(days=day.weekday()) for day in (FIRST + timedelta(n) for n in range(22))})
    spans = [(max(monday, FIRST), min(monday + timedelta(days=6), LAST)) for monday in mondays]
    found = [{"begins": first, "ends": last, **percentiles(raw.of(publisher, first, last))} for first, last in spans]
    return [*found, {"begins": None, "ends": None, **percentiles(raw.of(publisher, FIRST, LAST))}]


def hours(rows: pandas.DataFrame) -> list[dict[str, Any]]:
    counts = rows.groupby(["weekday", "hour"]).size()
    return [
        {"weekday": weekday, "hour": hour, "calculations": int(counts.get((weekday, hour), 0))}
        for weekday in range(1, 8)
        for hour in range(24)
    ]


def week(raw: Raw) -> tuple[date, date]:
    return raw.today - timedelta(days=6), raw.today


def some(raw: Raw, column: str, values: list[int], publisher: int | None = None) -> pandas.DataFrame:
    rows = raw.of(publisher, FIRST, LAST)
    return rows[rows[column].isin(values)]


EXPECTED: dict[str, Callable[[Raw], list[dict[str, Any]]]] = {
    "PublisherUsage": lambda raw: usage(raw, 7),
    "PlatformUsage": lambda raw: usage(raw, None),
    "PublisherTrend": lambda raw: by_day(raw, 7, *week(raw), measures),
    "PlatformTrend": lambda raw: by_day(raw, None, *week(raw), measures),
    "PublisherDays": lambda raw: by_day(raw, 7, FIRST, LAST, measures),
    "PublisherTotals": lambda raw: [measures(raw.of(7, FIRST, LAST))],
    "PlatformTotals": lambda raw: [measures(raw.of(None, FIRST, LAST))],
    "PublisherTopLocalities": lambda raw: top(raw.of(7, FIRST, LAST), "locality_id", 5),
    "PlatformTopLocalities": lambda raw: top(raw.of(None, FIRST, LAST), "locality_id", 5),
    "PublisherRanking": lambda raw: top(raw.of(None, FIRST, LAST), "publisher_id", 100),
    "PublisherPercentiles": lambda raw: [percentiles(raw.of(7, FIRST, LAST))],
    "PublisherPercentilesOfSources": lambda raw: [percentiles(some(raw, "source", [2, 3], 7))],
    "PlatformPercentiles": lambda raw: [percentiles(raw.of(None, FIRST, LAST))],
    "PercentilesOfSomePublishers": lambda raw: [percentiles(some(raw, "publisher_id", [7, 8]))],
    "PublisherPercentilesByDay": lambda raw: by_day(raw, 7, FIRST, LAST, percentiles),
    "PublisherHours": lambda raw: hours(raw.of(7, FIRST, LAST)),
    "PublisherDaysOfAll": lambda raw: of_all(raw.of(None, FIRST, LAST)),
    "PublisherTodayLive": lambda raw: [{"today": len(raw.of(7, raw.today, raw.today))}],
}


def assert_answers(asked: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Counts are equal; ratios and averages to the last digits; percentiles exact below 128 ms and within 1 % above."""
    assert len(asked) == len(expected)
    for answer, right in zip(asked, expected, strict=True):
        for name in answer.keys() & right.keys():
            if answer[name] is None or right[name] is None:
                assert answer[name] is right[name] is None, (name, answer, right)
            elif name.startswith("p") and name.endswith("_ms"):
                bound = 0.01 if right[name] >= 127 else 1e-9
                assert answer[name] == pytest.approx(right[name], rel=bound), name
            elif isinstance(answer[name], float):
                assert answer[name] == pytest.approx(right[name], rel=1e-12), (name, answer, right)
            else:
                assert answer[name] == right[name], (name, answer, right)
        assert answer.keys() - right.keys() <= {"counted_at", "complete", "first_date", "last_date"}


def ask(connection: psycopg.Connection, query: str, *parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return cursor.execute(query.encode(), parameters or None).fetchall()


@pytest.fixture(scope="module")
def raw_rows() -> list[tuple[Any, ...]]:
    """Two months of rows until now, of five publishers, besides those of publishers 7 and 8."""
    now, rng = datetime.now(ZoneInfo(ZONE)), random.Random(14)
    begin = utc(2026, 1, 18)
    rows = random_rows(rng, 2_000, begin, utc(2026, 2, 12)) + random_rows(rng, 1_500, now - timedelta(days=63), now)
    return [
        (rng.choice([7, 7, 7, 8]), *each[1:]) if rng.random() < 0.5 else each
        for each in rows
    ]  # fmt: skip


@pytest.fixture
def zoned(engine: Engine, owner: Engine) -> Database:
    """A database with days in Jerusalem."""
    execute(owner, f"update rollup_state set timezone = '{ZONE}'")
    return Database(engine, LOG, ZONE)


@pytest.fixture
def filled(zoned: Database, connect: Callable[[], psycopg.Connection], raw_rows: list) -> Iterator[psycopg.Connection]:
    """A connection of the owner's to a database in which these rows are written, and counted."""
    connection = connect()
    write(connection, raw_rows)
    refresh(zoned)
    connection.autocommit = True
    return connection


def test_every_documented_query_is_expected_here_and_in_the_file_for_sqlc():
    assert DOCUMENTED.keys() == EXPECTED.keys() == OF_SQLC.keys()
    arguments = {
        "publisher_percentiles(": ("7", "'2026-01-20'", "'2026-02-10'"),
        "publishers =>": ("'2026-01-20'", "'2026-02-10'", "array[7, 8]"),
        "platform_": ("'2026-01-20'", "'2026-02-10'"),
        "": ("7", "'2026-01-20'", "'2026-02-10'"),
    }
    for name, query in OF_SQLC.items():
        values = next(values for sign, values in arguments.items() if sign in query)
        for number, value in enumerate(values, 1):
            query = query.replace(f"${number}", value)
        assert query == DOCUMENTED[name]


def test_the_queries_of_the_readme_are_those_of_the_page():
    readme = (project_root() / "README.md").read_text()
    (block,) = re.findall(r"```sql\n(.*?)```", readme, re.S)
    quoted = dict(re.findall(r"-- (\w+)\n(.*?);\n", block, re.S))
    assert len(quoted) == 5
    assert quoted == {name: DOCUMENTED[name] for name in quoted}


def test_documented_queries_are_right_before_and_after_prune_and_with_late_rows(
    zoned: Database, filled: psycopg.Connection, raw_rows: list
):
    raw = Raw(raw_rows, ZONE)
    for name, query in DOCUMENTED.items():
        asked = ask(filled, query)
        assert_answers(asked, EXPECTED[name](raw))
        assert all(answer.get("complete", True) for answer in asked), name

    pruned = prune(zoned_owner(zoned), LAST - timedelta(days=5))
    assert pruned.rows > 500
    late = [
        *random_rows(random.Random(3), 200, utc(2026, 1, 20), utc(2026, 2, 9), publishers=8),
        row(utc(2026, 1, 25), publisher=7, response_time_ms=None),
    ]
    with psycopg.connect(filled.info.dsn, user=filled.info.user) as writer:
        write(writer, late)
    refresh(zoned)
    raw = Raw([*raw_rows, *late], ZONE)
    for name, query in DOCUMENTED.items():
        assert_answers(ask(filled, query), EXPECTED[name](raw))


def zoned_owner(zoned: Database) -> Database:
    """The same database as the owner of its tables, who may delete log rows."""
    from calc_analytics_tests.logs import OWNER

    return Database(engine_for(zoned.engine.url.set(**OWNER)), zoned.log, zoned.timezone)


def test_weeks_begin_on_monday_and_are_merged_from_the_histogram(filled: psycopg.Connection, raw_rows: list):
    raw = Raw(raw_rows, ZONE)
    of_one = ask(filled, "select * from publisher_percentiles_by_week(7, '2026-01-20', '2026-02-10')")
    assert [each["begins"] for each in of_one] == [
        date(2026, 1, 20),
        date(2026, 1, 26),
        date(2026, 2, 2),
        date(2026, 2, 9),
        None,
    ]
    assert_answers(of_one, weeks(raw, 7))
    of_all = ask(filled, "select * from platform_percentiles_by_week('2026-01-20', '2026-02-10')")
    assert_answers(of_all, weeks(raw, None))


def test_an_erased_publisher_is_in_no_answer(zoned: Database, connect: Callable[[], psycopg.Connection]):
    rows = random_rows(random.Random(1), 300, utc(2026, 2, 8), utc(2026, 2, 12), publishers=8)
    filled = connect()
    write(filled, rows)
    refresh(zoned)
    filled.autocommit = True
    erase(zoned_owner(zoned), {"publisher_id": 7})
    raw = Raw([each for each in rows if each[0] != 7], ZONE)
    assert ask(filled, DOCUMENTED["PublisherUsage"]) == []
    for name, query in DOCUMENTED.items():
        if name != "PublisherUsage":
            assert_answers(ask(filled, query), EXPECTED[name](raw))


def test_the_types_are_those_that_the_page_promises(filled: psycopg.Connection):
    for query in DOCUMENTED.values():
        with filled.cursor() as cursor:
            cursor.execute(query.encode())
            found = {column.name: psycopg.adapters.types[column.type_code].name for column in cursor.description or ()}
        for name, type_ in found.items():
            if name in ("weekday", "hour"):
                assert type_ == "int4"
            elif "ratio" in name or name.endswith("_ms") or name == "share":
                assert type_ == "float8", name
            else:
                expected = {"date": "date", "complete": "bool", "counted_at": "timestamptz"}.get(name, "int8")
                assert type_ == expected, name


def test_percentiles_of_any_days_sources_and_publishers_are_within_their_bound(
    zoned: Database, connect: Callable[[], psycopg.Connection]
):
    rng, writer = random.Random(5), connect()
    for spread in (0.3, 1.2, 2.5):
        times = numpy.random.default_rng(5).lognormal(5, spread, 4_000).clip(0, 32_767).astype(int)
        write(
            writer,
            [
                row(
                    utc(2026, 3, 1) + timedelta(minutes=rng.uniform(0, 9 * 1440)),
                    publisher=rng.randint(1, 9),
                    source=rng.choice([1, 2, 3, 4]),
                    response_time_ms=None if rng.random() < 0.1 else int(ms),
                )
                for ms in times
            ],
        )
    refresh(zoned)
    rows = writer.execute(f"select {', '.join(COLUMNS)} from calculation_logs").fetchall()
    raw = Raw(rows, ZONE)
    for _ in range(40):
        first = date(2026, 3, 1) + timedelta(days=rng.randint(0, 8))
        last = first + timedelta(days=rng.randint(0, 4))
        publishers, sources = rng.sample(range(1, 10), rng.randint(1, 5)), rng.sample([1, 2, 3, 4], rng.randint(1, 3))
        (answer,) = ask(
            writer, "select * from platform_percentiles(%s, %s, %s, %s)", first, last, sources, publishers
        )  # fmt: skip
        chosen = raw.of(None, first, last)
        chosen = chosen[chosen["publisher_id"].isin(publishers) & chosen["source"].isin(sources)]
        assert_answers([answer], [percentiles(chosen)])


def test_every_response_time_is_within_its_bound(url: URL):
    """Each value that a smallint holds, by itself: the middle of its bucket."""
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        found = connection.execute(
            "select n, response_time_middle(n >> width << width) from generate_series(0, 32767) n, "
            "lateral (select greatest(length(ltrim(n::bit(16)::text, '0')) - 7, 0) as width) w"
        ).fetchall()
    assert all(middle == value for value, middle in found if value < 128)
    assert max(abs(middle - value) / value for value, middle in found[1:]) < 0.008


def test_a_ratio_of_nothing_is_null_and_a_count_of_nothing_is_zero(connect: Callable[[], psycopg.Connection]):
    connection = connect()
    for name, query in DOCUMENTED.items():
        answers = ask(connection, query)
        for answer in answers:
            for column, value in answer.items():
                if "ratio" in column or column.endswith("_ms"):
                    assert value is None, (name, column)
                elif column in ("calculations", "cache_hits", "measured", "all_time", "today"):
                    assert value == 0, (name, column)
    assert [
        len(ask(connection, DOCUMENTED[name])) for name in ("PublisherUsage", "PlatformUsage", "PublisherTrend")
    ] == [
        0,
        1,
        7,
    ]


def test_an_average_without_measured_rows_is_null(db: Database, connect: Callable[[], psycopg.Connection]):
    writer = connect()
    write(writer, [row(utc(2026, 1, 25), publisher=7, response_time_ms=None) for _ in range(3)])
    refresh(db)
    (answer,) = ask(writer, DOCUMENTED["PublisherTotals"])
    assert (answer["calculations"], answer["average_response_time_ms"], answer["cache_hit_ratio"]) == (3, None, 0)


def test_complete_is_false_while_a_day_waits(db: Database, owner: Engine, connect: Callable[[], psycopg.Connection]):
    writer = connect()
    write(writer, [row(utc(2026, 1, 25), publisher=7), row(utc(2026, 3, 1), publisher=7)])
    rebuild(db, [date(2026, 1, 25), date(2026, 3, 1)])
    writer.autocommit = True
    (answer,) = ask(writer, DOCUMENTED["PublisherTotals"])
    assert answer["complete"]
    assert answer["counted_at"] is not None
    execute(owner, f"update rollup_days set status = 'pending' where date = '2026-01-25' and rollup = '{STATS.name}'")
    assert not ask(writer, DOCUMENTED["PublisherTotals"])[0]["complete"]
    assert not ask(writer, DOCUMENTED["PublisherUsage"])[0]["complete"]
    assert ask(writer, DOCUMENTED["PublisherPercentiles"])[0]["complete"], "another rollup, whose day is built"
    days = {each["date"]: each["complete"] for each in ask(writer, DOCUMENTED["PublisherDays"])}
    assert [day for day, complete in days.items() if not complete] == [date(2026, 1, 25)]
    (other,) = ask(writer, "select complete from publisher_totals(7, '2026-03-01', '2026-03-01')")
    assert other["complete"]


def test_a_rollup_that_is_not_kept_is_never_complete_and_its_old_rows_are_no_answer(
    zoned: Database, filled: psycopg.Connection
):
    assert ask(filled, DOCUMENTED["PlatformPercentiles"])[0]["measured"] > 0
    install(Database(zoned_owner(zoned).engine, LOG.only([STATS.name]), ZONE))
    assert ask(filled, DOCUMENTED["PlatformTotals"])[0]["complete"]
    assert ask(filled, DOCUMENTED["PlatformTotals"])[0]["average_response_time_ms"] is None
    (found,) = ask(filled, DOCUMENTED["PlatformPercentiles"])
    assert found == {"measured": 0, **dict.fromkeys(PERCENTILES), "complete": False}
    assert ask(filled, DOCUMENTED["PublisherTopLocalities"]) == []
    (usage_,) = ask(filled, DOCUMENTED["PublisherUsage"])
    assert usage_["complete"]
    assert usage_["p95_response_time_ms"] is usage_["average_response_time_ms"] is None
    install(Database(zoned_owner(zoned).engine, LOG, ZONE))
    assert ask(filled, DOCUMENTED["PlatformPercentiles"])[0]["complete"] is False, "its days wait"


def test_where_few_rollups_are_kept_the_documented_roles_may_ask_everything(
    empty_url: URL, maintenance: Callable[[str], None]
):
    """Another program's table is in the place of one that is not kept."""
    engine = engine_for(empty_url)
    execute(engine, "create table calculation_latency_daily (mine int)")
    install(Database(engine, LOG.only([STATS.name]), "UTC"))
    role = f"reader_of_{empty_url.database}"
    script = re.sub("^ *--.*$", "", (project_root() / "deploy" / "reader.sql").read_text(), flags=re.M)
    address = empty_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as owner:
        owner.execute(re.sub(r"\breader\b", role, script).encode())
        try:
            owner.execute(f"set role {role}".encode())
            for name, query in DOCUMENTED.items():
                assert ask(owner, query) is not None, name
        finally:
            owner.execute("reset role")
            owner.execute(f"drop owned by {role}; drop role {role}".encode())
    engine.dispose()


def test_a_day_that_differs_is_not_complete(filled: psycopg.Connection, owner: Engine):
    assert ask(filled, DOCUMENTED["PublisherTotals"])[0]["complete"]
    for column in ("difference", "audit_difference"):
        execute(owner, f"update rollup_days set {column} = 5 where date = '2026-01-25' and rollup = '{STATS.name}'")
        assert not ask(filled, DOCUMENTED["PublisherTotals"])[0]["complete"], column
        execute(owner, f"update rollup_days set {column} = 0 where date = '2026-01-25'")


def test_the_search_path_changes_no_answer(filled: psycopg.Connection):
    before = ask(filled, "select * from publisher_usage order by publisher_id")
    filled.execute("create temporary table calculation_stats_daily (publisher_id int, date date)")
    filled.execute("create schema other")
    filled.execute("create view other.rollup_state as select 1 as log")
    filled.execute("set search_path = other, pg_temp")
    assert ask(filled, "select * from public.publisher_usage order by publisher_id") == before
    assert len(before) > 5


def test_it_stands_beside_tables_in_another_schema(empty_url: URL):
    engine = engine_for(empty_url)
    execute(engine, "create schema analytics")
    execute(engine, f'alter database "{empty_url.database}" set search_path = analytics')
    engine.dispose()
    install(Database(engine, LOG, "UTC"))
    with engine.begin() as connection:
        assert connection.execute(text("select count(*) from analytics.platform_trend(3)")).scalar() == 3
        assert connection.execute(text("select all_time from analytics.platform_usage")).scalar() == 0
    engine.dispose()


def test_widening_keeps_the_contract_its_types_and_its_grants(
    owner: Engine, filled: psycopg.Connection, zoned: Database
):
    filled.execute("grant select on publisher_usage to public")
    before = ask(filled, "select * from publisher_usage order by publisher_id")
    widen(zoned_owner(zoned), "publisher_id", "bigint")
    assert ask(filled, "select * from publisher_usage order by publisher_id") == before
    (column,) = ask(
        filled,
        "select format_type(atttypid, null) as type from pg_attribute "
        "where attrelid = 'publisher_usage'::regclass and attname = 'publisher_id'",
    )
    assert column["type"] == "bigint"
    assert ask(filled, "select has_table_privilege('public', 'publisher_usage', 'select') as may")[0]["may"]


def test_a_migration_keeps_grants_and_what_depends_on_the_contract(owner: Engine, filled: psycopg.Connection):
    filled.execute("grant select on publisher_usage to public")
    filled.execute("create view mine as select u.all_time, t.date from publisher_usage u, publisher_trend(7, 7) t")
    install(Database(owner, LOG, ZONE))
    assert ask(filled, "select has_table_privilege('public', 'publisher_usage', 'select') as may")[0]["may"]
    assert ask(filled, "select count(*) as rows from mine")[0]["rows"] > 7


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ("create view publisher_usage as select 1 as n", "the table or view publisher_usage"),
        ("create table platform_usage (n int)", "the table or view platform_usage"),
        (
            "create function publisher_trend(id bigint, days int) returns int language sql as 'select 1'",
            "the function publisher_trend(id bigint, days integer)",
        ),
        (
            "create function publisher_totals(int, date, date) returns int language sql as 'select 99'",
            "the function publisher_totals(integer, date, date)",
        ),
    ],
)
def test_what_another_program_has_under_such_a_name_is_left_alone(empty_url: URL, theirs: str, named: str):
    engine = engine_for(empty_url)
    execute(engine, theirs)
    with pytest.raises(NameTaken, match=re.escape(named)):
        install(Database(engine, LOG, "UTC"))
    with engine.begin() as connection:
        assert connection.execute(text("select to_regclass('rollup_state')")).scalar() is None
    engine.dispose()


def test_a_reader_may_ask_every_question_and_see_no_log_row(
    filled: psycopg.Connection, maintenance: Callable[[str], None], url: URL
):
    role, member = f"reader_of_{url.database}", f"api_of_{url.database}"
    script = re.sub("^ *--.*$", "", (project_root() / "deploy" / "reader.sql").read_text(), flags=re.M)
    script = re.sub(r"\breader\b", role, script)
    try:
        for _ in range(2):
            filled.execute(script.encode())
        filled.execute(f"create role {member} login in role {role}".encode())
        with psycopg.connect(filled.info.dsn, user=member) as reader:
            for name, query in DOCUMENTED.items():
                assert ask(reader, query) == ask(filled, query), name
            for forbidden in ("select * from calculation_logs", "select snapshot from rollup_state",
                              "delete from calculation_stats_daily"):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege), reader.transaction():
                    reader.execute(forbidden.encode())
    finally:
        filled.execute(f"drop owned by {role}".encode())
        maintenance(f"drop role if exists {member}")
        maintenance(f"drop role if exists {role}")


def test_the_reader_role_gets_no_right_to_a_second_installation(filled: psycopg.Connection, maintenance, url: URL):
    role = f"reader_of_{url.database}"
    script = re.sub(r"\breader\b", role, (project_root() / "deploy" / "reader.sql").read_text())
    filled.execute("create schema other")
    filled.execute("create function other.closed() returns int language sql as 'select 1'")
    filled.execute("comment on function other.closed() is 'calc_analytics: of another installation'")
    filled.execute("revoke execute on function other.closed() from public")
    try:
        filled.execute(script.encode())
        may = f"select has_function_privilege('{role}', '{{}}', 'execute') as may"
        assert ask(filled, may.format("public.publisher_trend(bigint, integer)"))[0]["may"]
        assert not ask(filled, may.format("other.closed()"))[0]["may"]
    finally:
        filled.execute(f"drop owned by {role}".encode())
        maintenance(f"drop role if exists {role}")


def test_one_publishers_question_reads_that_publishers_rows_only(filled: psycopg.Connection):
    """The condition reaches the tables: PostgreSQL merges the functions into the query."""
    filled.execute("analyze")
    filled.execute("set enable_seqscan = off")
    for name in ("PublisherUsage", "PublisherTopLocalities", "PublisherPercentiles", "PublisherDays"):
        plan = "\n".join(str(line[0]) for line in filled.execute(f"explain {DOCUMENTED[name]}".encode()).fetchall())
        scans = re.findall(r"Scan (?:on|using) .*calculation_.*\n.*", plan)
        assert scans, name
        for scan in scans:
            assert re.search(r"(Index|Recheck) Cond: \(.*publisher_id = ('7'::bigint|7|\(?\w+\.publisher_id)", scan), (
                name,
                plan,
            )


def test_every_function_and_view_says_what_it_is(owner: Engine):
    with owner.begin() as connection:
        described = connection.execute(
            text("select proname from pg_proc p where obj_description(oid, 'pg_proc') like 'calc_analytics: %'")
        ).scalars()
        assert {function.name for function in FUNCTIONS} == set(described)
        for view in VIEWS:
            columns = connection.execute(
                text("select col_description(attrelid, attnum) from pg_attribute where attrelid = to_regclass(:v) "
                     "and attnum > 0"), {"v": view},
            ).scalars().all()  # fmt: skip
            assert columns
            assert all(columns)


def test_an_average_leaves_out_days_whose_rows_without_a_time_are_not_known(db: Database, owner: Engine, connect):
    writer = connect()
    write(writer, [row(utc(2026, 1, 25), publisher=7, response_time_ms=each) for each in (10, 20, None)])
    write(writer, [row(utc(2026, 1, 26), publisher=7, response_time_ms=each) for each in (40, None)])
    refresh(db)
    writer.autocommit = True

    def averages() -> tuple[float | None, float | None, list[float | None]]:
        days = ask(writer, "select * from publisher_days(7, '2026-01-25', '2026-01-26')")
        return (
            ask(writer, DOCUMENTED["PublisherTotals"])[0]["average_response_time_ms"],
            ask(writer, DOCUMENTED["PublisherUsage"])[0]["average_response_time_ms"],
            [each["average_response_time_ms"] for each in days],
        )

    everything = pytest.approx(70 / 3)
    assert averages() == (everything, everything, [15, 40])
    pending = f"update rollup_days set status = '{{}}' where rollup = '{LATENCY.name}' and date = '2026-01-25'"
    execute(owner, pending.format("pending"))
    assert averages() == (40, 40, [None, 40])
    execute(owner, f"update rollup_days set status = 'built', counted = jsonb_build_object('calculations', 1) "
                   f"where rollup = '{LATENCY.name}' and date = '2026-01-25'")  # fmt: skip
    assert averages() == (40, 40, [None, 40]), "the histogram lacks calculations of that day"
    execute(owner, f"update rollup_days set status = 'stale' where rollup = '{LATENCY.name}'")
    assert averages() == (None, None, [None, None])


def test_days_that_other_rollups_never_held_are_not_complete(empty_url: URL):
    """The API's statistics of days whose log rows are gone: in the other tables is nothing of them."""
    engine = engine_for(empty_url)
    execute(
        engine,
        "create table calculation_stats_daily (publisher_id int, date date, total_calculations int not null default 0, "
        "cache_hits int not null default 0, total_response_time_ms bigint not null default 0, source_web int not null "
        "default 0, source_api int not null default 0, source_external int not null default 0, "
        "primary key (publisher_id, date))",
    )
    execute(engine, "insert into calculation_stats_daily values (7, '2026-01-25', 10, 4, 100, 10)")
    db = Database(engine, LOG, "UTC")
    install(db)
    refresh(db)
    with psycopg.connect(empty_url.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        for name, query in DOCUMENTED.items():
            for answer in ask(connection, query):
                if "complete" in answer and answer.get("date", date(2026, 1, 25)) == date(2026, 1, 25):
                    assert answer["complete"] is ("Trend" in name), name
        assert ask(connection, DOCUMENTED["PublisherUsage"])[0]["all_time"] == 10
        assert ask(connection, DOCUMENTED["PublisherUsage"])[0]["average_response_time_ms"] is None
    engine.dispose()


@pytest.mark.parametrize("period", ["null, null", "'2026-01-20', null", "'2026-02-10', '2026-01-20'"])
def test_a_period_that_is_none_is_not_complete(filled: psycopg.Connection, period: str):
    (answer,) = ask(filled, f"select calculations, complete from publisher_totals(7, {period})")
    assert answer == {"calculations": 0, "complete": False}


def test_row_level_security_that_hides_rows_makes_answers_incomplete(filled: psycopg.Connection, url: URL):
    filled.execute("grant usage on schema public to public")
    filled.execute("grant select on all tables in schema public to public")
    member = f"reader_of_{url.database}"
    filled.execute(f"create role {member} login".encode())
    try:
        with psycopg.connect(filled.info.dsn, user=member, autocommit=True) as reader:
            assert ask(reader, DOCUMENTED["PlatformTotals"])[0]["complete"]
            filled.execute("alter table calculation_stats_daily enable row level security")
            filled.execute("create policy of_one on calculation_stats_daily for select using (publisher_id = 7)")
            for name in ("PlatformTotals", "PlatformUsage", "PublisherTotals"):
                (answer,) = ask(reader, DOCUMENTED[name])
                assert answer["complete"] is False, name
                assert answer["average_response_time_ms"] is None, name
            assert ask(filled, DOCUMENTED["PlatformTotals"])[0]["complete"], "the owner sees all rows"
    finally:
        filled.execute(f"drop owned by {member}; drop role {member}".encode())


def test_columns_of_the_apis_table_are_not_mistaken_for_parameters(empty_url: URL):
    engine = engine_for(empty_url)
    names = {name for function in FUNCTIONS for name in function.parameters}
    columns = ", ".join(f"{name} int default 99" for name in sorted(names))
    execute(
        engine,
        "create table calculation_stats_daily (publisher_id int, date date, total_calculations int not null default 0, "
        "cache_hits int not null default 0, total_response_time_ms bigint not null default 0, source_web int not null "
        "default 0, source_api int not null default 0, source_external int not null default 0, "
        f"{columns}, primary key (publisher_id, date))",
    )
    install(Database(engine, LOG, "UTC"))
    execute(engine, "insert into calculation_stats_daily values (7, '2026-01-25', 3), (8, '2026-01-25', 5)")
    with engine.begin() as connection:
        for query, calculations in (("publisher_totals(7, '2026-01-20', '2026-02-10')", [3]),
                                    ("platform_top_publishers('2026-01-20', '2026-02-10', 1)", [5])):  # fmt: skip
            assert connection.execute(text(f"select calculations from {query}")).scalars().all() == calculations
    engine.dispose()
