"""Models whose weights stay in their files until it is known where each belongs: on a device, or cut over ranks.

Host memory then holds what one weight is made of at a time, for each process, and no model. Such a model is transformers' own,
built without values and checked by its loader: names, shapes and dtypes of the files against the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from gakd.models.errors import ModelError
from gakd.models.stored import Part, Stored

_LEFT = "_gakd_left"  # on the model itself: what its files hold and it does not, yet
_Place = tuple[nn.Module, str]


class _Empty(NamedTuple):
    """A weight without values: where a model has it, and under which name its files do."""

    weight: Tensor
    places: list[_Place]
    name: str


class Left:
    """Weights that a model has without values, by the places where it has them, and the files that hold them."""

    def __init__(self, model: PreTrainedModel, stored: Stored, name: str) -> None:
        self.stored, self.name = stored, name
        self.places: dict[_Place, str] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            for own, weight in _tensors(module).items():
                if weight.is_meta:
                    self.places.setdefault((module, own), f"{path}.{own}" if path else own)

    def __deepcopy__(self, memo: Any) -> Left:
        raise RuntimeError("a model without its weights was copied: fill it first")

    def read(self, weight: Tensor) -> Tensor:
        """All of a weight, of which the model has none yet. On the CPU."""
        name = next(empty.name for empty in self._empties() if empty.weight is weight)
        return self.stored.read([name], weight.dtype, [None])[0]

    def fill(self, device: torch.device | None, wanted: Callable[[nn.Module], bool], mesh: DeviceMesh | None) -> None:
        """Read what the wanted modules still lack."""
        together: dict[str, list[_Empty]] = {}
        for empty in self._empties():
            if any(wanted(module) for module, _ in empty.places):
                together.setdefault(self.stored.together(empty.name), []).append(empty)
        broken: list[str] = []
        for group in together.values():
            parts = self.stored.read(
                [empty.name for empty in group], group[0].weight.dtype, [_own(empty.weight) for empty in group]
            )
            for empty, part in zip(group, parts, strict=True):
                broken += [] if _is_finite(part) else [empty.name]
                _put(_as(empty.weight, part, device), empty.places)
        self._refuse_broken(broken, mesh)

    def _empties(self) -> list[_Empty]:
        """What the model lacks, each once: of tied weights the files may have either name."""
        found: dict[int, _Empty] = {}
        for (module, own), name in self.places.items():
            weight = _tensors(module)[own]
            if weight.is_meta:
                empty = found.setdefault(id(weight), _Empty(weight, [], name))
                empty.places.append((module, own))
                if not self.stored.has(empty.name):
                    found[id(weight)] = empty._replace(name=name)
        return list(found.values())

    def _refuse_broken(self, broken: list[str], mesh: DeviceMesh | None) -> None:
        if mesh is not None:  # a rank that left alone would let the others wait
            count = torch.tensor(float(len(broken)), device=_device_of(mesh))
            distributed.all_reduce(count, group=mesh.get_group())
            if count and not broken:
                broken = ["a weight of which another process has the part"]
        if broken:
            raise ModelError(
                f"{self.name!r} has values that are not finite in {broken[0]}: its files are damaged, or its training "
                f"diverged; give another checkpoint"
            )


def leave_weights(model: PreTrainedModel, stored: Stored, name: str) -> None:
    """Remember where the weights are that a model has without values; ModelError for one that no file holds."""
    stored.lead_to(model)
    left = Left(model, stored, name)
    tied = model.all_tied_weights_keys  # type: ignore[attr-defined]
    for target, source in list(tied.items()):
        if stored.has(target) and stored.has(source):
            dtype = model.get_parameter(source).dtype
            ours, theirs = (stored.read([own], dtype, [None])[0] for own in (target, source))
            if not torch.equal(ours, theirs):
                raise ModelError(f"{target} and {source} are tied and differ")
    model.tie_weights()
    if lost := [empty.name for empty in left._empties() if not stored.has(empty.name)]:
        raise ModelError(f"no file holds {lost[0]}")
    setattr(model, _LEFT, left)


def left_of(model: nn.Module) -> Left | None:
    """What a model still lacks; None where it has all."""
    return getattr(model, _LEFT, None)


def fill(
    model: nn.Module,
    device: torch.device | None = None,
    wanted: Callable[[nn.Module], bool] = lambda module: True,
    mesh: DeviceMesh | None = None,
) -> None:
    """Read the weights that a model still lacks and that are in `wanted` modules; a model that lacks none stays as it is.

    To `device`, the CPU where none is given; of one that is cut over the ranks of a `mesh` this rank's part alone, to the
    mesh's device, and then all ranks call this. ModelError, on each of them, for weights that are not finite.
    """
    left = left_of(model)
    if left is None:
        return
    left.fill(device, wanted, mesh)
    if device is not None or mesh is not None:  # where it belongs
        delattr(model, _LEFT)


def with_weights(model: Any) -> Any:
    """The model itself, once it has all of its weights: where it runs whole before it is cut."""
    fill(model)
    return model


def empty_again(model: nn.Module, keep: set[nn.Module]) -> None:
    """Take back what was filled, but for the modules in `keep` and what shares a weight with them."""
    left = left_of(model)
    assert left is not None
    kept = {id(weight) for module in keep for weight in _tensors(module).values()}
    filled: dict[int, tuple[Tensor, list[_Place]]] = {}
    for module, own in left.places:
        weight = _tensors(module)[own]
        if not weight.is_meta and id(weight) not in kept:
            filled.setdefault(id(weight), (weight, []))[1].append((module, own))
    for weight, places in filled.values():
        _put(_like(weight, torch.empty_like(weight, device="meta")), places)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in (module._parameters | module._buffers).items() if weight is not None}


def _device_of(mesh: DeviceMesh) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if mesh.device_type == "cuda" else torch.device("cpu")


def _own(weight: Tensor) -> Part | None:
    """Which part of a weight this rank keeps."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(weight, DTensor):
        return None
    shape, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    return tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))


def _as(weight: Tensor, part: Tensor, device: torch.device | None) -> Tensor:
    """What stands in a weight's place once its part is read."""
    if isinstance(weight, DTensor):
        mesh, local = weight.device_mesh, part.to(_device_of(weight.device_mesh))
        cut = DTensor.from_local(
            local, mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
        )
        return _like(weight, cut)
    return _like(weight, part if device is None else part.to(device))


def _like(weight: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=weight.requires_grad) if isinstance(weight, nn.Parameter) else value


def _put(value: Tensor, places: list[_Place]) -> None:
    for module, own in places:
        if own in module._parameters:
            module._parameters[own] = cast(nn.Parameter, value)
        else:
            module._buffers[own] = value


def _is_finite(part: Tensor) -> bool:
    if not part.is_floating_point():
        return True
    # A sum is finite where all are, nearly always; looking at each takes a tensor more.
    return bool(torch.isfinite(part.sum(dtype=torch.float32))) or bool(torch.isfinite(part).all())
