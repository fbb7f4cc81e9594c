"""The runbook knows every message, alert, probe, sensor, schedule and check; and none that is not there."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import pytest
import yaml

import calc_analytics
from calc_analytics.cli.main import main
from calc_analytics.config import project_root
from calc_analytics.definitions import defs
from calc_analytics.operations import disclosure, findings, health, probes
from calc_analytics.operations.health import PROBES
from calc_analytics.rollups import LOG

RUNBOOK = (project_root() / "docs" / "runbook.md").read_text()
TREES = [ast.parse(path.read_text()) for path in sorted(Path(calc_analytics.__file__).parent.rglob("*.py"))]
BASE = "CalcAnalyticsError"
# The functions that return messages.
MESSAGE_FUNCTIONS = (
    "__str__",
    "_describe",
    "_describe_connection",
    "_describe_row_security",
    "_describe_refusal",
    "_describe_reason",
    "_describe_difference",
)


@lru_cache
def error_classes() -> set[str]:
    """The project's error classes, by name."""
    bases = {
        node.name: {getattr(base, "id", "") for base in node.bases}
        for tree in TREES
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {BASE}
    while more := {name for name, parents in bases.items() if parents & found} - found:
        found |= more
    return found - {BASE}


def template(node: ast.AST, names: Mapping[str, ast.expr] | None = None) -> str:
    """A string expression with … for values that are filled in, except the `names` whose expressions are known."""
    known = names or {}
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name) and node.value.id in known:
        return template(known[node.value.id], known)
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(template(part, known) for part in node.values))
    return "…"


def branches(node: ast.expr) -> list[ast.expr]:
    """Both values of a conditional expression, else the expression itself."""
    return [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]


def returned(function: ast.FunctionDef) -> Iterator[str]:
    """What a function that makes a message returns, with the parts that it names filled in."""
    names = {
        node.targets[0].id: node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.value:
            yield from (template(branch, names) for branch in branches(node.value))


def messages() -> Iterator[str]:
    """The messages of errors, what PostgreSQL's errors are turned into, and the messages of refused days."""
    for tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {*error_classes(), BASE} and node.args:
                yield template(node.args[0])
            if isinstance(node, ast.FunctionDef) and node.name in MESSAGE_FUNCTIONS:
                yield from returned(node)


MESSAGES = sorted({message for message in messages() if message != "…"})


def test_there_are_messages():
    assert len(MESSAGES) > 30


@pytest.mark.parametrize("name", sorted(error_classes()))
def test_every_error_class_is_in_the_runbook(name: str):
    assert re.search(rf"\b{name}\b", RUNBOOK)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_is_in_the_runbook(message: str):
    assert f"`{message}`" in RUNBOOK


def test_no_other_message_is():
    section = RUNBOOK.split("## Messages")[1].split("\n## ")[0]
    quoted = {words for words in re.findall(r"`([^`]+)`", section) if "…" in words and words.count(" ") >= 2}
    assert quoted - set(MESSAGES) == set()


def test_every_object_of_dagster_that_can_fail_is_there():
    location = defs()
    names = [sensor.name for sensor in location.sensors]
    names += [f"schedule {schedule.name}" for schedule in location.schedules]
    names += ["job housekeeping", *(f"check {name}" for rollup in LOG.rollups for name in rollup.check_names)]
    for name in names:
        assert re.search(rf"\b{name}\b", RUNBOOK), name


@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_is_there(probe: str):
    assert f"\n| {probe} |" in RUNBOOK


def codes_of_health() -> set[str]:
    """The codes of probes, except those that are an error's name, which any error may have."""
    modules = (disclosure, findings, health, probes)
    trees = [ast.parse(Path(str(module.__file__)).read_text()) for module in modules]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    given = {key.value for node in nodes if isinstance(node, ast.Call) for key in node.keywords if key.arg == "code"}
    calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Cause"]
    literal = [node for node in [*given, *(call.args[0] for call in calls)] if isinstance(node, ast.Constant)]
    codes = {str(node.value) for node in literal} | {code for code, _ in disclosure._BY_CLASS.values()}
    return codes | {disclosure.NO_ANSWER, *disclosure._WORDS, *disclosure._COMMANDS}


def test_the_codes_of_health_are_there_and_no_other():
    paragraph = RUNBOOK.split("`code` is for programs: ")[1].split("; with `dagster_`")[0]
    names = {re.sub("(?<!^)(?=[A-Z])", "_", name).lower() for name in error_classes()}
    assert codes_of_health() <= (listed := set(re.findall(r"`(\w+)`", paragraph)))
    assert listed - codes_of_health() <= names


def test_every_prometheus_alert_is_there_and_no_other():
    rules = yaml.safe_load((project_root() / "deploy" / "prometheus" / "alerts.yml").read_text())
    wanted = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert set(re.findall(r"\bCalcAnalytics\w+", RUNBOOK)) - {BASE} == wanted


def test_its_commands_exist():
    assert set(re.findall(r"`calc-analytics (\w+)", RUNBOOK)) <= set(main.commands)


def test_its_pictures_are_there():
    for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", RUNBOOK):
        assert (project_root() / "docs" / picture).exists()
