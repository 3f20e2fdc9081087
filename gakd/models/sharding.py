"""Weights spread over ranks (FSDP2): where they are cut, and where code finds them whole.

A causal language model is cut into its decoder layers, each gathered while it runs, and the rest: embeddings, last norm and
head. `fully_shard` gathers the rest in the model's own `forward`, which builds logits; losses here do without those. So a
sharded model has a second entrance, `inside`, that runs a function while the rest is whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gakd.models.lora import base_of
from gakd.models.parts import decoder_layers
from gakd.models.streaming import fill

Result = TypeVar("Result")


def shard(base: nn.Module, layers: nn.ModuleList, mesh: DeviceMesh) -> None:
    """Cut a model's weights over the ranks of a mesh, in place; what is on the CPU moves to the device layer by layer.

    Layers that share weights with others (Zamba's attention) are gathered with the rest.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    owners = Counter(parameter for layer in layers for parameter in layer.parameters())
    for layer in layers:
        if all(owners[parameter] == 1 for parameter in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    # Not left whole after a forward: an evaluation between two updates would be the last to see the old weights.
    fully_shard(base, mesh=mesh, reshard_after_forward=True)
    base._run_inside = _run  # type: ignore[assignment]
    register_fsdp_forward_method(base, "_run_inside")


def inside(base: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)` where the model's weights outside of its layers are whole; a plain call where they always are."""
    if is_sharded(base):
        return cast(Any, base)._run_inside(function, *arguments)
    return function(*arguments)


def is_sharded(base: nn.Module) -> bool:
    """Whether weights outside of the layers are cut at this moment: not inside `inside`."""
    head = cast(Any, base).get_output_embeddings()
    return head is not None and isinstance(head.weight, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from all ranks where it is cut: each of them must ask. RuntimeError where it needs a gradient.

    A gradient would end in the gathered copy and never reach the weight.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    if torch.is_grad_enabled() and tensor.requires_grad:
        raise RuntimeError("a sharded weight is whole inside its model's forward alone: train through gakd.Distiller")
    return cast(DTensor, tensor.detach()).full_tensor()


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of one that is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_state(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state dict with this rank's part of each tensor."""
    state = optimizer.state_dict()
    parts = {
        index: {name: own_part(value) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return state | {"state": parts}


def load_own_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `own_state`, for the same parameters cut the same way."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    whole_state = {
        index: {name: _as_cut(value, parameters[index]) for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": whole_state})


def _as_cut(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.to_local().shape):
        return value
    cut = torch.zeros_like(parameter, dtype=value.dtype).detach()
    cut.to_local().copy_(value)  # type: ignore[attr-defined]
    return cut


def _run(function: Callable[..., Result], *arguments: Any) -> Result:
    return function(*arguments)


def shard_model(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a causal language model's weights over the ranks of a mesh, adapters with their layers.

    Of one that is without its weights yet, each rank then reads its own part.
    """
    base = base_of(model)
    shard(base, decoder_layers(base), mesh)
    fill(base, mesh=mesh)
