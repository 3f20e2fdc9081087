"""Faults that were tried and what became of them: tests note them, `python -m tests.reliability` runs those and writes the page.

The tables of docs/reliability.md are its output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

from tests.recipe_table import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- made by python -m tests.reliability -->", "<!-- end of what is made -->"
FILE = "GAKD_RELIABILITY"  # names the file that notes are appended to
TESTS = ("tests/recipes/test_kill.py", "tests/recipes/test_damage.py")

Kind = Literal["kills", "damage"]


def note(kind: Kind, what: str, tried: int, survived: int = 0, named: int = 0) -> None:
    """Faults of a kind: how many were tried, ended with the bits of a run without them, ended in a line that names them."""
    if path := os.environ.get(FILE):
        with Path(path).open("a") as file:
            file.write(
                json.dumps({"kind": kind, "what": what, "tried": tried, "survived": survived, "named": named}) + "\n"
            )


def tables(notes: list[dict[str, Any]]) -> str:
    return "\n\n".join(_table(kind, [one for one in notes if one["kind"] == kind]) for kind in ("kills", "damage"))


def _table(kind: str, notes: list[dict[str, Any]]) -> str:
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in notes:
        where = one["what"]
        if kind == "kills":  # recipes together, what is special apart
            name, _, moment = where.rpartition(", ")
            where = f"{name if ' ' in name else 'every recipe'} | {moment}"
        for place, value in enumerate((one["tried"], one["survived"], one["named"])):
            rows[where][place] += value
    if kind == "damage":
        rows = defaultdict(lambda: [0, 0, 0], sorted(rows.items()))
    rows["**together**" + (" | " if kind == "kills" else "")] = [
        sum(row[place] for row in rows.values()) for place in range(3)
    ]
    if kind == "kills":
        head = "| what | killed | kills | resumed to the same bits |\n| --- | --- | --- | --- |"
        return "\n".join([head, *(f"| {what} | {tried} | {survived} |" for what, (tried, survived, _) in rows.items())])
    head = "| file | damaged | same bits all the same | named in a line | neither |\n| --- | --- | --- | --- | --- |"
    lines = [
        f"| {what} | {tried} | {survived} | {named} | {tried - survived - named} |"
        for what, (tried, survived, named) in rows.items()
    ]
    return "\n".join([head, *lines])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "notes.jsonl"
        path.touch()
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *TESTS, *sys.argv[1:]],
            cwd=ROOT,
            env=os.environ | {FILE: str(path)},
            check=False,
        )
        if result.returncode:
            sys.exit("a test failed: the page is left as it was")
        notes = [json.loads(line) for line in path.read_text().splitlines()]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(notes)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
