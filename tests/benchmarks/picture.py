"""One picture: a row of marks a case, time and memory side by side; log axes, so equal ratios are equal distances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tests.benchmarks.report import REFERENCES, Grid, grids

# Colour and mark of each implementation: ours filled and red, peers in colours of their own.
STYLES: dict[str, tuple[str, str]] = {
    "ours": ("#d62728", "o"),
    "ours, head frozen": ("#ff9896", "o"),
    "ours, centred": ("#ff9896", "o"),
    "ours, with V": ("#ffbb78", "o"),
    "ours, cached teacher": ("#ff9896", "o"),
    "unfused": ("#7f7f7f", "s"),
    "direct": ("#7f7f7f", "s"),
    "release": ("#7f7f7f", "s"),
    "one at a time": ("#7f7f7f", "s"),
    "DistillationTrainer": ("#2ca02c", "^"),
    "torchtune": ("#1f77b4", "D"),
    "torchtune chunked": ("#aec7e8", "D"),
    "TRL": ("#2ca02c", "^"),
    "TRL chunked": ("#98df8a", "^"),
    "Liger": ("#9467bd", "v"),
    "Liger compiled": ("#c5b0d5", "v"),
}
NAMES = {
    "token": "token terms",
    "adversary": "adversary",
    "step": "whole step",
    "trainer": "plain step",
    "sampling": "sampling",
}
ROW_INCHES = 0.34


def draw(results: dict[str, Any], path: Path) -> None:
    found = grids(results)
    families = list(dict.fromkeys(grid.family for grid in found))
    allocators = list(dict.fromkeys(row["allocator"] for row in results["rows"]))
    if not families:
        return
    by_place = {(grid.family, grid.allocator): grid for grid in found}
    heights = [max(len(grid.cases) for grid in found if grid.family == family) + 1.2 for family in families]
    columns = len(allocators) + 1
    figure, axes = plt.subplots(
        len(families), columns, squeeze=False, layout="constrained",
        figsize=(3.2 + 4.2 * columns, 1.6 + ROW_INCHES * sum(heights)), gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for row, family in enumerate(families):
        for column, allocator in enumerate(allocators):
            if grid := by_place.get((family, allocator)):
                _times(axes[row][column], grid)
        grid = next(grid for grid in found if grid.family == family)
        _memory(axes[row][columns - 1], grid)
        axes[row][0].set_ylabel(NAMES[family], fontweight="bold")
        for column in range(1, columns):
            axes[row][column].set_yticklabels([])
    _legend(figure, axes)
    if results["settings"]["quick"]:
        figure.supxlabel("QUICK RUN: few rows, times mean nothing", color="#d62728")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _times(axis: Axes, grid: Grid) -> None:
    reference = REFERENCES[grid.family]
    values = {
        place: row["to_reference"]
        for place, row in grid.rows.items()
        if "to_reference" in row and place[1] != reference
    }
    axis.axvline(1.0, color="black", linewidth=1)
    _marks(axis, grid, values)
    axis.set_xlabel(f"time / {reference}, {grid.allocator} allocator (smaller is better)")
    _log_axis(axis, lambda value, _: f"{value:g}")


def _memory(axis: Axes, grid: Grid) -> None:
    floor = {place: size for place, size in grid.memory.items() if place[1] != "floor"}
    _marks(axis, grid, {place: max(size, 1.0) for place, size in floor.items()})
    axis.set_xlabel("peak memory beyond inputs and gradients, MB")
    _log_axis(axis, lambda value, _: f"{value:,.0f}")


def _marks(axis: Axes, grid: Grid, values: dict[tuple[str, str], float]) -> None:
    for index, case in enumerate(grid.cases):
        own = [values[case, name] for name in grid.implementations if (case, name) in values]
        if own:
            axis.plot([min(own), max(own)], [index, index], color="#dddddd", linewidth=1.5, zorder=1)
    for name in reversed(grid.implementations):  # ours last, on top
        points = [(values[case, name], index) for index, case in enumerate(grid.cases) if (case, name) in values]
        if points:
            colour, mark = STYLES[name]
            size = 75 if name == "ours" else 42
            axis.scatter(*zip(*points, strict=True), color=colour, marker=mark, s=size, label=name, zorder=3,
                         edgecolors="white", linewidths=0.6)  # fmt: skip
    axis.set_yticks(range(len(grid.cases)), grid.cases)
    axis.set_ylim(len(grid.cases) - 0.4, -0.6)


def _log_axis(axis: Axes, formatter: Any) -> None:
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    subs = (1, 1.5, 2, 3, 5, 7) if high / low < 12 else (1, 2, 5) if high / low < 200 else (1,)
    narrow = high / low < 3.5  # round steps of equal size, where powers of ten would leave one tick or none
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if narrow else LogLocator(subs=subs))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(formatter))
    axis.grid(axis="x", color="#eeeeee")
    axis.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, axes: Any) -> None:
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    names = [name for name in STYLES if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=6, frameon=False)
