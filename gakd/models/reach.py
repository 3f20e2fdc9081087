"""Which weights a text reaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gakd.models.asking import two_rows, weight_of
from gakd.models.lora import base_of
from gakd.models.mode import evaluating
from gakd.models.parts import backbone_of, last_hidden_rows


def unreached_weights(model: nn.Module) -> list[str]:
    """Names of trainable weights that get no gradient from two short rows.

    Those of an indexer that only chooses, of experts for pictures, of layers that read pictures alone.
    """
    base: Any = base_of(model)
    batch = two_rows(base.config, weight_of(base))
    with evaluating(model), torch.enable_grad():
        hidden_NH = last_hidden_rows(backbone_of(base), batch)
    reached, seen, waiting = set(base.get_output_embeddings().parameters()), set(), [hidden_NH.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(getattr(node, "variable", None))
        waiting += [before for before, _ in node.next_functions]
    return [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter not in reached
    ]
