"""In which precision a student is measured: on a GPU under training's autocast, on a CPU in that of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric

_KEY = "autocast"  # of a result that is kept; it has none where there was no autocast


@contextmanager
def measuring(fabric: Fabric) -> Iterator[dict[str, str]]:
    """The context of an evaluation; yields what a result that is kept says of it, for `as_measured`."""
    kind, kept = fabric.device.type, dict[str, str]()
    if kind != "cpu":
        # Asked, not stayed in: of weights that are all in 16 bits it changes torch's default dtype.
        with fabric.autocast():
            if torch.is_autocast_enabled(kind):
                kept[_KEY] = str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    with as_measured(kept, fabric.device):
        yield kept


def as_measured(kept: Mapping[str, Any], device: torch.device) -> AbstractContextManager[Any]:
    """The context of an evaluation that is compared with one that was kept."""
    name = kept.get(_KEY)
    return nullcontext() if name is None else torch.autocast(device.type, getattr(torch, name))
