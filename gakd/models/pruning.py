"""Depth pruning: a student of some of a model's decoder layers, built from the configuration that its export has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from gakd.models.errors import ModelError
from gakd.models.parts import backbone_of, layer_lists

_Scalars = dict[str, Any]


class Cut(NamedTuple):
    """A model of fewer layers, as far as it is known without its weights."""

    config: PreTrainedConfig
    model: PreTrainedModel  # on the meta device
    sources: dict[str, Callable[[], Tensor]]  # each of its weights' names -> that weight, of the whole model


def prune_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Keep some decoder layers: one number n keeps n, evenly spaced and with the last; several are indices to keep.

    10 of 30 keeps 2, 5, ..., 29. The configuration follows, and the model returned is the one that this configuration builds,
    with the weights of the kept layers, which it shares. Raises ModelError where the configuration cannot say what the kept
    layers are: a weight it does not have, or a layer that works otherwise at its new place.
    """
    cut = cut_layers(model, layers)
    pruned, info = cast(Any, type(model)).from_pretrained(
        None, config=cut.config, state_dict={name: source() for name, source in cut.sources.items()},
        dtype=model.dtype, attn_implementation=model.config._attn_implementation, output_loading_info=True,
    )  # fmt: skip
    if lost := sorted(set(info["missing_keys"]) | set(info["unexpected_keys"])):
        raise ModelError(_refusal(model, f"its weights {lost[:3]} are not loaded"))
    if hasattr(model, "generation_config"):  # a backbone by itself has none
        pruned.generation_config = model.generation_config
    return pruned.train(model.training)


def cut_layers(model: PreTrainedModel, layers: Sequence[int]) -> Cut:
    """What `prune_layers` would build, proven on the meta device; needs no weights. Raises ModelError as it does."""
    backbone = backbone_of(model)
    lists = layer_lists(backbone, backbone.config)
    depth = getattr(backbone.config, "num_hidden_layers", None)
    if not lists or depth is None:
        raise ModelError(_refusal(model, "it keeps its layers in no list"))
    keep = _kept(layers, depth)
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is backbone)
    places = [f"{prefix}{name}." for name in lists]
    reason = ""
    for changes in _changes(model.config, keep, depth):
        try:
            config = cut_config(model.config, keep, **changes)
            with torch.device("meta"):
                built = type(model)(config)
        except Exception as error:  # whatever a class raises about a configuration that is not one of its own
            reason = reason or f"its configuration of {len(keep)} layers is refused: {' '.join(str(error).split())}"
            continue
        sources, difference = _sources(model, built, places, keep, depth)
        difference = difference or _other_function(model, built, places, keep)
        if not difference:
            return Cut(config, built, sources)
        reason = reason or difference
    raise ModelError(_refusal(model, reason))


def _refusal(model: PreTrainedModel, reason: str) -> str:
    return (
        f"{type(model).__name__} cannot be pruned to these layers: {reason}; keep others, or leave out --student-layers"
    )


def _kept(layers: Sequence[int], depth: int) -> list[int]:
    count = min(layers[0], depth + 1) if len(layers) == 1 else 0  # a huge one is refused below, not written out
    keep = [(i + 1) * depth // count - 1 for i in range(count)] if len(layers) == 1 else list(layers)
    if not keep or sorted(set(keep)) != keep or keep[0] < 0 or keep[-1] >= depth:
        raise ModelError(
            f"cannot keep layers {list(layers)} of {depth}: "
            f"give how many to keep (1 to {depth}), or ascending indices below {depth}"
        )
    return keep


def cut_config(config: PreTrainedConfig, keep: Sequence[int], **changes: int) -> PreTrainedConfig:
    """A configuration of these layers, as it is once written and read: its lists of one entry a layer and of layers' indices cut.

    `changes` are numbers of the text's configuration to set beside.
    """
    known = copy.deepcopy(config.to_dict())
    own = config.get_text_config()
    path = next((name for name in known if own is not config and getattr(config, name, None) is own), None)
    text = known if path is None else known[path]
    depth = own.num_hidden_layers
    for name, value in text.items():
        if isinstance(value, dict) and value and all(str(key).isdigit() and int(key) < depth for key in value):
            text[name] = {keep.index(int(key)): entry for key, entry in value.items() if int(key) in keep}
        if not isinstance(value, (list, tuple)):
            continue
        if _are_indices(name, value, depth):
            text[name] = [keep.index(entry) for entry in value if entry in keep]
        elif len(value) == depth:
            text[name] = [value[index] for index in keep]
    for name, value in changes.items():
        text[name] = value
    text[own.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(
        keep
    )  # or an older name, such as n_layer
    return type(config).from_dict(known)


def _are_indices(name: str, value: Sequence[Any], depth: int) -> bool:
    """Whether a list holds indices of layers: ascending, under a name such as `mlp_only_layers`, `hybrid_layer_ids`."""
    if not value or not any(part in name for part in ("layer", "idx", "indices")):
        return False
    return all(type(entry) is int and 0 <= entry < depth for entry in value) and list(value) == sorted(set(value))


def _changes(config: PreTrainedConfig, keep: Sequence[int], depth: int) -> Iterator[dict[str, int]]:
    """What to try beside lists that are cut: nothing, then one number that counts layers from the start or from the end."""
    yield {}
    for name, value in config.get_text_config().to_dict().items():
        if type(value) is int and 0 < value <= depth and name not in {"num_hidden_layers", "vocab_size"}:
            first, last = sum(index < value for index in keep), sum(index >= depth - value for index in keep)
            yield from ({name: count} for count in dict.fromkeys((first, last)) if count != value)


def _sources(
    model: PreTrainedModel, built: PreTrainedModel, places: Sequence[str], keep: Sequence[int], depth: int
) -> tuple[dict[str, Callable[[], Tensor]], str]:
    """The built model's weights by name and where each comes from; and what is wrong with them, if anything."""
    own = model.state_dict(keep_vars=True)
    sources: dict[str, Callable[[], Tensor]] = {}
    used: set[str] = set()
    for name, wanted in built.state_dict(keep_vars=True).items():
        old = _old_name(name, places, keep)
        weight = own.get(old)
        if weight is None:
            return {}, f"a model of its configuration has {name} besides"
        if weight.shape == wanted.shape:
            sources[name] = lambda weight=weight: weight.detach()
        elif (axis := _layered_axis(weight, wanted, len(keep), depth)) is not None:
            sources[name] = lambda weight=weight, axis=axis: _slice(weight, axis, keep, depth)
        else:
            return (
                {},
                f"a model of its configuration has {name} as {list(wanted.shape)}, here it is {list(weight.shape)}",
            )
        used.add(old)
    dropped = {name for name in own if name not in used and not _is_dropped(name, places, keep)}
    return sources, f"a model of its configuration has no {sorted(dropped)[0]}" if dropped else ""


def _old_name(name: str, places: Sequence[str], keep: Sequence[int]) -> str:
    for place in places:
        if name.startswith(place):
            index, dot, rest = name.removeprefix(place).partition(".")
            return f"{place}{keep[int(index)]}{dot}{rest}" if int(index) < len(keep) else ""
    return name


def _is_dropped(name: str, places: Sequence[str], keep: Sequence[int]) -> bool:
    place = next((place for place in places if name.startswith(place)), None)
    return place is not None and int(name.removeprefix(place).partition(".")[0]) not in keep


def _layered_axis(weight: Tensor, wanted: Tensor, kept: int, depth: int) -> int | None:
    """The axis along which a weight holds an equal part for each layer; None where it does not."""
    if weight.ndim != wanted.ndim:
        return None
    other = [axis for axis in range(weight.ndim) if weight.shape[axis] != wanted.shape[axis]]
    return other[0] if len(other) == 1 and weight.shape[other[0]] * kept == wanted.shape[other[0]] * depth else None


def _slice(weight: Tensor, axis: int, keep: Sequence[int], depth: int) -> Tensor:
    parts = weight.detach().unflatten(axis, (depth, -1))
    return parts.index_select(axis, torch.tensor(keep, device=weight.device)).flatten(axis, axis + 1).contiguous()


def _other_function(model: PreTrainedModel, built: PreTrainedModel, places: Sequence[str], keep: Sequence[int]) -> str:
    """What a kept layer would do otherwise at its new place: plain attributes that differ and are no layer's index."""
    for place in places:
        if not isinstance(model.get_submodule(place[:-1]), nn.ModuleList):
            continue
        for new, old in enumerate(keep):
            here, there = (_scalars(owner.get_submodule(f"{place}{i}")) for owner, i in ((model, old), (built, new)))
            for name in here.keys() | there.keys():
                was, now = here.get(name), there.get(name)
                moved = type(was) is int and was in keep and now == keep.index(was)
                if was != now and not moved:
                    return f"layer {old} would have {name} = {now} at its new place, for {was}"
    return ""


def _scalars(layer: nn.Module) -> _Scalars:
    return {
        f"{prefix}.{name}".lstrip("."): value
        for prefix, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, type(None))) and not name.startswith("_") and name != "training"
    }
