"""The tables of docs/results.md, from the studies' own numbers: `python -m tests.results_tables` writes them anew."""

from __future__ import annotations

import json
import re

from gakd.study.grid import VARIED
from gakd.study.intervals import Interval
from gakd.study.results import ALL
from gakd.study.tables import heading, markdown, marked, plus_minus
from tests.recipe_table import ROOT

PAGE, NUMBERS = ROOT / "docs" / "results.md", ROOT / "docs" / "results"
HEADLINE = ("rouge_l", "rouge_l/long", "sequence_kl", "own_reverse_kl", "teacher_log_likelihood", "two_sample")
PRICE = ("cross_entropy", "own_forward_kl", "own_entropy", "distinct_2", "length_ratio", "finished")
TEMPERATURES = ("temperature 1", "temperature 0.9", "temperature 0.8", "temperature 0.7")  # ROUGE-L of text sampled so
LENGTHS = ("rouge_l/short", "rouge_l/medium", "rouge_l/long", "own_reverse_kl/long")
# kind of table -> what it takes of each entry, and its columns
KINDS = {
    "values": ("measures", HEADLINE),
    "differences": ("differences", HEADLINE),
    "ablations": ("to_control", HEADLINE),
    "price": ("measures", PRICE),
    "lengths": ("differences", LENGTHS),
    "adversary": ("to_control", HEADLINE),
    "temperatures": ("measures", TEMPERATURES),
    "leads": ("differences", TEMPERATURES),
}
BLOCK = re.compile(r"<!-- table (\S+) of (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def table(kind: str, study: str) -> str:
    """The table that `KINDS` calls `kind`, of `docs/results/STUDY.json`.

    Ablations are compared with GAKD; differences, lengths and prices are those of methods with as many seeds as the reference.
    """
    found = json.loads((NUMBERS / f"{study}.json").read_text())
    entries, seeds = found["entries"], len(found["entries"][found["reference"]]["seeds"])
    part, names = KINDS[kind]
    known = {measure.name: measure for measure in ALL}
    known |= {name: known["rouge_l"]._replace(name=name, title=name) for name in TEMPERATURES}
    write = plus_minus if part == "measures" else marked
    rows = []
    for entry in entries.values():
        control = entry.get("control")
        shown = {
            "values": True, "ablations": control == VARIED, "adversary": control not in (None, VARIED),
        }.get(kind, len(entry["seeds"]) == seeds or "differences" not in entry)  # fmt: skip
        if part in entry and shown:
            label = f"{entry['label']} − {entries[control]['label']}" if kind == "adversary" else entry["label"]
            cells = [write(Interval(**entry[part][name]), known[name].decimals) for name in names]
            rows.append([label, *map(_two_lines, cells)])
    return markdown(["", *(heading(known[name]) for name in names)], rows)


def with_tables(page: str) -> str:
    return BLOCK.sub(
        lambda block: f"<!-- table {block[1]} of {block[2]} -->\n{table(block[1], block[2])}\n<!-- end -->", page
    )


def _two_lines(cell: str) -> str:
    """Six columns of intervals fit a page when each interval stands under its estimate."""
    return cell.replace(" [", "<br>[").replace(", ", ",&nbsp;")


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
