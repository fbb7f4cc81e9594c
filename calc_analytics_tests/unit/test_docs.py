"""The README names what there is: every command, every setting, every picture; and nothing that is not there."""

import re
import textwrap

import pytest
from sqlalchemy import MetaData

from calc_analytics import rollups
from calc_analytics.cli.main import main
from calc_analytics.config import VARIABLES, project_root
from calc_analytics.database import migrate, tables
from calc_analytics_tests.unit.test_house import ALLOWED

README = (project_root() / "README.md").read_text()
DOCUMENTS = ["README.md", "docs/guarantees.md", "docs/runbook.md", "deploy/README.md"]
HOW_TO_ADD = README.split("## Add a statistic")[1].split("\n## ")[0]
SETTINGS = sorted(VARIABLES)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_is_in_the_readme(command: str):
    assert f"`calc-analytics {command}`" in README


def test_no_other_command_is():
    assert set(re.findall(r"calc-analytics (\w+)", README)) == set(main.commands)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_named_with_a_command_exists(document: str):
    text = (project_root() / document).read_text()
    commands = "|".join(main.commands)
    for command, rest in re.findall(rf"calc-analytics ({commands})\b((?: [^`'|#\n]*)?)", text):
        known = {name for option in main.commands[command].params for name in option.opts}
        assert set(re.findall(r"--[a-z][a-z-]+", rest.split("&&")[0])) <= known, f"{command}{rest}"


def test_adding_a_statistic_takes_a_screenful():
    assert HOW_TO_ADD.count("\n") <= 45


def test_what_the_readme_adds_can_be_declared():
    table, declaration, migration = re.findall(r"(?:^    .*\n|^\n(?=    ))+", HOW_TO_ADD, re.MULTILINE)
    names = {**vars(tables), "metadata": MetaData()}
    exec(textwrap.dedent(table), names)
    names = {**vars(rollups), "calculation_zmanim_daily": names["calculation_zmanim_daily"]}
    exec(textwrap.dedent(declaration), names)
    assert names["LOG"].names == [*rollups.LOG.names, "calculation_zmanim_daily"]
    assert f'"{migrate.HEAD}"' in migration


def test_the_readmes_table_of_modules_is_what_the_house_allows():
    rows = re.findall(r"^\| (`[^|]+`) \| ([\w, ]*)\|", README.split("## Architecture")[1], re.MULTILINE)
    table = {
        re.sub(r"\.py$|/$", "", name): set(imports.replace(",", " ").split())
        for names, imports in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert table == {name: imports - {name, "days", "errors", "plurals"} for name, imports in ALLOWED.items()}


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
    if module not in ("__init__", "common", "running"):
        assert f"python -m benchmarks.{module}" in (project_root() / "benchmarks" / "README.md").read_text()
