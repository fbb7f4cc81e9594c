"""Each test runs somewhere: by a plain `pytest`, by `-m long` or by `-m spark`, all of which the gate runs."""

import re
import subprocess
import sys

import pytest

from calc_analytics.config import project_root

ROOT = project_root()
TESTS = ROOT / "calc_analytics_tests"
RINGS = ("unit", "integration", "acceptance")
GATE = (ROOT / ".ci" / "run").read_text()
PAGE = (ROOT / "docs" / "testing.md").read_text()


@pytest.fixture(scope="module")
def marks() -> dict[str, set[str]]:
    """Every test's id, and its marks."""
    options = ("--collect-only", "-q", "-m", "", "-p", "no:cacheprovider", "-p", "calc_analytics_tests.marks")
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("marked\t")]
    return {test: set(marks) for _, test, *marks in lines}


def files_of(tests: set[str]) -> set[str]:
    """'acceptance/test_stop.py' and the like."""
    return {test.split("::")[0].removeprefix("calc_analytics_tests/") for test in tests}


def files_named_in(section: str) -> list[str]:
    """The first cells of a section's table."""
    return re.findall(r"^\| `([\w/]+\.py)", PAGE.split(f"## {section}")[1].split("\n## ")[0], re.MULTILINE)


@pytest.fixture(scope="module")
def long(marks: dict[str, set[str]]) -> set[str]:
    """What `pytest -m long` runs."""
    return {test for test, its in marks.items() if "long" in its}


@pytest.fixture(scope="module")
def spark(marks: dict[str, set[str]]) -> set[str]:
    """What `pytest -m spark` runs."""
    return {test for test, its in marks.items() if "spark" in its}


@pytest.fixture(scope="module")
def core(marks: dict[str, set[str]]) -> set[str]:
    """What a plain `pytest` runs, by pyproject.toml's `addopts`."""
    return {test for test, its in marks.items() if not its & {"long", "spark"}}


def test_every_file_of_tests_lies_in_a_ring():
    outside = [path for path in TESTS.rglob("test_*.py") if path.parent.name not in RINGS]
    assert outside == []


def test_the_gate_runs_the_core_the_long_tests_and_those_of_spark():
    assert "-m 'not long and not spark'" in (ROOT / "pyproject.toml").read_text()
    assert re.findall(r"^pytest -q(.*?)(?: >.*)?$", GATE, re.MULTILINE) == [" -n 3", " -n 4 -m long", " -m spark"]


def test_every_test_is_in_one_of_the_three(marks: dict[str, set[str]], long: set[str], spark: set[str]):
    assert long & spark == set()
    assert files_of(set(marks)) == {f"{path.parent.name}/{path.name}" for path in TESTS.rglob("test_*.py")}


def test_the_page_names_every_file_with_long_tests(long: set[str]):
    assert sorted(set(files_named_in("Long tests"))) == sorted(files_of(long))


@pytest.mark.parametrize(
    "example",
    [
        "integration/test_model.py::test_no_order_of_events_makes_a_difference[short]",
        "acceptance/test_up.py::test_a_process_that_dies_is_started_again",
        "acceptance/test_up.py::test_a_database_that_dies_is_started_again_and_counting_goes_on",
        "acceptance/test_up.py::test_a_partition_materialized_in_the_ui_shows_its_figures_and_a_green_check",
    ],
)
def test_the_core_holds_a_short_model_kills_and_a_browser(core: set[str], example: str):
    assert f"calc_analytics_tests/{example}" in core


def test_the_core_holds_the_unit_ring_and_posts_alerts(core: set[str], long: set[str]):
    assert not [file for file in files_of(long) if file.startswith("unit/")]
    assert [file for file in files_of(core) if re.fullmatch(r"integration/test_\w*alerts?\w*\.py", file)]


def test_every_file_that_the_gate_runs_on_another_postgresql_exists():
    named = " ".join(re.findall(r"^(?:databases|domain)=\((.*)\)$", GATE, re.MULTILINE)).split()
    assert len(named) > 10
    assert [name for name in named if not (TESTS / "integration" / f"test_{name}.py").exists()] == []


def test_no_benchmark_imports_from_the_tests():
    modules = sorted((ROOT / "benchmarks").glob("*.py"))
    assert modules
    assert [path.name for path in modules if "calc_analytics_tests" in path.read_text()] == []
