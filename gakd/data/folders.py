"""Which files of a folder, or of a pattern, are of which split."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from gakd.data.rows import DataError
from gakd.data.tables import SUFFIXES, Part, digest, refusing

# A word of its own: between -, _, ., digits and the ends of a name.
_WORDS = re.compile(r"(?<![a-z])(train|validation|valid|val|dev|test|eval)(?![a-z])")
_KINDS = {
    "train": "train",
    "validation": "valid",
    "valid": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "eval": "test",
}
_ABOUT = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}  # of a set, no rows
_DEPTH = 3  # folders below the one that is named: enough for the layouts there are, and no walk through a whole disk


def files_by_split(folder: Path, train_split: str | None) -> dict[str, list[Path]]:
    """Data files by the split that their names, else their folders', name; by "" where none names one.

    `train_split` is a word of the names that training is read from. Where some files name a split, others are no part of the
    set. DataError where there are no data files, or a name is of two splits.
    """
    files = sorted(_data_files(folder))
    if not files:
        raise DataError(f"{folder} holds no data files: expected train.jsonl, or files of {', '.join(SUFFIXES[:7])}")
    named: dict[str, list[Path]] = {}
    for path in files:
        parts = path.relative_to(folder).parts
        chosen = train_split is not None and any(_holds(part, train_split) for part in parts)
        word = train_split if chosen else next(filter(None, (_word(path, part) for part in reversed(parts))), None)
        if word:
            named.setdefault(word, []).append(path)
    for word, own in named.items():  # what stands deeper, such as a text that was made of it, is no part of it
        level = min(len(path.parts) for path in own)
        named[word] = [path for path in own if len(path.parts) == level]
    # Beside train.jsonl, train.responses.jsonl is something else: where it came from, or how far it is.
    return {word: _exact(own, word) or own for word, own in named.items()} or {"": files}


def _exact(files: Sequence[Path], word: str) -> list[Path]:
    """The file that is called by its split and nothing else, if there is one."""
    return [path for path in files if path.name.lower() in {f"{word}{suffix}" for suffix in SUFFIXES}]


def globbed(pattern: str) -> list[Path]:
    """The files of a pattern, sorted; DataError where there are none, or where their names are of several splits."""
    files = [path for name in sorted(glob.glob(pattern, recursive=True)) if (path := Path(name)).is_file()]
    if not files:
        raise DataError(f"no file matches {pattern!r}: correct the pattern")
    kinds = {_KINDS[word] for path in files if (word := _word(path, path.name))}
    if len(kinds) > 1:
        raise DataError(
            f"{pattern} matches files of several splits, {', '.join(sorted(kinds))}: give their folder, or a narrower pattern"
        )
    return files


def saved_splits(folder: Path) -> list[str] | None:
    """The splits of a folder that `save_to_disk` of `datasets` wrote, "" alone for a set without; None for other folders."""
    if (folder / "dataset_dict.json").is_file():
        with refusing(str(folder / "dataset_dict.json")):
            return [str(name) for name in json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]]
    return [""] if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file() else None


def saved_part(folder: Path, split: str) -> Part:
    import datasets

    with refusing(str(folder)):
        table = datasets.load_from_disk(str(folder / split))
    if not isinstance(table, datasets.Dataset):
        raise DataError(f"{folder / split} holds several splits: give the folder of one set")
    name = f"{folder}[{split}]" if split else str(folder)
    return Part(table, ((name, 0),), False, digest([str((folder / split).resolve()), table._fingerprint]))


def _data_files(folder: Path) -> Sequence[Path]:
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        depth = len(Path(root).relative_to(folder).parts)
        folders[:] = [name for name in folders if not name.startswith(".")] if depth < _DEPTH else []
        found += [
            Path(root, name)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and name not in _ABOUT
        ]
    return found


def _word(path: Path, part: str) -> str | None:
    """The split's name in one part of a path, as it stands there."""
    words = _WORDS.findall(part.lower())
    if len({_KINDS[word] for word in words}) > 1:
        raise DataError(f"{path} names two splits, {' and '.join(dict.fromkeys(words))}: rename it for one of them")
    return words[0] if words else None


def _holds(part: str, name: str) -> bool:
    digit = r"\d" if name[-1:].isdigit() else ""
    return (
        bool(name)
        and re.search(f"(?<![a-z{digit}]){re.escape(name.lower())}(?![a-z{digit}])", part.lower()) is not None
    )
