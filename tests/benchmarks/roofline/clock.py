"""Seconds of kernels, of a part, and of a step with the host in it. All of them modelled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.benchmarks.roofline import H100, PAGEABLE, SHORTEST, WAIT, Card
from tests.fake_cuda.kernels import Kernel
from tests.fake_cuda.recorder import Event

_PEAK, _SHARE = dict(H100.peak), dict(H100.share)


def seconds(kernel: Kernel, card: Card = H100) -> float:
    """Of one operation at the rates that are reached; those without a kernel take none."""
    if not kernel.launches:
        return 0.0
    moving = kernel.bytes / (card.memory * card.memory_share)
    return max(moving, _multiplying(kernel, reached=True), SHORTEST * kernel.launches)


def roofline_seconds(kernel: Kernel, card: Card = H100) -> float:
    """At the card's peaks."""
    return max(kernel.bytes / card.memory, _multiplying(kernel, reached=False))


def _multiplying(kernel: Kernel, reached: bool) -> float:
    if not kernel.flops:
        return 0.0
    return kernel.flops / (_PEAK[kernel.precision] * (_SHARE[kernel.precision] if reached else 1.0))


def mfu(flops: float, duration: float) -> float:
    """Share of the bfloat16 peak, 0 to 1."""
    return flops / (duration * _PEAK["bf16"]) if duration else 0.0


@dataclass
class Row:
    """A part of a step."""

    kernels: int = 0
    flops: float = 0.0
    fp32_flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    products: float = 0.0  # seconds of products and attention
    roofline: float = 0.0

    def add(self, kernel: Kernel) -> None:
        took = seconds(kernel)
        self.kernels += kernel.launches
        self.flops += kernel.flops
        self.fp32_flops += kernel.flops if kernel.precision in ("fp32", "fp64") else 0
        self.bytes += kernel.bytes
        self.seconds += took
        self.products += took if kernel.flops else 0.0
        self.roofline += roofline_seconds(kernel)


def rows(named: Iterable[tuple[str, Event]]) -> dict[str, Row]:
    """By part, `sum` last."""
    found: dict[str, Row] = defaultdict(Row)
    total = Row()
    for part, event in named:
        if event.kernel is not None:
            found[part].add(event.kernel)
            total.add(event.kernel)
    return dict(found) | {"sum": total}


def timeline(events: Sequence[Event], host: float) -> float:
    """Seconds from the first launch to the end of the last kernel: the host ahead, the device behind it, waits between."""
    issued = done = 0.0
    for event in events:
        if event.kernel is not None:
            issued += event.kernel.launches * host
            done = max(done, issued) + seconds(event.kernel)
        elif event.kind in ("wait", "copy in"):
            issued = done = max(issued, done) + WAIT + event.bytes / PAGEABLE
        elif event.kind == "copy in, no wait":
            issued += host
    return max(issued, done)
