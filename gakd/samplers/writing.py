"""How a model is asked for text: which prompts may share a batch, and whether with a cache."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn

from gakd.models.lora import base_of
from gakd.models.mode import device_of
from gakd.models.sharding import is_cut
from gakd.models.writing import Writing, prove_writing

_KNOWN = "_gakd_writing"  # on the model itself: whether it was cut when it was asked, and what was found


def writing_of(model: nn.Module) -> Writing:
    """What was found of a model when it was first asked for text (`prove_writing`).

    Once while it is whole and once while it is cut over ranks: a cut one answers with all of them, and one rank alone may have
    asked it before. Models that are cut need equally many batches on each rank, so they share batches; they are warned of.
    """
    base = base_of(model)
    cut = is_cut(model)
    asked, writing = getattr(base, _KNOWN, (None, None))
    if writing is None or asked != cut:
        # An evaluation may be the first to ask, under autocast, which rounds more than a proof in fp32 allows.
        with torch.autocast(device_of(base).type, enabled=False):
            writing = prove_writing(model)
        if writing.one_length and cut:
            warnings.warn(
                f"{type(base).__name__} reads the padding before a prompt, and is cut over ranks, which write in step: what it "
                f"writes to shorter prompts of a batch is not what it would write to them alone; --strategy ddp does better",
                stacklevel=2,
            )
            writing = writing._replace(one_length=False)
        setattr(base, _KNOWN, (cut, writing))
    return writing


def batches(
    models: Sequence[nn.Module], prompts: Sequence[Sequence[int]], batch_size: int, one_length: bool = False
) -> list[list[int]]:
    """Indices of the prompts, batch by batch: of like length, so that there is little padding, or of one length.

    Of one length where that is asked for, and where padding on the left changes what one of the models says next (recurrent
    models, chunked attention). Sorting is stable, so the order is a function of the prompts.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    apart = one_length or any(writing_of(model).one_length for model in models)
    groups = [list(group) for _, group in groupby(order, key=lambda index: len(prompts[index]))] if apart else [order]
    return [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]
