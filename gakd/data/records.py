"""The records of one split of a source, as a memory-mapped table: what `dataset` may name, and which rows are of the split."""

from __future__ import annotations

import difflib
import glob
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gakd.data.folders import files_by_split, globbed, saved_part, saved_splits
from gakd.data.hub import SHORT_NAMES, hub_part, hub_splits, known_part
from gakd.data.rows import DataError, Row
from gakd.data.splits import Split, prompt_key, split_of_key
from gakd.data.tables import SUFFIXES, Part, first_rows, table_of

# What a split that is held out is called; the first that is there is taken.
_HELD_OUT: dict[Split, tuple[str, ...]] = {"valid": ("valid", "validation", "val", "dev"), "test": ("test", "eval")}


class Records(NamedTuple):
    """Where the rows of a split are, and how they are told from those of other splits."""

    table: Any  # datasets.Dataset, memory-mapped: a column "text" with JSON lines as bytes, or the file's own columns
    files: tuple[tuple[str, int], ...]  # (name, index of its first row), ascending
    lines: bool  # rows are JSON lines in the column "text", where blank ones count as lines
    divided: bool  # the rows are of several splits: `belongs` says of which
    present: frozenset[
        str
    ]  # which of valid and test the source has of its own: for these, none is taken out of training
    fingerprint: str  # changes with the content
    by_response: bool = False  # divided by a hash of the response instead of the prompt's


class _Choice(NamedTuple):
    name: str
    divided: bool
    present: frozenset[str]


def open_records(
    dataset: str, split: Split, whole: bool = False, train_split: str | None = None, max_rows: int | None = None
) -> Records:
    """The records that a split of `dataset` is read from; `load_rows` says what `dataset` may be.

    A split is chosen by its name: `train_split` for training, else train, else the only one there is. A source without valid
    or test has them taken out of its training rows by a hash of the prompt; `whole` takes a source without splits, or with
    one, undivided. `max_rows` reads the first rows alone. DataError where there is no such source or split.
    """
    try:
        return _opened(dataset, split, whole, train_split, max_rows)
    except OSError as error:
        raise DataError(f"cannot read {dataset}: {error.strerror or error}; give a file that can be read") from error


def read(records: Records, batch: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> list[tuple[str, Any]]:
    """`(where, record)` of some rows of the table; a record that cannot be read is a DataError in its place.

    `where` is file:line, or file:row where rows are no lines, both from 1. Blank lines are left out.
    """
    found: list[tuple[str, Any]] = []
    starts = [start for _, start in records.files]
    for place, index in enumerate(indices):
        name, start = records.files[bisect_right(starts, index) - 1]
        where = f"{name}:{index - start + 1}"
        if not records.lines:
            found.append((where, {column: values[place] for column, values in batch.items()}))
        elif problem := batch["problem"][place]:
            found.append((where, DataError(f"{where}: {problem}")))
        elif (record := _parsed(batch["text"][place], where, index == start)) is not None:
            found.append((where, record[0]))
    return found


def belongs(records: Records, row: Row, split: Split) -> bool:
    """Whether a row of these records is of this split."""
    if not records.divided:
        return True
    side = split_of_key(key_of(records, row))
    # Rows that stand in for a missing split must leave the training rows, or training would see what it is judged on.
    return ("train" if side in records.present else side) == split


def key_of(records: Records, row: Row) -> str:
    """What a row's side is decided by."""
    return row.responses[0] if records.by_response else prompt_key(row)


def _parsed(line: bytes, where: str, first: bool) -> tuple[Any] | None:
    """The record of a line, in a tuple, since null is one too; None for a blank line."""
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").strip()
        return (json.loads(text),) if text else None
    except UnicodeDecodeError as error:
        return (DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"),)
    except (ValueError, RecursionError) as error:  # ValueError alone for integers of thousands of digits
        return (DataError(f"{where}: not JSON ({error}); expected one JSON object a line"),)


def _opened(dataset: str, split: Split, whole: bool, train_split: str | None, max_rows: int | None) -> Records:
    path = _path(dataset)
    alone = _Choice("", not whole, frozenset())
    if dataset != "docstrings" and path.is_dir():
        saved = saved_splits(path)
        files = {} if saved else files_by_split(path, train_split)
        names = saved or list(files)
        if names == [""]:
            _no_train_split(dataset, train_split)
        choice = alone if names == [""] else _chosen(dataset, names, split, whole, train_split)
        part = first_rows(saved_part(path, choice.name) if saved else table_of(files[choice.name]), max_rows)
        return _records(part, choice)
    if _is_hub_id(dataset, path):
        choice = _chosen(dataset, hub_splits(dataset), split, whole, train_split)
        return _records(hub_part(dataset, choice.name, max_rows), choice)
    _no_train_split(dataset, train_split)
    if dataset == "docstrings":
        from gakd.data.docstrings import harvested

        part = first_rows(table_of([harvested()]), max_rows)
        return _records(part, alone._replace(divided=True))._replace(by_response=True)
    if path.is_file():
        return _records(first_rows(table_of([path]), max_rows), alone)
    if dataset in SHORT_NAMES:
        return _records(first_rows(known_part(dataset, split), max_rows), alone._replace(divided=False))
    if glob.has_magic(dataset):
        return _records(first_rows(table_of(globbed(str(path))), max_rows), alone)
    known = ["docstrings", *SHORT_NAMES]
    close = difflib.get_close_matches(dataset, known, 1)
    raise DataError(
        f"no dataset {dataset!r}{f', did you mean {close[0]!r}?' if close else ''}: "
        f"give {', '.join(known)}, a .jsonl file, a folder of train.jsonl, or a hub id owner/name"
    )


def _records(part: Part, choice: _Choice) -> Records:
    return Records(part.table, part.files, part.lines, choice.divided, choice.present, part.fingerprint)


def _chosen(dataset: str, names: Sequence[str], split: Split, whole: bool, train_split: str | None) -> _Choice:
    """Which of the source's own splits a split is read from."""
    listed = ", ".join(names)
    if train_split is not None and train_split not in names:
        raise DataError(f"{dataset} has no split {train_split!r}, only {listed}: correct --train-split")
    own = {
        held_out: next(name for name in accepted if name in names and name != train_split)
        for held_out, accepted in _HELD_OUT.items()
        if any(name in names and name != train_split for name in accepted)
    }
    if split in own:
        return _Choice(own[split], False, frozenset(own))
    train = train_split or ("train" if "train" in names else names[0] if len(names) == 1 and not own else None)
    if train is None:
        raise DataError(
            f"{dataset} has no {split} split, only {listed}: name the one to train on with --train-split NAME"
        )
    return _Choice(train, len(own) < len(_HELD_OUT) and not (whole and len(names) == 1), frozenset(own))


def _path(dataset: str) -> Path:
    if not dataset.strip():
        raise DataError("the dataset's name is empty: give a name, a file or a folder")
    try:
        path = Path(dataset).expanduser()
        path.exists()  # asks the file system, which may refuse the name itself
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{dataset[:60]!r} is no usable path: {error.args[-1]}; give a file or a folder") from None
    return path


def _is_hub_id(dataset: str, path: Path) -> bool:
    local = dataset.startswith((".", "/", "~")) or dataset.lower().endswith(SUFFIXES) or glob.has_magic(dataset)
    return dataset.count("/") == 1 and not local and not path.exists()


def _no_train_split(dataset: str, train_split: str | None) -> None:
    if train_split is not None:
        raise DataError(
            f"--train-split {train_split} names a split of a folder or of a hub set, but {dataset} has none: leave it out"
        )
