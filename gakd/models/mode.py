"""Evaluation mode, and back: shared by everything that runs a model that may be in the middle of its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_ROUTERS = "output_router_logits"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; on leaving, each module is in the mode it was in before.

    A mixture of experts then makes no loss of its routers' logits, whatever its configuration asks for: transformers' own
    takes the mask of all tokens so far for that of the logits, and fails where a cache has some of them.
    """
    training = [module for module in model.modules() if module.training]
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    routed = [config for config in configs if getattr(config, _ROUTERS, False)]
    model.eval()
    for config in routed:
        setattr(config, _ROUTERS, False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            # Not module.train(): it would also switch on children that were frozen in evaluation mode.
            module.training = True
        for config in routed:
            setattr(config, _ROUTERS, True)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is, and its inputs belong."""
    return next(model.parameters()).device


def switch_off_dropout(model: nn.Module) -> list[str]:
    """Sets each dropout of a model to 0 for good, its configuration aside; returns the names of those that were above."""
    changed = []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            of_dropout = "drop" in name or (name == "p" and isinstance(module, nn.modules.dropout._DropoutNd))
            if of_dropout and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                changed.append(f"{path}.{name}".lstrip("."))
    return changed
