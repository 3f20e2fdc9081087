"""Pages of the documentation and the blocks of code in them: what the tests of docs share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.recipe_table import ROOT

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "recipes" / "README.md"])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def run_page(name: str, given: dict[str, Any], changes: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a page's blocks of Python in their order, in one namespace that holds what is given, and return it.

    `changes` are replacements of text: an address that a test can serve, say. ValueError where the page has none of it.
    """
    namespace = dict(given)
    for block in blocks(ROOT / name, "python"):
        for old, new in (changes or {}).items():
            block = block.replace(old, new)
        exec(compile(block, name, "exec"), namespace)
    text = "".join(blocks(ROOT / name, "python"))
    if missing := [old for old in changes or {} if old not in text]:
        raise ValueError(f"{name} no longer says {missing}")
    return namespace
