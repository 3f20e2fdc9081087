"""The picture of a run: plot.png. Bars of time over the necessary products, of the step's tokens, of generation's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"gakd": "#d62728", "TRL": "#2ca02c", "Liger": "#9467bd", "naive": "#7f7f7f"}
BARS = "#1f77b4"


def draw(results: dict[str, Any], path: Path) -> None:
    rows = {name: [row for row in part["rows"] if "ms" in row] for name, part in results["parts"].items()}
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained", width_ratios=[2, 1, 1])
    _tokens(axes[0], rows.get("token", []))
    _bars(
        axes[1], "whole step, thousand tokens/s",
        {row["layers"]: row["tokens_per_second"] / 1e3 for row in rows.get("step", [])},
    )  # fmt: skip
    _bars(
        axes[2], "generation, thousand tokens/s",
        {f"{row['weights']}, {row['prompts']} prompts": row["tokens_per_second"] / 1e3 for row in rows.get("generation", [])},
    )  # fmt: skip
    dry = ": dry run, no measurement" if results["dry_run"] else ""
    figure.suptitle(f"{results['machine']['card']}{dry}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _tokens(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """The widest heads, the numbers that gakd trains with: a group a divergence, a bar a way."""
    axis.set_title("token pass, time / the four necessary products")
    timed = [row for row in rows if "to_floor" in row]
    if not timed:
        return
    first = timed[0]
    timed = [row for row in timed if (row["numbers"], row["width"]) == (first["numbers"], first["width"])]
    labels = [f"{row['divergence']}: {row['way']}" for row in timed]
    values = [row["to_floor"] for row in timed]
    bars = axis.barh(labels, values, color=[COLOURS.get(row["way"].split()[0], BARS) for row in timed])
    axis.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=8)
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_xlabel(f"{first['numbers']}, H = {first['width']:,}")


def _bars(axis: Axes, title: str, values: dict[str, float]) -> None:
    axis.set_title(title)
    if values:
        axis.bar_label(axis.bar(list(values), list(values.values()), color=BARS), fmt="%.3g", padding=2)
        axis.tick_params(axis="x", labelrotation=20)
