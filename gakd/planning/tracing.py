"""What a backbone's pass holds: tensors that live while fake ones go through models of a few of its layers.

So it follows whatever the architecture does, LoRA, autocast and checkpointing included. Memory is linear in the layers of
each kind. The models' vocabulary is small, heads and embeddings being counted apart.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel

from gakd.models.heads import hidden_rows
from gakd.models.loading import checkpoint_activations
from gakd.models.lora import adapt
from gakd.models.parts import backbone_of
from gakd.models.precision import keep_stream_single
from gakd.planning.footprint import anatomy, remembered
from gakd.planning.layers import Sample, build
from gakd.planning.live_bytes import LiveBytes, fill_
from gakd.planning.probe import as_on_a_gpu, unplannable
from gakd.planning.weights import Adapters, adapted_layers
from gakd.types import Batch


@dataclass(frozen=True)
class Activations:
    """Bytes that a backbone's pass holds beside weights and gradients."""

    forward: int  # the most during the forward
    inside: int  # at its end, where autocast still keeps its copies of weights
    kept: int  # after it, for the backward
    backward: int  # the most during the backward


@remembered
def student_activations(
    config: PreTrainedConfig, sequences: int, length: int, supervised: int, adapters: Adapters, dtype: torch.dtype,
    mixed: bool, checkpointing: bool, fused_dropout: bool, frozen_dtype: torch.dtype | None = None,
) -> Activations:  # fmt: skip
    """Of a student's backbone in training; `fused_dropout` as on a GPU, where what is kept of a dropout is a mask of bytes.

    Trained weights are in `dtype`, the others in `frozen_dtype` where that is given, and hidden states between layers in fp32
    under autocast all the same.
    """
    narrow = mixed and torch.bfloat16 in (dtype, frozen_dtype)
    found = anatomy(config)

    def traced(sample: Sample) -> Activations:
        with torch.device("meta"):
            built = build(sample.config, torch.float32 if mixed else dtype)
            model = _without_vocabulary(as_on_a_gpu(built, found.probe.fused))
            if narrow:
                keep_stream_single(model)
            if checkpointing:
                # The state of the generator would be read from real tensors, and none is needed.
                checkpoint_activations(model, preserve_rng_state=False)
            names = adapted_layers(model, sample.kinds, found.probe, adapters)
            student = (adapt(model, names, adapters.rank, 1, adapters.dropout) if names else model).train()
        if fused_dropout:
            _fuse_dropout(student)
        with FakeTensorMode():
            owned = fill_(student, dtype, frozen_dtype)
            batch = _batch(sequences, length, supervised)
            with LiveBytes([*owned, batch.input_ids, batch.rows_N]) as live:
                with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
                    hidden_NH = _hidden_rows(student, batch)
                    inside, forward = live.now, live.peak
                kept = live.now
                live.restart()
                hidden_NH.backward(torch.zeros_like(hidden_NH))
        return Activations(forward, inside, kept, live.peak)

    counts = [(astuple(traced(sample)), sample.times) for sample in found.samples]
    return Activations(*(sum(times * values[at] for values, times in counts) for at in range(4)))


@remembered
def reader_activations(
    config: PreTrainedConfig, sequences: int, length: int, supervised: int, dtype: torch.dtype
) -> int:
    """The most bytes that a backbone's forward without gradient holds. It has one layer at a time, so depth is all the same."""

    found = anatomy(config)

    def traced(sample: Sample) -> int:
        model = as_on_a_gpu(build(sample.config, dtype), found.probe.fused)
        model = _without_vocabulary(model).eval().requires_grad_(False)
        with FakeTensorMode(), torch.no_grad():
            owned = fill_(model, dtype)
            batch = _batch(sequences, length, supervised)
            with LiveBytes([*owned, batch.input_ids, batch.rows_N]) as live:
                _hidden_rows(model, batch)
        return live.peak

    first, *more = found.samples
    return max(traced(sample) for sample in more or [first])


def _hidden_rows(model: nn.Module, batch: Batch) -> Tensor:
    try:
        return hidden_rows(model, batch)
    except Exception as error:  # whatever a forward raises that asks for values
        raise unplannable(model, error) from error


def _without_vocabulary(model: PreTrainedModel) -> PreTrainedModel:
    """The model with tables of two tokens, in place: gradients of what grows with the vocabulary are counted apart."""
    text = backbone_of(model).config.to_dict()
    sizes = {value for name, value in text.items() if "vocab" in name and type(value) is int}
    embeddings: Any = model.get_input_embeddings()
    sizes.add(embeddings.weight.shape[0])
    head, short = model.get_output_embeddings(), {}
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        if (isinstance(module, nn.Embedding) or module is head) and weight.shape[0] in sizes:
            module.weight = short.setdefault(id(weight), nn.Parameter(weight.detach()[:2]))
            if isinstance(module, nn.Embedding):
                module.padding_idx = None
    return model


def _batch(sequences: int, length: int, supervised: int) -> Batch:
    ids_BT = torch.zeros(sequences, length, dtype=torch.int64)
    rows_N = torch.zeros(sequences * supervised, dtype=torch.int64)
    return Batch(ids_BT, ids_BT, ids_BT, rows_N, rows_N, (supervised,) * sequences, sequences * length)


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
