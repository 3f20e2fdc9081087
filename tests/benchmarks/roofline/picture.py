"""Stacked bars of a step's parts, before and after beside each other. Modelled, and the picture says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tests.fake_cuda.parts import PARTS

# Models in blues, the vocabulary in reds, the game in greens, updates in greys.
COLOURS = {
    "teacher forward": "#08519c", "student forward": "#3182bd", "student backward": "#6baed6",
    "token pass: products": "#cb181d", "token pass: rows": "#fb6a4a", "token pass: sums": "#fcae91",
    "head gradient sums": "#fee0d2", "readout": "#006d2c", "adversary": "#74c476", "student update": "#525252",
    "discriminator update": "#969696", "log and guard": "#d9d9d9", "other": "#d9d9d9",
}  # fmt: skip
WAITING = "#fff2ae"
HOST = "8 us"


def draw(reports: list[tuple[str, dict[str, Any]]], path: Path) -> None:
    """Of each case, a bar for each report that has it: `(label, report)`, in order."""
    names = list(dict.fromkeys(case["name"] for _, report in reports for case in report["cases"]))
    labels, bars = [], []
    place = 0.0
    for name in names:
        for label, report in reports:
            for case in report["cases"]:
                if case["name"] == name:
                    bars.append((place, case))
                    labels.append(f"{name}\n{label}, {case['layers']} layers" if len(reports) > 1 else name)
                    place += 1.0
        place += 0.6
    figure, axis = plt.subplots(figsize=(11, 1.6 + 0.52 * place), layout="constrained")
    for place, case in bars:
        _bar(axis, place, case)
    axis.set_yticks([place for place, _ in bars], labels, fontsize=8)
    axis.invert_yaxis()
    longest = max(_step_ms(case) for _, case in bars)
    axis.set_xlim(0, longest * 1.22)
    axis.set_xlabel("ms of one optimizer step on an H100: MODELLED, nothing here was measured on a card")
    axis.spines[["top", "right"]].set_visible(False)
    handles = {part: plt.Rectangle((0, 0), 1, 1, color=COLOURS[part]) for part in PARTS if part != "other"}
    handles[f"the device waits, host at {HOST} a kernel"] = plt.Rectangle(
        (0, 0), 1, 1, facecolor=WAITING, edgecolor="#bbbbbb"
    )
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _step_ms(case: dict[str, Any]) -> float:
    return case["timeline"][HOST]["seconds"] * 1e3


def _bar(axis: Any, place: float, case: dict[str, Any]) -> None:
    left = 0.0
    for part in PARTS:
        took = case["parts"].get(part, {}).get("seconds", 0.0) * 1e3
        axis.barh(place, took, left=left, height=0.8, color=COLOURS[part])
        left += took
    whole = _step_ms(case)
    axis.barh(
        place, max(whole - left, 0.0), left=left, height=0.8, facecolor=WAITING, edgecolor="#bbbbbb", linewidth=0.5
    )
    row = case["timeline"][HOST]
    axis.text(whole, place, f"  {whole:,.0f} ms, {row['mfu']:.0%} of peak", va="center", fontsize=8)
