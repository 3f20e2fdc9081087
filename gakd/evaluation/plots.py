"""The figure of a run, from its metrics CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gakd.files import write_whole

if TYPE_CHECKING:  # an eighth of what a recipe imports before its first line, for one figure at its end
    from matplotlib.axes import Axes

    from gakd.evaluation.shown_figure import ShownFigure

VALID = "valid/"
NOT_DRAWN = frozenset({"tokens", "tokens_read", "padding"})  # these are the data's doing


class Panel(NamedTuple):
    title: str
    unit: str
    series: tuple[str, ...]
    log: bool = False
    scientific: bool = False
    line: tuple[float, str] | None = None  # a dashed line and its name
    limits: tuple[float, float] | None = None


PANELS = (
    Panel("Objective", "weighted sum", ("loss",)),
    Panel("Cross-entropy", "nats / token", ("cross_entropy",)),
    Panel("Divergence to the teacher", "nats / token", ("forward_kl", "reverse_kl", "jensen_shannon")),
    Panel("ROUGE-L", "%", ("rouge_l",)),
    Panel("Exact match", "%", ("exact_match",)),
    Panel("Response length", "tokens", ("response_length",)),
    Panel("Finished responses", "share", ("finished",), limits=(-0.03, 1.03)),
    Panel("Losses of the game", "per sequence", ("adversarial", "discriminator")),
    Panel("Discriminator accuracy", "share", ("discriminator_accuracy",), line=(0.5, "guessing"), limits=(-0.03, 1.03)),
    Panel("Discriminator margin", "score, teacher − student", ("discriminator_margin",), line=(0.0, "no difference")),
    Panel("Discriminator penalty", "per sequence", ("discriminator_penalty",)),
    Panel("Gradient norms", "L2, before clipping", ("gradient_norm", "discriminator_gradient_norm"), log=True),
    Panel("Learning rate", "", ("learning_rate",), scientific=True),
    Panel("Throughput", "tokens / s", ("tokens_per_second",)),
)
LABELS = {
    "forward_kl": "KL(teacher‖student)",
    "reverse_kl": "KL(student‖teacher)",
    "jensen_shannon": "Jensen-Shannon",
    "adversarial": "student",
    "discriminator": "discriminator",
    "gradient_norm": "student",
    "discriminator_gradient_norm": "discriminator",
}
_COLORS = ("#2f6db3", "#d1662b", "#3a8f5c", "#8a5aa8")
Series = tuple[list[float], list[float]]


def plot_metrics(csv_path: str | Path, png_path: str | Path | None = None) -> ShownFigure:
    """Draws the columns of a metrics CSV over its column `step`: training as lines, `valid/<name>` as markers.

    The figure is saved to `png_path`, if that is given, and returned: a notebook shows it. Related columns share a panel, a
    column that none claims gets its own, and empty or non-finite cells are skipped. Raises ValueError where the file has
    no column `step` or nothing to draw.
    """
    from matplotlib.ticker import MaxNLocator

    from gakd.evaluation.shown_figure import ShownFigure

    series = read_series(Path(csv_path))
    panels = [*PANELS, *own_panels(series)]
    panels = [panel for panel in panels if any(name in series or VALID + name in series for name in panel.series)]
    if not panels:
        raise ValueError(f"{csv_path} has no metric to draw: expected numbers in columns beside `step`")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = ShownFigure(figsize=(4.6 * columns, 3.0 * rows), dpi=130, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)  # type: ignore[union-attr]
    grid = figure.subplots(rows, columns, squeeze=False, sharex=False)
    end = max(step for steps, _ in series.values() for step in steps)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel, series)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.set_xlim(-0.02 * max(end, 1), 1.02 * max(end, 1))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    lowest = {index % columns: index for index in range(len(panels))}
    for index in lowest.values():
        grid.flat[index].set_xlabel("optimizer step", fontsize=8.5, color="0.3")
    if png_path is not None:
        write_whole(Path(png_path), figure.png(figure.dpi))
    return figure


def read_series(path: Path) -> dict[str, Series]:
    """Column -> its steps and values, without the cells that are no finite number. ValueError without a column `step`."""
    series: dict[str, Series] = {}
    # What follows the last line break is a row that is still being written, or that a kill cut short.
    reader = csv.DictReader(path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines(), restkey="")
    if "step" not in (reader.fieldnames or []):
        raise ValueError(f"{path} has columns {reader.fieldnames}: expected a metrics CSV with a column `step`")
    for row in reader:
        row.pop("", None)  # cells beyond the header
        step = _number(row.pop("step"))
        for name, cell in row.items():
            value = _number(cell)
            if step is not None and value is not None:
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return series


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def own_panels(series: Iterable[str]) -> list[Panel]:
    """Panels of columns that `PANELS` does not name: a user's own term, say."""
    known = {name for panel in PANELS for name in panel.series} | NOT_DRAWN
    names = dict.fromkeys(name.removeprefix(VALID) for name in series)
    return [Panel(name.replace("_", " ").capitalize(), "", (name,)) for name in names if name not in known]


def _draw(axes: Axes, panel: Panel, series: dict[str, Series]) -> None:
    from matplotlib.ticker import StrMethodFormatter

    both = any(name in series for name in panel.series) and any(VALID + name in series for name in panel.series)
    for name, color in zip(panel.series, _COLORS, strict=False):
        label = LABELS.get(name, "")
        if name in series:
            text = ", ".join(filter(None, (label, "train" if both else "")))
            lone = "." if len(series[name][0]) == 1 else ""  # a line through one point shows nothing
            axes.plot(*series[name], color=color, linewidth=0.9, marker=lone, alpha=0.75, label=text or "_", zorder=2)
        if VALID + name in series:
            text = ", ".join(filter(None, (label, "valid" if both else "")))
            (line,) = axes.plot(
                *series[VALID + name], color=color, marker="o", markersize=5.5, label=text or "_", zorder=3
            )
            line.set(linestyle="none" if both else ":", linewidth=0.8, markeredgecolor="black", markeredgewidth=0.7)
    if panel.line is not None:
        value, text = panel.line
        axes.axhline(value, color="0.4", linewidth=0.9, linestyle="--", label=text, zorder=1)
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
    if panel.log and all(value > 0 for name in panel.series for value in series.get(name, ([], []))[1]):
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if panel.scientific:  # a common factor above the axis would collide with the title
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    only_valid = not any(name in series for name in panel.series)
    axes.set_title(panel.title + (" (validation)" if only_valid else ""), fontsize=10.5, loc="left")
    axes.set_ylabel(panel.unit, fontsize=8.5, color="0.3")
    axes.tick_params(labelsize=8, color="0.6")
    axes.grid(True, color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7.5, frameon=False, borderaxespad=0.2)
