"""What an operator sees in a browser while it happens: the sensor's events, a changed row, its report, the page."""

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from sqlalchemy import text

from benchmarks.running import eventually
from calc_analytics import days
from calc_analytics_tests.acceptance.comparisons import differing
from calc_analytics_tests.acceptance.conftest import Project, Up
from calc_analytics_tests.acceptance.test_operations import write
from calc_analytics_tests.acceptance.test_up import ONE_ROLLUP, all_runs_ended, launch_from_the_ui, materializations

TOKEN = "a-token-for-readers"
CHECK = "/assets/calculation_stats_daily?view=checks&checkDetail=stats_match_logs"


@pytest.fixture(scope="module")
def up(project: Project) -> Iterator[Up]:
    """`up` with reports open, after its first runs."""
    with project.up(REPORT_TOKEN=TOKEN) as running:
        write(running, 500)
        eventually(lambda: all_runs_ended(running), "the first runs to end")
        yield running


def shows(page: Page, address: str, words: str, seconds: float = 150) -> None:
    """Loads the page again and again until it has these words."""
    deadline = time.monotonic() + seconds
    while True:
        page.goto(address)
        try:
            page.get_by_text(re.compile(words)).first.wait_for(timeout=8_000)
            return
        except Exception:
            assert time.monotonic() < deadline, f"{address} never shows '{words}'"


def test_the_sensors_ticks_and_the_events_it_reports_are_in_the_ui(up: Up, page: Page):
    write(up, 200)
    today = str(days.today("UTC"))
    eventually(lambda: [each for each in materializations(up, today) if not each["runId"]], "an event of the sensor")
    shows(page, "/locations/calc_analytics/sensors/new_log_batches", r"\d+ runs? requested")
    page.goto(f"{ONE_ROLLUP}&partition={today}")
    page.get_by_text("rows_counted").first.wait_for()


def test_a_changed_row_fails_the_check_until_the_day_is_materialized_by_click(up: Up, page: Page):
    """The audit finds it within a minute; a rebuild counts the log again."""
    eventually(lambda: all_runs_ended(up), "runs to end")
    engine, today = up.engine(), str(days.today("UTC"))
    with engine.begin() as connection:
        changed = connection.execute(
            text("update calculation_stats_daily set total_calculations = total_calculations + 1000 where date = :day"),
            {"day": today},
        )
        assert changed.rowcount
    shows(page, CHECK, "another program changed the statistics")
    assert page.get_by_text("Failed").first.is_visible()
    launch_from_the_ui(page, ONE_ROLLUP, today)
    eventually(lambda: all_runs_ended(up), "the run to end")
    shows(page, CHECK, "statistics equal the log")
    assert differing(engine, live=False) == {}
    engine.dispose()


def test_the_report_opens_with_the_token_and_only_with_it(up: Up, browser: Browser):
    address = f"http://127.0.0.1:{up.service_port}/report"
    assert up.get("/report")[0] == 401
    with browser.new_context(http_credentials={"username": "me", "password": TOKEN}) as context:
        page, requested, problems = context.new_page(), [], []
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(address)
        assert page.locator("svg").count() >= 4
        page.get_by_role("heading", name="Calculations of all publishers").wait_for()
        assert set(requested) == {address}, "a report is one file"
        assert problems == []
        page.goto(f"{address}/publishers/1")
        page.get_by_role("heading", name="Calculations of publisher 1").wait_for()
