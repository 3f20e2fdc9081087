"""The tables of docs/results.md, from the studies' own numbers: `python -m tests.results_tables` writes them anew."""

from __future__ import annotations

import json
import re
from typing import Any

from gakd.study.results import ALL
from tests.recipe_table import ROOT

PAGE, NUMBERS = ROOT / "docs" / "results.md", ROOT / "docs" / "results"
HEADLINE = ("rouge_l", "rouge_l/long", "sequence_kl", "own_reverse_kl", "teacher_log_likelihood", "two_sample")
LENGTHS = ("rouge_l/short", "rouge_l/medium", "rouge_l/long", "own_reverse_kl/long")
BLOCK = re.compile(r"<!-- table (\S+) of (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def table(kind: str, study: str) -> str:
    """`values`, `differences`, `lengths` or `adversary` of `docs/results/STUDY.json`."""
    entries = json.loads((NUMBERS / f"{study}.json").read_text())["entries"]
    if kind == "values":
        return _table(HEADLINE, entries, "measures", signed=False)
    if kind == "adversary":
        named = {
            f"{entry['label']} − {entries[entry['control']]['label']}": entry
            for entry in entries.values()
            if "control" in entry
        }
        return _table(HEADLINE, {name: entry | {"label": name} for name, entry in named.items()}, "adversary_alone")
    return _table({"differences": HEADLINE, "lengths": LENGTHS}[kind], entries, "differences")


def with_tables(page: str) -> str:
    return BLOCK.sub(
        lambda block: f"<!-- table {block[1]} of {block[2]} -->\n{table(block[1], block[2])}\n<!-- end -->", page
    )


def _table(measures: tuple[str, ...], entries: dict[str, Any], part: str, signed: bool = True) -> str:
    known = {measure.name: measure for measure in ALL}
    arrows = {"higher": " ↑", "lower": " ↓", "nearer 0.5": " → 0.5", "as the teacher": ""}
    headings = [f"{known[name].title}, {known[name].unit}{arrows[known[name].better]}" for name in measures]
    rows = []
    for entry in entries.values():
        if part in entry:
            cells = [_cell(entry[part][name], known[name].decimals, signed) for name in measures]
            rows.append([entry["label"], *cells])
    lines = [["", *headings], ["---", *["---:"] * len(measures)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(interval: dict[str, float], decimals: int, signed: bool) -> str:
    estimate, low, high = interval["estimate"], interval["low"], interval["high"]
    if not signed:
        return f"{estimate:.{decimals}f} ± {(high - low) / 2:.{decimals}f}"
    text = f"{estimate:+.{decimals}f}<br>[{low:+.{decimals}f},&nbsp;{high:+.{decimals}f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
