"""The files of a model's weights, looked over before they are read: which there are, and whether they are whole."""

from __future__ import annotations

import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from gakd.models.errors import ModelError
from gakd.models.files import INDICES, Files, read_object, refuse_outside


def check_weights(files: Files, name: str) -> None:
    """ModelError where an index names files that are not there or elsewhere, or where a file of the weights is not whole.

    Of the hub, only the index: its weights are fetched by the loader.
    """
    shards = _shards(files, name)
    if not files.whole:
        return
    quantised = "quantization_config" in (read_object(files.folder / "config.json", name) or {})
    for path in shards:
        if path.suffix == ".safetensors":
            _check_safetensors(path, name, quantised)
        elif not zipfile.is_zipfile(path) and _start(path) in (b"PK", b""):  # an older pickle starts otherwise
            raise _damaged(path, name, "it has no end")


def safetensors_of(files: Files, source: str, name: str) -> list[Path]:
    """The safetensors files of a model, those of the hub fetched; ModelError where its weights are kept otherwise."""
    settings = read_object(files.folder / "config.json", name) or {}
    if "quantization_config" in settings:
        raise ModelError("its weights are quantised")
    shards = (
        _shards(files, name) if files.whole else _shards(files, name) or [files.folder / INDICES[0].split(".index")[0]]
    )
    if not shards or any(path.suffix != ".safetensors" for path in shards):
        raise ModelError("its weights are not safetensors")
    if files.whole:
        return shards
    found = [cached_file(source, path.name, _raise_exceptions_for_missing_entries=False) for path in shards]
    if None in found:
        raise ModelError("its weights are not safetensors")
    return [Path(str(path)) for path in found]


def _shards(files: Files, name: str) -> list[Path]:
    """The files of weights that a loader reads, in its order of preference."""
    folder = files.folder
    named = (read_object(folder / "config.json", name) or {}).get("transformers_weights")
    for index in INDICES if named is None else (str(named),):
        whole = folder / index.removesuffix(".index.json")
        if whole.is_file():
            return [whole]
        if index.endswith(".index.json") and (folder / index).is_file():
            return _indexed(files, folder / index, name)
    return []


def _indexed(files: Files, path: Path, name: str) -> list[Path]:
    index = read_object(path, name) or {}
    shards = index.get("weight_map")
    if not (isinstance(shards, dict) and shards and isinstance(index.get("metadata"), dict)):
        raise ModelError(
            f"{path.name} of {name!r} lacks the objects weight_map and metadata: copy or download it again"
        )
    named = sorted({shard if isinstance(shard, str) else repr(shard) for shard in shards.values()})
    for shard in named:
        refuse_outside(shard, path.name, name)
    missing = [shard for shard in named if not (files.folder / shard).is_file()]
    if missing and files.whole:
        raise ModelError(
            f"{name!r} lacks {len(missing)} of the {len(named)} files that its {path.name} names, such as {missing[0]!r}: "
            f"copy or download them"
        )
    return [files.folder / shard for shard in named]


def _check_safetensors(path: Path, name: str, quantised: bool) -> None:
    try:
        with safe_open(path, "pt") as file:
            types = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError) as error:
        raise _damaged(path, name, str(error).strip().partition("\n")[0]) from error
    whole = next((key for key, kind in types.items() if key.endswith(".weight") and kind[0] in "IU"), None)
    if whole and not quantised:
        raise ModelError(
            f"{path.name} of {name!r} holds {whole} as integers ({types[whole]}), and its config.json names no "
            f"quantization_config: give weights in 16 or 32 bits"
        )


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _damaged(path: Path, name: str, reason: str) -> ModelError:
    return ModelError(f"{path.name} of {name!r} is damaged or not whole ({reason}): copy or download it again")
