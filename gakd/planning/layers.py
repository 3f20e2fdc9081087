"""Which of a model's layers are alike, and models of a few of them from which the memory of all of them follows."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from gakd.errors import InputError
from gakd.models.errors import ModelError
from gakd.models.loading import kind_of
from gakd.models.parts import backbone_of, decoder_layers
from gakd.models.pruning import cut_layers

Kind = tuple[Any, ...]
"""What layers have in common: their modules, shapes of weights, settings and type; layers of one kind hold the same."""


class Sample(NamedTuple):
    """A model to trace, and how often what it holds counts in the sum over samples: below 0 for one that others contain."""

    config: PreTrainedConfig
    kinds: list[Kind]  # of its layers
    times: int


def build(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of a configuration on the meta device, as `load_model` would choose its class; InputError where there is none."""
    try:
        with torch.device("meta"):
            return kind_of(config, type(config).__name__).from_config(copy.deepcopy(config), dtype=dtype)
    except InputError:
        raise
    except Exception as error:  # whatever a class raises about a configuration that is not one of its own
        raise InputError(f"no model of {type(config).__name__} can be built: {reason(error)}") from error


def reason(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers; of a model that keeps them in no list, all of its backbone as one."""
    try:
        return list(decoder_layers(model))
    except ModelError:
        return [backbone_of(model)]


def kinds(model: PreTrainedModel) -> list[Kind]:
    """The kind of each decoder layer."""
    layers, text = layers_of(model), backbone_of(model).config
    settings = [_settings(layer) for layer in layers]
    # A layer's own place in the list tells nothing of what it is.
    places = {
        name
        for found in settings
        for name in found
        if all(type(own.get(name, at)) is int and own.get(name, at) == at for at, own in enumerate(settings))
    }
    types = getattr(text, "layer_types", None) or [None] * len(layers)
    return [
        (
            str(types[at]) if at < len(types) else None,
            *((name, type(module).__qualname__) for name, module in layer.named_modules()),
            *((name, tuple(weight.shape)) for name, weight in layer.named_parameters()),
            *((name, value) for name, value in sorted(settings[at].items()) if name not in places),
        )
        for at, layer in enumerate(layers)
    ]


def samples(model: PreTrainedModel) -> list[Sample]:
    """Models whose weighted sum holds what this one holds, if a layer holds the same wherever it stands.

    One has the last layer of each kind, and the first layer where there are several kinds; one more for each kind has one layer
    more of it. Where no configuration says what these layers are, the only sample is the model itself.
    """
    found = kinds(model)
    for backwards in (True, False):
        order = range(len(found))[::-1] if backwards else range(len(found))
        base = {next(at for at in order if found[at] == kind) for kind in set(found)}
        if len(base) > 1:
            base.add(0)
        chosen = [(base, 1)]
        for kind in dict.fromkeys(found):
            others = [at for at in order if found[at] == kind and at not in base]
            if others:
                chosen.append((base | {others[0]}, len(others)))
        try:
            cut = [
                Sample(cut_layers(model, _keeping(layers)).config, [found[at] for at in sorted(layers)], times)
                for layers, times in chosen
            ]
        except ModelError:
            continue
        return [cut[0]._replace(times=1 - sum(more.times for more in cut[1:])), *cut[1:]]
    return [Sample(model.config, found, 1)]


def _keeping(layers: set[int]) -> list[int]:
    """As `cut_layers` is asked, to which one number is how many, the last layer for 1."""
    return sorted(layers) if len(layers) > 1 else [1]


def _settings(layer: nn.Module) -> dict[str, Any]:
    """Plain attributes of a layer's modules; of a float, which changes no shape, whether it is 0 as a dropout's may be."""
    return {
        f"{path}.{name}": bool(value) if isinstance(value, float) else value
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name != "training"
    }
