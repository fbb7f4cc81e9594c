"""docs/comparison.md holds the results of the command; no other page speaks of an alternative without a link to it."""

import re

import pytest

from benchmarks.peers import tables
from benchmarks.peers.peer import Peer
from benchmarks.peers.systems import SYSTEMS
from benchmarks.peers.tables import BEGIN, END, OPEN
from benchmarks.peers.workloads.wrong_rows import SCENARIOS
from calc_analytics_tests.unit.test_docs import PAGES, ROOT

PAGE = PAGES["docs/comparison.md"]
MEASURED = PAGE.split(BEGIN)[1].split(END)[0]
SECTIONS = (
    "What was measured",
    "Wrong rows",
    "A transaction left open for 20 s",
    "A refresh",
    "Writers",
    "A backlog of 1,000,000 rows of 40 days, at random",
)
ALTERNATIVES = r"PgQ|pg_incremental|pg_ivm|TimescaleDB|\bdbt\b|SQLMesh"
PAGES_WITH_CLAIMS = [name for name in PAGES if re.search(ALTERNATIVES, PAGES[name]) and name != "docs/comparison.md"]


def test_the_page_has_every_table_of_a_whole_run():
    assert tuple(re.findall(r"^## (.+)$", MEASURED, re.MULTILINE)) == SECTIONS


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.key)
def test_every_system_has_a_row(system: type[Peer]):
    assert f"\n| {system.name} | " in MEASURED


@pytest.mark.parametrize("event", [*SCENARIOS, OPEN])
def test_every_event_is_a_column_and_is_explained(event: str):
    assert f" | {event} |" in MEASURED.split("## Wrong rows")[1].splitlines()[2]
    assert f"\n| {event} | " in PAGE.split("## How it is measured")[1]


@pytest.mark.parametrize(
    "name",
    ["mark of ids", "trigger", "PgQ", "pg_incremental", "pg_ivm", "TimescaleDB", "Whole-day SQL", "dbt and SQLMesh"],
)
def test_every_alternative_has_a_reason_to_choose_it(name: str):
    paragraphs = PAGE.split("## When to choose another")[1].split("\n\n")
    assert [text for text in paragraphs if re.match(rf"\*\*[^*]*{name}", text) and "Choose " in text]


def test_the_picture_is_small_and_on_the_page():
    assert (ROOT / "docs" / "comparison.svg").stat().st_size <= 200_000
    assert "](comparison.svg)" in PAGE


@pytest.mark.parametrize("page", PAGES_WITH_CLAIMS)
def test_other_pages_that_speak_of_an_alternative_link_to_it(page: str):
    for paragraph in PAGES[page].split("\n\n"):
        if re.search(ALTERNATIVES, paragraph):
            assert "comparison.md" in paragraph


def test_the_readme_links_to_it():
    assert "(docs/comparison.md)" in PAGES["README.md"]
    assert tables.BEGIN in PAGE
