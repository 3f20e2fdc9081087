"""Depth pruning: a student of some of a model's decoder layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from gakd.models.names import ModelError


def prune_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Keep some decoder layers: one number n keeps n, evenly spaced and with the last; several are indices to keep.

    10 of 30 keeps 2, 5, ..., 29. The configuration follows, so the pruned model saves and loads as usual.
    """
    owner, attribute, blocks = decoder_layers(model)
    depth = len(blocks)
    count = min(layers[0], depth + 1) if len(layers) == 1 else 0  # a huge one is refused below, not written out
    keep = [(i + 1) * depth // count - 1 for i in range(count)] if len(layers) == 1 else list(layers)
    if not keep or sorted(set(keep)) != keep or keep[0] < 0 or keep[-1] >= depth:
        raise ModelError(
            f"cannot keep layers {list(layers)} of {depth}: "
            f"give how many to keep (1 to {depth}), or ascending indices below {depth}"
        )
    kept = [blocks[index] for index in keep]
    for index, block in enumerate(kept):
        for module in block.modules():  # caches are addressed by this index
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    setattr(owner, attribute, nn.ModuleList(kept))
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in keep]
    return model


def decoder_layers(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds them, its attribute's name, and the layers; ModelError for a model that keeps them otherwise."""
    depth = model.config.num_hidden_layers
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return module, name, child
    raise ModelError(f"{type(model).__name__} keeps its {depth} layers in no ModuleList: it cannot be pruned by depth")
