"""Share of positions that are padding, with and without length-bucketed windows, on Dolly where it lies beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

DOLLY = Path(__file__).parents[3] / "shared" / "data" / "dolly_train.jsonl"
BATCH_SIZE, MICRO_BATCH_SIZE = 16, 4
MAX_LENGTH = 512


def main() -> None:
    """Run as a process of its own: gakd imports torch, and the parent shall weigh nothing."""
    print(json.dumps(measure()))


def measure() -> dict[str, Any]:
    """Padding of micro-batches: each to the longest of the batch at random order, to 512, and as `gakd.data` deals them."""
    from gakd.data.windows import Windows, padding_share, split_window

    lengths, source = _lengths()
    count = len(lengths) // MICRO_BATCH_SIZE * MICRO_BATCH_SIZE
    order = np.random.default_rng(0).permutation(len(lengths))[:count].reshape(-1, MICRO_BATCH_SIZE).tolist()
    windows = Windows(lengths, BATCH_SIZE, seed=0)
    bucketed = [
        group for step in range(len(windows)) for group in split_window(windows.at(step), lengths, MICRO_BATCH_SIZE)
    ]
    return {
        "lengths": source,
        "micro_batch_size": MICRO_BATCH_SIZE,
        "to_maximum": 1 - sum(lengths) / (len(lengths) * MAX_LENGTH),
        "shuffled": padding_share(lengths, order),
        "bucketed": padding_share(lengths, bucketed),
    }


def _lengths() -> tuple[list[int], str]:
    if DOLLY.exists():
        rows = [json.loads(line) for line in DOLLY.read_text().splitlines()]
        characters = [sum(len(value) for value in row.values() if isinstance(value, str)) for row in rows]
        return [min(max(c // 4, 8), MAX_LENGTH) for c in characters], f"{DOLLY.name}, 4 characters a token, at most 512"
    draws = np.random.default_rng(0).lognormal(mean=5.0, sigma=0.8, size=10_000)
    return np.clip(draws, 8, MAX_LENGTH).astype(int).tolist(), "log-normal, median 148, sigma 0.8, at most 512"


if __name__ == "__main__":
    main()
