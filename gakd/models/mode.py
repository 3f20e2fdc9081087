"""Evaluation mode, and back: shared by everything that runs a model that may be in the middle of its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; on leaving, each module is in the mode it was in before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            # Not module.train(): it would also switch on children that were frozen in evaluation mode.
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is, and its inputs belong."""
    return next(model.parameters()).device
