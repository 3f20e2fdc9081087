"""What the package and its rooms hand out, and what asking for it brings along."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import MODULES

PARTS = "lightning_fabric datasets matplotlib peft tyro"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import gakd, gakd.cli, gakd.run", f"torch transformers {PARTS}"),
        ("from gakd.cli import command, list_recipes", "torch transformers lightning_fabric datasets matplotlib peft"),
        ("from gakd import ReverseKL, RelativisticGAN", f"transformers {PARTS}"),
        ("from gakd import Distiller", PARTS),
    ],
)
def test_an_import_brings_no_library_that_it_does_not_need(code, heavy):
    code = f"import sys; {code}; print(*set('{heavy}'.split()) & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def imported_for_type_checkers(path: Path) -> set[str]:
    (block,) = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    return {name.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for name in node.names}


def test_public_names_exist_and_are_no_files_of_their_room():
    for name, path in MODULES.items():
        if "lazily(" in path.read_text() and path.name == "__init__.py":
            module = importlib.import_module(name)
            assert {*module.__all__} == imported_for_type_checkers(path), f"{name}.__all__"
            assert all(hasattr(module, one) and not (path.parent / f"{one}.py").exists() for one in module.__all__)
            with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nobody'"):
                module.nobody  # noqa: B018
