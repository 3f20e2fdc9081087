"""The output folder of a run: claimed for one configuration, refused to any other."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

from lightning_fabric import Fabric

from gakd.data.dates import fixed_date
from gakd.data.load import Data, DataConfig
from gakd.errors import InputError
from gakd.files import write_json
from gakd.models.loading import ModelConfig
from gakd.teachers.cache import MANIFEST

Group = TypeVar("Group")

# What the marks of a run's data stand for.
_NAMES = {
    "train": "the training examples", "valid": "the validation examples", "test": "the test examples",
    "tokenizer": "the tokenizer", "template": "the chat template", "date": "the date that the template sets",
    "lengths": "the lengths", "prompts alone": "whether responses are written by the recipe",
}  # fmt: skip
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


def fix_date(fabric: Fabric, folder: Path, recipe_config: Any, resume: bool) -> None:
    """Give the data of a recipe the date of its run, the same on every rank: of its begin, or of its teacher's cache."""
    data, models = group_of(recipe_config, DataConfig), group_of(recipe_config, ModelConfig)
    if data is None:
        return
    kept = [(folder / "config.json", ("data", "date"))] if resume else []
    if models is not None and models.teacher_cache is not None:
        kept.append((models.teacher_cache / MANIFEST, ("settings", "date")))
    data.date = fabric.broadcast(fixed_date(data.date, *kept))


def check_data(fabric: Fabric, folder: Path, data: Data) -> None:
    """Keep what a run's data are known by, or, where it goes on, compare; InputError on every rank, naming what has changed."""
    error = None
    if fabric.is_global_zero:
        path, marks = folder / "data.json", data.marks
        before = json.loads(path.read_text()) if path.exists() else marks
        if changed := [
            _named(name, before.get(name), marks[name]) for name in marks if before.get(name) != marks[name]
        ]:
            error = (
                f"{folder} was begun with other data, so its steps would not be those of one run. Changed: {', '.join(changed)}. "
                f"Give it what it was begun with, or another --output-dir"
            )
        elif not path.exists():
            write_json(folder / "data_summary.json", data.counts, indent=2)
            write_json(path, marks, indent=2)
    error = fabric.broadcast(error)
    if error:
        raise InputError(error)


def _named(name: str, before: str | None, now: str) -> str:
    """What has changed; of hashes nobody learns anything."""
    return f"{_NAMES.get(name, name)}{f' (was {before}, is {now})' if name in ('date', 'lengths') else ''}"


def group_of(config: Any, kind: type[Group]) -> Group | None:
    """The group of flags of a kind that a recipe's configuration has."""
    return next((value for value in vars(config).values() if isinstance(value, kind)), None)


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
                write_json(path, wanted, indent=2)
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
        elif old != new and name not in _FREE_TO_CHANGE and (name, old) != ("date", None):  # it had none to keep
            found.append(f"{prefix}{name} was {old}, is {new}")
    return found
