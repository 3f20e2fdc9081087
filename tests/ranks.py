"""A function on two processes that talk over gloo: what the tests of distributed code share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def on_two(function: Callable[[int, Path], Any], folder: Path) -> list[Any]:
    """What `function(rank, folder)` returns on each of two ranks; it stands in a module, since processes import it."""
    multiprocessing.spawn(_one, (function, folder), nprocs=2)  # type: ignore[attr-defined]
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in (0, 1)]


def _one(rank: int, function: Callable[[int, Path], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    torch.save(function(rank, folder), folder / f"result-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
