"""Where rows come from: the docstrings of installed packages, JSONL files, and sets on the Hugging Face hub."""

from __future__ import annotations

import difflib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gakd.data.rows import DataError, Row, row_from
from gakd.data.splits import Split, split_of


class _HubSet(NamedTuple):
    """Files of a hub repository that make up each split, and how many of the leading training rows are validation."""

    name: str
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    leading_valid: int = 0


# The sets of MiniLLM, which the paper trains and evaluates on; of the last two, both score the references above 10 words.
_SHORT_NAMES = {
    "dolly": _HubSet("MiniLLM/dolly", train=("raw.jsonl",), test=("valid.jsonl",), leading_valid=1000),
    "self-inst": _HubSet("MiniLLM/self-inst", test=("valid.jsonl",)),
    "vicuna": _HubSet("MiniLLM/Vicuna", test=("valid.jsonl",)),
    "sinst": _HubSet("MiniLLM/sinst", test=("11_/valid.jsonl",)),
    "uinst": _HubSet("MiniLLM/uinst", test=("11_/valid.jsonl",)),
}
_FILE_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test", "eval")
}  # fmt: skip


def load_rows(dataset: str, split: Split, skip_bad_rows: bool = False, whole: bool = False) -> list[Row]:
    """The rows of one split.

    `dataset` is "docstrings"; a .jsonl or .json file; a folder of train.jsonl, valid.jsonl and test.jsonl; one of dolly,
    self-inst, vicuna, sinst, uinst; or a hub id owner/name, or owner/name:config. A single file, and a hub set of one
    split, are divided by a hash of the prompt (`split_of`); a hub set that lacks valid or test has them taken out of its
    training rows by the same hash. `whole` takes a single file undivided. A bad row is a DataError that names
    file and line; with `skip_bad_rows` bad rows are counted and reported as a warning. A split without rows is a DataError,
    as is a file that cannot be read.
    """
    try:
        rows = _rows(dataset, split, skip_bad_rows, whole)
    except OSError as error:
        raise DataError(f"cannot read {dataset}: {error.strerror or error}; give a file that can be read") from error
    if not rows:
        raise DataError(
            f"{dataset} has no rows for the split {split!r}: give a larger file, or a folder with {split}.jsonl"
        )
    return rows


def _rows(dataset: str, split: Split, skip_bad_rows: bool, whole: bool) -> list[Row]:
    path = _path(dataset)
    if dataset == "docstrings":
        from gakd.data.docstrings import docstring_rows

        return docstring_rows(split)
    if path.is_dir():
        return _checked(_lines(_file_of(path, split)), skip_bad_rows, str(path))
    if path.is_file():
        return [row for row in _checked(_lines(path), skip_bad_rows, str(path)) if whole or split_of(row) == split]
    if dataset in _SHORT_NAMES:
        return _known_hub_rows(dataset, split, skip_bad_rows)
    if dataset.count("/") == 1 and not dataset.startswith((".", "/", "~")) and path.suffix not in {".jsonl", ".json"}:
        return _hub_rows(dataset, split, skip_bad_rows)
    known = ["docstrings", *_SHORT_NAMES]
    close = difflib.get_close_matches(dataset, known, 1)
    raise DataError(
        f"no dataset {dataset!r}{f', did you mean {close[0]!r}?' if close else ''}: "
        f"give {', '.join(known)}, a .jsonl file, a folder of train.jsonl, or a hub id owner/name"
    )


def _path(dataset: str) -> Path:
    if not dataset.strip():
        raise DataError("the dataset's name is empty: give a name, a file or a folder")
    try:
        path = Path(dataset).expanduser()
        path.exists()  # asks the file system, which may refuse the name itself
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{dataset[:60]!r} is no usable path: {error.args[-1]}; give a file or a folder") from None
    return path


def _file_of(folder: Path, split: Split) -> Path:
    for name in _FILE_NAMES[split]:
        if (folder / f"{name}.jsonl").is_file():
            return folder / f"{name}.jsonl"
    raise DataError(
        f"{folder} has no {_FILE_NAMES[split][0]}.jsonl: it holds {sorted(path.name for path in folder.iterdir())[:8]}"
    )


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """`(file:line, record)`; a record that cannot be read is a DataError in its place."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield where, json.loads(text)
            except UnicodeDecodeError as error:
                yield (
                    where,
                    DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"),
                )
            except (ValueError, RecursionError) as error:  # ValueError alone for integers of thousands of digits
                yield where, DataError(f"{where}: not JSON ({error}); expected one JSON object a line")


def _checked(records: Iterable[tuple[str, Any]], skip_bad_rows: bool, name: str) -> list[Row]:
    rows: list[Row] = []
    reasons: Counter[str] = Counter()
    examples: list[str] = []
    for where, record in records:
        try:
            if isinstance(record, DataError):
                raise record
            rows.append(row_from(record, where))
        except DataError as error:
            if not skip_bad_rows:
                raise DataError(f"{error}. --skip-bad-rows leaves such rows out") from None
            reasons[str(error).removeprefix(f"{where}: ").split(",")[0].split("(")[0].strip()] += 1
            examples.append(where)
    if reasons:
        listed = "; ".join(f"{count}x {reason}" for reason, count in reasons.most_common(4))
        warnings.warn(
            f"{name}: left out {reasons.total()} bad rows ({listed}), the first at {examples[0]}", stacklevel=4
        )
    return rows


def _known_hub_rows(dataset: str, split: Split, skip_bad_rows: bool) -> list[Row]:
    known = _SHORT_NAMES[dataset]
    files = known.test if split == "test" else known.train
    if not files:
        trainable = [name for name, entry in _SHORT_NAMES.items() if entry.train]
        raise DataError(f"{dataset} is for evaluation alone, it has no {split} split: train on {', '.join(trainable)}")
    rows = _checked(_hub_records(known.name, "train", files), skip_bad_rows, known.name)
    if split == "test":
        return rows
    return rows[: known.leading_valid] if split == "valid" else rows[known.leading_valid :]


def _hub_rows(dataset: str, split: Split, skip_bad_rows: bool) -> list[Row]:
    from datasets import get_dataset_split_names

    repository, _, config = dataset.partition(":")
    configs = (config,) if config else ()
    names = _hub_call(
        dataset, lambda: get_dataset_split_names(repository, config) if config else get_dataset_split_names(repository)
    )
    named: dict[Split, str] = {}
    for wanted, accepted in _FILE_NAMES.items():
        present = [name for name in accepted if name in names]
        if present and len(names) > 1:
            named[wanted] = present[0]
    if split != "train" and split in named:
        return _checked(_hub_records(repository, named[split], (), configs), skip_bad_rows, dataset)
    if named and "train" not in named:
        raise DataError(f"{dataset} has no {split} split, only {', '.join(names)}: save the rows as {split}.jsonl")
    rows = _checked(
        _hub_records(repository, named["train"] if named else names[0], (), configs), skip_bad_rows, dataset
    )
    # Rows that stand in for a missing split must leave the training rows, or training would see what it is judged on.
    return [row for row in rows if ("train" if split_of(row) in named else split_of(row)) == split]


def _hub_records(
    repository: str, split: str, files: tuple[str, ...], configs: tuple[str, ...] = ()
) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    loaded = _hub_call(
        repository, lambda: load_dataset(repository, *configs, data_files=list(files) or None, split=split)
    )
    for number, record in enumerate(loaded):
        yield f"{repository}[{split}]:{number}", record


def _hub_call(name: str, call: Any) -> Any:
    try:
        return call()
    except Exception as error:  # the hub client raises a dozen kinds, all meaning that the set cannot be had
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"cannot load {name} from the hub: {reason}. Give a .jsonl file or a folder to work without it"
        ) from error
