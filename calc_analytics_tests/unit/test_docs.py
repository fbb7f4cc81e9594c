"""The README names what there is: every command, every setting, every picture; and nothing that is not there."""

import inspect
import re

import pytest

from calc_analytics.cli import main
from calc_analytics.config import Settings, project_root

README = (project_root() / "README.md").read_text()
SETTINGS = sorted(set(re.findall(r'"([A-Z]+_[A-Z_]+)"', inspect.getsource(Settings.from_environment))))


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_is_in_the_readme(command: str):
    assert f"`calc-analytics {command}`" in README


def test_no_other_command_is():
    assert set(re.findall(r"calc-analytics (\w+)", README)) == set(main.commands)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_in_the_readme(setting: str):
    assert f"`{setting}`" in README


def test_every_proof_named_in_the_guarantees_exists():
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", (project_root() / "docs" / "guarantees.md").read_text())
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (project_root() / "calc_analytics_tests" / file).read_text()


def test_every_picture_is_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (project_root() / picture).exists()


@pytest.mark.parametrize("module", sorted(path.stem for path in (project_root() / "benchmarks").glob("*.py")))
def test_every_benchmark_is_in_their_readme(module: str):
    if module not in ("__init__", "common"):
        assert f"python -m benchmarks.{module}" in (project_root() / "benchmarks" / "README.md").read_text()
