"""The picture of docs/comparison.md: cost per refresh against the rows of the day; staleness under an open writer."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.peers.peer import Peer
from benchmarks.peers.tables import Results

OURS = "#d62728"
COLOURS = ("#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#000000")
SETTINGS: Any = {"svg.hashsalt": "comparison", "svg.fonttype": "none", "font.size": 9}


def draw(results: Results, path: Path) -> None:
    """Writes the SVG."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        cost, staleness = figure.subplots(1, 2)
        _draw_cost(cost, results)
        _draw_staleness(staleness, results)
        figure.legend(*cost.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _plain(system: type[Peer]) -> str:
    return system.name.replace("*", "")


def _colours(results: Results) -> dict[type[Peer], str]:
    others = [each for each in results.found.with_statistics() if not each.key.startswith("ours")]
    colours = dict(zip(others, COLOURS, strict=False))
    return {each: colours.get(each, OURS) for each in results.found.with_statistics()}


def _draw_cost(axes: Axes, results: Results) -> None:
    batch, colours = results.scale.largest_batch(), _colours(results)
    for system, colour in colours.items():
        points = [each for each in results.refreshings if each.system is system and each.batch == batch]
        if points:
            style = "--" if system.key == "ours_all" else "-"
            sizes, medians = zip(*((each.rows_today, each.seconds.median * 1e3) for each in points), strict=True)
            axes.plot(sizes, medians, style, marker="o", markersize=3, color=colour, label=_plain(system))
    axes.set(xscale="log", yscale="log", xlabel="rows of today", ylabel="ms", title=f"A refresh of {batch:,} new rows")
    shown = [rows_today for rows_today, batches in results.scale.refreshes if batch in batches]
    axes.set_xticks(shown, [f"{size:,}" for size in shown])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)


def _draw_staleness(axes: Axes, results: Results) -> None:
    colours, shown = _colours(results), list(reversed(results.open_writers))
    values = [each.staleness if each.staleness is not None else results.scale.open_seconds for each in shown]
    bars = axes.barh([_plain(each.system) for each in shown], values, color=[colours[each.system] for each in shown])
    labels = []
    for each, value in zip(shown, values, strict=True):
        bound = "≥ " if each.is_cut else ""
        labels.append("no other writer commits" if each.staleness is None else f"{bound}{value:.2f} s")
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_xlim(0, max(values) * 1.5)
    axes.set(xlabel="seconds", title=f"Age of counted rows (p95), a writer open for {results.scale.open_seconds:.0f} s")
