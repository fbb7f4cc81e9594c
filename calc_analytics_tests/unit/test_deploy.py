"""What is in deploy/ speaks of metrics that exist, and its alerts fire when they should."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from calc_analytics.config import Settings, project_root
from calc_analytics.operations.facts import Facts, Totals
from calc_analytics.operations.health import NEEDED, PROBES
from calc_analytics.operations.metrics import metrics
from calc_analytics.operations.probes import Answer
from calc_analytics.rollup.journal import Freshness
from calc_analytics.rollup.status import STATUSES, Days, Lag, LastRefresh, LedgerReport, LogReport
from calc_analytics_tests.logs import utc

DEPLOY = project_root() / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana" / "calc_analytics.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def samples() -> set[str]:
    """The name of every sample that `/metrics` can have."""
    then = utc(2026, 3, 1)
    days = Days(rebuilt_at=then, verified_at=then, audited_at=then, oldest_proof_at=then)
    ledger = LedgerReport(None, LastRefresh(then, then), None, {"calculation_stats_daily": days}, {}, {}, {}, [], {})
    known = {
        "totals": Totals([], [Freshness(then, 1, 0.1, 0.2, 0.3)]),
        "log": LogReport(Lag(0, 0.0), None),
        "ledger": ledger,
        "writers": [],
        "interval": 3600.0,
    }
    unknown = Answer(None, "not asked", 0.0)
    answers = {name: Answer(known[name], None, 0.0) if name in known else unknown for name in (*NEEDED, *known)}
    found = metrics(Facts(Settings.from_environment({}), answers, then))
    return {sample.name for metric in found for sample in metric.samples}


def metrics_in(expression: str) -> set[str]:
    """The names that an expression asks for, other exporters' left aside."""
    return set(re.findall(r"\bcalc_analytics_\w+", expression))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_asks_for_metrics_that_exist_and_says_what_to_do(alert: dict, samples: set[str]):
    assert metrics_in(alert["expr"])
    assert metrics_in(alert["expr"]) <= samples
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert {"summary", "action"} <= set(alert["annotations"])


def test_every_label_value_that_alerts_ask_for_exists():
    for alert in ALERTS:
        for label, values in re.findall(r'\b(probe|status)[=!]~?"([\w|]+)"', alert["expr"]):
            assert set(values.split("|")) <= set({"probe": PROBES, "status": STATUSES}[label])


@pytest.mark.parametrize("query", QUERIES)
def test_a_panel_asks_for_metrics_that_exist(query: str, samples: set[str]):
    assert metrics_in(query)
    assert metrics_in(query) <= samples


def test_every_metric_is_on_the_dashboard(samples: set[str]):
    shown = {name for query in QUERIES for name in metrics_in(query)}
    left_out = {"calc_analytics_build_info", "calc_analytics_open_writers", "calc_analytics_schedule_interval_seconds"}
    families = {re.sub(r"_(sum|count)$", "", name) for name in samples - left_out}
    assert {name for name in families if not any(each.startswith(name) for each in shown)} == set()


def test_every_metric_has_a_row_in_the_page_of_endpoints_and_no_other_has(samples: set[str]):
    page = (project_root() / "docs" / "endpoints.md").read_text().split("## GET /metrics")[1].split("\n## ")[0]
    rows = "".join(re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE))
    # The service adds this one to those of the report.
    documented = set(re.findall(r"`(\w+)`", rows)) - {"calc_analytics_alerts_waiting"}
    assert documented == {re.sub(r"_(sum|count)$", "", name) for name in samples}


def test_nothing_asks_for_the_buckets_of_a_histogram():
    assert not [text for text in [*QUERIES, *(alert["expr"] for alert in ALERTS)] if "_bucket" in text]


def test_panels_do_not_overlap():
    cells = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in DASHBOARD["panels"]
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_promtool_finds_the_rules_right_and_each_alert_fires_when_it_should(tmp_path: Path):
    promtool = shutil.which("promtool")
    if promtool is None and "CI" not in os.environ:
        pytest.skip("no promtool on this machine: apt-get install prometheus")
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [promtool or "promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_in_which_it_fires():
    cases = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    fired = set(re.findall(r'alertname="(\w+)", alertstate="firing"', cases))
    assert fired == {alert["alert"] for alert in ALERTS}
