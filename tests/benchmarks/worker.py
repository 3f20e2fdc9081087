"""The child: one implementation of one case in a fresh process. Says "ready", then answers each line with one timed iteration.

Peak memory is that of one iteration, after `Work.warm_ups` (lazy imports, compilation and an optimizer's state are not its
cost) and with the heap trimmed: what the process grows by above what it held, less the gradients that are its result. On the
CPU that is the resident set's high-water mark, reset through /proc/self/clear_refs; on CUDA the allocator's own.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch

from tests.benchmarks.work import Work

FAMILIES = {
    "token": "token_cases", "adversary": "adversary_cases", "step": "step_cases", "trainer": "trainer_cases",
    "sampling": "sampling_cases",
}  # fmt: skip


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not into the protocol
    order = json.loads(sys.argv[1])
    try:
        _serve(channel, order)
    except Exception as error:
        _say(channel, error=f"{type(error).__name__}: {error}".splitlines()[0])
        raise


def _serve(channel: TextIO, order: dict[str, Any]) -> None:
    torch.set_num_threads(order["threads"])
    device = torch.device(order["device"] if order["device"] != "auto" else _best_device())
    build = importlib.import_module(f"tests.benchmarks.{FAMILIES[order['family']]}").build
    started = time.perf_counter()
    work: Work = build(order["parameters"], order["implementation"], device)
    setup_seconds = time.perf_counter() - started
    for _ in range(work.warm_ups):
        work.clear()
        work.iterate()
    resident, extra, loss = _measure_memory(work, device)
    _say(
        channel, device=_describe(device), resident_mb=resident / 1e6, extra_mb=extra / 1e6, loss=loss,
        gradient_norm=work.gradient_norm(), setup_seconds=setup_seconds,
    )  # fmt: skip
    for _ in sys.stdin:
        work.clear()
        _synchronize(device)
        started = time.perf_counter()
        work.iterate()
        _synchronize(device)
        _say(channel, seconds=time.perf_counter() - started)


def _measure_memory(work: Work, device: torch.device) -> tuple[int, int, float | None]:
    """Bytes held before, bytes of the peak above that and the gradients, and the loss."""
    work.clear()
    gc.collect()
    torch.ones(64, 64) @ torch.ones(64, 64)  # thread pools and their scratch come up here, not in the measurement
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    loss = work.iterate()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")
    extra = max(peak - before - work.gradient_bytes(), 0)
    return before, extra, None if loss is None else float(loss)


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"/proc/self/status names no {name}: peak memory on the CPU needs Linux")
    return int(found[1]) * 1024


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _say(channel: TextIO, **message: Any) -> None:
    channel.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    main()
