"""Which prompts may share a batch: padding on the left is no part of a text, but some models read it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import groupby

from torch import nn
from torch.distributed.tensor import DTensor

from gakd.models.lora import base_of
from gakd.models.proof import left_padding_shows

_SHOWS = "_gakd_left_padding_shows"  # on the model itself: asked once


def batches(models: Sequence[nn.Module], prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Indices of the prompts, batch by batch: of like length, so that there is little padding, or of one length.

    Of one length where padding on the left changes what one of the models says next (recurrent models, chunked attention). Models
    that are sharded over ranks need equally many batches on each: they are warned of, and padded. Sorting is stable, so the
    order is a function of the prompts.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    lengths = [len(prompts[index]) for index in order]
    apart = len(set(lengths)) > 1 and any(_needs_one_length(model) for model in models)
    groups = [list(group) for _, group in groupby(order, key=lambda index: len(prompts[index]))] if apart else [order]
    return [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]


def _needs_one_length(model: nn.Module) -> bool:
    base = base_of(model)
    if not hasattr(base, _SHOWS):
        setattr(base, _SHOWS, left_padding_shows(model))
    if not getattr(base, _SHOWS):
        return False
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        warnings.warn(
            f"{type(base).__name__} reads the padding before a prompt, and is cut over ranks, which write in step: what it "
            f"writes to shorter prompts of a batch is not what it would write to them alone; --strategy ddp does better",
            stacklevel=2,
        )
        return False
    return True
