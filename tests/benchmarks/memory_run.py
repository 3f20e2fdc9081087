"""The child of `memory`: a recipe with the flags it is given, and at the end what its steps took, as a line of JSON.

`length` and `supervised` tokens of the longest sequence; `allocated`, the peak of tensor bytes in the fourth step; `resident`, by
how much the process's resident set was larger at the peak of the second step than before the recipe was loaded.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from gakd.data import Data
from gakd.run import Run
from gakd.types import Batch
from tests.benchmarks.worker import _status
from tests.recipe_runs import run_here


def main() -> None:
    torch.ones(64, 64) @ torch.ones(64, 64)  # thread pools and their scratch come up here
    measured: dict[str, int] = {}
    before = _status("VmRSS")
    steps = Run.steps

    def watched(run: Run, data: Data) -> Iterator[list[Batch]]:
        # From the step before on, so that the profiler knows the size of what that leaves and the next one frees.
        profiler, started, held = profile(activities=[ProfilerActivity.CPU], profile_memory=True), 0, 0
        for window in steps(run, data):
            measured["length"] = max(batch.input_ids.shape[1] for batch in window)
            measured["supervised"] = max(max(batch.lengths) for batch in window)
            if run.step == 1:
                _forget_peak()
            elif run.step == 2:
                profiler.start()
            elif run.step == 3:
                started, held = time.time_ns(), _held()
            yield window
            if run.step == 2:
                measured["resident"] = _status("VmHWM") - before
            elif run.step == 4:
                profiler.stop()
                measured["allocated"] = held + _highest(profiler, started)

    Run.steps = watched  # type: ignore[method-assign]
    run_here(*sys.argv[1:])
    print(json.dumps(measured))


def _forget_peak() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _held() -> int:
    """Bytes of all storages that tensors of this process have."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, Tensor) and not isinstance(thing, DTensor):  # whose part is a tensor of its own
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def _highest(profiler: profile, started: int) -> int:
    """The most bytes above what lived at a time, in nanoseconds."""
    assert profiler.profiler is not None
    now = highest = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.start_ns() >= started:
            now += event.nbytes()
            highest = max(highest, now)
    return highest


if __name__ == "__main__":
    main()
