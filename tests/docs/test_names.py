"""Names and files that pages, docstrings and comments mention are there: what moves takes its mentions along."""

from __future__ import annotations

import pkgutil
import re

import pytest

from tests.doc_blocks import PAGES, name_of
from tests.recipe_table import ROOT

SOURCES = [path for folder in ("gakd", "recipes", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
DOTTED = re.compile(r"(?<![\w./-])gakd(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(r"(?<![\w./-])(?:gakd|recipes|tests|docs)/[a-z0-9_/-]+\.(?:py|md|svg|json)\b")
# Suffixes of files, and what a test asks for because it is not there.
OTHERS = {"gakd.py", "gakd.yaml", "gakd.nobody", "recipes/none.py"}


def exists(dotted: str) -> bool:
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=name_of)
def test_what_is_mentioned_exists(path):
    text = path.read_text()
    assert {name for name in {*DOTTED.findall(text)} - OTHERS if not exists(name)} == set()
    assert {file for file in {*FILE.findall(text)} - OTHERS if not (ROOT / file).exists()} == set()
