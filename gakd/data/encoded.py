"""Examples on disk: tokenized once by `datasets`, memory-mapped, found again by what made them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from gakd.data.columns import rename
from gakd.data.examples import Encoded, Encoder, Example
from gakd.data.formats import Untrained, row_from
from gakd.data.marks import encoder_marks
from gakd.data.records import Records, belongs, read
from gakd.data.rows import DataError, Row
from gakd.data.splits import SPLITS
from gakd.files import cache_dir
from gakd.machine import cores

FORMAT = 2
_KEPT_SECONDS = 30 * 24 * 3600
_BATCH, _BATCH_BYTES = 1000, 16 << 20
_ROWS_A_PROCESS = 4000  # fewer are done before a second process has started
TOO_LONG, UNTRAINED = "its prompt is too long", "all its turns have weight 0"


class Reading(NamedTuple):
    """How records become rows."""

    columns: Mapping[str, str]
    skip_bad_rows: bool = False
    whole: bool = False  # the source belongs to one split whole


class Examples(Sequence[Example]):
    """Rows of a memory-mapped table as examples; in memory are their places alone."""

    def __init__(self, table: Any, places: np.ndarray) -> None:
        self._table, self.places = table, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self._table, self.places[index])
        return _example(self._table[int(self.places[index])])

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self.places), _BATCH):
            batch = self._table[self.places[start : start + _BATCH].tolist()]
            for values in zip(*batch.values(), strict=True):
                yield _example(dict(zip(batch, values, strict=True)))

    def where(self, chosen: np.ndarray) -> Examples:
        """Those for which `chosen` is true."""
        return Examples(self._table, self.places[chosen])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return self.column("length")

    @property
    def keys(self) -> list[str]:
        """`Example.key` of each."""
        return [key.hex() for key in self.column("key")]

    def column(self, name: str) -> np.ndarray:
        return column(self._table, name)[self.places]


def column(table: Any, name: str) -> np.ndarray:
    """A column of a table of examples, whole."""
    return table.data.column(name).to_numpy()


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """Tokens of each example, read from the table where they are of one."""
    if isinstance(examples, Examples):
        return examples.lengths
    return np.fromiter((example.length for example in examples), np.int64, len(examples))


def prompt_lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """Tokens of each example's prompt, in the same way."""
    if isinstance(examples, Examples):
        return examples.column("prompt_length")
    return np.fromiter((len(example.prompt_ids) for example in examples), np.int64, len(examples))


def keys_of(examples: Sequence[Example]) -> list[str]:
    return examples.keys if isinstance(examples, Examples) else [example.key for example in examples]


def examples_mark(examples: Sequence[Example]) -> str:
    """A hash of the examples, in their order."""
    keys = (
        examples.column("key") if isinstance(examples, Examples) else [bytes.fromhex(key) for key in keys_of(examples)]
    )
    return hashlib.sha256(b"".join(keys)).hexdigest()[:32]


def encoded_table(records: Records, encoder: Encoder, reading: Reading) -> Any:
    """The examples of a source, as a table of `datasets`: from the cache where the same has been encoded before.

    A row that is left out stands in it with its reason (`problem`) and no ids. Raises DataError at the first bad row, unless
    they are left out.
    """
    import datasets
    import pyarrow

    mark = fingerprint(records, encoder, reading)
    path = cache_dir() / "examples" / f"{mark}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    _forget_old(path.parent, mark)
    count = len(records.table)
    processes = max(1, min(cores(), count // _ROWS_A_PROCESS))
    features = datasets.Features(
        {
            "prompt_ids": datasets.Sequence(datasets.Value("int32")),
            "response_ids": datasets.Sequence(datasets.Value("int32")),
            "trained": datasets.Sequence(datasets.Value("bool")),
            "length": datasets.Value("int32"), "prompt_length": datasets.Value("int32"), "cut": datasets.Value("bool"),
            "supervised": datasets.Value("int32"), "answered": datasets.Value("bool"), "first": datasets.Value("bool"),
            "split": datasets.Value("int8"),
            "key": datasets.Value("binary"), "problem": datasets.Value("string"), "row": datasets.Value("string"),
        }
    )  # fmt: skip
    if not count:  # of no rows nothing would be made, not even columns
        return datasets.Dataset.from_dict({name: [] for name in _EMPTY}, features=features)
    shown = datasets.are_progress_bars_disabled()
    if count < 5 * _ROWS_A_PROCESS:
        datasets.disable_progress_bars()

    def mapped() -> Any:
        return records.table.map(
            _Job(records._replace(table=None), encoder, reading),
            batched=True, batch_size=_batch_size(records.table), with_indices=True, features=features,
            remove_columns=records.table.column_names,
            num_proc=processes if processes > 1 else None, cache_file_name=str(path), new_fingerprint=mark,
            desc="tokenizing", load_from_cache_file=True,
        )  # fmt: skip

    try:
        return mapped()
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the table
            raise
        for damaged in path.parent.glob(f"{mark}*"):  # one that lost its end is made again
            damaged.unlink()
        return mapped()
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _forget_old(folder: Path, mark: str) -> None:
    """Remove tables that nobody has asked for in a month; asking for this one counts."""
    for path in folder.glob("*.arrow"):
        with contextlib.suppress(OSError):  # another process may have been first
            if path.name.startswith(mark):
                os.utime(path)
            elif time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                path.unlink()


def _batch_size(table: Any) -> int:
    """Rows that are encoded at once: fewer where they are long, since all of them are in memory."""
    return max(1, min(_BATCH, _BATCH_BYTES * len(table) // max(table.data.nbytes, 1)))


def fingerprint(records: Records, encoder: Encoder, reading: Reading) -> str:
    """A hash of all that decides what the table holds."""
    parts = [
        FORMAT,
        records.fingerprint,
        encoder_marks(encoder),
        reading._asdict() | {"columns": dict(reading.columns)},
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class _Job:
    """Encodes a batch of records; an object, so that processes can be given it."""

    def __init__(self, records: Records, encoder: Encoder, reading: Reading) -> None:
        self.records, self.encoder, self.reading = records, encoder, reading

    def __call__(self, batch: dict[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        if multiprocessing.parent_process() is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has a core of its own
        rows, bad = [], []
        for where, record in read(self.records, batch, indices):
            try:
                rows.append(self._row(record, where))
            except Untrained:
                bad.append(_left_out(UNTRAINED, where))
            except DataError as error:
                bad.append(self._refused(error, where))
        made = [
            record
            for row, encoded in zip(rows, self._encoded(rows, bad), strict=True)
            if encoded is not None
            for record in self._records(row, encoded)
        ]
        made += bad
        return {name: [record[name] for record in made] for name in _EMPTY}

    def _row(self, record: Any, where: str) -> Row:
        if isinstance(record, DataError):
            raise record
        if self.reading.columns:
            record = rename(record, self.reading.columns, where)
        return row_from(record, where, arrow=not self.records.lines, may_be_prompt=self.encoder.may_be_prompt)

    def _refused(self, error: DataError, where: str) -> dict[str, Any]:
        if not self.reading.skip_bad_rows:
            raise DataError(f"{error}. --skip-bad-rows leaves such rows out") from None
        return _left_out(str(error), where)

    def _encoded(self, rows: Sequence[Row], bad: list[dict[str, Any]]) -> list[Encoded | None]:
        try:
            return list(self.encoder(rows))
        except DataError:
            if not self.reading.skip_bad_rows:
                raise
        encoded: list[Encoded | None] = []
        for row in rows:
            try:
                encoded += self.encoder([row])
            except DataError as error:
                bad.append(self._refused(error, row.where))
                encoded.append(None)
        return encoded

    def _records(self, row: Row, encoded: Encoded) -> Iterator[dict[str, Any]]:
        records = self.records
        split = -1 if self.reading.whole or not records.divided else next(
            index for index, name in enumerate(SPLITS) if belongs(records, row, name)
        )  # fmt: skip
        about = _EMPTY | {
            "split": split,
            "prompt_length": encoded.prompt_length,
            "cut": encoded.cut,
            "answered": bool(row.responses),
        }
        if not encoded.examples:
            yield about | {"problem": TOO_LONG, "row": _packed(row)}
        for example in encoded.examples:
            yield about | {
                "first": example is encoded.examples[0], "prompt_length": len(example.prompt_ids),
                "prompt_ids": example.prompt_ids, "response_ids": example.response_ids,
                "trained": list(example.trained or ()), "length": example.length, "supervised": example.supervised,
                "key": bytes.fromhex(example.key), "row": _packed(row),
            }  # fmt: skip


_EMPTY: dict[str, Any] = {
    "prompt_ids": [], "response_ids": [], "trained": [], "length": 0, "prompt_length": 0, "cut": False, "supervised": 0,
    "answered": False, "first": True, "split": -1, "key": b"", "problem": "", "row": "",
}  # fmt: skip


def _left_out(problem: str, where: str) -> dict[str, Any]:
    return _EMPTY | {"problem": problem, "row": json.dumps({"where": where})}


def _packed(row: Row) -> str:
    """A row as JSON; what it has of no field stays away."""
    return json.dumps(
        {name: value for name, value in row._asdict().items() if value or name == "finished"}, ensure_ascii=False
    )


def unpacked(text: str) -> Row:
    fields = json.loads(text)
    for name in ("responses", "history", "between", "tools"):
        if name in fields:
            fields[name] = tuple(fields[name])
    return Row(**{"instruction": ""} | fields)


def _example(record: Mapping[str, Any]) -> Example:
    trained = tuple(record["trained"])
    return Example(record["prompt_ids"], record["response_ids"], unpacked(record["row"]), trained or None)
