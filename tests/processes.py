"""Processes that begin with everything imported, where the usual way would import for ten seconds in each.

One stays behind in each test process, has imported what takes long, and forks (`multiprocessing`'s forkserver).
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tests.recipe_runs import run_here

_IMPORTED = ["tests.recipe_runs", "gakd.evaluation", "gakd.run.training", "gakd.samplers.replay", "gakd.teachers"]


def _forkserver():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def two(function: Callable[..., Any], *arguments: Any) -> None:
    """`function(rank, *arguments)` on each of two; both must end well. It stands in a module, since processes import it."""
    _forkserver()
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined]
        _one_thread, (function, arguments), nprocs=2, start_method="forkserver"
    )


def on_two(function: Callable[[int, Path], Any], folder: Path) -> list[Any]:
    """What `function(rank, folder)` returns on each of two ranks that talk over gloo."""
    two(_joined, function, folder)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in (0, 1)]


def _one_thread(rank: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(rank, *arguments)


def _joined(rank: int, function: Callable[[int, Path], Any], folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    torch.save(function(rank, folder), folder / f"result-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


# ---- recipes ----


def start(recipe: str, flags: list[str], processes: int = 1, printed: str = os.devnull) -> list[BaseProcess]:
    """One run: as many processes as a launcher would start, with the variables that it would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server, ranks = _forkserver(), []
    for rank in range(processes):
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
        if processes > 1:
            environment |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(server.Process(target=_run, args=(recipe, flags, environment, printed)))
        ranks[-1].start()
    return ranks


def finish(ranks: list[BaseProcess]) -> list[int | None]:
    """Exit statuses."""
    for process in ranks:
        process.join(300)
    return [process.exitcode for process in ranks]


def run_on_two(recipe: str, flags: list[str], printed: Path) -> str:
    """A recipe on two processes, as torchrun would start them, until both end well; what they printed."""
    statuses = finish(start(recipe, [*flags, "--devices", "2"], 2, str(printed)))
    said = printed.read_text()
    assert statuses == [0, 0], said[-3000:]
    return said


def _run(recipe: str, flags: list[str], environment: dict[str, str], printed: str) -> None:
    os.environ.update(environment)
    sys.stdout = sys.stderr = open(printed, "a", buffering=1)  # noqa: SIM115  (as long as the process lives)
    run_here(recipe, *flags)
