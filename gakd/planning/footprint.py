"""What a model of some configuration has and holds: parameters, products, and the activations of a forward and a backward.

Parameters are counted on a model on the meta device. Activations are what lives while fake tensors go through the model,
so they follow whatever the architecture does, LoRA, autocast and checkpointing included. Models of one and two
layers are enough, since memory is linear in depth; their vocabulary is small, heads and embeddings being counted apart.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedConfig

from gakd.models.heads import head_of, hidden_rows
from gakd.models.lora import add_lora
from gakd.models.pruning import prune_layers
from gakd.planning.live_bytes import LiveBytes, fill_
from gakd.types import Batch

_ATTENTION = "gakd_footprint"
Found = TypeVar("Found")


@dataclass(frozen=True)
class Adapters:
    """LoRA as a recipe sets it; rank 0 is none."""

    rank: int = 0
    dropout: float = 0.0


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, LoRA's adapters included; numbers of entries, not bytes."""

    parameters: int
    trainable: int
    layer: int  # parameters of one decoder layer
    trainable_layer: int
    products: int  # parameters of matrix products outside the head, frozen ones included
    trainable_products: int
    head: int  # of the output head's weight, whether tied or not
    head_trains: bool
    tied: bool
    largest_trainable: int
    vocab_size: int
    width: int
    layers: int
    attention_width: int  # of all query heads together

    @property
    def rest(self) -> int:
        """Parameters outside the decoder layers: embeddings, last norm, head."""
        return self.parameters - self.layers * self.layer

    @property
    def trainable_rest(self) -> int:
        return self.trainable - self.layers * self.trainable_layer


@dataclass(frozen=True)
class Activations:
    """Bytes that a backbone's pass holds beside weights and gradients."""

    forward: int  # the most during the forward
    inside: int  # at its end, where autocast still keeps its copies of weights
    kept: int  # after it, for the backward
    backward: int  # the most during the backward


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
def shape(config: PreTrainedConfig, layers: Sequence[int], adapters: Adapters) -> tuple[Shape, PreTrainedConfig]:
    """The sizes of a model built, pruned and adapted as a recipe does it, and its configuration after pruning."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
        if layers:
            model = prune_layers(model, layers)
        student = _adapted(model, adapters)
    embeddings, head = model.get_input_embeddings().weight, head_of(model).weight
    # By identity, since LoRA's wrapper of a linear layer shows that layer's weight as its own.
    products = {
        id(weight): weight
        for module in student.modules()
        if not isinstance(module, nn.Embedding) and isinstance(weight := getattr(module, "weight", None), Tensor)
        if weight.ndim == 2 and weight is not head and weight is not embeddings
    }.values()
    depth, width = model.config.num_hidden_layers, model.config.hidden_size
    layer = next(child[0] for child in student.modules() if isinstance(child, nn.ModuleList) and len(child) == depth)
    head_width = getattr(model.config, "head_dim", None) or width // model.config.num_attention_heads
    parameters = list(student.parameters())
    return Shape(
        parameters=_entries(parameters),
        trainable=_entries(parameters, trainable=True),
        layer=_entries(layer.parameters()),
        trainable_layer=_entries(layer.parameters(), trainable=True),
        products=_entries(products),
        trainable_products=_entries(products, trainable=True),
        head=head.numel(),
        head_trains=head.requires_grad,
        tied=head is embeddings,
        largest_trainable=max(parameter.numel() for parameter in parameters if parameter.requires_grad),
        vocab_size=head.shape[0],
        width=width,
        layers=depth,
        attention_width=head_width * model.config.num_attention_heads,
    ), model.config


@remembered
def student_activations(
    config: PreTrainedConfig, sequences: int, length: int, supervised: int, adapters: Adapters, dtype: torch.dtype,
    mixed: bool, checkpointing: bool, fused_dropout: bool,
) -> Activations:  # fmt: skip
    """Of a student's backbone in training; `fused_dropout` as on a GPU, where what is kept of a dropout is a mask of bytes."""

    def traced(layers: int) -> Activations:
        with torch.device("meta"):
            model = _small(config, layers)
            if checkpointing:
                # The state of the generator would be read from real tensors, and none is needed.
                model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
            student = _adapted(model, adapters).train()
        if fused_dropout:
            _fuse_dropout(student)
        with FakeTensorMode():
            owned = fill_(student, dtype)
            batch = _batch(sequences, length, supervised)
            with LiveBytes([*owned, batch.input_ids, batch.rows_N]) as live:
                with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
                    hidden_NH = hidden_rows(student, batch)
                    inside, forward = live.now, live.peak
                kept = live.now
                live.restart()
                hidden_NH.backward(torch.zeros_like(hidden_NH))
        return Activations(forward, inside, kept, live.peak)

    one, two = traced(1), traced(2)

    def deep(name: str) -> int:
        first, second = getattr(one, name), getattr(two, name)
        return first + (config.num_hidden_layers - 1) * (second - first)

    return Activations(deep("forward"), deep("inside"), deep("kept"), deep("backward"))


@remembered
def reader_activations(
    config: PreTrainedConfig, sequences: int, length: int, supervised: int, dtype: torch.dtype
) -> int:
    """The most bytes that a backbone's forward without gradient holds. It has one layer at a time, so depth is all the same."""
    with torch.device("meta"):
        model = _small(config, 2).eval().requires_grad_(False)
    with FakeTensorMode(), torch.no_grad():
        owned = fill_(model, dtype)
        batch = _batch(sequences, length, supervised)
        with LiveBytes([*owned, batch.input_ids, batch.rows_N]) as live:
            hidden_rows(model, batch)
    return live.peak


def _entries(parameters: Any, trainable: bool = False) -> int:
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad or not trainable)


def _small(config: PreTrainedConfig, layers: int) -> Any:
    """Some layers of a model, with a vocabulary of two tokens."""
    config = copy.deepcopy(config)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = layers, 2, None
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=_ATTENTION)


def _batch(sequences: int, length: int, supervised: int) -> Batch:
    ids_BT = torch.zeros(sequences, length, dtype=torch.int64)
    rows_N = torch.zeros(sequences * supervised, dtype=torch.int64)
    return Batch(ids_BT, ids_BT, ids_BT, rows_N, rows_N, (supervised,) * sequences, sequences * length)


def _adapted(model: Any, adapters: Adapters) -> nn.Module:
    return add_lora(model, adapters.rank, 1, adapters.dropout) if adapters.rank else model


class _FusedDropout(nn.Module):
    """Dropout as CUDA does it: what is kept is a mask of one byte an entry."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        return torch.native_dropout(values, self.p, True)[0]


def _fuse_dropout(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout) and child.p > 0:
                setattr(module, name, _FusedDropout(child.p))


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention without a mask, as transformers calls it for real tensors; fake ones would take its tracing path."""
    grouped = key.shape[1] != query.shape[1]
    scale = cast("float | None", options.get("scaling"))
    result = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    return result.transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, lambda *_, **__: None)
