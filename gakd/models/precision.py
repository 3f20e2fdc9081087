"""Frozen weights in 16 bits: what else has to stay in 32, so that training computes what it did with all of them in 32."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Model = TypeVar("Model", bound=nn.Module)


def keep_stream_single(model: PreTrainedModel) -> None:
    """Hidden states in fp32 under autocast, though the embeddings' weights are in 16 bits, in place.

    Autocast rounds the operands of products alone, and with fp32 weights all that is added up between layers stays in fp32.
    With 16-bit weights it would start in 16 bits at the embeddings and stay so. Outside of autocast nothing changes: such a
    forward is that of an ordinary 16-bit model.
    """
    embeddings: Any = model.get_input_embeddings()
    embeddings.register_forward_hook(_single_under_autocast)


def single_copy(model: Model) -> Model:
    """A copy in fp32, of the same values: what 16 bits hold is exact there, and an adapter's update has room in it."""
    return copy.deepcopy(model).float()


def _single_under_autocast(module: nn.Module, inputs: Any, hidden_BTH: Tensor) -> Tensor:
    return hidden_BTH.float() if torch.is_autocast_enabled(hidden_BTH.device.type) else hidden_BTH
