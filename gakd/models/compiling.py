"""Decoder layers compiled one by one (`torch.compile`): what is no matrix product becomes a few kernels.

A layer's graph serves all layers of its kind. Compiled are the forwards that are trained on and read, not generation, whose
caches have their own way. Hooks, FSDP2's and checkpointing's, stay outside of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from gakd.machine import has_triton
from gakd.models.lora import base_of
from gakd.models.parts import backbone_of, decoder_layers

Compile = Literal["auto", "on", "off"]

_COMPILED = "_gakd_compiled"  # on the backbone itself: its layers and the backend, so that a copy has its own
# Graphs of one code: for each model, with and without gradient, of one sequence and of several, of each kind of layer.
_MOST_GRAPHS = 64


def compiles(wanted: Compile, device: torch.device) -> bool:
    """Whether layers are compiled: `auto` where it pays and can be done, on CUDA with Triton."""
    if wanted == "auto":
        return device.type == "cuda" and has_triton()
    return wanted == "on"


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Let `hidden_rows` run a causal language model's layers compiled, adapters with them."""
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, _MOST_GRAPHS)
    base = base_of(model)
    setattr(backbone_of(base), _COMPILED, (tuple(decoder_layers(base)), backend))


@contextmanager
def compiled_layers(backbone: nn.Module) -> Iterator[None]:
    """Inside, the layers that `compile_layers` was asked for run compiled."""
    layers, backend = getattr(backbone, _COMPILED, ((), ""))
    try:
        for layer in layers:
            # On the instance, so that its hooks run outside; and for as long as this forward, so that it can be copied.
            layer.__dict__["forward"] = MethodType(_compiled(type(layer).forward, backend), layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


@cache
def _compiled(forward: Callable[..., Any], backend: str) -> Callable[..., Any]:
    compiled = torch.compile(forward, backend=backend, dynamic=True)
    broken = False

    def run(layer: nn.Module, *arguments: Any, **named: Any) -> Any:
        nonlocal broken
        if not broken:
            try:
                return compiled(layer, *arguments, **named)
            except TorchDynamoException as error:
                broken = True
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"torch.compile failed, layers run eagerly: {reason}", stacklevel=2)
        return forward(layer, *arguments, **named)

    return run
