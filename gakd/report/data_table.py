"""The report's table of what each run was taught: rows of its training split, what was left out and cut, lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gakd.report.groups import Group
from gakd.report.read import RunData


class DataRow(NamedTuple):
    name: str
    place: int
    rows: str
    left_out: str
    cut: str
    tokens: str
    prompts: str  # lengths in tokens, as `_lengths` has them
    responses: str
    whole: str


def data_rows(groups: Sequence[Group]) -> list[DataRow]:
    """One for each run that has kept its counts."""
    return [
        row
        for index, group in enumerate(groups)
        for name, run in zip(group.names, group.runs, strict=True)
        if (row := _row(name, index, run)) is not None
    ]


def _row(name: str, index: int, run: RunData) -> DataRow | None:
    counts: Any = run.data.get("train")
    try:
        left_out = "; ".join(f"{count:,}: {reason}" for reason, (count, _) in counts["left_out"].items())
        return DataRow(
            name, index, f"{counts['kept']:,} of {counts['rows']:,}", left_out or "none",
            f"{counts['cut']:,} ({100 * counts['cut'] / max(counts['kept'], 1):.1f} %)", f"{counts['supervised']:,}",
            *(_lengths(counts.get(which, {})) for which in ("prompt_length", "response_length", "length")),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):  # a file that something else wrote
        return None


def _lengths(spread: Any) -> str:
    """10 % quantile, median, 90 % quantile and maximum; a dash for what a run did not keep."""
    found = [spread.get(name) for name in ("p10", "median", "p90", "longest")]
    return " · ".join("–" if length is None else f"{length:,}" for length in found)
