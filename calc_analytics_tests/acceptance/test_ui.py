"""What an operator sees in a browser while it happens: ticks, events, the page `/`, a changed row, the report."""

import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from sqlalchemy import text

from benchmarks.running import eventually
from calc_analytics import days
from calc_analytics_tests.acceptance.comparisons import differing
from calc_analytics_tests.acceptance.conftest import Project, Up
from calc_analytics_tests.acceptance.test_operations import write
from calc_analytics_tests.acceptance.test_up import (
    ONE_ROLLUP,
    all_runs_ended,
    launch_from_the_ui,
    materializations,
    runs,
)

TICKS = """
{ sensorOrError(sensorSelector: {repositoryName: "__repository__", repositoryLocationName: "calc_analytics",
    sensorName: "new_log_batches"}) { ... on Sensor { sensorState { ticks(limit: 20) { timestamp skipReason } } } } }
"""
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


def ticks(up: Up, since: float) -> list[dict[str, Any]]:
    """The sensor's ticks that began since then and counted rows without a run, newest first."""
    found = up.graphql(TICKS)["sensorOrError"]["sensorState"]["ticks"]
    return [each for each in found if each["timestamp"] >= since and (each["skipReason"] or "").startswith("counted ")]


def test_a_tick_that_counted_rows_says_how_many_on_the_sensors_page(up: Up, page: Page):
    started = time.time() - 15
    write(up, 200)
    tick = eventually(lambda: ticks(up, started), "a tick that has counted the rows")[0]
    assert re.fullmatch(r"counted \d+ rows in \d+ refresh(es)?; no run is needed", tick["skipReason"])
    page.goto("/locations/calc_analytics/sensors/new_log_batches")
    page.get_by_text("Adds new log rows to the statistics").first.wait_for()
    began = f"{datetime.fromtimestamp(tick['timestamp'], timezone.utc):%I:%M:%S}".removeprefix("0")
    row = page.locator("tr").filter(has_text=re.compile(rf"\b{began}\b"))
    row.get_by_role("button", name="0 runs requested").click()
    page.get_by_text(f"Skip reason: {tick['skipReason']}").wait_for()


def test_the_days_newest_event_shows_how_many_rows_the_sensor_counted(up: Up, page: Page):
    write(up, 200)
    today = str(days.today("UTC"))

    def newest() -> dict[str, Any] | None:
        """The day's newest materialization, if the sensor reported it."""
        event = materializations(up, today)[0]
        return None if event["runId"] else event

    event = eventually(newest, "an event of the sensor", 240)
    figures = {entry["label"]: entry.get("intValue") for entry in event["metadataEntries"]}
    assert 0 < figures["rows_counted"] <= figures["total_calculations"]
    page.goto(f"{ONE_ROLLUP}&partition={today}")
    for name in ("rows_counted", "total_calculations"):
        row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).first
        row.get_by_text(re.compile(f"^{figures[name]:,}$|^{figures[name]}$")).first.wait_for()


def test_the_page_for_people_is_healthy(up: Up, page: Page):
    eventually(lambda: all_runs_ended(up), "runs to end")
    shows(page, f"http://127.0.0.1:{up.service_port}/", "Exact: every committed row is counted")
    page.get_by_role("heading", name="Healthy", exact=True).wait_for()
    with up.engine().begin() as connection:
        counted = text("select sum(total_calculations) from calculation_stats_daily where date = :day")
        total = connection.execute(counted, {"day": days.today("UTC")}).scalar_one()
    assert f"{total:,}" in page.locator("main").inner_text()


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
    before = len(runs(up))
    launch_from_the_ui(page, ONE_ROLLUP, today)
    # Leaving the page at once would take back the request.
    eventually(lambda: len(runs(up)) > before, "the run to begin")
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
