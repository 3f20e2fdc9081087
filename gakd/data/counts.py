"""The counts of a split as plain values, for tables and for a run's folder."""

from __future__ import annotations

from typing import Any

import numpy as np

from gakd.data.summary import Summary

BUCKETS = 8


def counts(summary: Summary, max_length: int) -> dict[str, Any]:
    """Rows, what was left out and why, lengths in tokens, and a histogram of them: `[[up to, examples], ...]`."""
    examples = summary.examples
    lengths, prompts = examples.lengths, examples.column("prompt_length")
    edges = [round(max_length * bucket / BUCKETS) for bucket in range(BUCKETS + 1)]
    return {
        "rows": summary.rows, "kept": summary.kept, "cut": summary.cut, "max_length": max_length,
        "left_out": {reason: list(found) for reason, found in summary.left_out.items()},
        "examples": len(examples), "supervised": int(examples.column("supervised").sum()),
        "length": _spread(lengths), "prompt_length": _spread(prompts),
        "histogram": _histogram(lengths, edges), "prompt_histogram": _histogram(prompts, edges),
    }  # fmt: skip


def _spread(lengths: np.ndarray) -> dict[str, int]:
    if not len(lengths):
        return {"mean": 0, "median": 0, "longest": 0}
    return {"mean": round(float(lengths.mean())), "median": int(np.median(lengths)), "longest": int(lengths.max())}


def _histogram(lengths: np.ndarray, edges: list[int]) -> list[list[int]]:
    """Examples up to each edge, behind the one before."""
    found = np.searchsorted(np.asarray(edges[1:]), lengths, side="left")
    return [[edge, int((found == index).sum())] for index, edge in enumerate(edges[1:])]
