"""Tensors of a checkpoint that was written by other processes than those that read it: their rows, put together and cut anew.

Weights are cut by rows, in as many equal parts as there are ranks, the last ones shorter or empty. So what a rank holds of a
tensor is a range of its rows, and each rank reads the files in which its own range lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gakd.errors import InputError
from gakd.run.writing import snapshot


class Stored(NamedTuple):
    """Of a tensor in a checkpoint: its shape, whole, and this rank's rows."""

    shape: tuple[int, ...]
    rows: Tensor


class Piece(NamedTuple):
    """What one file holds of a tensor."""

    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]
    """Rows from the first index to before the second; all where there are no rows."""


def files_of(path: Path, name: str, ending: str, world_size: int) -> list[Path]:
    """The files of a module or an optimizer: one, or each rank's; InputError where the checkpoint has neither."""
    if (whole := path / f"{name}.{ending}").exists():
        return [whole]
    parts = [path / f"{name}-{rank}.{ending}" for rank in range(world_size)]
    if missing := [part.name for part in parts if not part.exists()]:
        raise InputError(
            f"{path} holds no {whole.name}, and no {missing[0]}: resume with the recipe that it was written by"
        )
    return parts


def stored_weights(files: Sequence[Path], wanted: Mapping[str, Tensor]) -> dict[str, Stored]:
    """What the files hold of each tensor in them, of those that are `wanted` this rank's rows."""
    with ExitStack() as opened:
        readers = [opened.enter_context(safe_open(file, framework="pt")) for file in files]
        names = readers[0].keys()
        return {name: own_rows([_of_file(reader, name) for reader in readers], wanted.get(name)) for name in names}


def stored_state(files: Sequence[Path], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state dict, of each tensor this rank's rows.

    Of weights that are not cut all is in one file, whatever shapes an optimizer gives to what it keeps.
    """
    states = [torch.load(file, weights_only=True, map_location="cpu", mmap=True) for file in files]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own: dict[int, dict[str, Any]] = {}
    for index, entry in states[0]["state"].items():
        if len(states) == 1 and not isinstance(parameters[index], DTensor):
            own[index] = snapshot(entry)
            continue
        pieces = {name: [_of_tensor(state["state"][index][name]) for state in states] for name in _tensors(entry)}
        own[index] = entry | {name: own_rows(of, parameters[index]).rows for name, of in pieces.items()}
    return states[0] | {"state": own}


def own_rows(pieces: Sequence[Piece], wanted: Tensor | None) -> Stored:
    """The shape of a tensor in pieces, and a copy of this rank's rows; of one that is not of the `wanted` shape, no rows."""
    first, shape = pieces[0], None if wanted is None else tuple(wanted.shape)
    if not first.shape:
        return Stored((), first.read(0, 0))
    if first.shape == shape:  # each file that has it has all of it
        pieces = pieces[:1]
    stored = (sum(piece.shape[0] for piece in pieces), *first.shape[1:])
    begin, end = (0, 0) if wanted is None or stored != shape else rows_of(wanted)
    found, offset = [first.read(0, 0)], 0
    for piece in pieces:
        low, high = max(begin, offset), min(end, offset + piece.shape[0])
        if low < high:
            found.append(piece.read(low - offset, high - offset))
        offset += piece.shape[0]
    return Stored(stored, found[1] if len(found) == 2 else torch.cat(found))


def rows_of(tensor: Tensor) -> tuple[int, int]:
    """The rows of a tensor that this rank holds, as `fully_shard` cuts: the first, and one after the last."""
    rows = tensor.shape[0]
    if not isinstance(tensor, DTensor):
        return 0, rows
    each = -(-rows // tensor.device_mesh.size())
    begin = min(each * tensor.device_mesh.get_local_rank(), rows)
    end = min(begin + each, rows)
    if end - begin != tensor.to_local().shape[0]:
        raise RuntimeError(f"a weight of {rows} rows is cut otherwise than by {each} rows a rank")
    return begin, end


def _tensors(entry: Mapping[str, Any]) -> Iterable[str]:
    return [name for name, value in entry.items() if isinstance(value, Tensor)]


def _of_file(reader: Any, name: str) -> Piece:
    rows = reader.get_slice(name)
    shape = tuple(rows.get_shape())
    return Piece(shape, lambda begin, end: rows[begin:end] if shape else reader.get_tensor(name))


def _of_tensor(tensor: Tensor) -> Piece:
    return Piece(tuple(tensor.shape), lambda begin, end: (tensor[begin:end] if tensor.ndim else tensor).clone())
