"""Weights in 16 bits while a model writes: a decode step reads all of them once a token, and autocast would cast them each time.

A copy has parameters of its own for those in fp32 alone. What is in 16 bits or quantised already, such as LoRA's frozen
weights, it shares with the model, and all buffers too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gakd.models.lora import base_of
from gakd.models.mode import device_of
from gakd.models.sharding import is_sharded


class WritingCopy:
    """A model with its fp32 weights rounded to `dtype`; `refresh` takes over what has changed since, in place."""

    def __init__(self, base: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._every, precise = list(base.parameters()), _kept_precise(base)
        self._places = [weight.device for weight in self._every]
        self._of_model = [
            weight for name, weight in base.named_parameters() if weight.dtype == torch.float32 and name not in precise
        ]
        self._own = [nn.Parameter(weight.detach().to(dtype), requires_grad=False) for weight in self._of_model]
        # What a memo holds is not copied: fp32 weights are never in memory twice.
        memo: dict[int, Any] = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
        memo |= {id(weight): own for weight, own in zip(self._of_model, self._own, strict=True)}
        self.model = copy.deepcopy(base, memo).eval()

    def refresh(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                list[Tensor](self._own), [weight.detach() for weight in self._of_model]
            )

    def is_of(self, base: nn.Module, dtype: torch.dtype) -> bool:
        """Whether the model has the parameters that this copy was made of, where they were."""
        now = list(base.parameters())
        same = len(now) == len(self._every) and all(one is other for one, other in zip(now, self._every, strict=True))
        return same and dtype == self.dtype and [weight.device for weight in now] == self._places


_KEPT: WeakKeyDictionary[nn.Module, WritingCopy] = WeakKeyDictionary()


@contextmanager
def writing(model: nn.Module, dtype: torch.dtype | None = None, keep: bool = False) -> Iterator[Any]:
    """The transformers model that writes in a model's place: a copy in `dtype`, or itself where it has that dtype already.

    `dtype` None: bf16 on a GPU; on a CPU the weights' own. A copy has the model's weights as they are at this moment.
    `keep` is for what writes at every step: the copy stays, at 2 bytes for each fp32 weight, and so does what was compiled of
    it. A model that is cut over ranks is not copied; it writes under autocast.
    """
    base: Any = base_of(model)
    device = device_of(base)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else None
    if dtype is None:
        yield base
        return
    if all(weight.dtype != torch.float32 for weight in base.parameters()):
        with _no_autocast(device):
            yield base
        return
    if is_sharded(base):
        with torch.autocast(device.type, dtype):
            yield base
        return
    kept = _KEPT.get(base)
    if kept is not None and kept.is_of(base, dtype):
        kept.refresh()
    else:
        _KEPT.pop(base, None)
        kept = WritingCopy(base, dtype)
        if keep:
            _KEPT[base] = kept
    with _no_autocast(device):
        yield kept.model


def _no_autocast(device: torch.device) -> Any:
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def _kept_precise(base: nn.Module) -> set[str]:
    """Names of weights that the model's class wants in fp32 beside others in 16 bits, such as a router's bias."""
    patterns = [name.replace("*", ".*") for name in getattr(base, "_keep_in_fp32_modules_strict", None) or ()]
    names = [name for name, _ in base.named_parameters()]  # found as transformers does when it loads them
    return {name for name in names if any(re.search(pattern, name) for pattern in patterns)}
