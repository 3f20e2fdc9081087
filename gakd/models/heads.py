"""A causal language model in two parts, so that no logits are built: hidden states of some rows, and the head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel

from gakd.models.compiling import compiled_layers
from gakd.models.errors import ModelError
from gakd.models.lora import base_of
from gakd.models.parts import backbone_of, last_hidden_rows
from gakd.models.proof import prove_head
from gakd.models.sharding import inside, is_sharded, whole
from gakd.types import Batch, Head, LogitShape

_PROVEN = "_gakd_logit_shape"  # on the model itself, so that a copy is proven too


def head_of(model: nn.Module) -> Head:
    """The output head of a causal language model, with the scale and soft-cap that its own forward was found to have.

    The first call asks the model (`prove_head`), so it costs two tiny forwards; ModelError where the head is not one that gakd
    can compute. Of a model that is sharded over ranks, outside its forward: a gathered copy without gradient, for which
    every rank asks.
    """
    base = base_of(model)
    embeddings: Any = base.get_output_embeddings()
    if embeddings is None:
        raise ModelError(f"{type(base).__name__} has no output head: load a causal language model")
    if any(hasattr(embeddings, name) for name in ("base_layer", "modules_to_save")):
        raise ModelError(
            f"{type(base).__name__} has an adapter on its head, whose weight gakd reads: leave it out there"
        )
    bias = getattr(embeddings, "bias", None)
    head = Head(whole(embeddings.weight), None if bias is None else whole(bias))
    shape = getattr(base, _PROVEN, None)
    if shape is None:
        shape = _proven(base, head)
    return head._replace(scale=shape.scale, softcap=shape.softcap)


def _proven(base: PreTrainedModel, head: Head) -> LogitShape:
    if head.weight.is_meta or isinstance(head.weight, FakeTensor):
        return LogitShape()  # sizes without values
    if is_sharded(base):
        raise RuntimeError("a model is cut over ranks before its head was proven: ask head_of(model) first")
    shape = prove_head(base, head)
    setattr(base, _PROVEN, shape)
    return shape


def take_as_proven(model: nn.Module, twin: nn.Module) -> None:
    """Take a model's head to be as its twin's was found: the same class, configuration and weights, of fewer layers."""
    setattr(base_of(model), _PROVEN, head_of(twin).shape)


def prove_again(model: nn.Module, head: Head) -> None:
    """Ask a model once more, as it is now, cut over ranks or not; ModelError where its head is not what it was taken to be.

    `head` is the whole one. Every rank asks.
    """
    check_taken(model, prove_head(base_of(model), head))


def check_taken(model: nn.Module, found: LogitShape) -> None:
    """ModelError where what was found of a whole model is not what it was taken to be by its first layers."""
    base = base_of(model)
    taken = getattr(base, _PROVEN, None)
    if found != taken:
        raise ModelError(
            f"{type(base).__name__} has other logits than its first layers with its head gave: {found}, expected {taken}"
        )


def hidden_rows(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states (after the final norm) of the supervised rows, `[N, H]`; prompt and padding never reach a head.

    No attention mask: batches are padded on the right, where causal attention lets no token see it. So attention takes
    its fastest path, and nothing asks the device whether there is padding.
    """
    base = base_of(model)
    return inside(base, _hidden_rows, backbone_of(base), batch)


def _hidden_rows(backbone: PreTrainedModel, batch: Batch) -> Tensor:
    with compiled_layers(backbone):
        return last_hidden_rows(backbone, batch)
