"""The rows of a split in memory, for small sets; `gakd.data.records` opens the large ones."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from gakd.data.columns import rename
from gakd.data.formats import row_from
from gakd.data.records import Records, belongs, key_of, open_records, read
from gakd.data.rows import DataError, Row, bad_rows_line, reason_of
from gakd.data.splits import SPLITS, Split, held_out_of_few
from gakd.data.tables import refusing

_BATCH = 16  # rows that are decoded at a time: one may be of megabytes


def load_rows(
    dataset: str,
    split: Split,
    skip_bad_rows: bool = False,
    whole: bool = False,
    columns: Mapping[str, str] | None = None,
    train_split: str | None = None,
    max_rows: int | None = None,
    may_be_prompt: bool = False,
) -> list[Row]:
    """The rows of one split.

    `dataset` is "docstrings"; a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow; the text kinds also as .gz or .zst); a
    pattern such as data/*.parquet; a folder whose files' names say train, valid or test, or that `save_to_disk` of `datasets`
    wrote; one of dolly, self-inst, vicuna, sinst, uinst; or a hub id owner/name, or owner/name:config. A source without
    splits is divided by a hash of the prompt (`split_of`); one that lacks valid or test has them taken out of its training
    rows by the same hash, and where that leaves one empty, as in small sources, by `held_out_of_few`. `whole` takes a source
    without splits, or with one, undivided; `train_split` is what the split to train on is called; `max_rows` reads the first
    rows alone; `columns` and `may_be_prompt` are those of `gakd.data.formats`.
    A bad row is a DataError that names file and line; with `skip_bad_rows` bad rows are counted and reported as a warning. A
    split without rows is a DataError, as is a file that cannot be read.
    """
    records = open_records(dataset, split, whole, train_split, max_rows)
    rows: list[Row] = []
    reasons: Counter[str] = Counter()
    examples: list[str] = []
    for where, record in _all(records, dataset):
        try:
            if isinstance(record, DataError):
                raise record
            renamed = rename(record, columns or {}, where)
            rows.append(row_from(renamed, where, arrow=not records.lines, may_be_prompt=may_be_prompt))
        except DataError as error:
            if not skip_bad_rows:
                raise DataError(f"{error}. --skip-bad-rows leaves such rows out") from None
            reasons[reason_of(str(error), where)] += 1
            examples.append(where)
    if reasons:
        warnings.warn(bad_rows_line(dataset, reasons, examples[0]), stacklevel=2)
    rows = _of_split(rows, records, split)
    if not rows:
        raise DataError(
            f"{dataset} has no rows for the split {split!r}: give a larger file, or a folder with {split}.jsonl"
        )
    return rows


def _of_split(rows: list[Row], records: Records, split: Split) -> list[Row]:
    """As `gakd.data.summary.sides` has them."""
    usable = [row for row in rows if row.responses]
    wanted: list[Split] = [one for one in SPLITS if one not in records.present]
    if not records.divided or not usable or all(any(belongs(records, row, one) for row in usable) for one in wanted):
        return [row for row in rows if belongs(records, row, split)]
    held_out = held_out_of_few([key_of(records, row) for row in usable], records.present)
    return [row for row in rows if held_out.get(key_of(records, row), "train") == split]


def _all(records: Records, dataset: str) -> Iterator[tuple[str, Any]]:
    for start in range(0, len(records.table), _BATCH):
        with refusing(dataset):
            batch = records.table[start : start + _BATCH]
        yield from read(records, batch, range(start, min(start + _BATCH, len(records.table))))
