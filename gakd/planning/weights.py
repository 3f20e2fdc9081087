"""A model's weights, LoRA's adapters included, and what a plan asks of each: its size, layer, training, and use by a token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from gakd.models.config import ALL_LINEAR
from gakd.models.lora import add_lora, is_target
from gakd.models.parts import experts_per_token, idle_parameters, tables_of
from gakd.planning.layers import Kind, layers_of
from gakd.planning.probe import Probe, linear_places


@dataclass(frozen=True)
class Adapters:
    """LoRA as a recipe sets it; rank 0 is none."""

    rank: int = 0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)


class Weight(NamedTuple):
    """One parameter of a model."""

    entries: int
    active: int  # entries that a token of text meets: of experts those that its router chooses, of towers none
    layer: int | None  # the first that has it
    trains: bool
    products: int  # multiply-adds of a token outside of embeddings and head
    matrix: bool  # two dimensions, and no table with a row for each token: what Muon steps
    factors: int  # entries of the rows' and columns' means that Adafactor keeps of it


def weights_of(model: PreTrainedModel, kinds: Sequence[Kind], seen: Probe, adapters: Adapters) -> list[Weight]:
    """The weights of a model on the meta device, with layers of these kinds."""
    layers = layers_of(model)
    uses: dict[int, list[int]] = {}  # of a weight: the layers that have it, several where they share it
    experts: dict[int, float] = {}
    for at, layer in enumerate(layers):
        for parameter in layer.parameters():
            uses.setdefault(id(parameter), []).append(at)
        experts |= _experts(layer, seen.active[kinds[at]] or (experts_per_token(model) or 0))
    products, idle = _products(model, experts), {id(parameter) for parameter in idle_parameters(model).values()}
    tables = tables_of(model)
    found = []
    for parameter in model.parameters():
        key, entries = id(parameter), parameter.numel()
        at = uses.get(key, [])
        met = 0 if key in idle else round(entries * experts.get(key, 1))
        multiplied = met * max(len(at), 1) if key in products else 0
        trains, matrix = not adapters.rank and key not in idle, parameter.ndim == 2 and key not in tables
        first = at[0] if at else None
        found.append(Weight(entries, met, first, trains, multiplied, matrix, _factors(parameter.shape)))
    for name in adapted_layers(model, kinds, seen, adapters):
        weight: Any = model.get_submodule(name).weight
        at = uses.get(id(weight), [])
        for width in weight.shape:  # of the first matrix, and of the second
            entries, first = adapters.rank * width, at[0] if at else None
            factors = adapters.rank + width
            found.append(Weight(entries, entries, first, True, entries * max(len(at), 1), True, factors))
    return found


def _factors(shape: Sequence[int]) -> int:
    """Of the last two dimensions; of a vector, all."""
    entries = math.prod(shape)
    return entries if len(shape) < 2 else entries // shape[-1] + entries // shape[-2]


def adapted_layers(model: PreTrainedModel, kinds: Sequence[Kind], seen: Probe, adapters: Adapters) -> list[str]:
    """Names of the layers that `add_lora` adapts, of a model without weights, whose forward it cannot ask."""
    if not adapters.rank:
        return []
    names = [
        name
        for name, place in linear_places(model, kinds).items()
        if place not in seen.passed_by and is_target(name, adapters.targets)
    ]
    if not names:
        add_lora(model, adapters.rank, 1, adapters.dropout, adapters.targets)  # which says so
    return names


def _experts(layer: nn.Module, chosen: int) -> dict[int, float]:
    """The share that a token meets of each of a layer's weights that belong to experts, by identity."""
    shares: dict[int, float] = {}
    for path, module in layer.named_modules():
        own = list(module.parameters(recurse=False))
        stacked = [p.shape[0] for p in own if p.ndim == 3 and not isinstance(module, nn.Conv1d)]
        named = "Expert" in type(module).__name__ and "Shared" not in type(module).__name__
        if isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "experts":
            count, own = len(module), list(module.parameters())
        elif stacked and (named or len(own) > 1):
            count = stacked[0]
        elif named and own:
            count = getattr(module, "num_experts", None) or getattr(module, "moe_num_experts", 0)
        else:
            continue
        if chosen and count:
            shares |= {id(parameter): min(chosen / count, 1.0) for parameter in own}
    return shares


def _products(model: PreTrainedModel, experts: Iterable[int]) -> set[int]:
    """The weights that hidden states are multiplied with: matrices of layers, stacks of experts, convolutions."""
    head: Any = model.get_output_embeddings()
    of_experts = set(experts)
    found: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            matrix = name == "weight" and (parameter.ndim == 2 or isinstance(module, nn.Conv1d))
            stack = id(parameter) in of_experts and parameter.ndim > 1 and "bias" not in name
            if (matrix or stack) and not isinstance(module, nn.Embedding):
                found.add(id(parameter))
    tables = [module.weight for module in (head, model.get_input_embeddings()) if module is not None]
    return found - {id(table) for table in tables}
