"""What a run says of itself to others, kept in its folder: for the model card of its student, and for reports."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import gakd
from gakd import flags
from gakd.data.config import DataConfig
from gakd.data.hub import SHORT_NAMES
from gakd.files import last_name, read_json, write_json
from gakd.machine import version_of
from gakd.models.config import ModelConfig
from gakd.models.origin import Origin, dtype_of, licence_of, origin_of
from gakd.run.config import RunConfig

ABOUT = "about.json"

# What is written where, and whether a run goes on, is no part of a run that is repeated.
_OWN = frozenset({"output_dir", "resume", "log_to", "push_to_hub"})


@dataclass(frozen=True)
class About:
    """Names without folders, since others read them; None for what a run does not know."""

    recipe: str | None = None
    objective: str | None = None  # its formula
    command: str | None = None  # that repeats the run
    base: Origin | None = None
    layers: list[int] = field(default_factory=list)  # as in `ModelConfig.student_layers`; empty: all
    lora_rank: int = 0
    licence: dict[str, str] = field(default_factory=dict)  # of the base, as `licence_of` finds it
    teacher: Origin | None = None
    dataset: Origin | None = None
    template: str | None = None  # that sets its prompts
    batch_size: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    export_dtype: str | None = None  # None: as it was trained
    push_to_hub: str | None = None


def write_about(folder: Path, run: RunConfig, config: Any, recipe: str, objective: str | None) -> None:
    """Write what is known of a run before its first step; `config` is the dataclass of all its flags."""
    models, data = flags.group_of(config, ModelConfig), flags.group_of(config, DataConfig)
    about = About(
        recipe or None, objective, command_of(config), batch_size=run.batch_size, versions=_versions(),
        push_to_hub=run.push_to_hub, export_dtype=None if run.export_dtype in ("auto", "trained") else run.export_dtype,
    )  # fmt: skip
    if models is not None:
        dtype = about.export_dtype
        if run.export_dtype == "auto":
            dtype = str(dtype_of(models.student, models.trust_remote_code)).removeprefix("torch.")
        about = dataclasses.replace(
            about, base=origin_of(models.student), layers=list(models.student_layers), lora_rank=models.lora_rank,
            licence=licence_of(models.student), export_dtype=dtype,
            teacher=None if models.teacher is None else origin_of(models.teacher),
        )  # fmt: skip
    if data is not None:
        about = dataclasses.replace(about, dataset=_dataset(data.dataset), template=data.template)
    write_json(folder / ABOUT, dataclasses.asdict(about), indent=2)


def read_about(folder: Path) -> About:
    """What `write_about` wrote; an empty one where there is nothing of the kind."""
    kept: dict[str, Any] = read_json(folder / ABOUT) or {}
    try:
        for name in ("base", "teacher", "dataset"):
            kept[name] = None if kept.get(name) is None else Origin(*kept[name])
        return About(**kept)
    except TypeError:  # something else wrote it
        return About()


def command_of(config: Any) -> str | None:
    """The command line that repeats a recipe's run, folders by their last names; None for what is no recipe.

    `config` is the dataclass of its flags; the module that defines it has its defaults, `PAPER`.
    """
    module = sys.modules.get(type(config).__module__)
    paper, file = getattr(module, "PAPER", None), getattr(module, "__file__", None)
    if paper is None or file is None:
        return None
    path, package = Path(file).resolve(), Path(gakd.__file__).resolve().parent
    ours = any(path.is_relative_to(home / "recipes") for home in (package, package.parent))
    student = next((str(value) for name, value in flags.flags_of(config) if name == "student"), None)
    # Whose name says that the other defaults are the paper's.
    words = [] if student is None else ["--student", student]
    words += flags.words_of(config, paper, _OWN | {"student"})
    return shlex.join(
        [*(("gakd", "run") if ours else ("python",)), path.stem if ours else path.name, *map(last_name, words)]
    )


def _dataset(name: str) -> Origin:
    if name in SHORT_NAMES:
        return Origin(SHORT_NAMES[name].name, True)
    shown = last_name(name)
    return Origin(shown, shown == name and "/" in name)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    return found | {
        name: version for name in ("gakd", "transformers", "peft") if (version := version_of(name)) is not None
    }
