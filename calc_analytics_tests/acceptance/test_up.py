"""`calc-analytics up`: log batches become exact statistics under the real webserver and daemon, and in the UI."""

import json
import re
import signal
import time
import urllib.request
from datetime import date, timedelta
from typing import Any

import psutil
import pytest
from playwright.sync_api import Page
from sqlalchemy import text

from benchmarks.running import eventually
from calc_analytics import days
from calc_analytics.rollup.ledger import built_days
from calc_analytics.rollup.verify import verify
from calc_analytics_tests.acceptance.comparisons import compare, differing
from calc_analytics_tests.acceptance.conftest import Project, Up, free_ports
from calc_analytics_tests.acceptance.load import built_everywhere, counted, in_every_rollup, scalar
from calc_analytics_tests.logs import FORMS, disagreements

RUNS = "query { runsOrError { ... on Runs { results { runId status jobName tags { key value } } } } }"
MATERIALIZATIONS = """
query ($asset: String!, $partitions: [String!]) {
  assetOrError(assetKey: {path: [$asset]}) { ... on Asset {
    assetMaterializations(partitions: $partitions, limit: 20) {
      partition runId
      metadataEntries { label ... on IntMetadataEntry { intValue } ... on MarkdownMetadataEntry { mdStr } }
    }
  } }
}
"""
CHECKS = """
query ($asset: String!) { assetChecksOrError: assetNodeOrError(assetKey: {path: [$asset]}) { ... on AssetNode {
    assetChecksOrError { ... on AssetChecks { checks {
      name executionForLatestMaterialization { status evaluation { success partition description } }
    } } }
} } }
"""
CHECKED = {
    "calculation_stats_daily": {
        "stats_match_logs",
        "source_breakdown_complete",
        "cache_hits_within_total",
        "usual_total",
    },
    "calculation_locality_stats_daily": {"calculation_locality_stats_daily_match_logs", "cache_hits_within_total"},
    "calculation_stats_hourly": {"calculation_stats_hourly_match_logs", "cache_hits_within_total"},
    "calculation_latency_daily": {"calculation_latency_daily_match_logs"},
}


def runs(up: Up) -> list[dict[str, Any]]:
    return up.graphql(RUNS)["runsOrError"]["results"]


def materializations(up: Up, *partitions: str, asset: str = "calculation_stats_daily") -> list[dict[str, Any]]:
    found = up.graphql(MATERIALIZATIONS, asset=asset, partitions=list(partitions))
    return found["assetOrError"]["assetMaterializations"]


def days_of(run: dict[str, Any]) -> list[date]:
    """The days of a run over one partition or a range of them."""
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    first = tags.get("dagster/partition") or tags["dagster/asset_partition_range_start"]
    last = tags.get("dagster/asset_partition_range_end") or first
    return days.days_between(date.fromisoformat(first), date.fromisoformat(last))


def all_runs_ended(up: Up) -> bool:
    found = runs(up)
    return bool(found) and all(run["status"] in ("SUCCESS", "FAILURE") for run in found)


def test_statistics_are_exact_at_every_moment_while_four_writers_write_a_thousand_rows_a_second(up: Up):
    db = up.db()
    traffic = ("simulate", "--rate", "1000", "--writers", "4", "--seconds", "25", "--late-share", "0", "--json")
    writing = up.project.start("calc_analytics.cli", *traffic)
    proofs, seen = 0, []
    while writing.poll() is None:
        report = verify(db, built_days(db))
        assert report.difference == 0, report.as_dict()
        compared = compare(db.engine, live=True, built_only=False)
        assert {name: each.differing for name, each in compared.items()} == dict.fromkeys(FORMS, 0)
        (rows,) = {each.rows for each in compared.values()}
        seen.append(rows)
        assert disagreements(db) == []
        proofs += 1
        time.sleep(0.2)
    written = json.loads(writing.stdout.read().splitlines()[-1])
    # On a slow machine fewer: what matters is that writing and proofs ran at the same time.
    assert written["rows"] > 5_000
    assert proofs > 5
    assert seen == sorted(seen)

    wanted = in_every_rollup(written["rows"])
    eventually(lambda: counted(up) == wanted, "every written row in every rollup")
    assert verify(db, built_days(db)).difference == 0
    assert differing(db.engine, live=False, built_only=False) == {}
    db.engine.dispose()


def test_the_first_tick_builds_today_and_yesterday_and_the_checks_are_green(up: Up):
    today = days.today("UTC")
    eventually(lambda: all_runs_ended(up), "the first runs to end")
    assert {run["status"] for run in runs(up)} == {"SUCCESS"}
    assert {day for run in runs(up) for day in days_of(run)} >= {today, today - timedelta(days=1)}
    db = up.db()
    assert built_everywhere(db) >= {today, today - timedelta(days=1)}
    db.engine.dispose()

    for asset, names in CHECKED.items():
        node = up.graphql(CHECKS, asset=asset)["assetChecksOrError"]
        assert {check["name"] for check in node["assetChecksOrError"]["checks"]} == names
    assert all(materializations(up, str(today), asset=asset) for asset in FORMS)
    status, answer = up.get("/health/rollup")
    (checks,) = (probe for probe in answer["data"]["probes"] if probe["name"] == "checks")
    assert (checks["ok"], checks["compared"]) == (True, "the last results of 9 checks passed"), status


def test_streamed_batches_leave_a_materialization_of_each_rollup_with_the_days_figures(up: Up):
    today = str(days.today("UTC"))

    def streamed() -> list[dict[str, Any]]:
        return [event for event in materializations(up, today) if not event["runId"]]

    event = eventually(streamed, "a materialization reported by the sensor")[0]
    figures = {entry["label"]: entry.get("intValue") for entry in event["metadataEntries"]}
    assert figures["total_calculations"] > 0
    assert figures["total_calculations"] == figures["source_web"] + figures["source_api"] + figures["source_external"]
    assert figures["rows_counted"] > 0
    for asset in FORMS:
        streamed_events = [event for event in materializations(up, today, asset=asset) if not event["runId"]]
        totals = {entry["label"]: entry.get("intValue") for entry in streamed_events[-1]["metadataEntries"]}
        assert (totals.get("total_calculations") or totals.get("calculations") or 0) > 0, asset


ONE_ROLLUP = "/assets/calculation_stats_daily?view=partitions"
ALL_ROLLUPS = "/asset-groups"


def launch_from_the_ui(page: Page, address: str, partitions: str) -> None:
    """Types the partitions into the Materialize dialog of that page, as an operator does, and launches."""
    page.goto(address)
    page.get_by_role("button", name=re.compile(r"Materialize( all \(5\))?…")).click()
    field = page.get_by_placeholder("No matching partitions").or_(page.get_by_placeholder("ex: 2025-01-01")).last
    field.fill(partitions)
    field.press("Enter")
    page.get_by_role("button", name="Launch", exact=False).last.click()


def test_a_partition_materialized_in_the_ui_shows_its_figures_and_a_green_check(up: Up, page: Page):
    day = days.today("UTC") - timedelta(days=3)
    write_day(up, day, 500)
    launch_from_the_ui(page, ONE_ROLLUP, str(day))
    event = eventually(lambda: [e for e in materializations(up, str(day)) if e["runId"]], "the run's event")[0]
    figures = {entry["label"]: entry.get("intValue") for entry in event["metadataEntries"]}
    assert figures["total_calculations"] == 500
    assert "publisher_id" in next(e["mdStr"] for e in event["metadataEntries"] if e["label"] == "top_publishers")
    eventually(lambda: all_runs_ended(up), "the run to end")

    page.goto(f"/assets/calculation_stats_daily?view=partitions&partition={day}")
    page.get_by_text("top_publishers").first.wait_for()
    page.goto("/assets/calculation_stats_daily?view=checks")
    page.get_by_text("stats_match_logs").first.wait_for()
    page.goto("/assets/calculation_stats_daily?view=checks&checkDetail=stats_match_logs")
    page.get_by_text("statistics equal the log").first.wait_for()


def test_the_page_for_people_is_green_and_leads_to_dagster(up: Up, page: Page):
    """It loads itself again until then."""
    page.goto(f"http://127.0.0.1:{up.service_port}/")
    page.get_by_role("heading", name="Healthy", exact=True).wait_for()
    page.get_by_text("Exact: every committed row is counted.").wait_for()
    assert page.locator("td.day.built.today").count() == 1
    page.get_by_role("link", name="Dagster").click()
    page.wait_for_url(f"http://127.0.0.1:{up.port}/**")


@pytest.mark.long
def test_a_backfill_of_thirty_days_from_the_ui_takes_at_most_two_runs(up: Up, page: Page):
    last = days.today("UTC") - timedelta(days=40)
    wanted = days.days_between(last - timedelta(days=29), last)
    for day in wanted[:3]:
        write_day(up, day, 100)
    before = {run["runId"] for run in runs(up)}
    launch_from_the_ui(page, ALL_ROLLUPS, f"[{wanted[0]}...{wanted[-1]}]")

    def built() -> bool:
        return all(materializations(up, str(day), asset=asset) for asset in FORMS for day in wanted)

    eventually(built, "a materialization for each of the thirty days")
    eventually(lambda: all_runs_ended(up), "the backfill's runs to end")
    backfilled = [
        run
        for run in runs(up)
        if run["runId"] not in before and any(tag["key"] == "dagster/backfill" for tag in run["tags"])
    ]
    assert 1 <= len(backfilled) <= 2
    assert {run["status"] for run in backfilled} == {"SUCCESS"}
    db = up.db()
    assert verify(db, wanted).difference == 0
    assert set(wanted) <= built_everywhere(db)
    assert differing(db.engine, live=False) == {}
    db.engine.dispose()


def write_day(up: Up, day: date, rows: int) -> None:
    """Rows written late for a day that was never built; half of them are older than any snapshot."""
    engine = up.engine()
    with engine.begin() as connection:
        connection.execute(
            text(
                "insert into calculation_logs "
                "(publisher_id, locality_id, date_calculated, source, created_at, xact_id) "
                "select i % 7, 1, '2030-01-01', 1 + i % 3, cast(:day as timestamptz) + i * interval '1 second', "
                "case when i % 2 = 0 then null else txid_current() end from generate_series(1, :rows) i"
            ),
            {"day": f"{day} 00:00+00", "rows": rows},
        )
    engine.dispose()


def test_a_process_that_dies_is_started_again(up: Up):
    (daemon,) = up.daemons()
    daemon.kill()
    eventually(lambda: [p for p in up.daemons() if p.pid != daemon.pid], "a new daemon")
    with urllib.request.urlopen(f"http://127.0.0.1:{up.port}/server_info", timeout=10) as response:
        assert response.status == 200


def test_a_database_that_dies_is_started_again_and_counting_goes_on(up: Up):
    (postmaster,) = up.project.postmasters()
    postmaster.kill()

    def all_counted_again() -> bool:
        proof = up.project.cli("refresh", "--json")
        return proof.returncode == 0

    eventually(all_counted_again, "the database again")
    up.project.cli("simulate", "--rows", "200", "--rate", "1000", "--late-share", "0")

    def is_counted() -> bool:
        return counted(up) == in_every_rollup(int(scalar(up, "select count(*) from calculation_logs")))

    eventually(is_counted, "the new rows counted by the daemon's sensor in every rollup")


def test_a_second_up_in_the_same_folder_says_so_in_one_line(up: Up):
    second = up.project.cli("up", *free_ports())
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "already runs in" in second.stderr


def test_sigterm_stops_everything_and_a_second_start_finds_its_data(project: Project, up: Up):
    started = up.descendants()
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(20) == 0
    _, alive = psutil.wait_procs(started, timeout=5)
    assert alive == []
    with project.up() as again:
        assert again.database_url == up.database_url
        proof = json.loads(project.cli("verify", "--json").stdout)
        assert proof["difference"] == 0
        today = proof["days"][str(days.today("UTC"))]
        assert set(today) == set(FORMS)
        assert min(each["log_rows"] for each in today.values()) > 5_000
