"""What a recorded step comes to: by part, in time, in memory, and where the host waits. JSON in, JSON out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from gakd.models.heads import head_of
from tests.benchmarks.roofline import HOSTS
from tests.benchmarks.roofline.clock import mfu, roofline_seconds, rows, seconds, timeline
from tests.fake_cuda.parts import part_of
from tests.fake_cuda.recorder import Event
from tests.fake_cuda.step import Recorded

_HEAVIEST = 20


def figures(step: Recorded, events: Sequence[Event]) -> dict[str, Any]:
    """Of a step whose events may be others than those recorded: compiled layers."""
    head = tuple(head_of(step.student).weight.shape)
    repeats = step.recorder.repeats
    whole = expanded(events, repeats)
    named = [(part_of(event, head), event) for event in whole]
    table = rows(named)
    micro_batches = len(step.shapes)
    inside = [event for event in whole if event.micro is not None]
    flops = table["sum"].flops
    return {
        "shapes": [list(shape) for shape in step.shapes],
        "supervised": step.rows,
        "tokens": step.tokens,
        "positions": sum(size * length for size, length in step.shapes),
        "kernels_a_micro_batch": sum(event.kernel.launches for event in inside if event.kernel) / micro_batches,
        "parts": {name: asdict(row) for name, row in table.items()},
        "mfu_of_kernels": mfu(flops, table["sum"].seconds),
        "timeline": {
            f"{host * 1e6:.0f} us": {"seconds": took, "tokens_a_second": step.tokens / took, "mfu": mfu(flops, took)}
            for host in HOSTS
            for took in [timeline(whole, host)]
        },
        "waits": _waits(whole),
        "memory": {
            "standing": step.weights,
            "peak": step.recorder.peak,
            "parts": dict(sorted(step.recorder.peaks.items(), key=lambda entry: -entry[1])),
        },
        "heaviest": _heaviest(named),
    }


def expanded(events: Sequence[Event], repeats: dict[int, int]) -> list[Event]:
    """All micro-batches of the step, where one was run for several."""
    found: list[Event] = []
    for micro, own in groupby(events, key=lambda event: event.micro):
        found += list(own) * (1 if micro is None else repeats.get(micro, 1))
    return found


def _waits(events: Sequence[Event]) -> list[dict[str, Any]]:
    counted = Counter(
        (event.kind, event.micro is not None, event.part, event.what, event.where, event.bytes)
        for event in events
        if event.kernel is None
    )
    names = ("kind", "inside_a_micro_batch", "part", "what", "where", "bytes")
    return [dict(zip(names, key, strict=True)) | {"times": times} for key, times in counted.most_common()]


def _heaviest(named: Sequence[tuple[str, Event]]) -> list[dict[str, Any]]:
    """Operations of one line and shape together, those of the most time first."""
    times: Counter[tuple[str, ...]] = Counter()
    least: Counter[tuple[str, ...]] = Counter()
    spent: dict[tuple[str, ...], float] = {}
    for part, event in named:
        if event.kernel is None:
            continue
        kernel = event.kernel
        key = part, kernel.name, kernel.precision, kernel.shapes, event.where
        times[key] += 1
        spent[key] = spent.get(key, 0.0) + seconds(kernel)
        least[key] += roofline_seconds(kernel)  # type: ignore[assignment]
    names = ("part", "operation", "precision", "shapes", "where")
    first = sorted(spent, key=lambda key: -spent[key])[:_HEAVIEST]
    return [
        dict(zip(names, key, strict=True)) | {"times": times[key], "seconds": spent[key], "roofline": least[key]}
        for key in first
    ]
