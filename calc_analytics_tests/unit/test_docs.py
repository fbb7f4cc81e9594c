"""The documentation names what there is: every command, option, setting, endpoint, picture; and nothing else."""

import re
import textwrap
from typing import Any

import pytest
from click import Option
from sqlalchemy import MetaData, Table

from calc_analytics import rollups
from calc_analytics.cli.main import main
from calc_analytics.config import VARIABLES, project_root
from calc_analytics.database import migrate, tables
from calc_analytics.operations.http import CODES
from calc_analytics.operations.openapi import description
from calc_analytics.rollup.status import STATES
from calc_analytics_tests.unit.test_house import ALLOWED

ROOT = project_root()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md"), *ROOT.glob("benchmarks/*.md")]
}
README, CONTRIBUTING = PAGES["README.md"], PAGES["CONTRIBUTING.md"]
SETTINGS_PAGE, COMMANDS_PAGE, ENDPOINTS_PAGE = (
    PAGES[f"docs/{name}.md"] for name in ("settings", "commands", "endpoints")
)
HOW_TO_ADD = CONTRIBUTING.split("## Add a statistic")[1].split("\n## ")[0]
SETTINGS = sorted(VARIABLES)
PATHS: dict[str, Any] = description()["paths"]
METHODS = [(path, method) for path, methods in PATHS.items() for method in methods]


def section(page: str, title: str) -> str:
    """The part of the page below that heading."""
    (found,) = re.findall(rf"^## {re.escape(title)}\b.*\n((?:(?!## ).*\n?)*)", page, re.MULTILINE)
    return found


def first_column(page: str) -> set[str]:
    """Every word in backticks in the first column of the page's tables."""
    cells = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_a_section_with_its_options_and_an_example(command: str):
    text = section(COMMANDS_PAGE, f"calc-analytics {command}")
    known = {name for option in main.commands[command].params for name in option.opts if name.startswith("--")}
    assert {each.split()[0] for each in first_column(text)} == known - {"--help"}
    assert re.search(rf"^    calc-analytics {command}\b", text, re.MULTILINE)


def test_no_other_command_has_one():
    assert set(re.findall(r"^## calc-analytics (\w+)", COMMANDS_PAGE, re.MULTILINE)) == set(main.commands)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_default_that_help_shows_is_in_its_row(command: str):
    rows = [line for line in section(COMMANDS_PAGE, f"calc-analytics {command}").splitlines() if line.startswith("| `")]
    for option in main.commands[command].params:
        default = option.default
        if isinstance(option, Option) and option.show_default and default is not None:
            (row,) = [line for line in rows if f"`{option.opts[0]} " in line]
            shown = default if isinstance(default, str) else f"{default:g}"
            assert f"({shown})" in row or "as for `up`" in row or "that `up` is to use" in row, option.opts[0]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_named_exists(page: str):
    named = re.findall(r"(?:[`|]|&& |/bin/|^ +(?:\$ )?)calc-analytics ([a-z]+)\b", PAGES[page], re.MULTILINE)
    assert set(named) <= set(main.commands)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_named_with_a_command_exists(page: str):
    commands = "|".join(main.commands)
    for command, rest in re.findall(rf"calc-analytics ({commands})\b((?: [^`'|#\n]*)?)", PAGES[page]):
        known = {name for option in main.commands[command].params for name in option.opts}
        assert set(re.findall(r"--[a-z][a-z-]+", rest.split("&&")[0])) <= known, f"{command}{rest}"


def test_every_setting_has_a_row_and_no_other_has():
    assert first_column(SETTINGS_PAGE) == set(SETTINGS)


def test_every_endpoint_has_a_row_with_its_statuses_and_no_other_has():
    rows = re.findall(r"^\| `(GET|POST) ([^`]+)` \| ([\d, ]+) \|", ENDPOINTS_PAGE, re.MULTILINE)
    documented = {(path, method.lower()): set(statuses.split(", ")) for method, path, statuses in rows}
    assert documented == {(path, method): set(PATHS[path][method]["responses"]) for path, method in METHODS}


def test_the_keys_of_the_health_report_are_in_the_page_of_endpoints():
    schema = PATHS["/health/rollup"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    report = schema["properties"]["data"]["properties"]
    text = section(ENDPOINTS_PAGE, "GET /health/rollup")
    probe = report["probes"]["items"]["properties"]
    assert {*report, *probe} == set(re.findall(r'"(\w+)":', text)) - {"data"}


def test_the_codes_of_errors_are_those_of_the_service():
    text = section(ENDPOINTS_PAGE, "POST /internal/rollup/trigger")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)
    assert rows
    assert {int(status): code for status, code in rows}.items() <= CODES.items()


def test_the_states_of_days_are_in_the_page_of_endpoints_in_their_order_and_in_the_glossary():
    (listed,) = re.findall(r"The states, the best first: ([^.]+)\.", ENDPOINTS_PAGE)
    assert listed.split(", ") == list(reversed(STATES))
    assert set(STATES) <= set(re.findall(r"\*\*(\w+)\*\*", section(README, "Glossary")))


def test_the_help_of_serve_names_all_that_the_service_does():
    message = main.commands["serve"].help or ""
    for word in ("GET / ", "/health/rollup", "/health/live", "/metrics", "trigger", "alerts", "ALERT_WEBHOOK_URL"):
        assert word in message


def test_adding_a_statistic_takes_a_screenful():
    assert HOW_TO_ADD.count("\n") <= 45


def test_what_the_page_adds_can_be_declared():
    table, declaration, migration = re.findall(r"(?:^    .*\n|^\n(?=    ))+", HOW_TO_ADD, re.MULTILINE)
    names = {**vars(tables), "metadata": MetaData()}
    exec(textwrap.dedent(table), names)
    names = {**vars(rollups), "calculation_zmanim_daily": names["calculation_zmanim_daily"]}
    exec(textwrap.dedent(declaration), names)
    assert names["LOG"].names == [*rollups.LOG.names, "calculation_zmanim_daily"]
    assert f'"{migrate.HEAD}"' in migration


def test_the_readmes_table_of_modules_is_what_the_house_allows():
    rows = re.findall(r"^\| (`[^|]+`) \| ([\w, ]*)\|", section(README, "Architecture"), re.MULTILINE)
    table = {
        re.sub(r"\.py$|/$", "", name): set(imports.replace(",", " ").split())
        for names, imports in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert table == {name: imports - {name, "days", "errors", "html", "plurals"} for name, imports in ALLOWED.items()}


def test_the_readmes_columns_are_those_of_the_tables():
    rows = re.findall(r"^\| `(calculation_\w+)` \| ([\w, ]+) \| ([^|]+) \|", README, re.MULTILINE)
    listed = {name: (keys.split(", "), measures) for name, keys, measures in rows}
    for rollup in rollups.LOG.rollups:
        keys, measures = listed.pop(rollup.name)
        assert keys == list(rollup.keys)
        as_first = re.fullmatch(r"as `(\w+)`", measures)
        names = [measure.name for measure in (rollups.STATS if as_first else rollup).measures]
        assert [measure.name for measure in rollup.measures] == (names if as_first else measures.split(", "))
    assert listed == {}


@pytest.mark.parametrize(
    "table", [tables.calculation_logs, *(rollup.target for rollup in rollups.LOG.rollups)], ids=str
)
def test_every_column_has_a_row_in_the_readme(table: Table):
    described = re.findall(
        r"^\| ([a-z_, ]+) \| (?:bigserial|integer|bigint|smallint|date|bool|timestamptz)", README, re.M
    )
    assert {column.name for column in table.columns} <= {name for names in described for name in names.split(", ")}


def test_every_proof_named_in_the_guarantees_exists():
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", PAGES["docs/guarantees.md"])
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "calc_analytics_tests" / file).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_leads_to_a_file_and_a_heading(page: str):
    for address in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = address.partition("#")
        if "://" in address:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), address
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, address


def test_every_picture_is_taken_by_the_script_and_shown_on_a_page():
    script = (ROOT / "docs" / "screenshots.py").read_text()
    tables_of_names = "".join(re.findall(r"^(?:UI|SERVICE|STALE) = \{.*?\}", script, re.MULTILINE | re.DOTALL))
    taken = set(re.findall(r'"([\w-]+)":', tables_of_names))
    shown = {name for text in PAGES.values() for name in re.findall(r"!\[[^]]+\]\((?:docs/)?([\w-]+)\.png\)", text)}
    assert shown == taken == {path.stem for path in (ROOT / "docs").glob("*.png")}


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_benchmark_is_in_their_readme(module: str):
    if module not in ("__init__", "cluster", "common", "running"):
        assert f"python -m benchmarks.{module}" in PAGES["benchmarks/README.md"]
