"""The tables of docs/comparison.md, in Markdown."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.handwritten import Bare, Floor
from benchmarks.peers.rows import TODAY, Difference
from benchmarks.peers.scale import Scale
from benchmarks.peers.stage import Quartiles
from benchmarks.peers.systems import SYSTEMS, Found
from benchmarks.peers.workloads.backlog import Backlog
from benchmarks.peers.workloads.open_writer import OpenWriter
from benchmarks.peers.workloads.refreshing import Refreshing
from benchmarks.peers.workloads.writing import Writing
from benchmarks.peers.workloads.wrong_rows import SCENARIOS, WrongRows

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Results:
    """A whole run."""

    server: str
    scale: Scale
    found: Found
    wrong_rows: Sequence[WrongRows]
    open_writers: Sequence[OpenWriter]
    writings: Sequence[Writing]
    refreshings: Sequence[Refreshing]
    backlogs: Sequence[Backlog]
    seconds: float


def render(results: Results) -> str:
    """All tables, each under its heading."""
    sections = (_systems, _wrong_rows, _open_writers, _refreshings, _writings, _backlogs)
    return "\n\n".join(section(results) for section in sections)


def write(page: Path, text: str) -> None:
    """Puts the tables between the page's two marks."""
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"## {title}", "", _row(columns), _row(["---"] * len(columns)), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _systems(results: Results) -> str:
    found = results.found
    rows = [
        (system.name, found.systems[system] or "in this repository")
        if system in found.systems
        else (system.name, f"not installed: {found.missing[system]}")
        for system in SYSTEMS
    ]
    head = (
        f"Measured on {TODAY} in {results.seconds / 60:.0f} minutes with {results.server}, "
        f"{os.cpu_count()} virtual cores, default settings."
    )
    return head + "\n\n" + _table("What was measured", ("system", "version"), rows)


def _wrong_rows(results: Results) -> str:
    systems = results.found.with_statistics()
    cells = {(each.system, each.scenario): _wrong_cell(each) for each in results.wrong_rows}
    for each in results.open_writers:
        cells[each.system, OPEN] = _difference(each.difference)
    rows = [[system.name, *(cells[system, name] for name in (*SCENARIOS, OPEN))] for system in systems]
    return _table("Wrong rows", ("publisher-days that are wrong after …", *SCENARIOS, OPEN), rows)


OPEN = "an open writer"


def _wrong_cell(each: WrongRows) -> str:
    if not each.system.has_refresher and each.scenario == "a refresher killed in the middle":
        return "has none"
    notes = [_difference(each.difference)]
    if each.report:
        notes.append(f"reported: {each.report}")
    if each.writers_waited:
        notes.append("writers waited")
    return ", ".join(notes)


def _difference(difference: Difference) -> str:
    if not difference.days:
        return "0"
    rows = [f"−{difference.missing:,}"] if difference.missing else []
    rows += [f"+{difference.surplus:,}"] if difference.surplus else []
    return f"**{difference.days:,}**" + (f" ({', '.join(rows)})" if rows else "")


def _open_writers(results: Results) -> str:
    rows = [
        (
            each.system.name,
            str(each.refreshes) if each.system.has_refresher else "needs none",
            _staleness(each),
            str(each.commits),
            f"{_number(each.latency.median * 1e3)} ms",
            f"{_number(each.latency_p95 * 1e3)} ms",
        )
        for each in results.open_writers
    ]
    title = f"A transaction left open for {results.scale.open_seconds:.0f} s"
    columns = ("", "refreshes", "staleness, p95", "others' commits", "their median", "their p95")
    return _table(title, columns, rows)


def _staleness(each: OpenWriter) -> str:
    if each.staleness is None:
        return "no commit"
    return ("≥ " if each.is_cut else "") + f"{each.staleness:.2f} s"


def _refreshings(results: Results) -> str:
    floors = {
        (each.rows_today, each.batch): each.seconds.median for each in results.refreshings if each.system is Floor
    }
    cases = list(floors)
    cells = {
        (each.system, each.rows_today, each.batch): _cost(each.seconds, floors[each.rows_today, each.batch])
        for each in results.refreshings
    }
    systems = dict.fromkeys(each.system for each in results.refreshings)
    rows = [[system.name, *(cells[system, size, batch] for size, batch in cases)] for system in systems]
    columns = ("", *(f"{batch:,} new, {size:,} today" for size, batch in cases))
    return _table("A refresh", columns, rows)


def _cost(seconds: Quartiles, floor: float) -> str:
    return f"{_spread(seconds, 1e3, ' ms')} · {_ratio(seconds.median / floor)}"


def _ratio(ratio: float) -> str:
    """'1.55 ×', '503 ×'."""
    return f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.2f} ×"


def _spread(quartiles: Quartiles, factor: float, unit: str) -> str:
    """'3.60 (3.51–3.72) ms'."""
    first, median, third = (_number(value * factor) for value in (quartiles.first, quartiles.median, quartiles.third))
    return f"{median} ({first}–{third}){unit}"


def _number(value: float) -> str:
    """Three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _writings(results: Results) -> str:
    bare = next(each for each in results.writings if each.system is Bare)
    rows = [
        (
            each.system.name,
            _spread(each.cpu, 1e6, " µs"),
            _ratio(each.cpu.median / bare.cpu.median),
            f"{each.wal.median:,.0f} B",
            _ratio(each.wal.median / bare.wal.median),
            _spread(each.commits, 1, ""),
            _ratio(each.commits.median / bare.commits.median),
        )
        for each in results.writings
    ]
    columns = (
        "",
        "CPU per row, COPY of 100",
        "ratio",
        "WAL per row",
        "ratio",
        "single-row commits/s, 8 clients",
        "ratio",
    )
    return _table("Writers", columns, rows)


def _backlogs(results: Results) -> str:
    floor = next(each for each in results.backlogs if each.system is Floor).counting.median
    rows = [
        (
            each.system.name,
            f"{_number(each.writing.median)} s",
            _spread(each.counting, 1, " s") if each.system.has_refresher else "needs none",
            _ratio(each.counting.median / floor) if each.system.has_refresher else "",
            _difference(each.difference),
        )
        for each in results.backlogs
    ]
    scale = results.scale
    title = f"A backlog of {scale.backlog_rows:,} rows of {scale.backlog_days} days, at random"
    return _table(title, ("", "to write it", "to count it", "ratio", "wrong publisher-days"), rows)
