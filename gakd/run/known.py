"""What a run was begun with, kept beside its checkpoints: what differs when it goes on is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_fabric import Fabric
from torch import nn

from gakd.data.load import Data
from gakd.distiller import Distiller
from gakd.errors import InputError
from gakd.files import read_sealed, write_json, write_sealed
from gakd.models.fingerprints import untrained_mark
from gakd.run.folder import on_main

DATA, MODELS = "data.json", "models.json"

# What the marks stand for.
_NAMES = {
    "train": "the training examples", "valid": "the validation examples", "test": "the test examples",
    "tokenizer": "the tokenizer", "template": "the chat template", "date": "the date that the template sets",
    "lengths": "the lengths", "prompts alone": "whether responses are written by the recipe",
    "teacher": "the teacher (its weights, their precision or its configuration)",
    "student": "what the student has beside trained weights (frozen ones, their precision, its configuration)",
}  # fmt: skip


@runtime_checkable
class Marked(Protocol):
    """A teacher that is known by a hash: a run that goes on is refused another."""

    def mark(self) -> str: ...


def marks_of(distiller: nn.Module, teacher: object) -> dict[str, str]:
    """What a student and its teacher are known by, before anything is cut over ranks."""
    marks = {"student": untrained_mark(distiller.student if isinstance(distiller, Distiller) else distiller)}
    return marks | ({"teacher": teacher.mark()} if isinstance(teacher, Marked) else {})


def check_data(fabric: Fabric, folder: Path, data: Data) -> None:
    """Keep what a run's data are known by, or, where it goes on, compare; InputError on every rank, naming what has changed."""

    def check() -> None:
        if _compare(folder, DATA, "data", data.marks):
            write_json(folder / "data_summary.json", data.counts, indent=2)

    on_main(fabric, check)


def check_models(fabric: Fabric, folder: Path, marks: Mapping[str, str]) -> None:
    """The same of the teacher, and of what training leaves as it is in each module."""
    on_main(fabric, lambda: _compare(folder, MODELS, "models", marks))


def _compare(folder: Path, name: str, what: str, marks: Mapping[str, str]) -> bool:
    """Whether these are the first; InputError where they are not those that were kept."""
    path = folder / name
    before = _kept(path, marks.keys())
    if before is None:
        write_sealed(path, dict(marks))
        return True
    if changed := [_named(key, before.get(key), marks[key]) for key in marks if before.get(key) != marks[key]]:
        raise InputError(
            f"{folder} was begun with other {what}, so its steps would not be those of one run. Changed: {', '.join(changed)}. "
            f"Give it what it was begun with, or another --output-dir"
        )
    return False


def _kept(path: Path, names: Any) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return read_sealed(path, set(names))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}): put back a copy of it, or remove it, and the run goes on with what it is given, "
            f"unchecked"
        ) from error


def _named(name: str, before: str | None, now: str) -> str:
    """What has changed; of hashes nobody learns anything."""
    told = _NAMES.get(name, f"what the {name} has beside trained weights")
    return f"{told}{f' (was {before}, is {now})' if name in ('date', 'lengths') else ''}"
