"""The output folder of a run: claimed for one configuration, refused to any other."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from gakd.errors import InputError

# What may differ between a run and its resumption: no bit of the training depends on it.
_FREE_TO_CHANGE = {"resume", "output_dir", "keep_checkpoints", "save_every", "log_to", "export", "on_nonfinite"}


def claim(fabric: Fabric, folder: Path, recipe_config: Any, resume: bool) -> TextIOWrapper | None:
    """Write the resolved configuration to `folder/config.json`, on rank 0; every rank calls it.

    What is returned keeps other processes out as long as it is open: to the end of the process, however that comes.

    Raises InputError on every rank where the folder holds a run and `resume` is off, where it holds one with other
    settings, naming those that differ, where another process is at work in it, and where nothing can be written.
    """
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe_config), default=str))
    lock, error = None, None
    if fabric.is_global_zero:
        try:
            lock = _take(folder, wanted, resume)
        except InputError as refusal:
            error = str(refusal)
    error = fabric.broadcast(error)
    if error:
        raise InputError(error)
    return lock


def _take(folder: Path, wanted: dict[str, Any], resume: bool) -> TextIOWrapper:
    path = folder / "config.json"
    with ExitStack() as opened:
        try:
            str(folder).encode()  # what is written later is named in UTF-8
            folder.mkdir(parents=True, exist_ok=True)
            lock = opened.enter_context((folder / ".lock").open("a"))
            # A run that was refused before its first result has left a configuration and nothing to lose.
            begun = any((folder / name).exists() for name in ("before.json", "metrics.csv", "checkpoints"))
            before = json.loads(path.read_text()) if begun and path.exists() else {}
            free = _is_free(lock)
            if free and not begun:
                path.write_text(json.dumps(wanted, indent=2))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).partition(":")[0]
            shown = ascii(str(folder))
            shown = shown if len(shown) <= 200 else f"{shown[:197]}..."
            raise InputError(
                f"cannot use {shown} as --output-dir: {reason}; give a folder that can be written to"
            ) from error
        if not free:
            raise InputError(
                f"another process is at work in {folder}: wait for it or end it, or give another --output-dir"
            )
        if begun and not resume:
            raise InputError(f"{folder} holds another run: add --resume to continue it, or give another --output-dir")
        if begun and (changed := _differences(before, wanted)):
            raise InputError(
                f"{folder} was run with other settings: {'; '.join(changed)}. Use the same, or another --output-dir"
            )
        opened.pop_all()
        return lock


def _is_free(lock: TextIOWrapper) -> bool:
    """Whether no other process holds the lock, which this one then has; True where the file system knows no locks.

    A job that is started again while the first still saves would mix its rows with the first's, and clear away its files.
    """
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{name}.")
        elif old != new and name not in _FREE_TO_CHANGE:
            found.append(f"{prefix}{name} was {old}, is {new}")
    return found
