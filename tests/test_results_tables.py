"""The page of results says what the studies' files say."""

from __future__ import annotations

import json

from tests.results_tables import BLOCK, NUMBERS, PAGE, table, with_tables


def test_the_page_holds_the_tables_of_the_files():
    page = PAGE.read_text()
    assert BLOCK.search(page)
    assert with_tables(page) == page, "run python -m tests.results_tables"


def test_a_table_has_a_row_a_method_and_marks_what_excludes_zero():
    study = BLOCK.search(PAGE.read_text())[2]
    entries = json.loads((NUMBERS / f"{study}.json").read_text())["entries"]
    compared = {entry["label"]: entry["differences"] for entry in entries.values() if "differences" in entry}
    lines = [line for kind in ("differences", "ablations") for line in table(kind, study).splitlines()[2:]]
    rows = {row.split(" | ")[0].strip("| "): row for row in lines}
    assert rows.keys() == compared.keys()
    for label, differences in compared.items():
        interval = differences["rouge_l"]
        cell = rows[label].split(" | ")[1]
        assert f"{interval['estimate']:+.2f}" in cell
        assert cell.startswith("**") == (interval["low"] > 0 or interval["high"] < 0)
