"""What became of the rows of a split: how many are kept, left out and cut, and what a run says of it."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from gakd.data.encoded import TOO_LONG, UNTRAINED, Examples, column, unpacked
from gakd.data.examples import report_long_prompts
from gakd.data.records import Records, key_of
from gakd.data.rows import bad_rows_line, reason_of
from gakd.data.splits import SPLITS, held_out_of_few

UNANSWERED = "it has no response to compare with"


class Summary(NamedTuple):
    """Counts of one split."""

    rows: int
    kept: int  # rows of which an example is left
    cut: int  # of those that are kept
    left_out: dict[str, tuple[int, str]]  # why, how many, and where the first of them stands
    examples: Examples

    @property
    def cut_share(self) -> float:
        return self.cut / max(self.kept, 1)


def sides(table: Any, records: Records) -> np.ndarray:
    """Indices in `SPLITS` of the rows of a table, -1 where it has none; each split has a row where there are enough.

    The table's are by the hash of a row alone, which may leave a split of a small source without any: `held_out_of_few`.
    """
    of_split = column(table, "split")
    wanted = [SPLITS.index(split) for split in SPLITS if split not in records.present]
    usable = (column(table, "problem") == "") & column(table, "answered")
    if not records.divided or not usable.any() or set(wanted) <= set(of_split[usable].tolist()):
        return of_split
    keys = {
        int(place): key_of(records, unpacked(table.data.column("row")[place].as_py()))
        for place in np.flatnonzero(usable)
    }
    held_out = held_out_of_few(keys.values(), records.present)
    found = np.where(of_split >= 0, SPLITS.index("train"), of_split)
    for place, key in keys.items():
        found[place] = SPLITS.index(held_out.get(key, "train"))
    return found


def summary_of(table: Any, of_split: np.ndarray, split: int | None, answered: bool = False) -> Summary:
    """Counts of the rows of a split (None: of all), and its examples; with `answered`, of those that have a response alone.

    `of_split` are the rows' `sides`.
    """
    problems = column(table, "problem")
    if answered:
        problems = np.where((problems == "") & ~column(table, "answered"), UNANSWERED, problems)
    # A row that could not be read has no side; it counts where it would have been trained on.
    chosen = np.ones(len(of_split), bool) if split is None else (of_split == split) | ((of_split == -1) & (split == 0))
    good = problems == ""
    places, bad = np.flatnonzero(chosen & good).astype(np.int32), np.flatnonzero(chosen & ~good)
    left_out: dict[str, tuple[int, str]] = {}
    reasons = [_kind(str(problems[place]), table, int(place)) for place in bad]
    for reason, count in Counter(reasons).most_common():
        left_out[reason] = (count, where_of(table, int(bad[reasons.index(reason)])))
    rows = places[column(table, "first")[places]]  # a row may have several examples
    cut = int(column(table, "cut")[rows].sum())
    return Summary(len(rows) + len(bad), len(rows), cut, left_out, Examples(table, places))


def where_of(table: Any, place: int) -> str:
    fields = json.loads(table.data.column("row")[place].as_py())
    return fields.get("where") or fields.get("instruction", "")[:40]


def _kind(problem: str, table: Any, place: int) -> str:
    """A row's reason without what is its own."""
    if problem in (TOO_LONG, UNTRAINED, UNANSWERED):
        return problem
    return reason_of(problem, where_of(table, place))


def report_left_out(summary: Summary, name: str, max_prompt_length: int) -> None:
    """A warning for each way in which rows were left out; DataError where none is left."""
    bad = {
        reason: found for reason, found in summary.left_out.items() if reason not in (TOO_LONG, UNTRAINED, UNANSWERED)
    }
    if bad:
        reasons = Counter({reason: count for reason, (count, _) in bad.items()})
        warnings.warn(bad_rows_line(name, reasons, next(iter(bad.values()))[1]), stacklevel=3)
    if UNTRAINED in summary.left_out:
        count, first = summary.left_out[UNTRAINED]
        warnings.warn(
            f"{name}: left out {count} rows, all turns of which have weight 0, the first at {first}", stacklevel=3
        )
    if TOO_LONG in summary.left_out:
        count, first = summary.left_out[TOO_LONG]
        report_long_prompts(count, summary.kept + count, max_prompt_length, first)


def cut_line(summary: Summary, split: str, max_length: int) -> str | None:
    """How many responses `--max-length` cuts; None where it cuts none."""
    if not summary.cut:
        return None
    return f"{split}: {summary.cut:,} of {summary.kept:,} responses are cut at {max_length} tokens (--max-length), and do not end"
