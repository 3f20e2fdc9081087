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
        "length": _spread(lengths), "prompt_length": _spread(prompts), "response_length": _spread(lengths - prompts),
        "histogram": _histogram(lengths, edges), "prompt_histogram": _histogram(prompts, edges),
    }  # fmt: skip


def _spread(lengths: np.ndarray) -> dict[str, int]:
    """Mean, quantiles and maximum of some lengths, in tokens."""
    if not len(lengths):
        return dict.fromkeys(("mean", "p10", "median", "p90", "longest"), 0)
    low, middle, high = (int(value) for value in np.quantile(lengths, (0.1, 0.5, 0.9)))
    return {
        "mean": round(float(lengths.mean())), "p10": low, "median": middle, "p90": high, "longest": int(lengths.max()),
    }  # fmt: skip


def _histogram(lengths: np.ndarray, edges: list[int]) -> list[list[int]]:
    """Examples up to each edge, behind the one before."""
    found = np.searchsorted(np.asarray(edges[1:]), lengths, side="left")
    return [[edge, int((found == index).sum())] for index, edge in enumerate(edges[1:])]
