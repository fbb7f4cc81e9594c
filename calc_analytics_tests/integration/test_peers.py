"""The comparison with other systems works and finds wrong rows: its short form, on a server of its own."""

from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from benchmarks.peers import picture, tables
from benchmarks.peers.__main__ import measure, parse
from benchmarks.peers.handwritten import Floor, WholeDay
from benchmarks.peers.ours import Ours, OursAll
from benchmarks.peers.peer import Peer
from benchmarks.peers.scale import SHORT
from benchmarks.peers.server import running_server
from benchmarks.peers.systems import SYSTEMS
from benchmarks.peers.tables import Results
from benchmarks.peers.trigger import Trigger
from benchmarks.peers.workloads.wrong_rows import SCENARIOS, WrongRows

pytestmark = pytest.mark.long

UPDATE, DELETION = "an UPDATE of log rows", "half a day deleted, then a late row"
LOST_BY_A_MARK = (
    "a transaction that commits after a newer one",
    "an id drawn before its insert",
    "a sequence with CACHE 50",
)


@pytest.fixture(scope="module")
def results() -> Iterator[Results]:
    with running_server() as server:
        yield measure(server, SHORT, ())


def wrong_after(results: Results, system: type[Peer], scenario: str) -> WrongRows:
    (found,) = [each for each in results.wrong_rows if (each.system, each.scenario) == (system, scenario)]
    return found


@pytest.mark.parametrize("system", [Ours, OursAll], ids=lambda system: system.key)
def test_this_project_is_right_after_every_event_and_reports_what_was_changed(results: Results, system: type[Peer]):
    for scenario in SCENARIOS:
        found = wrong_after(results, system, scenario)
        assert (found.difference.days == 0) == (scenario != UPDATE), scenario
        assert bool(found.report) == (scenario in (UPDATE, DELETION)), scenario
        assert not found.writers_waited
    assert [each.difference.days for each in (*results.open_writers, *results.backlogs) if each.system is system] == [
        0,
        0,
    ]


@pytest.mark.parametrize("scenario", LOST_BY_A_MARK)
def test_the_comparison_finds_the_rows_that_a_mark_of_ids_loses(results: Results, scenario: str):
    difference = wrong_after(results, Floor, scenario).difference
    assert difference.days > 0
    assert difference.missing > 0
    assert difference.surplus == 0


def test_the_comparison_finds_what_a_recount_loses_after_a_retention(results: Results):
    assert wrong_after(results, WholeDay, DELETION).difference.missing > 100


def test_an_alternative_that_is_right_has_no_wrong_row(results: Results):
    assert [each.scenario for each in results.wrong_rows if each.system is Trigger and each.difference.days] == []
    assert wrong_after(results, WholeDay, UPDATE).difference.days == 0


def test_every_system_is_measured_or_named_with_what_brings_it(results: Results):
    assert {*results.found.systems, *results.found.missing} == set(SYSTEMS)
    assert all(results.found.missing.values())
    with_statistics = set(results.found.with_statistics())
    assert {each.system for each in results.open_writers} == with_statistics
    assert {each.system for each in results.backlogs} == with_statistics
    assert {each.system for each in results.refreshings} == {each for each in with_statistics if each.has_refresher}
    assert {each.system for each in results.writings} == {each for each in results.found.systems if each.adds_to_log}


def test_the_tables_and_the_picture_are_written(results: Results, tmp_path):
    page = tmp_path / "comparison.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.write(page, tables.render(results))
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    for system in SYSTEMS:
        assert f"| {system.name} | " in text
    picture.draw(results, tmp_path / "comparison.svg")
    assert ElementTree.parse(tmp_path / "comparison.svg").getroot().tag.endswith("svg")


def test_a_folder_without_postgresql_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["peers", "--bin", "/nowhere"])
    with pytest.raises(SystemExit) as refused:
        parse()
    assert refused.value.code == 2
    assert "error: --bin /nowhere has no initdb: name the folder of" in capsys.readouterr().err


def test_a_shortened_option_is_not_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["peers", "--with-d", "--with-sqlmesh"])
    assert parse().options == ["--with-dbt", "--with-sqlmesh"]
