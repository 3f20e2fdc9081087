"""The page on architecture names every room as the room does itself, and its picture has the floors that are tested."""

from __future__ import annotations

import ast
import re

from tests.recipe_table import ROOT
from tests.test_imports import FLOORS, PACKAGE


def test_the_page_has_each_room_in_its_own_words():
    rows = dict(re.findall(r"^\| `([\w/]+)/` \| (.+) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE))
    rooms = {path.parent.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.glob("*/**/__init__.py")}
    own = {
        room: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for room, path in rooms.items()
    }
    assert rows == own


def test_the_picture_has_the_floors_from_the_top_down():
    picture = re.findall(r'<text x="[\d.]+" y="(\d+)"[^>]*>(\w+)</text>', (ROOT / "docs/floors.svg").read_text())
    heights = sorted({int(height) for height, _ in picture}, reverse=True)
    drawn = [{room for height, room in picture if int(height) == own} for own in heights]
    assert drawn == [
        {room for room in floor.split() if not room.startswith("__")} for floor in FLOORS.strip().splitlines()
    ]
