"""The order of the rooms, read off the source: a file imports what is below its room, and no two files import each other."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gakd"
# From the ground up. A room imports rooms of the floors below it; nothing imports the top floor.
FLOORS = """
products
types errors files pipes seeds machine weights rewards lazy version
extras
flags objective models logging
losses data
adversary teachers
distiller planning
run
samplers
evaluation
report
cli
study __init__ __main__
"""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS.strip().splitlines()) for room in rooms.split()}
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}
MODULES = {f"gakd.{name}".replace("/", ".").removesuffix(".__init__"): path for name, path in FILES.items()}


def imported(path: Path) -> set[str]:
    """Full dotted names of what a file imports, inside functions and for type checkers too."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in froms), f"{path}: imports are absolute"
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_what_is_below_its_room(file):
    room, names = file.split("/")[0], imported(FILES[file])
    others = {name.split(".")[1] for name in names if name.startswith("gakd.")} - {room}
    assert {other for other in others if FLOOR.get(other, 99) >= FLOOR[room]} == set()
    roots = {name.split(".")[0] for name in names}
    assert not {"recipes", "lightning"} & roots
    assert room == "run" or "lightning_fabric" not in roots
    pure = {"products", "types", "losses/functional"}  # maths on tensors
    assert file not in pure or roots - {"gakd"} <= {"torch", *sys.stdlib_module_names}


def test_no_circle_of_files():
    homes = {
        name: {one if one in MODULES else one.rpartition(".")[0] for one in imported(MODULES[name])} for name in MODULES
    }
    list(TopologicalSorter({name: found & MODULES.keys() for name, found in homes.items()}).static_order())
