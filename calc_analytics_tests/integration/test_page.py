"""`GET /` for people: each state of the log on a real database and a real Dagster instance, and in a real browser."""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import psycopg
import pytest
from dagster import DagsterInstance
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorStatus, TickStatus
from playwright.sync_api import Browser
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Connection, Engine

from calc_analytics.config import Settings
from calc_analytics.database.engine import transaction
from calc_analytics.days import today_and_yesterday
from calc_analytics.errors import CalcAnalyticsError
from calc_analytics.operations import facts
from calc_analytics.operations.findings import Finding, note
from calc_analytics.operations.health import PROBES
from calc_analytics.operations.page import view
from calc_analytics.operations.page.accept import prefers_html
from calc_analytics.operations.page.calendar import months, shift_months
from calc_analytics.operations.page.chart import chart
from calc_analytics.operations.page.figures import figures, readers
from calc_analytics.operations.probes import Answer, Prober
from calc_analytics.operations.sources import Sources
from calc_analytics.orchestration import history
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollup import ledger, unseen
from calc_analytics.rollup.audit import audit
from calc_analytics.rollup.database import Database
from calc_analytics.rollup.journal import Freshness
from calc_analytics.rollup.overview import DayOverview, Overview, overview
from calc_analytics.rollup.rebuild import rebuild
from calc_analytics.rollup.refresh import refresh
from calc_analytics.rollup.retention import prune
from calc_analytics.rollup.status import STATES, recent_days
from calc_analytics.rollup.unseen import Search, SearchReport
from calc_analytics.rollup.verify import verify
from calc_analytics.rollups import HOURS, LATENCY, LOG, STATS
from calc_analytics_tests.conftest import ROLE
from calc_analytics_tests.integration.test_disclosure import inside
from calc_analytics_tests.integration.test_history import heartbeat, instigator, tick
from calc_analytics_tests.integration.test_service import SECRET, Served, serving
from calc_analytics_tests.logs import execute, row, utc, write

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
NOW = datetime.now(timezone.utc)
TODAY = NOW.date()
AGO = [TODAY - timedelta(days=n) for n in range(500)]
Connect = Callable[[], psycopg.Connection]


@contextmanager
def dagster_home(folder: Path) -> Iterator[DagsterInstance]:
    """A Dagster instance in that folder, as the service finds it; nothing is on record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(folder))
        (folder / "dagster.yaml").write_text("run_monitoring: {enabled: true}\n")
        history.instance.cache_clear()
        with history.instance() as instance:
            yield instance
        history.instance.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all tests that leave nothing in it."""
    with dagster_home(tmp_path_factory.mktemp("dagster")):
        yield


@pytest.fixture
def dagster(tmp_path: Path) -> Iterator[DagsterInstance]:
    """One of the test's own."""
    with dagster_home(tmp_path) as instance:
        yield instance


@pytest.fixture
def served(database: URL) -> Iterator[Served]:
    """The service on the test's own database."""
    with serving(Settings.from_environment()) as running:
        yield running


def page(served: Served, **headers: str) -> str:
    """What a browser gets."""
    status, body = served.ask("/", Accept=BROWSER, **headers)
    assert status == 200
    assert served.headers["content-type"] == "text/html; charset=utf-8"
    return body


def words(body: str) -> str:
    """The text of the page, in one line."""
    body = re.sub(r"<style>.*?</style>", "", body, flags=re.S)
    return " ".join(unescape(re.sub("<[^>]+>", " ", body)).split())


def state_of(body: str, day: date) -> str:
    """What the calendar says of that day: its state and count."""
    (month,) = re.findall(rf"<caption>{day:%B} {day.year}</caption>(.*?)</table>", body, re.S)
    (title,) = re.findall(rf'title="([^"]*)"><span[^>]*>{day.day}</span>', month)
    return title


def run_well(dagster: DagsterInstance) -> None:
    """Every daemon lives, the sensor and the schedule are on and tick."""
    for daemon in history.NEEDED_DAEMONS:
        heartbeat(dagster, daemon)
    for name, kind in ((history.SENSOR, InstigatorType.SENSOR), (history.SCHEDULE, InstigatorType.SCHEDULE)):
        state = instigator(dagster, name, kind, InstigatorStatus.RUNNING)
        tick(dagster, state, TickStatus.SUCCESS, 8)
        tick(dagster, state, TickStatus.STARTED)


def at(day: date, hour: int = 12) -> datetime:
    return utc(day.year, day.month, day.day, hour)


def count_days(db: Database, connect: Connect, days: list[date], rows: int = 12) -> None:
    """So many log rows on each of these days, at its beginning; built in every rollup, compared and audited."""
    write(connect(), [row(at(day, 0), publisher=n % 3, cache_hit=n % 2 == 0) for day in days for n in range(rows)])
    rebuild(db, sorted({*days, *today_and_yesterday("UTC")}))
    assert verify(db, days).difference == 0
    audit(db)


def mark(db: Database, day: date, status: str, rollups=LOG.rollups) -> None:
    with transaction(db.engine) as connection:
        for rollup in rollups:
            ledger.mark(connection, rollup, [day], status)


def write_unseen(owner: Engine, days: list[date]) -> None:
    """A log row on each of these days that no refresh counts, as those of a partition that is attached."""
    for day in days:
        execute(
            owner,
            "insert into calculation_logs (publisher_id, locality_id, date_calculated, source, created_at, xact_id) "
            f"values (1, 1, '{day}', 1, '{day} 00:00Z', null)",
        )


def test_browsers_get_the_page_and_programs_the_list(served: Served):
    assert page(served).startswith("<!doctype html>")
    assert served.headers["vary"] == "Accept"
    assert served.headers["cache-control"] == "no-store"
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}, {"Accept": "application/json, text/html"}):
        status, answer = served.ask("/", **accept)
        assert (status, answer["data"]["service"]) == (200, "calc_analytics")
        assert served.headers["vary"] == "Accept"
    assert served.ask("/", "HEAD", Accept=BROWSER) == (200, "")


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML;charset=utf-8", True),
        ("text/*, */*;q=0.1", True),
        ("text/html;q=0.4, application/json;q=0.3", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/html, application/json", False),
        ("text/html;q=0.4, application/json;q=0.5", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=much", False),
        ("text/html;q=nan", False),
        ("text/plain", False),
        (";;,,q=;", False),
    ],
)
def test_who_prefers_html(accept: str, html: bool):
    assert prefers_html(accept) is html


def test_nothing_but_the_page_itself_is_needed_and_nothing_else_is_allowed(served: Served):
    body = page(served)
    policy = served.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "<script" not in body
    assert " style=" not in body
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', body)


def test_an_empty_log(served: Served):
    body = page(served)
    text = words(body)
    assert "✗ Unhealthy" in text
    assert "Nothing was ever counted." in text
    assert "Not on record: no row of today is counted yet." in text
    assert "Exact:" not in text
    assert "Exact up" not in text
    assert "No row was counted in the last 6 hours." in text
    assert "No day is on record, so there is nothing to prove." in text
    assert state_of(body, TODAY) == "not on record"


def test_a_healthy_log(dagster, served: Served, db, connect):
    run_well(dagster)
    count_days(db, connect, AGO[:3], rows=1500)
    write(connect(), [row(datetime.now(timezone.utc))] * 4)
    refresh(db)
    body = page(served)
    text = words(body)
    assert "<title>Healthy · calc_analytics</title>" in body
    assert f"✓ Healthy {len(PROBES)} probes passed, none failed." in text
    assert (
        "Total calculations 1,504 Cache hits 750 Total response time (ms) 15,040 Source web 1,504 Source API 0" in text
    )
    assert "Exact: every committed row is counted." in text
    assert state_of(body, AGO[1]) == "built, 1,500 calculations"
    assert "All days last audited against what was counted" in text
    assert re.search(r"Oldest proof of a day against the log \d.* s ago", text)
    assert 'aria-label="Age of rows' in body
    assert re.search(r"half of the rows were [0-9.]+ \w+ old or less, and 95 % were [0-9.]+ \w+ or less", text)
    assert "All times are in UTC." in text
    assert served.ask("/health/rollup")[0] == 200


@pytest.fixture
def noted(dagster, served: Served, db, connect, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The service where nothing fails, and one probe has a note."""

    def judge(facts: facts.Facts) -> Finding:
        return note("the note of a check", command="calc-analytics verify")

    run_well(dagster)
    count_days(db, connect, AGO[:2])
    monkeypatch.setitem(PROBES, "checks", replace(PROBES["checks"], judge=judge))
    return served


def test_a_note_is_not_a_probe_that_passed(noted: Served):
    body = page(noted)
    healthy, passed = words(body).split("Probes that passed")
    assert f"⚠ Healthy {len(PROBES) - 1} probes passed, none failed; 1 has a note." in healthy
    assert "⚠ Notes" in healthy
    assert "Checks The note of a check. Next: calc-analytics verify" in healthy
    assert "✓ Runs" in passed
    assert "the note of a check" not in passed.lower()
    assert "<title>Healthy" in body


def test_days_that_only_a_search_has_found_need_attention(database: URL, db, owner, connect):
    count_days(db, connect, AGO[:2])
    old = [shift_months(TODAY, -12) - timedelta(days=n) for n in (1, 2)]
    write_unseen(owner, [AGO[4], AGO[6], *old])
    execute(owner, f"insert into rollup_days (rollup, date, status) values ('{HOURS.name}', '{AGO[6]}', 'stale')")
    with serving(Settings.from_environment()) as served:
        body = page(served)
        rebuild(db, [AGO[4], AGO[6], *old])
        later = page(served)
    text = words(body)
    assert "4 days with log rows wait for a rebuild" in text
    assert state_of(body, AGO[4]) == "unseen, never counted"
    assert state_of(body, AGO[5]) == "not on record"
    assert f"{AGO[4]} ! unseen in all 4 rollups" in text
    assert re.search(rf"{AGO[6]} ! unseen in [\w, ]+; {HOURS.name} \(stale\)", text)
    outside = text.split("Days outside these months")[1]
    assert re.search(rf" ! unseen 2 {old[1]} to {old[0]}", outside) or old[0].year != old[1].year
    assert "unseen" not in words(later)
    assert state_of(later, AGO[4]) == "built, 1 calculations"


def test_while_the_search_does_not_answer_the_days_say_so(served: Served, db, connect, monkeypatch):
    def fail(search: Search, db: Database) -> SearchReport:
        raise CalcAnalyticsError("the search fails")

    count_days(db, connect, AGO[:2])
    assert "Whether days that are not on record have log rows" not in page(served)
    monkeypatch.setattr(Search, "report", fail)
    assert "Whether days that are not on record have log rows: Not known: " in page(served)


def test_that_the_search_was_stopped_is_said_beside_the_days(database: URL, db, connect, monkeypatch):
    def search_for_long(connection: Connection, db: Database) -> list[date]:
        connection.execute(text("select pg_sleep(20)"))
        return []

    count_days(db, connect, AGO[:2])
    monkeypatch.setattr(unseen, "find_days", search_for_long)
    with serving(Settings.from_environment()) as served:
        stopped = page(served)
    assert "Other days that are not on record may have log rows: the search for them was stopped after 1.0 s" in stopped
    assert state_of(stopped, AGO[1]) == "built, 12 calculations"


def test_across_midnight_the_whole_page_is_of_one_day(served: Served, db, connect, monkeypatch: pytest.MonkeyPatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return at(TODAY, 0) - timedelta(milliseconds=1)

    count_days(db, connect, AGO[1:2], rows=7)
    monkeypatch.setattr("calc_analytics.operations.http.datetime", Clock)
    body = page(served)
    assert f'<time datetime="{AGO[1]}">' in body
    assert f"{AGO[1]} 23:59:59" in words(body)
    assert "Total calculations 7 " in words(body)


def test_rows_that_wait_are_shown_and_today_is_exact_up_to_the_last_count(served: Served, db, connect):
    count_days(db, connect, AGO[:1])
    write(connect(), [row(datetime.now(timezone.utc))] * 5)
    text = words(page(served))
    assert "Exact up to the last count. 5 rows wait" in text
    assert re.search(" 5 rows wait to be counted; the oldest has waited for [0-9.]+ s at most", text)
    assert "Exact: every" not in text


def test_a_pending_day(served: Served, db, connect):
    count_days(db, connect, AGO[:5])
    with transaction(db.engine) as connection:
        ledger.record_pending(connection, LOG, [AGO[10]])
    body = page(served)
    assert state_of(body, AGO[10]) == "pending, never counted"
    assert state_of(body, AGO[9]) == "not on record"
    assert f"Days that need attention Day State, and where {AGO[10]} … pending in all 4 rollups" in words(body)


def test_a_day_whose_rollups_are_in_different_states_has_the_worst(served: Served, db, connect):
    count_days(db, connect, AGO[:5])
    mark(db, AGO[2], "pending", [HOURS])
    mark(db, AGO[2], "stale", [LATENCY])
    execute(db.engine, f"delete from rollup_days where date = '{AGO[3]}' and rollup = '{HOURS.name}'")
    body = page(served)
    text = words(body)
    assert state_of(body, AGO[2]) == "pending, 12 calculations"
    assert state_of(body, AGO[3]) == "unrecorded, 12 calculations"
    assert f"{AGO[2]} … pending in {HOURS.name}; {LATENCY.name} (stale)" in text
    assert f"{AGO[3]} ? unrecorded in {HOURS.name}" in text


def test_pruned_and_frozen_days(served: Served, db, owner, connect):
    count_days(db, connect, AGO[:5])
    prune(replace(db, engine=owner), AGO[3])
    mark(db, AGO[3], "frozen")
    body = page(served)
    assert state_of(body, AGO[4]) == "pruned, 12 calculations"
    assert state_of(body, AGO[3]) == "frozen, 12 calculations"
    assert "need attention" not in body


@pytest.mark.parametrize("day", [0, 3])
def test_a_day_that_differs(served: Served, db, engine, connect, day: int):
    count_days(db, connect, AGO[:5])
    execute(engine, f"update {STATS.name} set cache_hits = cache_hits + 1 where date = '{AGO[day]}'")
    audit(db)
    body = page(served)
    assert state_of(body, AGO[day]) == "differs, 12 calculations"
    assert "✗ Unhealthy" in words(body)
    assert f"{AGO[day]} ≠ differs in {STATS.name}" in words(body)
    assert (f"Not exact: the state of today is differs in {STATS.name}. Differs from the log" in words(body)) is (
        day == 0
    )
    assert ("Exact: every committed row is counted." in words(body)) is (day != 0)


def test_a_day_that_was_set_aside(served: Served, db, connect):
    count_days(db, connect, AGO[:2])
    with transaction(db.engine) as connection:
        ledger.set_aside(connection, STATS, [AGO[0]])
    body = page(served)
    assert state_of(body, AGO[0]) == "overflow, 12 calculations"
    assert f"Not exact: the state of today is overflow in {STATS.name}. Set aside," in words(body)


def test_days_outside_of_the_calendar_are_summed_up(served: Served, db, connect):
    old = [shift_months(TODAY, -12) - timedelta(days=n) for n in (1, 2, 400)]
    count_days(db, connect, [*AGO[:1], *old])
    mark(db, old[1], "stale")
    text = words(page(served)).split("Days outside these months")[1]
    assert f"{old[2].year} ✓ built 1 {old[2]}" in text
    assert f"{old[0].year} ✓ built 1 {old[0]}" in text
    assert f"{old[1].year} ~ stale 1 {old[1]}" in text


def test_the_page_and_status_have_the_same_words(db, owner, connect):
    count_days(db, connect, AGO[:8])
    prune(replace(db, engine=owner), AGO[5])
    execute(owner, f"update rollup_days set audit_difference = 1 where date = '{AGO[7]}' and rollup = '{STATS.name}'")
    for n, status in enumerate(("pending", "stale", "frozen", "overflow"), start=1):
        mark(db, AGO[n], status)
    found = overview(db, AGO[30], AGO[0], AGO[0])
    assert {(day.day, name): word for day in found.days for name, word in day.rollups.items()} == {
        (day.day, day.rollup): day.word for day in recent_days(db, 100)
    }
    assert {day.state for day in found.days} == {*STATES} - {"unrecorded", "unseen"}
    assert {day.day: day.rows for day in found.days} == dict.fromkeys(AGO[:8], 12)


def test_days_and_times_are_those_of_the_reporting_time_zone(database: URL, engine, connect, monkeypatch):
    execute(engine, "update rollup_state set timezone = 'Asia/Kathmandu'")
    monkeypatch.setenv("ROLLUP_TIMEZONE", "Asia/Kathmandu")
    db = Database(engine, LOG, "Asia/Kathmandu")
    write(connect(), [row(datetime.now(timezone.utc))])
    refresh(db)
    with serving(Settings.from_environment()) as served:
        body = page(served)
    local = datetime.now(timezone.utc) + timedelta(hours=5, minutes=45)
    assert state_of(body, local.date()) == "built, 1 calculations"
    assert f", {local.day} {local:%B} {local.year} , in Asia/Kathmandu" in words(body)
    assert f"{local:%H}:00</text>" in body
    assert "All times are in Asia/Kathmandu." in words(body)


def test_while_the_database_is_down_every_part_says_so_and_nothing_is_green(database: URL):
    nowhere = f"postgresql://ledger_keeper:{SECRET}@127.0.0.1:{free_port()}/books_of_account"
    settings = Settings.from_environment({"DATABASE_URL": nowhere})
    with serving(settings, Prober()) as served:
        began = time.monotonic()
        body = page(served)
        assert time.monotonic() - began < 5
    text = words(body)
    assert "✗ Unhealthy" in text
    assert text.count("Not known: the database is unreachable.") == 4, "today, the lag, the days, the proofs"
    assert "Exact:" not in text
    assert "mood ok" not in body
    assert 'class="banner ok"' not in body
    assert [each for each in inside(settings.database_url) if each in body] == []


def test_while_a_table_is_locked_what_is_not_known_is_not_green(database: URL, db, connect):
    count_days(db, connect, AGO[:2])
    with serving(Settings.from_environment(), Prober(deadline_seconds=2)) as served:
        assert "Exact: every" in page(served)
        locker = connect()
        locker.execute("lock rollup_days in access exclusive mode")
        began = time.monotonic()
        body = page(served)
        assert time.monotonic() - began < 4
        locker.rollback()
        assert "Exact: every" in page(served)
    text = words(body)
    assert re.search(rf"\d of {len(PROBES)} probes did not answer", text)
    assert text.count("Not known: no answer within 2 s.") == 4, "today, the days, the proofs, the ages"
    assert "Exact: every" not in text


def test_a_part_that_is_not_allowed_says_so_and_the_others_are_there(served: Served, db, owner, connect):
    count_days(db, connect, AGO[:2])
    execute(owner, f"revoke select on rollup_journal from {ROLE}")
    body = page(served)
    assert "Not known: permission denied: the role lacks a right in the database." in words(body)
    assert state_of(body, AGO[1]) == "built, 12 calculations"
    assert [each for each in inside(Settings.from_environment().database_url) if each in body] == []


def test_a_database_from_another_cluster_shows_no_day(served: Served, db, owner, connect):
    count_days(db, connect, AGO[:2])
    execute(owner, "update rollup_state set system_identifier = 7, relation = 7")
    text = words(page(served))
    assert text.count("Not known: the database was restored into another cluster.") == 3
    assert "Exact:" not in text


class Elements(HTMLParser):
    """The names of a page's elements, and the texts between them."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.texts: list[str] = []
        self.feed(body)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names += [tag, *(name for name, _ in attrs)]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def odd_page(odd: str) -> str:
    """The page with that text wherever one can come from: findings, names of rollups and measures, errors."""
    probe = {"name": odd, "ok": False, "compared": odd, "next_command": odd, "seconds": 0.1, "code": odd}
    failed, noted, passed = ({**probe, "ok": level != "wrong", "level": level} for level in ("wrong", "note", "ok"))
    health = {"status": odd, "running": False, "healthy": False, "version": odd, "probes": [failed, noted, passed]}
    sources = Sources(Settings.from_environment({"DATABASE_URL": "postgresql://127.0.0.1:1/x"}))
    shown = figures(facts.read(sources, Prober(), ("ledger", "log", "unseen"), readers(sources.settings, NOW), NOW))
    days = [DayOverview(TODAY, "stale", {odd: "stale", "a": "built"}, 3)]
    shown = replace(shown, overview=Answer(Overview(TODAY, TODAY, days, [], {odd: 3}, odd, [odd, "a"]), None, 0.1))
    return view.render(health, shown, "UTC", f"http://{odd}:1")


def test_odd_names_are_text_and_never_markup():
    odd = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>&amp;{{7*7}}</style>"
    body, plain = odd_page(odd), odd_page("plain")
    assert Elements(body).names == Elements(plain).names
    assert "<img" not in body
    assert body.count(escape("<img")) >= 8
    assert "{{7*7}}" in body


def test_a_host_header_is_never_a_link(database: URL):
    with serving(Settings.from_environment(), ui_port=3999) as served:
        assert '<a href="http://127.0.0.1:3999">Dagster</a>' in page(served)
        for host in ("evil.example", "localhost.evil.example", "10.0.0.1:8080"):
            assert "3999" not in page(served, Host=host)
            assert host not in page(served, Host=host)
        assert "<script" not in page(served, Host='"><script>alert(1)</script>')


def test_a_view_costs_little_with_a_thousand_days(database: URL, db, engine, owner):
    execute(
        owner,
        "insert into rollup_days (rollup, date, status, counted, deleted, built_at, checksum) "
        "select r, current_date - n, 'built', jsonb_build_object('total_calculations', n, 'calculations', n), '{}', "
        f"now(), n from unnest(array{LOG.names}) r, generate_series(1, 1000) n",
    )
    execute(owner, "analyze rollup_days")
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda c, cursor, sql, *more: statements.append(sql))
    took = []
    for _ in range(5):
        statements.clear()
        began = time.perf_counter()
        found = overview(db, shift_months(TODAY, -12), TODAY, TODAY)
        took.append(time.perf_counter() - began)
    assert len(found.days) + sum(each.days for each in found.others) == 1000
    assert len(statements) <= 8
    assert min(took) < 0.2


def test_a_gap_in_the_counting_is_a_gap_in_the_chart():
    begin = utc(2026, 3, 1, 6)
    minutes = [Freshness(begin + timedelta(minutes=n), 1, 0.2, 3.0, 5.0) for n in (0, 1, 2, 60, 359)]
    found = chart(minutes, begin, 6, timezone.utc)
    assert found is not None
    assert found.median.count("M") == 3
    assert found.median.count("L") == 2
    assert [tick.label for tick in found.down] == ["0.1 s", "1 s", "10 s"]
    assert [tick.label for tick in found.across] == ["06:00", "07:00", "08:00", "09:00", "10:00", "11:00"]
    assert [round(tick.at, 1) for tick in found.across] == [0, 16.7, 33.3, 50, 66.7, 83.3]
    assert chart([], begin, 6, timezone.utc) is None


def test_ages_beyond_the_scale_stay_inside_the_chart():
    begin = utc(2026, 3, 1, 6)
    for p50, p95 in ((1e-9, 1e-9), (0.2, 0.2), (1e9, 1e12), (1e-5, 1e12)):
        found = chart([Freshness(begin, 1, p50, p95, p95)], begin, 6, timezone.utc)
        assert found is not None
        assert len(found.down) >= 2
        heights = [float(each) for each in re.findall(r" ([0-9.]+)h", found.median + found.p95)]
        assert all(0 <= each <= 100 for each in heights)


def test_a_month_has_whole_weeks_from_monday_on():
    (month,) = months(date(2028, 2, 10), date(2028, 2, 29), date(2028, 2, 10), {}, "rows")
    assert month.name == "February 2028"
    assert [len(week) for week in month.weeks] == [7] * 5
    assert month.weeks[0][0] is None
    assert month.weeks[0][1].number == 1
    assert month.weeks[4][1].number == 29
    assert month.weeks[4][2] is None
    assert [cell.number for week in month.weeks for cell in week if cell and cell.is_today] == [10]


# The texts whose contrast with their background is lower than WCAG's 4.5 to 1: elements with a text of their own.
TOO_FAINT = r"""
() => {
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number)
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((c) => linear(c / 255))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor
      if (!/^rgba.*, 0\)$/.test(colour)) return colour
    }
  }
  const found = []
  for (const each of document.body.querySelectorAll("*")) {
    if (![...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue
    const style = getComputedStyle(each)
    const [a, b] = [light(each.tagName === "text" ? style.fill : style.color), light(behind(each))]
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
    if (contrast < 4.5) found.push(`${each.textContent.trim()}: ${contrast.toFixed(1)}`)
  }
  return found
}
"""


@pytest.fixture
def varied(database: URL, db, owner, connect) -> Iterator[Served]:
    """The service on a log whose days have every state."""
    count_days(db, connect, AGO[:12])
    prune(replace(db, engine=owner), AGO[10])
    for n, status in enumerate(("pending", "stale", "frozen", "overflow"), start=2):
        mark(db, AGO[n], status)
    execute(owner, f"update {STATS.name} set cache_hits = 0 where date = '{AGO[7]}'")
    write(connect(), [row(datetime.now(timezone.utc))] * 5)
    refresh(db)
    audit(db)
    execute(owner, f"delete from rollup_days where date = '{AGO[6]}' and rollup = '{HOURS.name}'")
    write_unseen(owner, [AGO[14]])
    with serving(Settings.from_environment()) as served:
        yield served


def test_it_is_readable_on_a_phone_and_on_a_desk_light_and_dark(varied: Served, browser: Browser):
    for scheme, width in itertools.product(("light", "dark"), (320, 1280)):
        opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        requested: list[str] = []
        said: list[str] = []
        opened.on("request", lambda request, seen=requested: seen.append(request.url))
        opened.on("console", lambda message, seen=said: seen.append(message.text))
        opened.goto(f"http://127.0.0.1:{varied.port}/")
        assert [state for state in STATES if not opened.locator(f"td.day.{state}").count()] == []
        assert opened.locator("svg.chart path.median").count() == 1
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.evaluate(TOO_FAINT) == []
        assert [each for each in requested if not each.startswith("data:")] == [f"http://127.0.0.1:{varied.port}/"]
        assert said == [], "the policy was violated"
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_notes_are_not_green(noted: Served, browser: Browser, scheme: str):
    opened = browser.new_page(color_scheme=scheme)
    opened.goto(f"http://127.0.0.1:{noted.port}/")
    shown = opened.evaluate("getComputedStyle(document.querySelector('.banner')).backgroundColor")
    assert shown == "rgb(122, 82, 0)"
    assert opened.evaluate(TOO_FAINT) == []
    opened.close()


def test_its_structure_is_that_of_a_document(varied: Served, browser: Browser):
    opened = browser.new_page()
    opened.goto(f"http://127.0.0.1:{varied.port}/")
    assert opened.locator("html").get_attribute("lang") == "en"
    levels = [int(each[1]) for each in opened.eval_on_selector_all("h1, h2, h3", "all => all.map(e => e.tagName)")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert opened.locator("table").count() == opened.locator("table > caption").count() > 1
    assert opened.get_by_role("region", name="Today").get_by_text("Total calculations").is_visible()
    links = opened.eval_on_selector_all("nav a", "all => all.map(e => new URL(e.href).pathname)")
    assert links == ["/health/rollup", "/metrics", "/openapi.json"]
    opened.close()


def test_it_loads_itself_again_and_stays_where_it_was_scrolled(
    varied: Served, db, connect, browser: Browser, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(view, "REFRESH_SECONDS", 1)
    opened = browser.new_page(viewport={"width": 320, "height": 500})
    opened.goto(f"http://127.0.0.1:{varied.port}/")
    opened.get_by_text("Days by state").scroll_into_view_if_needed()
    before = opened.evaluate("scrollY")
    assert before > 500
    write(connect(), [row(datetime.now(timezone.utc))] * 7)
    opened.get_by_text("7 rows wait to be counted").wait_for(state="attached", timeout=30_000)
    assert opened.evaluate("scrollY") == pytest.approx(before, abs=120)
    opened.close()
