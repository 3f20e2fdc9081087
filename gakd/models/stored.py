"""A model's weights where they lie in its files: each, or a part of it, is read when it is wanted, and no other with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.modeling_utils import str_to_torch_dtype

Part = tuple[slice, ...]
"""Which entries of a weight, by dimension; those that are not named are whole."""


class Made(NamedTuple):
    """Weights that are made of others: experts that a file has one by one, projections that it has joined."""

    first: str  # of those that come out
    sources: tuple[tuple[str, str], ...]  # keys of the files, and the pattern of each
    converter: WeightConverter


class Stored:
    """The weights of some safetensors files under the names that a model has for them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, Any] = {}
        for path in paths:
            file: Any = safe_open(path, "pt")
            self._files |= dict.fromkeys(file.keys(), file)
        self._ways: dict[str, str | Made] = {}
        self._model: PreTrainedModel | None = None

    def __deepcopy__(self, memo: Any) -> Stored:
        return self  # files are read, never written

    def stand_ins(self) -> dict[str, StandIn]:
        """What stands for each tensor of the files: its shape and dtype, no values."""
        return {key: StandIn(self._shape(key), self._dtype(key)) for key in self._files}

    def lead_to(self, model: PreTrainedModel) -> None:
        """Find which of the files' tensors make each of a model's weights, as transformers' loader does.

        By the loader's own rules for names, and its own conversions run on shapes alone; it raises what they raise.
        """
        self._model, own = model, model.state_dict()
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        made: dict[str, list[tuple[str, str]]] = {}
        for key in sorted(self._files, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, own)
            if name not in own and key in own:
                name, pattern = rename_source_key(key, [], [], model.base_model_prefix, own)
            if name in own and pattern is None:
                self._ways[name] = key
            elif name in own and pattern is not None:
                made.setdefault(name, []).append((key, pattern))
        for first, sources in made.items():
            way = Made(first, tuple(sources), by_pattern[sources[0][1]])
            self._ways |= dict.fromkeys(
                self._convert(way, lambda key: torch.empty(self._shape(key), device="meta")), way
            )

    def has(self, name: str) -> bool:
        return name in self._ways

    def together(self, name: str) -> str:
        """What weights that are made in one go have in common."""
        way = self._ways[name]
        return way if isinstance(way, str) else way.first

    def read(self, names: Sequence[str], dtype: torch.dtype, parts: Sequence[Part | None]) -> list[Tensor]:
        """Weights that are made together, in `dtype`, of each the part that is asked for, all of it for None. On the CPU.

        Of one that a file holds as it is, no more than that part is read.
        """
        way = self._ways[names[0]]
        if isinstance(way, Made):
            whole = self._convert(way, lambda key: self._read(key).to(dtype))
            return [
                _owned(whole[name] if part is None else whole[name][part])
                for name, part in zip(names, parts, strict=True)
            ]
        return [_owned(self._read(way, part).to(dtype)) for part in parts]

    def _convert(self, way: Made, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        model, converter = self._model, deepcopy(way.converter)
        assert model is not None
        for key, pattern in way.sources:
            converter.add_tensor(way.first, key, pattern, partial(read, key))  # type: ignore[arg-type]
        found = converter.convert(way.first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}

    def _read(self, key: str, part: Part | None = None) -> Tensor:
        file = self._files[key]
        if not part:
            return file.get_tensor(key)
        if any(one.start == one.stop for one in part):  # a rank that keeps none of a short weight
            shape = [one.stop - one.start for one in part] + self._shape(key)[len(part) :]
            return torch.empty(shape, dtype=self._dtype(key))
        return file.get_slice(key)[part]

    def _shape(self, key: str) -> list[int]:
        return self._files[key].get_slice(key).get_shape()

    def _dtype(self, key: str) -> torch.dtype:
        return str_to_torch_dtype[self._files[key].get_slice(key).get_dtype()]


class StandIn:
    """What a loader takes for a tensor of a file, as it takes safetensors' own slices: without values, wherever it is moved."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = torch.Size(shape), dtype

    def __getitem__(self, index: Any) -> StandIn:
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")


def _owned(tensor: Tensor) -> Tensor:
    """A tensor in memory of its own: what is read may be a window on its file, or on a larger tensor."""
    return tensor.clone(memory_format=torch.contiguous_format)
