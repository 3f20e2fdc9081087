"""Weights spread over ranks (FSDP2): where they are cut, and where code finds them whole.

A causal language model is cut into its decoder layers, each gathered while it runs, and the rest: embeddings, last norm and
head. `fully_shard` gathers the rest in the model's own `forward`, which builds logits; losses here do without those. So a
sharded model has a second entrance, `inside`, that runs a function while the rest is whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from functools import wraps
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


def shard(
    base: nn.Module, layers: nn.ModuleList, mesh: DeviceMesh, gathered: torch.dtype | None = None,
    keep: Collection[nn.Parameter] = (),
) -> None:  # fmt: skip
    """Cut a model's weights over the ranks of a mesh, in place; what is on the CPU moves to the device layer by layer.

    Layers that share weights with others (Zamba's attention) are gathered with the rest. With `gathered`, layers are gathered
    in that dtype, and the model runs under its autocast: what each rank keeps, and the sums of gradients over ranks, stay as
    they are. The rest is gathered as it is kept, since losses read the head and give it its gradient in fp32. Weights in
    `keep` stay whole on each rank, where they are.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # Hidden states between layers keep their dtype, as under autocast.
    policy = MixedPrecisionPolicy(gathered, gathered and torch.float32, cast_forward_inputs=False)
    kept = set(keep)
    owners = Counter(parameter for layer in layers for parameter in layer.parameters())
    for layer in layers:
        if all(owners[parameter] == 1 for parameter in layer.parameters()):
            fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=kept)
    rest = [
        (module, name)
        for module in base.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not isinstance(parameter, DTensor) and parameter not in kept
    ]
    # Not left whole after a forward: an evaluation between two updates would be the last to see the old weights.
    fully_shard(base, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
    run: Callable[..., Any] = _run
    if gathered is not None:
        run, base.forward = (_under_autocast(call, mesh.device_type, gathered) for call in (run, base.forward))
    base._gathered = gathered  # type: ignore[assignment]
    base._run_inside = run  # type: ignore[assignment]
    base._rest = rest[:1]  # type: ignore[assignment]
    register_fsdp_forward_method(base, "_run_inside")


def inside(base: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)` where the model's weights outside of its layers are whole; a plain call where they always are."""
    if is_sharded(base):
        return cast(Any, base)._run_inside(function, *arguments)
    return function(*arguments)


def is_sharded(base: nn.Module) -> bool:
    """Whether weights outside of the layers are cut at this moment: not inside `inside`."""
    return any(isinstance(getattr(module, name), DTensor) for module, name in getattr(base, "_rest", ()))


def is_cut(module: nn.Module) -> bool:
    """Whether each rank holds a part of its weights."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def computes_in(base: Any) -> torch.dtype:
    """The dtype of a model's products: of its weights, or of those that are gathered."""
    return getattr(base, "_gathered", None) or base.dtype


def _under_autocast(call: Callable[..., Any], device_type: str, dtype: torch.dtype) -> Callable[..., Any]:
    """Layers that are gathered in a dtype read hidden states of another, which autocast alone brings together."""

    @wraps(call)
    def under(*arguments: Any, **named: Any) -> Any:
        with torch.autocast(device_type, dtype):
            return call(*arguments, **named)

    return under


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
    # How it steps is a choice of this machine: a checkpoint may come from another.
    groups = [
        saved | {name: own[name] for name in ("fused", "foreach") if name in own}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict(state | {"state": whole_state, "param_groups": groups})


def _as_cut(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.to_local().shape):
        return value
    cut = torch.zeros_like(parameter, dtype=value.dtype).detach()
    cut.to_local().copy_(value)  # type: ignore[attr-defined]
    return cut


def _run(function: Callable[..., Result], *arguments: Any) -> Result:
    return function(*arguments)


def shard_model(
    model: nn.Module, mesh: DeviceMesh, gathered: torch.dtype | None = None, keep: Collection[nn.Parameter] = ()
) -> None:
    """`shard` of a causal language model, adapters with their layers.

    Of one that is without its weights yet, each rank then reads its own part.
    """
    base = base_of(model)
    shard(base, decoder_layers(base), mesh, gathered, keep)
    fill(base, mesh=mesh)
