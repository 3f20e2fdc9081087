"""Clock and memory of a device: CUDA's own on CUDA; on a CPU the wall clock, and no memory, which torch does not count there."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Protocol

import torch


class Meter(Protocol):
    device: torch.device

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Of one call, from an idle device to an idle device."""
        ...

    def peak_bytes(self, work: Callable[[], object]) -> int | None:
        """The most that is allocated during a call, beyond what was before; None where nobody counts."""
        ...

    def forget(self) -> None:
        """Give back what is freed: another way follows, and starts from a clean allocator."""
        ...


class CudaMeter:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def milliseconds(self, work: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(self.device)
        return begin.elapsed_time(end)

    def peak_bytes(self, work: Callable[[], object]) -> int | None:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def forget(self) -> None:
        gc.collect()  # models and their wrappers refer to each other
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()


class CpuMeter:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def milliseconds(self, work: Callable[[], object]) -> float:
        begin = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - begin)

    def peak_bytes(self, work: Callable[[], object]) -> int | None:
        work()
        return None

    def forget(self) -> None:
        pass


def meter_of(device: torch.device) -> Meter:
    return CudaMeter(device) if device.type == "cuda" else CpuMeter(device)


def median_ms(
    meter: Meter, work: Callable[[], object], rounds: int, before: Callable[[], object] | None = None
) -> float:
    """The median of several calls; `before` each of them something that is not timed."""
    times = []
    for _ in range(rounds):
        if before is not None:
            before()
        times.append(meter.milliseconds(work))
    return statistics.median(times)
