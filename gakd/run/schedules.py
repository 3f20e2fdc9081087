"""Learning rates as functions of the step, so that no scheduler has a state: transformers' by their names, and one of our own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

LRSchedule = Literal[
    "cosine_with_min_lr", "cosine", "cosine_with_restarts", "linear", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "warmup_stable_decay",
]  # fmt: skip


def rate_at(
    schedule: LRSchedule, step: int, total: int, peak: float, lowest: float, warmup: int, decay: int | None, cycles: int
) -> float:
    """Of a step, from 0, of `total`. `warmup` steps rise linearly to `peak`, the first one to `peak / warmup`.

    Behind them cosine_with_min_lr is half a cosine from `peak` to `lowest` at the last step; the others are what
    `transformers.get_scheduler` makes of the name. polynomial (of power 1) and warmup_stable_decay end at `lowest`; linear,
    cosine and cosine_with_restarts, of `cycles` cosines, at 0. `decay` are the last steps of warmup_stable_decay, a tenth of all
    where it is None.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    lowest = min(lowest, peak)
    if schedule == "cosine_with_min_lr":
        progress = (step - warmup) / max(total - warmup - 1, 1)
        return lowest + (peak - lowest) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return peak * _factor(schedule, total, peak, lowest, warmup, decay, cycles)(step)


@lru_cache(maxsize=16)
def _factor(
    schedule: LRSchedule, total: int, peak: float, lowest: float, warmup: int, decay: int | None, cycles: int
) -> Callable[[int], float]:
    """What transformers multiplies a peak with at each step."""
    import torch
    from transformers import get_scheduler

    own: dict[str, float] = {}
    if schedule == "polynomial":
        if lowest == peak:  # which transformers refuses
            return lambda step: 1.0
        own = {"lr_end": lowest}
    elif schedule == "cosine_with_restarts":
        own = {"num_cycles": cycles}
    elif schedule == "warmup_stable_decay":
        last = max(total // 10, 1) if decay is None else decay
        own = {"num_decay_steps": min(last, max(total - warmup, 0)), "min_lr_ratio": lowest / peak}
    of_nothing = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = get_scheduler(
        schedule, of_nothing, num_warmup_steps=warmup, num_training_steps=total, scheduler_specific_kwargs=own
    )
    (factor,) = scheduler.lr_lambdas  # type: ignore[union-attr]
    return factor
