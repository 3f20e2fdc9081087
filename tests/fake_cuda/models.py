"""Models of a known architecture on the fake device: sizes without values, nothing is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from gakd.planning.known_models import known_config

DEVICE = torch.device("cuda:0")


def language_model(name: str, dtype: torch.dtype, layers: int | None = None) -> PreTrainedModel:
    """A causal language model on the fake device; the first `layers` of it."""
    return on_device(_built(AutoModelForCausalLM, name, dtype, layers))


def backbone(name: str, layers: int | None = None) -> PreTrainedModel:
    """A model without its head, with attention that has second derivatives."""
    return on_device(_built(AutoModel, name, torch.float32, layers, attn_implementation="eager"))


def _built(family: Any, name: str, dtype: torch.dtype, layers: int | None, **how: Any) -> PreTrainedModel:
    config: Any = known_config(name)
    if config is None:
        raise ValueError(f"{name} is no known architecture: gakd plan names those that are")
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    with torch.device("meta"):
        return family.from_config(config, dtype=dtype, **how).eval()


def on_device(module: Any) -> Any:
    """A module with fake tensors of its sizes in the place of its own; tied weights stay tied. For use within FakeTensorMode."""
    fakes: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) not in fakes:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=DEVICE)
                fakes[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
            part._parameters[name] = fakes[id(parameter)]
        for name, buffer in list(part.named_buffers(recurse=False)):
            part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)
    return module
