"""What a model of some configuration has: parameters, those that a token meets, products, attention; no weights are read.

They are counted on a model on the meta device. What its layers do comes from a probe of a few of them (`probe.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from gakd.models.heads import head_of
from gakd.models.parts import idle_parameters
from gakd.models.pruning import cut_layers
from gakd.planning.layers import Kind, Sample, build, kinds, layers_of, samples
from gakd.planning.probe import Probe, probe
from gakd.planning.weights import Adapters, weights_of

Found = TypeVar("Found")


@dataclass(frozen=True)
class Anatomy:
    """A model on the meta device and what its layers are."""

    model: PreTrainedModel
    kinds: list[Kind]
    samples: list[Sample]
    probe: Probe


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, LoRA's adapters included; numbers of entries, not bytes."""

    parameters: int
    active: int  # those that a token of text meets: of experts as many as its router chooses, of towers none
    idle: int  # of towers that no text reaches, frozen
    trainable: int
    matrices: int  # of what trains: those that Muon steps
    factors: int  # of what trains: entries that Adafactor keeps
    layer: int  # of the largest decoder layer
    trainable_layer: int
    in_layers: int  # of all decoder layers
    trainable_in_layers: int
    products: int  # active parameters of matrix products outside the head, frozen ones included
    trainable_products: int
    head: int  # of the output head's weight, whether tied or not
    head_trains: bool
    tied: bool
    embedding: int  # of the largest table of embeddings
    largest_trainable: int
    vocab_size: int
    width: int
    layers: int
    attention_width: int  # of all query heads together, summed over the layers with attention
    recurrent: bool  # whether there are layers with a state or a convolution

    @property
    def rest(self) -> int:
        """Parameters outside the decoder layers: embeddings, last norm, head, towers."""
        return self.parameters - self.in_layers

    @property
    def trainable_rest(self) -> int:
        return self.trainable - self.trainable_in_layers


def remembered(function: Callable[..., Found]) -> Callable[..., Found]:
    """What a function found for a configuration, kept: a plan and the search for the largest micro-batch ask it again."""
    known: dict[tuple[Any, ...], Found] = {}

    @functools.wraps(function)
    def asked(config: PreTrainedConfig, *arguments: Any, **named: Any) -> Found:
        key = (type(config), config.to_json_string(use_diff=False), repr(arguments), repr(named))
        if key not in known:
            known[key] = function(config, *arguments, **named)
        return known[key]

    return asked


@remembered
def anatomy(config: PreTrainedConfig) -> Anatomy:
    """A configuration's model, and what a few of its layers show of it."""
    model = build(config)
    few = samples(model)
    return Anatomy(model, kinds(model), few, probe(build(few[0].config), few[0].kinds))


@remembered
def shape(config: PreTrainedConfig, layers: Sequence[int], adapters: Adapters) -> tuple[Shape, PreTrainedConfig]:
    """The sizes of a model built, pruned and adapted as a recipe does it, and its configuration after pruning."""
    if layers:
        config = cut_layers(build(config), layers).config
    found = anatomy(config)
    model, seen = found.model, found.probe
    weights = weights_of(model, found.kinds, seen, adapters)
    inside = [weight for weight in weights if weight.layer is not None]
    every = range(len(found.kinds))
    embeddings: Any = model.get_input_embeddings()
    head, table = head_of(model).weight, embeddings.weight
    tables = [module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding)]
    return Shape(
        parameters=sum(weight.entries for weight in weights),
        active=sum(weight.active for weight in weights),
        idle=sum(parameter.numel() for parameter in idle_parameters(model).values()),
        trainable=sum(weight.entries for weight in weights if weight.trains),
        matrices=sum(weight.entries for weight in weights if weight.trains and weight.matrix),
        factors=sum(weight.factors for weight in weights if weight.trains),
        layer=max((sum(weight.entries for weight in inside if weight.layer == at) for at in every), default=0),
        trainable_layer=max((sum(w.entries for w in inside if w.layer == at and w.trains) for at in every), default=0),
        in_layers=sum(weight.entries for weight in inside),
        trainable_in_layers=sum(weight.entries for weight in inside if weight.trains),
        products=sum(weight.products for weight in weights),
        trainable_products=sum(weight.products for weight in weights if weight.trains),
        head=head.numel(),
        head_trains=not adapters.rank,
        tied=head is table,
        embedding=max([table.numel(), *tables]),
        largest_trainable=max((weight.entries for weight in weights if weight.trains), default=0),
        vocab_size=head.shape[0],
        width=head.shape[1],
        layers=len(found.kinds),
        attention_width=sum(seen.widths[kind] for kind in found.kinds),
        recurrent=any(isinstance(part, nn.Conv1d) for layer in layers_of(model) for part in layer.modules())
        or not any(seen.widths.values()),
    ), config
