"""What a worker runs: one implementation of one case, built once, iterated many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Work:
    """`iterate` is one forward and backward; it returns the loss, if any. Gradients of `leaves` are dropped before each."""

    iterate: Callable[[], Tensor | None]
    leaves: Sequence[Tensor] = ()  # their gradients are the result: neither counted as memory nor timed away
    watched: Tensor | None = None  # the leaf whose gradient's norm is compared between implementations
    warm_ups: int = 1  # iterations before memory is measured: lazy imports, compilation, an optimizer's state

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def gradient_bytes(self) -> int:
        return sum(leaf.grad.nbytes for leaf in self.leaves if leaf.grad is not None)

    def gradient_norm(self) -> float | None:
        if self.watched is None or self.watched.grad is None:
            return None
        return float(torch.linalg.vector_norm(self.watched.grad.float()))


def normal(*shape: int, scale: float, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The same numbers in every worker."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, device=device, dtype=dtype).normal_(0.0, scale, generator=generator)


def working_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
