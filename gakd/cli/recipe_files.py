"""Where the recipes are, in a checkout and in an installed package, and what each says of itself."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from gakd.errors import InputError

_FIRST_LINE = re.compile(r"(?P<method>.+) \((?P<paper>[^()]+)\)\.")
_PACKAGE = Path(__file__).parent.parent
_INSTALLED = _PACKAGE / "recipes"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "recipes"
TOOLS = "tools"


class Entry(NamedTuple):
    """What a recipe says of itself in its docstring's first line: `METHOD, one clause (PAPER, arXiv ID).`"""

    method: str
    paper: str


def recipes() -> dict[str, Path]:
    """Name -> file of each recipe: `gakd`, `ablations/gakd_gan`, `baselines/sft`; the template first."""
    return {
        path.relative_to(FOLDER).with_suffix("").as_posix(): path
        for folder in (".", "ablations", "baselines")
        for path in sorted((FOLDER / folder).glob("*.py"))
    }


def tools() -> dict[str, Path]:
    return {f"{TOOLS}/{path.stem}": path for path in sorted((FOLDER / TOOLS).glob("*.py"))}


def find(name: str) -> Path:
    """The file of a recipe or tool, by its name with or without folder and suffix; InputError for one that there is not."""
    known = recipes() | tools()
    wanted = name.removesuffix(".py").removeprefix("recipes/")
    for key, path in known.items():
        if wanted in (key, path.stem):
            return path
    close = difflib.get_close_matches(wanted, [*known, *(path.stem for path in known.values())], 1)
    raise InputError(f"no recipe {name!r}{f', did you mean {close[0]!r}?' if close else ''}: `gakd ls` lists them")


def load_recipe(path: Path) -> ModuleType:
    """A recipe or tool as a module: they are no package. InputError where there is no such file."""
    spec = importlib.util.spec_from_file_location(f"gakd_recipe_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"no recipe at {path}: give a recipe's file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses looks its annotations up there
    spec.loader.exec_module(module)
    return module


def entry(path: Path) -> Entry:
    """ValueError for a docstring that does not begin as it should."""
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    if (found := _FIRST_LINE.fullmatch(first)) is None:
        raise ValueError(
            f"{path}: a recipe's docstring begins with `Method, one clause (Paper, arXiv ID).`, got {first!r}"
        )
    return Entry(**found.groupdict())


def summary(path: Path) -> str:
    """The first line of a tool's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
