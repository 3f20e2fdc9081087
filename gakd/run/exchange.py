"""What processes tell each other: tensors on their devices, in as few exchanges as possible, and numbers that a host knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import ProcessGroup

WHILE_IT_LIVES = timedelta(days=1000)  # how long one is waited for that may take as long as it likes


def several() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place; no host waits for it. Fabric's own waits at a barrier before each."""
    if several():
        distributed.all_reduce(tensor)
    return tensor


def sum_flat_(tensors: Sequence[Tensor], beside: Tensor) -> Tensor:
    """Sum tensors over all ranks in place, with one exchange for all of a dtype; returns the sum of a number that went along."""
    if not several():
        return beside
    total, with_them = beside.reshape(1), [beside.reshape(1)]
    for dtype, own in _by_dtype(tensors).items():
        flat = torch.cat([*(tensor.reshape(-1) for tensor in own), *(number.to(dtype) for number in with_them)])
        distributed.all_reduce(flat)
        *parts, rest = flat.split([*(tensor.numel() for tensor in own), len(with_them)])
        cast(Any, torch)._foreach_copy_(own, [part.view_as(tensor) for part, tensor in zip(parts, own, strict=True)])
        total, with_them = rest if with_them else total, []
    return total[0]


@torch.no_grad()
def take_from_main_(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that rank 0 has, with one exchange for all of a dtype, from device to device."""
    if not several():
        return
    for dtype, own in _by_dtype(tensors).items():
        flat = torch.cat([tensor.reshape(-1) for tensor in own])
        distributed.broadcast(flat.view(torch.uint8), src=0)  # as bytes: not every backend knows every dtype
        parts = flat.view(dtype).split([tensor.numel() for tensor in own])
        for part, tensor in zip(parts, own, strict=True):
            tensor.copy_(part.view_as(tensor))


def host_group(patience: timedelta) -> ProcessGroup | None:
    """All ranks once more, for what hosts tell each other; None where a process is alone. Every rank asks in the same order."""
    return cast(ProcessGroup, distributed.new_group(backend="gloo", timeout=patience)) if several() else None


class Hosts:
    """Numbers that processes know without asking their devices; one that is silent for longer than `silence` ends the others."""

    def __init__(self, silence: timedelta) -> None:
        self._group = host_group(silence)

    def sum(self, numbers: Sequence[float], dtype: torch.dtype = torch.float64) -> list[float]:
        """Each number's sum over all ranks."""
        if not several():
            return list(numbers)
        total = torch.tensor(numbers, dtype=dtype)
        distributed.all_reduce(total, group=self._group)
        return total.tolist()

    def any(self, own: bool) -> bool:
        """Whether it holds on any rank."""
        return self.sum([float(own)])[0] > 0


def everyones(own: Any, group: ProcessGroup | None) -> list[Any]:
    """What each rank has, by rank."""
    if not several():
        return [own]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own, group=group)
    return found


def _by_dtype(tensors: Iterable[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return groups
