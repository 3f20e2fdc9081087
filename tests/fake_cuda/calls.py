"""What a decoder layer was called with, without its memory: for tracing the layer again by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


@dataclass
class LayerCall:
    """A layer and what it was given, without the memory of it: tensors are made anew with `arguments()`."""

    layer: Any
    given: tuple[Any, Any]
    autocast: bool

    @classmethod
    def of(cls, layer: Any, arguments: Any, named: Any) -> LayerCall:
        return cls(layer, tree_map(_described, (arguments, named)), torch.is_autocast_enabled("cuda"))

    def arguments(self) -> tuple[Any, Any]:
        """Positional and named ones, of the same sizes; for use within a FakeTensorMode."""
        return tree_map(lambda value: value.made() if isinstance(value, _Described) else value, self.given)


@dataclass
class _Described:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    def made(self) -> Tensor:
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return tensor.requires_grad_(self.requires_grad)


def _described(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return _Described(tuple(value.shape), value.stride(), value.dtype, value.device, value.requires_grad)
