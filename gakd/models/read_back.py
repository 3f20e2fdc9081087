"""Whether a model that was written is the one that is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gakd.models.asking import difference, two_rows, weight_of
from gakd.models.errors import ModelError
from gakd.models.lora import base_of
from gakd.models.mode import evaluating


def text_logits(model: nn.Module) -> Tensor:
    """A model's own logits of two short rows, `[N, V]` in fp64 on the CPU: what tells two models apart. Its mode stays."""
    base = base_of(model)
    batch = two_rows(base.config, weight_of(base))
    with evaluating(model):
        logits = base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits.flatten(0, 1)[batch.rows_N].double().cpu()


def prove_values(model: PreTrainedModel, dtype: torch.dtype, folder: Path) -> None:
    """ModelError where the model in `folder` is not this one of `dtype` bit by bit, and where a weight of it is not finite."""
    with torch.random.fork_rng(devices=[]):
        found = cast(Any, type(model)).from_pretrained(folder, dtype=dtype).state_dict()
    own = model.state_dict()
    kind, name_of = type(model).__name__, str(dtype).removeprefix("torch.")
    if beyond := [name for name, weight in own.items() if not torch.isfinite(weight).all()]:
        raise ModelError(
            f"{kind} does not fit {name_of}: {beyond[0]} has values beyond it; give another --export-dtype"
        )
    if other := [name for name in own if name not in found or not torch.equal(own[name], found[name])]:
        raise ModelError(
            f"what is exported of {kind} in {name_of} is not what was rounded: {other[:3]} are read back otherwise"
        )


def prove_folder(kind: type[PreTrainedModel], dtype: torch.dtype, expected_NV: Tensor, folder: Path) -> None:
    """ModelError where the model in `folder` is not the one whose `text_logits` are expected: a weight lost, another function.

    To 1e-3 of each row, which leaves room for another device's rounding; 0.2 over all rows in 16 bits, where a router may
    send a token elsewhere for a rounding.
    """
    with torch.random.fork_rng(devices=[]):  # a weight that is not in the folder would be drawn
        loaded, info = cast(Any, kind).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if lost := sorted(
        set(info["missing_keys"]) | set(info["unexpected_keys"]) | set(map(str, info["mismatched_keys"]))
    ):
        raise ModelError(f"what is exported of {kind.__name__} is not what was trained: {lost[:3]} are not read back")
    found_NV, half = text_logits(loaded), dtype not in (torch.float32, torch.float64)
    apart = (
        difference(found_NV.flatten()[None], expected_NV.flatten()[None]) if half else difference(found_NV, expected_NV)
    )
    if not apart <= (0.2 if half else 1e-3):
        raise ModelError(
            f"what is exported of {kind.__name__} is not what was trained: read back it gives other logits (relative difference "
            f"{apart:.2g})"
        )
