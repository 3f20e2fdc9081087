"""A model's folder, looked over before a loader reads it: what it names lies within it, and none of it is code to fetch."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils.hub import cached_file

from gakd.models.errors import ModelError
from gakd.models.names import existing_folder, resolve

_OBJECTS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# A configuration may name another file of its folder under these.
_OTHER_FILES = ("configuration_files", "fast_tokenizer_files", "transformers_weights")
_CODE = re.compile("implementation|kernel")
_COUNT = re.compile(r"layers?$|depth$|experts$")
_OF_TOKENIZER = re.compile(
    "token|vocab|merges|tekken|spiece|sentencepiece|spm|bpe|byte_maps"
)  # their VOCAB_FILES_NAMES
_MOST = 10_000  # layers or experts: building more takes minutes, and no model has them


class Files(NamedTuple):
    """Where a loader finds a model's files."""

    folder: Path
    whole: bool  # all of them are there; of a hub's repository only configurations and indices are, until it is loaded


def source_files(name: str) -> Files | None:
    """A model's folder, or what the hub has of it, of which no weights are fetched; None where there is neither."""
    source = resolve(name)
    folder = existing_folder(source)
    if folder is not None:
        return Files(folder, True)
    with suppress(OSError, ValueError):  # the loader meets the same, and says what it is
        if (fetched := _fetched(source)) is not None:
            return Files(fetched, False)
    return None


def lacks_tokenizer(folder: Path) -> bool:
    """Whether a model's folder has a configuration, and no file that any tokenizer of transformers is read from."""
    return (folder / "config.json").exists() and not any(_OF_TOKENIZER.search(path.name) for path in folder.iterdir())


def check_files(files: Files, name: str, trust_remote_code: bool = False) -> None:
    """ModelError where a model would be read wrongly, beyond its folder, or by code of its own choice."""
    for file in _OBJECTS:
        try:
            _check_object(read_object(files.folder / file, name) or {}, file, name, trust_remote_code)
        except RecursionError as error:
            raise _too_deep(file, name) from error


def read_object(path: Path, name: str) -> dict[str, Any] | None:
    """What a JSON file of a model holds; None where there is no such file, ModelError where it holds no object."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise _too_deep(path.name, name) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} of {name!r} is no JSON ({error}): copy or download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path.name} of {name!r} is no JSON object, {{...}}: copy or download it again")
    return value


def refuse_outside(named: Any, file: str, name: str) -> None:
    """ModelError where a file of a folder names one elsewhere. A link in its place is its user's, and is followed."""
    path = Path(named) if isinstance(named, str) else None
    if path is None or path.is_absolute() or ".." in path.parts:
        raise ModelError(
            f"{file} of {name!r} names {named!r}, which is not in its folder and is not read: put the file there, and "
            f"name it so"
        )


@functools.cache
def _fetched(source: str) -> Path | None:
    """The cache's folder of a hub's repository, with what is checked of it; OSError where the hub cannot be asked."""
    found = [cached_file(source, file, _raise_exceptions_for_missing_entries=False) for file in (*_OBJECTS, *INDICES)]
    return next((Path(path).parent for path in found if path is not None), None)


def _check_object(held: dict[str, Any], file: str, name: str, trust_remote_code: bool) -> None:
    for key in _OTHER_FILES:
        named = held.get(key) or []
        for other in named if isinstance(named, list) else [named]:
            refuse_outside(other, file, name)
    for key, value in _leaves(held, ""):
        if not trust_remote_code and _CODE.search(key) and isinstance(value, str) and "/" in value:
            raise ModelError(
                f"{name!r} asks for the code {value!r} from the hub ({key.rstrip('.')} in its {file}), which is not "
                f"fetched and run unasked: read it, then add --trust-remote-code; or take the entry out"
            )
        if isinstance(value, float) and value != value:
            raise ModelError(f"{file} of {name!r} has NaN for {key}: give the number that is meant")
        if file == _OBJECTS[0] and _COUNT.search(key) and isinstance(value, int) and value > _MOST:
            raise ModelError(f"{file} of {name!r} has {value} for {key}, expected at most {_MOST}: correct it")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """What is in objects and lists, each by the names that lead to it."""
    if isinstance(value, dict):
        for own, inner in value.items():
            yield from _leaves(inner, f"{key}.{own}" if key else own)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def _too_deep(file: str, name: str) -> ModelError:
    return ModelError(f"{file} of {name!r} nests too deep to be read: copy or download it again")
