"""What a model's layers do, seen while fake tensors go through a few of them: attention, experts, adapters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations import moe
from transformers.pytorch_utils import Conv1D

from gakd.errors import InputError
from gakd.models.lora import linear_layers
from gakd.models.parts import backbone_of
from gakd.planning.layers import Kind, layers_of, reason
from gakd.planning.live_bytes import fill_

_FOOTPRINT = "gakd_footprint"
_WIDTH, _ACTIVE = "_gakd_width", "_gakd_active"  # attributes that a forward leaves on modules
Place = tuple[Kind | None, str]
"""A module by the kind of its layer and its name there, or by its whole name outside of the layers."""


@dataclass(frozen=True)
class Probe:
    """What a forward showed of the layers of each kind."""

    fused: bool  # whether attention can be computed as a fused kernel does
    widths: dict[Kind, int]  # of attention's heads, 0 without attention
    active: dict[Kind, int]  # experts that read a token
    passed_by: frozenset[Place]  # linear layers without an adapter


def probe(model: PreTrainedModel, kinds: Sequence[Kind]) -> Probe:
    """What layers of these kinds do, of a model on the meta device; InputError where its forward does not run without values."""
    problem: Exception | None = None
    for fused in (True, False):
        filled = as_on_a_gpu(copy.deepcopy(model), fused)
        with FakeTensorMode(), torch.no_grad():
            fill_(filled, torch.float32)
            try:
                backbone_of(filled)(input_ids=torch.zeros(1, 4, dtype=torch.int64), use_cache=False)
            except Exception as error:  # whatever a forward raises that asks for values, or for a mask
                problem = problem or error
                continue
            adapted = set(linear_layers(filled))
        found = dict(zip(kinds, layers_of(filled), strict=True))
        widths, active = ({kind: _left(layer, name) for kind, layer in found.items()} for name in (_WIDTH, _ACTIVE))
        if not any(widths.values()):  # attention of a class of its own, older than transformers' interface
            widths = {kind: _named_width(layer, model) for kind, layer in found.items()}
        places = linear_places(model, kinds)
        passed_by = frozenset(place for name, place in places.items() if name not in adapted)
        supported = fused and getattr(backbone_of(model), "_supports_sdpa", False)
        return Probe(supported, widths, active, passed_by)
    assert problem is not None
    raise unplannable(model, problem)


def unplannable(model: nn.Module, error: Exception) -> InputError:
    """What is said of a model whose forward asks for values."""
    return InputError(
        f"{type(model).__name__} cannot be planned, its forward asks for values of tensors: {reason(error)}"
    )


def linear_places(model: PreTrainedModel, kinds: Sequence[Kind]) -> dict[str, Place]:
    """The linear layers of the part that reads text, the head apart, by name."""
    within = {
        id(module): (kind, name)
        for kind, layer in zip(kinds, layers_of(model), strict=True)
        for name, module in layer.named_modules()
    }
    reading = {id(module) for module in backbone_of(model).modules() if module is not model.get_output_embeddings()}
    return {
        name: within.get(id(module), (None, name))
        for name, module in model.named_modules()
        if id(module) in reading and isinstance(module, (nn.Linear, Conv1D))
    }


def as_on_a_gpu(model: PreTrainedModel, fused: bool) -> PreTrainedModel:
    """Attention, where it can be `fused`, and experts as kernels of a GPU hold them, in operations that fake tensors can do."""
    if fused:
        model.set_attn_implementation(_FOOTPRINT)
    model.set_experts_implementation(_FOOTPRINT)
    return model


def _left(layer: nn.Module, name: str) -> int:
    return sum(getattr(module, name, 0) for module in layer.modules())


def _named_width(layer: nn.Module, model: PreTrainedModel) -> int:
    text = backbone_of(model).config
    heads = getattr(text, "num_attention_heads", 0)
    attends = any("Attention" in type(module).__name__ for module in layer.modules())
    return (getattr(text, "head_dim", None) or text.hidden_size // heads) * heads if attends and heads else 0


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention as transformers has it for real tensors, with a mask for windows alone."""
    setattr(module, _WIDTH, query.shape[1] * (query.shape[-1] + value.shape[-1]) // 2)  # scores', values'
    groups, scale = query.shape[1] // key.shape[1], cast("float | None", options.get("scaling"))
    if attention_mask is None:
        result = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=groups > 1)
    else:
        key, value = (part.repeat_interleave(groups, 1) if groups > 1 else part for part in (key, value))
        result = scaled_dot_product_attention(query, key, value, attention_mask, scale=scale)
    return result.transpose(1, 2).contiguous(), None


def _mask(batch_size: int, q_length: int, kv_length: int, *_: Any, **options: Any) -> Tensor | None:
    window = options.get("local_size")
    if window is None or kv_length <= window:
        return None
    return torch.ones(batch_size, 1, q_length, kv_length, dtype=torch.bool)


def _experts(module: nn.Module, hidden_NH: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """Products grouped by expert, as on a GPU; shapes depend on no routing."""
    setattr(module, _ACTIVE, experts_NK.shape[-1])
    with patch.object(moe, "_grouped_mm", _grouped_product):
        return moe.grouped_mm_experts_forward(module, hidden_NH, experts_NK, weights_NK)


def _grouped_product(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    return cast(Tensor, _GroupedProduct.apply(input.to(weight.dtype), weight))


class _GroupedProduct(torch.autograd.Function):
    """The shapes of `torch.nn.functional.grouped_mm`, whose own ones are known for bfloat16 alone, and what it keeps."""

    @staticmethod
    def forward(ctx: Any, input_SI: Tensor, weight_EIO: Tensor) -> Tensor:
        ctx.save_for_backward(input_SI if weight_EIO.requires_grad else None, weight_EIO)
        return input_SI.new_empty(input_SI.shape[0], weight_EIO.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None]:
        _, weight_EIO = ctx.saved_tensors
        input_needs, weight_needs = ctx.needs_input_grad
        of_input = gradients[0].new_empty(gradients[0].shape[0], weight_EIO.shape[1]) if input_needs else None
        return of_input, torch.empty_like(weight_EIO) if weight_needs else None


AttentionInterface.register(_FOOTPRINT, _attention)
AttentionMaskInterface.register(_FOOTPRINT, _mask)
moe.ExpertsInterface.register(_FOOTPRINT, _experts)
