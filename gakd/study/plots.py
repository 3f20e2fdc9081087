"""A study's differences as forest plots: a point and its interval for each method, a panel for each measure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gakd.files import write_whole
from gakd.study.results import KL_BY_BUCKET, MEASURES, ROUGE_BY_BUCKET, Measure, Results

_HEADLINE = ("rouge_l", "sequence_kl", "own_reverse_kl", "reverse_kl", "two_sample", "teacher_log_likelihood")
_BETTER, _WORSE, _UNCLEAR, _CLEAR = "#3a8f5c", "#d1662b", "0.55", "#2f6db3"


def plot_differences(results: Results, path: Path) -> None:
    """The headline measures; green is better, orange worse, blue different, grey may be chance."""
    measures = [measure for name in _HEADLINE for measure in MEASURES if measure.name == name]
    _forest(results, measures, 3, path)


def plot_buckets(results: Results, path: Path) -> None:
    """Short, medium and long references: where is an adversary to help?"""
    _forest(results, results.measured([*ROUGE_BY_BUCKET, *KL_BY_BUCKET]), 3, path)


def _forest(results: Results, measures: Sequence[Measure], columns: int, path: Path) -> None:
    rows = -(-len(measures) // columns)
    height = 0.24 * len(results.compared) + 1.0
    figure = Figure(figsize=(3.6 * columns + 1.5, height * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, measure in zip(grid.flat, measures, strict=False):
        _panel(axes, results, measure)
    for axes in grid.flat[len(measures) :]:
        axes.set_axis_off()
    reference = next(entry.label for entry in results.entries if entry.name == results.reference)
    figure.suptitle(f"Difference to {reference}, 95% intervals over prompts and seeds", fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_whole(Path(path), drawn.getvalue())


def _panel(axes: Axes, results: Results, measure: Measure) -> None:
    entries = results.compared
    intervals = [results.difference(entry, measure.name) for entry in entries]
    for position, found in enumerate(intervals):
        color = _UNCLEAR
        if found.excludes_zero:
            color = _CLEAR
            if measure.better in ("higher", "lower"):
                color = _BETTER if (found.estimate > 0) == (measure.better == "higher") else _WORSE
        axes.plot([found.low, found.high], [position, position], color=color, linewidth=1.6, solid_capstyle="butt")
        axes.plot([found.estimate], [position], color=color, marker="o", markersize=4)
    axes.axvline(0, color="0.3", linewidth=0.8)
    # A method whose seeds disagree must not flatten all others: its line leaves the panel.
    reach = 3 * median((found.high - found.low) / 2 for found in intervals)
    lows = [max(found.low, found.estimate - reach) for found in intervals]
    highs = [min(found.high, found.estimate + reach) for found in intervals]
    margin = 0.2 * reach or 1.0
    axes.set_xlim(min(0.0, *lows) - margin, max(0.0, *highs) + margin)
    axes.set_yticks(range(len(entries)), [entry.label for entry in entries], fontsize=8)
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.set_title(measure.title, fontsize=9, loc="left")
    axes.set_xlabel(measure.unit, fontsize=8, color="0.3")
    axes.tick_params(labelsize=8, color="0.6")
    axes.grid(True, axis="x", color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
