"""The table of recipes in recipes/README.md, made from the recipes: `python -m tests.recipe_table` writes it anew."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

from gakd.cli.recipe_files import entry, recipes

ROOT = Path(__file__).parent.parent
README = ROOT / "recipes" / "README.md"
BEGIN = "<!-- made by python -m tests.recipe_table -->"
END = "<!-- end of what is made -->"

TEMPLATE = ROOT / "recipes" / "gakd.py"
RECIPES = {path.stem: path for path in recipes().values()}


def code(path: Path) -> list[str]:
    """Lines below the docstring."""
    text = path.read_text()
    return text.splitlines()[ast.parse(text).body[0].end_lineno :]


def difference(path: Path) -> int:
    """Lines of code that were added to those of gakd.py, and that were taken out."""
    return sum(line[0] in "+-" for line in difflib.ndiff(code(TEMPLATE), code(path)))


def table() -> str:
    lines = ["| method | paper | command | lines that differ from `gakd.py` |", "| --- | --- | --- | --- |"]
    for path in RECIPES.values():
        method, paper = entry(path)
        name = path.relative_to(ROOT / "recipes").as_posix()
        changed = "–" if path == TEMPLATE else difference(path)
        lines.append(f"| {method} | {paper} | [`python recipes/{name}`]({name}) | {changed} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The README's text with the table in its place; ValueError where its marks are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{README} needs the lines {BEGIN} and {END} around the table")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
