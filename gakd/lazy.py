"""Public names of a room that are imported when they are first asked for: most of them bring transformers along."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazily(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, from the imports in its `if TYPE_CHECKING:` block.

    So where a name comes from is said once. A room writes its `__all__` out all the same: to a type checker, a name in no list
    that it can read is private. A name that a file of the package has too would come out as that file once it is imported:
    such a room imports its names outright.
    """
    (block,) = (node for node in ast.parse(Path(file).read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    homes = {
        name.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names
    }

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get, lambda: sorted({*vars(import_module(package)), *homes})
