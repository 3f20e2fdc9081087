"""The page of results says what the studies' files say."""

from __future__ import annotations

import json

import pytest

from tests.results_tables import BLOCK, NUMBERS, PAGE, table, with_tables


def test_the_page_holds_the_tables_of_the_files():
    page = PAGE.read_text()
    assert BLOCK.search(page)
    assert with_tables(page) == page, "run python -m tests.results_tables"


@pytest.mark.parametrize(("kind", "part"), [("differences", "differences"), ("ablations", "to_control")])
def test_a_table_has_a_row_a_method_and_marks_what_excludes_zero(kind, part):
    entries = json.loads((NUMBERS / "study.json").read_text())["entries"]
    compared = {
        entry["label"]: entry[part]
        for entry in entries.values()
        if part in entry and (len(entry["seeds"]) == 5 if kind == "differences" else entry["control"] == "gakd")
    }
    rows = {row.split(" | ")[0].strip("| "): row for row in table(kind, "study").splitlines()[2:]}
    assert len(rows) > 10
    assert rows.keys() == compared.keys()
    for label, differences in compared.items():
        interval = differences["rouge_l"]
        cell = rows[label].split(" | ")[1]
        assert f"{interval['estimate']:+.2f}" in cell
        assert cell.startswith("**") == (interval["low"] > 0 or interval["high"] < 0)
