"""Refuses updates while a game of the step is not finished.

A game that nobody plays, or whose gradients nobody flushes, would raise nothing by itself: its readout would just not be
trained. An optimizer is where this is noticed, before it steps: one hook of torch's, for all optimizers of the process.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Unfinished(Protocol):
    """Somebody who began what an update must wait for."""

    def before_update(self, optimizer: Optimizer) -> None:
        """RuntimeError where this optimizer may not step yet."""
        ...


_unfinished: weakref.WeakSet[Any] = weakref.WeakSet()


def begun(one: Unfinished) -> None:
    """From here on it is asked before every update."""
    _look_at_optimizers()
    _unfinished.add(one)


def finished(one: Unfinished) -> None:
    """It is asked no more."""
    _unfinished.discard(one)


@functools.cache
def _look_at_optimizers() -> None:
    def ask(optimizer: Optimizer, arguments: Any, named: Any) -> None:
        for one in list(_unfinished):
            one.before_update(optimizer)

    register_optimizer_step_pre_hook(ask)
