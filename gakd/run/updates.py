"""Updates of a step's weights: none is made from a gradient that is not finite, and the host learns of it at the step's end.

An optimizer that takes a flag (a fused Adam) looks at it on the device and leaves the weights as they are. One that takes none
is asked about first, which waits for the device: on a CPU that costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from gakd.run.guard import Guard
from gakd.run.step_log import StepLog
from gakd.run.step_record import StepRecord

FUSED_ON = {"cuda"}  # a CPU's runs keep the bits of the plain one


class Update(NamedTuple):
    """An update that was asked for: of whose weights, where its norm is noted, and whether it is refused (above 0)."""

    whose: str
    note: str
    norm: Tensor
    refused: Tensor


def fuse(optimizer: Optimizer) -> None:
    """One kernel for all weights, where an Adam has them on a GPU and nobody has chosen otherwise."""
    groups = optimizer.param_groups
    weights = [weight for group in groups for weight in group["params"]]
    chosen = any(group.get(name) is not None for group in groups for name in ("fused", "foreach"))
    if type(optimizer) not in (Adam, AdamW) or chosen or any(group["differentiable"] for group in groups):
        return
    if all(weight.device.type in FUSED_ON and weight.is_floating_point() for weight in weights):
        for group in groups:
            group["fused"] = True


def takes_flag(optimizer: Optimizer) -> bool:
    """Whether it leaves weights as they are where its `found_inf` is 1, without asking the host."""
    return type(optimizer) in (Adam, AdamW) and all(group.get("fused") for group in optimizer.param_groups)


class Updates:
    """The updates of one step at a time. The same on every rank: norms and flags are given as all ranks have them."""

    def __init__(self, guard: Guard, record: StepRecord, log: StepLog) -> None:
        self._guard, self._record, self._log = guard, record, log
        self._asked: list[Update] = []  # and not known yet to have been made

    def make(self, update: Update, step: int, optimizer: Optimizer, apply: Callable[[], object]) -> None:
        """`apply` it to the weights, unless it is refused; RunError where the host knows of that already, as `Guard.refuse`."""
        self._asked.append(update)
        if takes_flag(optimizer):
            # A run that will stop makes none after the one that broke.
            counted = self._asked if self._guard.action == "stop" else self._asked[-1:]
            flags = torch.stack([one.refused for one in counted])
            optimizer.found_inf = (flags.amax() > 0).float()  # type: ignore[attr-defined]
            apply()
        elif self.learn(torch.stack(self.unknown()).tolist(), step):
            apply()

    def unknown(self) -> list[Tensor]:
        """What the host has to learn at the end of the step, for `learn`."""
        return [
            tensor.float() if tensor.dtype != torch.float64 else tensor for one in self._asked for tensor in one[2:]
        ]

    def learn(self, values: Sequence[float], step: int) -> bool:
        """Take in what `unknown` is; whether the last update was made. RunError where the run is to stop."""
        asked, self._asked, made = self._asked, [], True
        for one, norm, refused in zip(asked, values[::2], values[1::2], strict=True):
            self._log.notes[one.note] = norm
            made = not refused > 0
            if made:
                self._record.updates += 1
            else:
                self._log.say(f"warning: {self._guard.refuse(one.whose, norm, step)}")
        return made
