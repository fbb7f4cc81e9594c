"""Retakes the pictures of the README and of docs/ from a running system: a copy of the project in a temporary folder,
with its embedded PostgreSQL, on ports of its own.

    python docs/screenshots.py                     # all of them: about eight minutes
    python docs/screenshots.py lineage checks      # these only

Needs the packages of `pip install -e '.[test]'` and Chromium. A picture that cannot be taken ends the program with an
error; the files of the others are then already replaced.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from calc_analytics.config import project_root
from calc_analytics.days import today
from calc_analytics.processes.supervisor import free_port
from calc_analytics.rollups import LOG

DOCS = Path(__file__).parent
STATS = LOG.names[0]
HISTORY_DAYS = 30
WIDTH, HEIGHT, LONG = 1280, 800, 1220
REPORT_WIDTH, REPORT_HEIGHT = 900, 1045
PATIENCE_SECONDS = 300
STOP_SECONDS = 30
OWN_SETTINGS = ("DATABASE_URL", "DAGSTER_", "ROLLUP", "LOGS_KEPT", "ENABLE_", "ALERT_", "REPORT_", "LOG_")
TOKEN = "screenshots"
PARTITIONS = """
query ($asset: String!) { assetNodeOrError(assetKey: {path: [$asset]}) { ... on AssetNode {
    partitionStats { numMaterialized } freshnessStatusInfo { freshnessStatus }
} } }
"""
RUNS = "query { runsOrError { ... on Runs { results { status } } } }"


class System:
    """The project in a folder of its own, running `demo` or `up`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ui_port, self.service_port = folder, free_port(), free_port()
        for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml"):
            shutil.copy(project_root() / name, folder)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project_root() / "calc_analytics", folder / "calc_analytics", ignore=ignored)

    @contextmanager
    def running(self, *command: str, **settings: str) -> Iterator[None]:
        """The command, from its start until SIGTERM has ended it."""
        ports = ("--ui-port", str(self.ui_port), "--service-port", str(self.service_port))
        program = [sys.executable, "-m", "calc_analytics.cli", *command, *ports]
        with open(self.folder / "output.txt", "w") as output:
            process = subprocess.Popen(program, cwd=self.folder, env=self.environment(**settings), stdout=output)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS)

    def environment(self, **settings: str) -> dict[str, str]:
        """The shell's, without this project's settings, plus those given."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
        return {**kept, "PYTHONPATH": str(self.folder), "DAGSTER_HOME": str(self.folder), **settings}

    def dagster(self, *command: str, **settings: str) -> None:
        """Runs one of Dagster's own commands to its end."""
        program = [sys.executable, "-m", "dagster", *command]
        subprocess.run(program, cwd=self.folder, env=self.environment(**settings), check=True, capture_output=True)

    def is_healthy(self) -> bool:
        """Whether every probe of the HTTP service passes and the UI answers."""
        urls = (f"http://127.0.0.1:{self.service_port}/health/rollup", f"http://127.0.0.1:{self.ui_port}/server_info")
        return [self._status(url) for url in urls] == [200, 200]

    def shows_history(self) -> bool:
        """Whether Dagster shows the demo's days as materialized, in every rollup."""
        found = [self._asset(name)["partitionStats"]["numMaterialized"] for name in LOG.names]
        return min(found) > HISTORY_DAYS

    def has_ended_its_runs(self) -> bool:
        """Whether the first runs, which evaluate the checks, have succeeded and none is under way."""
        return {run["status"] for run in self._graphql(RUNS)["runsOrError"]["results"]} == {"SUCCESS"}

    def is_stale(self) -> bool:
        """Whether Dagster has marked the main rollup as stale."""
        return self._asset(STATS)["freshnessStatusInfo"]["freshnessStatus"] == "DEGRADED"

    def _asset(self, name: str) -> Any:
        return self._graphql(PARTITIONS, asset=name)["assetNodeOrError"]

    def _graphql(self, query: str, **variables: str) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ui_port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)["data"]

    def _status(self, url: str) -> int:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def wait_for(fact: Callable[[], bool], what: str) -> None:
    """Returns when the fact is true; raises `TimeoutError` with `what` was awaited."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_SECONDS} s: {what}")
        time.sleep(1)


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a real browser."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("error: no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = started.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(60_000)
        yield page
        started.close()


def lineage(page: Page, ui: str) -> None:
    """Every asset, with its checks and how many partitions are filled."""
    page.set_viewport_size({"width": WIDTH * 3 // 2, "height": LONG})
    page.goto(f"{ui}/asset-groups")
    page.get_by_text("Passed").first.wait_for()


def partitions(page: Page, ui: str) -> None:
    """A day's partition and its figures."""
    page.goto(f"{ui}/assets/{STATS}?view=partitions&partition={_yesterday()}")
    page.get_by_text("Metadata", exact=True).first.wait_for()


def checks(page: Page, ui: str) -> None:
    """The check that compares statistics with the log."""
    page.goto(f"{ui}/assets/{STATS}?view=checks&checkDetail=stats_match_logs")
    page.get_by_text("Evaluation result").first.wait_for()


def sensor(page: Page, ui: str) -> None:
    """The sensor's description and ticks."""
    page.goto(f"{ui}/locations/__repository__@calc_analytics/sensors/new_log_batches")
    page.get_by_text("Latest tick").first.wait_for()


def backfill(page: Page, ui: str) -> None:
    """The dialog that launches a backfill of a range of days."""
    page.goto(f"{ui}/asset-groups")
    page.get_by_role("button", name="Materialize all").click()
    field = page.get_by_placeholder("No matching partitions").or_(page.get_by_placeholder("ex: 2025-01-01")).last
    field.fill(f"[{_yesterday() - timedelta(days=28)}...{_yesterday()}]")
    field.press("Enter")
    page.get_by_role("button", name="Launch", exact=False).last.wait_for()


def health(page: Page, service: str) -> None:
    """The page for people, down to the calendar of days."""
    page.set_viewport_size({"width": WIDTH, "height": LONG})
    page.goto(f"{service}/")
    page.get_by_role("heading", name="Healthy").wait_for()


def report(page: Page, service: str) -> None:
    """The report of the platform, down to the trend."""
    page.set_viewport_size({"width": REPORT_WIDTH, "height": REPORT_HEIGHT})
    page.set_extra_http_headers({"Authorization": f"Bearer {TOKEN}"})
    page.goto(f"{service}/report")
    page.get_by_role("heading", name="Response times").wait_for()
    page.set_extra_http_headers({})


def freshness(page: Page, ui: str) -> None:
    """A rollup that Dagster has marked as stale."""
    page.goto(f"{ui}/assets/{STATS}?view=overview")
    page.get_by_text("Freshness policy").first.wait_for()


def _yesterday() -> date:
    return today("UTC") - timedelta(days=1)


def take(page: Page, name: str) -> None:
    """Writes docs/NAME.png once the page has loaded everything it asks for."""
    page.wait_for_load_state("networkidle")
    # Dagster draws the graph, and closes its spinners, with animations of a quarter of a second.
    page.wait_for_timeout(1_500)
    page.screenshot(path=DOCS / f"{name}.png")
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    print(f"docs/{name}.png", flush=True)


UI = {"lineage": lineage, "partitions": partitions, "checks": checks, "sensor": sensor, "backfill-dialog": backfill}
SERVICE = {"health": health, "report": report}
STALE = {"freshness": freshness}


def take_of_demo(system: System, page: Page, wanted: set[str]) -> None:
    """The pictures of a healthy system with a month of history and live batches."""
    with system.running("demo", "--days", str(HISTORY_DAYS), REPORT_TOKEN=TOKEN):
        wait_for(system.is_healthy, "every probe passes, and the UI answers")
        wait_for(system.shows_history, "Dagster shows the days of the history")
        wait_for(system.has_ended_its_runs, "the first runs end")
        # A run of one day: its checks show that day's figures, where those of a range show a summary.
        module = ("-m", "calc_analytics.definitions")
        system.dagster("asset", "materialize", *module, "--select", STATS, "--partition", str(_yesterday()))
        for pictures, port in ((UI, system.ui_port), (SERVICE, system.service_port)):
            for name in [each for each in pictures if each in wanted]:
                pictures[name](page, f"http://127.0.0.1:{port}")
                take(page, name)


def take_of_stale(system: System, page: Page, wanted: set[str]) -> None:
    """The picture of what Dagster shows when sensor and schedule are off."""
    every_minute = {"ROLLUP_CRON": "* * * * *"}
    with system.running("up", **every_minute):
        wait_for(system.is_healthy, "every probe passes, and the UI answers")
        location = ("--workspace", "workspace.yaml")
        system.dagster("sensor", "stop", "new_log_batches", *location, **every_minute)
        system.dagster("schedule", "stop", "hourly_rollup", *location, **every_minute)
        wait_for(system.is_stale, "Dagster marks the rollup as stale")
        for name in STALE.keys() & wanted:
            STALE[name](page, f"http://127.0.0.1:{system.ui_port}")
            take(page, name)


def main(names: list[str]) -> None:
    """Takes the named pictures, or all."""
    known = {*UI, *SERVICE, *STALE}
    if unknown := set(names) - known:
        raise SystemExit(
            f"error: there is no picture {', '.join(sorted(unknown))}: they are {', '.join(sorted(known))}"
        )
    wanted = set(names) or known
    folder = Path(tempfile.mkdtemp(prefix="ca-"))
    try:
        system = System(folder)
        with browser() as page:
            if wanted - {*STALE}:
                take_of_demo(system, page, wanted)
            if wanted & {*STALE}:
                take_of_stale(system, page, wanted)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
