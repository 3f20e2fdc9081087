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

    Raises InputError on every rank where the folder holds a run and `resume` is off, where it holds one with other
    settings, naming those that differ, and where nothing can be written.
    """
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe_config), default=str))
    error = fabric.broadcast(_refusal(folder, wanted, resume) if fabric.is_global_zero else None)
    if error:
        raise InputError(error)


def _refusal(folder: Path, wanted: dict[str, Any], resume: bool) -> str | None:
    """Claims the folder, or says why not."""
    path = folder / "config.json"
    try:
        str(folder).encode()  # what is written later is named in UTF-8
        # A run that was refused before its first result has left a configuration and nothing to lose.
        begun = any((folder / name).exists() for name in ("before.json", "metrics.csv", "checkpoints"))
        if not begun:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(wanted, indent=2))
            return None
        before = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition(":")[0]
        shown = ascii(str(folder))
        shown = shown if len(shown) <= 200 else f"{shown[:197]}..."
        return f"cannot use {shown} as --output-dir: {reason}; give a folder that can be written to"
    if not resume:
        return f"{folder} holds another run: add --resume to continue it, or give another --output-dir"
    if changed := _differences(before, wanted):
        return f"{folder} was run with other settings: {'; '.join(changed)}. Use the same, or another --output-dir"
    return None


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{name}.")
        elif old != new and name not in _FREE_TO_CHANGE:
            found.append(f"{prefix}{name} was {old}, is {new}")
    return found
