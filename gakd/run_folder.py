"""The output folder of a run: claimed for one configuration, refused to any other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from gakd.errors import InputError

# What may differ between a run and its resumption: no bit of the training depends on it.
_FREE_TO_CHANGE = {"resume", "output_dir", "keep_checkpoints", "save_every", "log_to", "export", "on_nonfinite"}


def claim(fabric: Fabric, folder: Path, recipe_config: Any, resume: bool) -> None:
    """Write the resolved configuration to `folder/config.json`, on rank 0; every rank calls it.

    Raises InputError on every rank where the folder holds a run and `resume` is off, or where it holds one with other
    settings, naming those that differ.
    """
    path = folder / "config.json"
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe_config), default=str))
    error = None
    # A run that was refused before its first result has left a configuration and nothing to lose.
    begun = any((folder / name).exists() for name in ("before.json", "metrics.csv", "checkpoints"))
    if fabric.is_global_zero and begun:
        changed = _differences(json.loads(path.read_text()) if path.exists() else {}, wanted)
        if not resume:
            error = f"{folder} holds another run: add --resume to continue it, or give another --output-dir"
        elif changed:
            error = f"{folder} was run with other settings: {'; '.join(changed)}. Use the same, or another --output-dir"
    error = fabric.broadcast(error)
    if error:
        raise InputError(error)
    if fabric.is_global_zero and not begun:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=2))
    fabric.barrier()


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{name}.")
        elif old != new and name not in _FREE_TO_CHANGE:
            found.append(f"{prefix}{name} was {old}, is {new}")
    return found
