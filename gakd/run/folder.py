"""The output folder of a run: claimed for one configuration, refused to any other."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

from lightning_fabric import Fabric

from gakd.data.dates import fixed_date
from gakd.data.load import DataConfig
from gakd.errors import InputError
from gakd.files import hold, read_json, write_json
from gakd.models.export import clear_killed
from gakd.models.loading import ModelConfig
from gakd.run.config import RunConfig, learning_rate_at, total_steps
from gakd.teachers.cache import MANIFEST

Group = TypeVar("Group")
Result = TypeVar("Result")

# What may differ between a run and its resumption: no bit of the training depends on it. How many steps there are is
# compared where the data are known (`lengthen`); of other processes, a checkpoint tells what that changes.
_FREE_TO_CHANGE = {
    "resume", "output_dir", "keep_checkpoints", "save_every", "log_to", "export", "on_nonfinite", "steps", "epochs",
    "devices", "num_nodes", "strategy",
}  # fmt: skip


def claim(fabric: Fabric, folder: Path, recipe_config: Any, resume: bool) -> TextIOWrapper | None:
    """Write the resolved configuration to `folder/config.json`, on rank 0; every rank calls it.

    What is returned keeps other processes out as long as it is open: to the end of the process, however that comes.

    Raises InputError on every rank where the folder holds a run and `resume` is off, where it holds one with other
    settings, naming those that differ, where another process is at work in it, and where nothing can be written.
    """
    wanted = resolved(recipe_config)
    return on_main(fabric, lambda: _take(folder, wanted, resume))


def on_main(fabric: Fabric, do: Callable[[], Result]) -> Result | None:
    """What rank 0 makes of something, None on the others; its InputError is raised on every rank."""
    result, error = None, None
    if fabric.is_global_zero:
        try:
            result = do()
        except InputError as refusal:
            error = str(refusal)
    error = fabric.broadcast(error)
    if error:
        raise InputError(error)
    return result


def fix_date(fabric: Fabric, folder: Path, recipe_config: Any, resume: bool) -> None:
    """Give the data of a recipe the date of its run, the same on every rank: of its begin, or of its teacher's cache."""
    data, models = group_of(recipe_config, DataConfig), group_of(recipe_config, ModelConfig)
    if data is None:
        return
    kept = [(folder / "config.json", ("data", "date"))] if resume else []
    if models is not None and models.teacher_cache is not None:
        kept.append((models.teacher_cache / MANIFEST, ("settings", "date")))
    data.date = fabric.broadcast(fixed_date(data.date, *kept))


def lengthen(fabric: Fabric, folder: Path, now: RunConfig, recipe_config: Any, step: int, examples: int) -> str | None:
    """Give a run that goes on its new number of steps, where those that it has made would be the same; else InputError.

    `step` are finished. Returns what is to be said of it.
    """
    kept: dict[str, Any] = {}
    if fabric.is_global_zero:
        # A script of one's own may keep other settings than the run's.
        own = [name for name, value in vars(recipe_config).items() if value is now]
        kept = (read_json(folder / "config.json") or {}).get(own[0], {}) if own else {}
    before = {name: kept[name] for name in ("steps", "epochs") if name in kept}
    old = fabric.broadcast(total_steps(dataclasses.replace(now, **before), examples))
    new = total_steps(now, examples)
    if old == new:
        return None
    another = f"--student {folder / 'student'} --output-dir ANOTHER begins a new run with what this one has exported"
    if step > new:
        raise InputError(f"{folder} has {step} finished steps, {new} are asked for: give at least {step}; {another}")
    if any(learning_rate_at(now, at, old) != learning_rate_at(now, at, new) for at in range(step)):
        raise InputError(
            f"{folder} was begun for {old} steps, {new} are asked for: the learning rate falls over all steps, so the {step} "
            f"that are done would have had other rates. Give {old} steps; {another}; or begin with --min-learning-rate equal "
            f"to --learning-rate, and the run may be lengthened"
        )
    if fabric.is_global_zero:
        write_json(folder / "config.json", resolved(recipe_config), indent=2)
    if step == old and now.evaluate_every and step % now.evaluate_every:
        return f"step {step} was validated as the last of {old}, which a run of {new} steps would not have done"
    return None


def resolved(recipe_config: Any) -> dict[str, Any]:
    """All flags as config.json has them."""
    return json.loads(json.dumps(dataclasses.asdict(recipe_config), default=str))


def group_of(config: Any, kind: type[Group]) -> Group | None:
    """The group of flags of a kind that a recipe's configuration has."""
    return next((value for value in vars(config).values() if isinstance(value, kind)), None)


def _take(folder: Path, wanted: dict[str, Any], resume: bool) -> TextIOWrapper:
    path = folder / "config.json"
    with ExitStack() as opened:
        try:
            str(folder).encode()  # what is written later is named in UTF-8
            # A job that is started again while the first still saves would mix its rows with the first's.
            lock = hold(folder / ".lock")
            # A run that was refused before its first result has left a configuration and nothing to lose.
            begun = any((folder / name).exists() for name in ("before.json", "metrics.csv", "checkpoints"))
            if lock is None:
                raise InputError(
                    f"another process is at work in {folder}: wait for it or end it, or give another --output-dir"
                )
            opened.enter_context(lock)
            if begun and not resume:
                raise InputError(
                    f"{folder} holds another run: add --resume to continue it, or give another --output-dir "
                    f"(in Python: resume=True, or another output_dir)"
                )
            if begun:
                _refuse_other(path, wanted)
                clear_killed(folder / "student")
            if not begun or not path.exists():
                write_json(path, wanted, indent=2)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = error.strerror if isinstance(error, OSError) else str(error).partition(":")[0]
            shown = ascii(str(folder))
            shown = shown if len(shown) <= 200 else f"{shown[:197]}..."
            raise InputError(
                f"cannot use {shown} as --output-dir: {reason}; give a folder that can be written to"
            ) from error
        opened.pop_all()
        return lock


def _refuse_other(path: Path, wanted: dict[str, Any]) -> None:
    if not path.exists():
        warnings.warn(f"{path} is gone: the run goes on with the settings of this command, unchecked", stacklevel=2)
        return
    before = read_json(path)
    if before is None:
        raise InputError(
            f"{path} is damaged: put back a copy of it, or remove it, and the run goes on with the settings of this command, "
            f"unchecked"
        )
    if changed := _differences(before, wanted):
        raise InputError(
            f"{path.parent} was run with other settings: {'; '.join(changed)}. Use the same, or another --output-dir"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{name}.")
        elif old != new and name not in _FREE_TO_CHANGE and (name, old) != ("date", None):  # it had none to keep
            found.append(f"{prefix}{name} was {old}, is {new}")
    return found
