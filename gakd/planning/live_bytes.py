"""How many bytes of tensors live at a moment, counted on fake ones: shapes, types and lifetimes without any data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations make while it is entered, less those that are gone; those of `owned` not counted.

    `now` and `peak`, the most since the start or the last `restart`. What an operation needs within itself is not seen.
    """

    def __init__(self, owned: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in owned}

    def restart(self) -> None:
        """Forget the peak, not what lives."""
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._seen:
            return
        self._seen.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size


def fill_(model: nn.Module, dtype: torch.dtype, frozen: torch.dtype | None = None) -> list[Tensor]:
    """Gives a model of the meta device weights and gradients on the CPU; for use within FakeTensorMode. Returns all of them.

    Weights that do not train are in `frozen` where that is given. Those of a layer norm are in fp32 then: CUDA's autocast
    casts them, and a CPU's does not.
    """
    fakes: dict[int, nn.Parameter] = {}  # by the identity of what they replace: tied weights stay tied
    owned: list[Tensor] = []
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) not in fakes:
                chosen = dtype if parameter.requires_grad or frozen is None else frozen
                if frozen not in (None, dtype) and isinstance(module, nn.LayerNorm):
                    chosen = torch.float32
                empty = torch.empty(parameter.shape, dtype=chosen)
                fake = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                fakes[id(parameter)] = fake
                owned.append(fake)
                if fake.requires_grad:
                    fake.grad = torch.zeros_like(fake)
                    owned.append(fake.grad)
            module._parameters[name] = fakes[id(parameter)]
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
            owned.append(module._buffers[name])  # type: ignore[arg-type]
        for name, value in list(vars(module).items()):  # constants that a class keeps without registering them
            if isinstance(value, Tensor):
                setattr(module, name, torch.empty(value.shape, dtype=value.dtype))
                owned.append(getattr(module, name))
    return owned
