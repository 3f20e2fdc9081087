"""Runs that are killed: SIGKILL at a random moment of a kind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from tests.processes import finish, start

Moment = Literal["while it starts", "while it trains", "while it saves", "while it exports"]
TOO_LATE = "too late"


def killed(recipe: str, flags: list[str], output: Path, moments: Sequence[Moment], pace: float, draw: random.Random,
           processes: int = 1) -> list[str]:  # fmt: skip
    """A life for each moment, ended at it; returns them, each as it was or as `too late`."""
    return [_kill(start(recipe, flags, processes), output, moment, pace, draw) for moment in moments]


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
