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

from gakd.data.config import DataConfig
from gakd.data.dates import fixed_date
from gakd.errors import InputError
from gakd.files import hold, read_json, write_json
from gakd.flags import RENAMED, group_of
from gakd.models.config import ModelConfig
from gakd.models.export import clear_killed
from gakd.run.config import RunConfig, learning_rate_at, total_steps
from gakd.teachers.cache import MANIFEST

Result = TypeVar("Result")

# How many steps there are, and the rates of those to come: compared where the data are known (`lengthen`).
_SCHEDULE = ("steps", "epochs", "lr_schedule", "min_learning_rate", "decay_steps", "lr_cycles")
# What may differ between a run and its resumption: no bit of the training depends on it. Of other processes, a checkpoint
# tells what that changes.
_FREE_TO_CHANGE = {
    "resume", "output_dir", "keep_checkpoints", "save_every", "log_to", "project", "run_name", "export", "export_dtype",
    "push_to_hub", "on_nonfinite", "devices", "num_nodes", "strategy", *_SCHEDULE,
}  # fmt: skip


def claim(fabric: Fabric, folder: Path, recipe_config: Any, resume: bool) -> TextIOWrapper | None:
    """Write the resolved configuration to `folder/config.json`, on rank 0; every rank calls it.

    What is returned keeps other processes out as long as it is open: to the end of the process, however that comes.

    Raises InputError on every rank where the folder holds a run and `resume` is off, where it holds one with other
    settings, naming those that differ, where another process is at work in it, and where nothing can be written.
    """
    wanted, defaults = resolved(recipe_config), _plain(_defaults(recipe_config))
    return on_main(fabric, lambda: _take(folder, wanted, defaults, resume))


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


def lengthen(
    fabric: Fabric, folder: Path, now: RunConfig, recipe_config: Any, step: int, examples: int, over_all: bool = False
) -> str | None:
    """Give a run that goes on its new number of steps and schedule, where the steps that it has made would be the same; else
    InputError.

    `step` are finished. `over_all`: the recipe has a schedule of its own over all steps. Returns what is to be said of it.
    """
    kept: dict[str, Any] = {}
    if fabric.is_global_zero:
        # A script of one's own may keep other settings than the run's.
        own = [name for name, value in vars(recipe_config).items() if value is now]
        kept = (read_json(folder / "config.json") or {}).get(own[0], {}) if own else {}
    first = RunConfig()  # of a run that is older than a flag
    settings = {name: kept.get(name, getattr(first, name)) for name in _SCHEDULE} if kept else {}
    before = dataclasses.replace(now, **fabric.broadcast(settings))
    old, new = total_steps(before, examples), total_steps(now, examples)
    changed = [
        f"{name} was {getattr(before, name)}, is {getattr(now, name)}"
        for name in _SCHEDULE
        if getattr(before, name) != getattr(now, name)
    ]
    if not changed:
        return None
    another = f"--student {folder / 'student'} --output-dir ANOTHER begins a new run with what this one has exported"
    if step > new:
        raise InputError(f"{folder} has {step} finished steps, {new} are asked for: give at least {step}; {another}")
    if any(learning_rate_at(before, at, old) != learning_rate_at(now, at, new) for at in range(step)):
        differs = (
            f"was begun for {old} steps, {new} are asked for" if old != new else f"was run with {'; '.join(changed)}"
        )
        raise InputError(
            f"{folder} {differs}: the {step} that are done would have had other learning rates. Give what it was begun with; "
            f"{another}; or begin with --lr-schedule constant: such a run may be lengthened, and given a schedule that falls "
            f"later, as warmup_stable_decay"
        )
    if over_all and step and old != new:
        raise InputError(
            f"{folder} was begun for {old} steps, {new} are asked for: this recipe's own schedule goes over all steps, so the "
            f"{step} that are done would have been others. Give {old} steps; {another}"
        )
    if fabric.is_global_zero:
        write_json(folder / "config.json", resolved(recipe_config), indent=2)
    if step == old != new and now.evaluate_every and step % now.evaluate_every:
        return f"step {step} was validated as the last of {old}, which a run of {new} steps would not have done"
    return None


def resolved(recipe_config: Any) -> dict[str, Any]:
    """All flags as config.json has them."""
    return _plain(dataclasses.asdict(recipe_config))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values, default=str))


def _defaults(config: Any) -> dict[str, Any]:
    """Of the flags that have one; a flag that is new leaves at its default what a run did before it."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = _defaults(value)
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _as_of_now(before: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A run's settings by the names that flags have now, and those that it is older than at their defaults."""
    named = {name if name in defaults else RENAMED.get(name, name): value for name, value in before.items()}
    return {
        name: _as_of_now(value, defaults[name])
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
        else value
        for name, value in (defaults | named).items()
    }


def _take(folder: Path, wanted: dict[str, Any], defaults: dict[str, Any], resume: bool) -> TextIOWrapper:
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
                _refuse_other(path, wanted, defaults)
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


def _refuse_other(path: Path, wanted: dict[str, Any], defaults: dict[str, Any]) -> None:
    if not path.exists():
        warnings.warn(f"{path} is gone: the run goes on with the settings of this command, unchecked", stacklevel=2)
        return
    before = read_json(path)
    if before is None:
        raise InputError(
            f"{path} is damaged: put back a copy of it, or remove it, and the run goes on with the settings of this command, "
            f"unchecked"
        )
    if changed := _differences(_as_of_now(before, defaults), wanted):
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
