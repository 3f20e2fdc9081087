"""Models read weight by weight: to a device, or left in their files until they are cut over ranks."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from gakd.models.errors import ModelError
from gakd.models.files import check_files, read_object, source_files
from gakd.models.heads import take_as_proven
from gakd.models.names import resolve
from gakd.models.parts import decoder_layers
from gakd.models.pruning import prune_layers
from gakd.models.reading import read_weights
from gakd.models.stored import Stored
from gakd.models.streaming import empty_again, fill, leave_weights
from gakd.models.weight_files import check_weights, safetensors_of


class Unreadable(Exception):
    """A model whose files cannot be read weight by weight; says why."""


def read_in_parts(
    kind: Any, name: str, dtype: torch.dtype, trust_remote_code: bool, device: torch.device
) -> PreTrainedModel:
    """A causal language model in evaluation mode on `device`, or, on the meta device, without its weights but for the head's.

    The head of the latter is proven by a twin of its first two layers. Raises Unreadable where the files need another way, and
    ModelError for what `read_weights` refuses.
    """
    stored, source = _stored(name, trust_remote_code), resolve(name)
    model = read_weights(kind, name, dtype, None, trust_remote_code, stand_ins=stored.stand_ins())
    try:
        leave_weights(model, stored, name)
    except Exception as error:  # what a conversion raises on shapes alone
        raise Unreadable(_line(error)) from error
    model.eval()
    model.name_or_path = model.config._name_or_path = source
    if model.can_generate():
        with suppress(OSError):  # it has none of its own
            model.generation_config = GenerationConfig.from_pretrained(source)
    if device.type == "meta":
        _prove_by_twin(model)
    else:
        fill(model, device)
        nn.Module.to(model, device)  # buffers that are made anew
    return model


def _stored(name: str, trust_remote_code: bool) -> Stored:
    files = source_files(name)
    if files is None:
        raise Unreadable("it has no folder")
    check_files(files, name, trust_remote_code)
    if trust_remote_code and "auto_map" in (read_object(files.folder / "config.json", name) or {}):
        raise Unreadable("its code comes with its files")
    check_weights(files, name)
    try:
        return Stored(safetensors_of(files, resolve(name), name))
    except (ModelError, OSError) as error:
        raise Unreadable(str(error)) from error


def _prove_by_twin(model: PreTrainedModel) -> None:
    """Prove the head of a model without weights: those of its first two layers, and of all that is no layer, are read for it.

    The head stays, since losses read it whole; the rest is read again, by the rank that keeps it.
    """
    head: Any = model.get_output_embeddings()
    if head is None:
        raise Unreadable("it has no head")
    try:
        layers = list(decoder_layers(model))
        first = {part for layer in layers[:2] for part in layer.modules()}
        others = {part for layer in layers[2:] for part in layer.modules()} - first
        fill(model, wanted=lambda module: module not in others)
        take_as_proven(model, prune_layers(model, (0, 1)) if len(layers) > 2 else model)
    except Exception as error:  # what a class raises that has fewer layers, or weights of a layer elsewhere
        raise Unreadable(f"its head is not proven by its first layers ({_line(error)})") from error
    empty_again(model, {head})


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
