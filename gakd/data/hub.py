"""Sets on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from gakd.data.rows import DataError
from gakd.data.splits import Split
from gakd.data.tables import Part, digest


class HubSet(NamedTuple):
    """Files of a hub repository that make up each split, and how many of the leading training rows are validation."""

    name: str
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    leading_valid: int = 0


# The sets of MiniLLM, which the paper trains and evaluates on; of the last two, both score the references above 10 words.
SHORT_NAMES = {
    "dolly": HubSet("MiniLLM/dolly", train=("raw.jsonl",), test=("valid.jsonl",), leading_valid=1000),
    "self-inst": HubSet("MiniLLM/self-inst", test=("valid.jsonl",)),
    "vicuna": HubSet("MiniLLM/Vicuna", test=("valid.jsonl",)),
    "sinst": HubSet("MiniLLM/sinst", test=("11_/valid.jsonl",)),
    "uinst": HubSet("MiniLLM/uinst", test=("11_/valid.jsonl",)),
}


def known_part(dataset: str, split: Split) -> Part:
    """One split of a set of `SHORT_NAMES`."""
    known = SHORT_NAMES[dataset]
    files = known.test if split == "test" else known.train
    if not files:
        trainable = [name for name, entry in SHORT_NAMES.items() if entry.train]
        raise DataError(f"{dataset} is for evaluation alone, it has no {split} split: train on {', '.join(trainable)}")
    import datasets

    table = _called(known.name, lambda: datasets.load_dataset(known.name, data_files=list(files), split="train"))
    part = _part(table, f"{known.name}[train]")
    if split == "test":
        return part
    leading = min(known.leading_valid, len(table))
    begin, end = (0, leading) if split == "valid" else (leading, len(table))
    return part._replace(
        table=table.select(range(begin, end)),
        files=((f"{known.name}[train]", -begin),),
        fingerprint=digest([part.fingerprint, begin, end]),
    )


def hub_splits(dataset: str) -> list[str]:
    """The names of the splits of owner/name, or of owner/name:config."""
    import datasets

    return list(_called(dataset, lambda: cast(Any, datasets.get_dataset_split_names)(*_arguments(dataset))))


def hub_part(dataset: str, split: str, max_rows: int | None) -> Part:
    """One split; with `max_rows`, nothing behind so many rows is downloaded."""
    import datasets

    arguments = _arguments(dataset)
    if max_rows is None:
        table = _called(dataset, lambda: datasets.load_dataset(*arguments, data_files=None, split=split))
        return _part(table, f"{arguments[0]}[{split}]")

    def taken() -> Any:
        stream = datasets.load_dataset(*arguments, split=split, streaming=True)
        rows = list(stream.take(max_rows))
        return rows, datasets.Dataset.from_list(rows, features=stream.features)

    rows, table = _called(dataset, taken)
    mark = digest([dataset, split, json.dumps(rows, default=str)])
    return Part(table, ((f"{arguments[0]}[{split}]", 0),), False, mark)


def _arguments(dataset: str) -> list[str]:
    repository, _, config = dataset.partition(":")
    return [repository, config] if config else [repository]


def _part(table: Any, name: str) -> Part:
    return Part(table, ((name, 0),), False, digest([name, table._fingerprint]))


def _called(name: str, call: Callable[[], Any]) -> Any:
    try:
        with _without_bars():
            return call()
    except Exception as error:  # the hub client raises a dozen kinds, all meaning that the set cannot be had
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # "Config name is missing." alone would not say which there are.
        reason = " ".join(line.strip() for line in lines[: 2 if "onfig" in lines[0] else 1])[:300]
        raise DataError(
            f"cannot load {name} from the hub: {reason.rstrip('.')}. Give a .jsonl file or a folder to work without it"
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
