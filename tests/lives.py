"""Runs that are killed: processes that begin with everything imported, SIGKILL at a random moment of a kind."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from tests.recipe_runs import run_here

Moment = Literal["while it starts", "while it trains", "while it saves", "while it exports"]
TOO_LATE = "too late"


def forkserver():
    """A context whose processes have imported what takes long: what is tried is many lives, not as many imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.recipe_runs", "gakd.evaluation", "gakd.run.training", "gakd.samplers.replay"]
    )
    return context


def start(server, recipe: str, flags: list[str], processes: int = 1) -> list[BaseProcess]:
    """One life: as many processes as a launcher would start, with the variables that it would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    lives = []
    for rank in range(processes):
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
        if processes > 1:
            environment |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        lives.append(server.Process(target=_live, args=(recipe, flags, environment)))
        lives[-1].start()
    return lives


def finish(lives: list[BaseProcess]) -> list[int | None]:
    for process in lives:
        process.join(300)
    return [process.exitcode for process in lives]


def killed(server, recipe: str, flags: list[str], output: Path, moments: Sequence[Moment], pace: float, draw: random.Random,
           processes: int = 1) -> list[str]:  # fmt: skip
    """A life for each moment, ended at it; returns them, each as it was or as `too late`."""
    return [_kill(start(server, recipe, flags, processes), output, moment, pace, draw) for moment in moments]


def _live(recipe: str, flags: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (as long as the process lives)
    run_here(recipe, *flags)


def _kill(lives: list[BaseProcess], output: Path, moment: Moment, pace: float, draw: random.Random) -> str:
    metrics = output / "metrics.csv"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    began = True
    if moment == "while it starts":
        time.sleep(draw.uniform(0, 1.5))
    elif moment == "while it exports":
        began = _wait_for(lambda: any(output.glob(".student-*")), lives)
        time.sleep(draw.uniform(0, 0.1))
    else:
        began = _wait_for(lambda: metrics.exists() and metrics.stat().st_mtime_ns > before, lives)
        time.sleep(draw.uniform(0, 3 * pace))
        if moment == "while it saves":
            began = _wait_for(lambda: any(output.glob("checkpoints/*.tmp")), lives)
            time.sleep(draw.uniform(0, 0.03))
    alive = began and all(process.is_alive() for process in lives)
    for process in draw.sample(lives, len(lives)):
        process.kill()
    finish(lives)
    return moment if alive else TOO_LATE


def _wait_for(condition: Callable[[], bool], lives: list[BaseProcess]) -> bool:
    """Whether the condition came true while all processes lived."""
    deadline = time.monotonic() + 120
    while all(process.is_alive() for process in lives) and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False
