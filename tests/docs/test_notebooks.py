"""The notebooks run in a kernel as a reader runs them, and hold what they show; the site shows it too."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.doc_blocks import name_of
from tests.docs.test_names import DOTTED, exists
from tests.notebooks import MARK, NOTEBOOKS, code_mark, executed
from tests.recipe_table import ROOT

LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def sources(notebook: dict, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def shown(notebook: dict) -> list[set[str]]:
    """The kinds of what each cell of code shows."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [{kind for output in cell["outputs"] for kind in output.get("data", ())} for cell in cells]


def test_there_is_a_tutorial():
    assert "docs/tutorial.ipynb" in map(name_of, NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_holds_the_outputs_of_its_code_and_no_error(path):
    notebook = read(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["metadata"].get(MARK) == code_mark(notebook), "run python -m tests.notebooks"
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"] == []
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_what_a_notebook_mentions_exists(path):
    text = "\n".join(sources(read(path), "markdown") + sources(read(path), "code"))
    assert {name for name in DOTTED.findall(text) if not exists(name)} == set()
    for link in LINK.findall("\n".join(sources(read(path), "markdown"))):
        assert link.startswith("https:") or (path.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_and_shows_what_it_holds(path, tmp_path, monkeypatch):
    for module in ("nbclient", "ipykernel"):
        pytest.importorskip(module, reason="the extra gakd[dev] runs notebooks")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    assert shown(executed(path)) == shown(read(path))


def hook() -> ModuleType:
    pytest.importorskip("mkdocs", reason="the extra gakd[docs] builds the site")
    spec = importlib.util.spec_from_file_location("notebook_pages", ROOT / "docs/hooks/notebook_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["notebook_pages"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_page_of_the_site_has_all_text_code_and_figures_of_its_notebook(path):
    notebook = read(path)
    text, pictures = hook().page_of(notebook, path.stem)
    for source in sources(notebook, "markdown")[1:] + sources(notebook, "code"):
        assert source in text
    assert len(pictures) == sum("image/png" in kinds for kinds in shown(notebook)) > 0
    for name, content in pictures.items():
        assert f"]({name})" in text
        assert content.startswith(b"\x89PNG")
    assert f'href="{path.name}" download' in text


def test_what_a_cell_prints_shows_and_fails_with_is_told_apart():
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["one\n", "two\n"]},
        {"output_type": "execute_result", "data": {"text/plain": ["plain"], "text/html": ["<b>", "rich</b>"]}},
        {"output_type": "display_data", "data": {"text/plain": ["<Figure>"], "image/png": "iVBORw0KGgo="}},
        {"output_type": "error", "ename": "E", "evalue": "e", "traceback": ["secret"]},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["x = 1\n", "x"], "outputs": outputs},
    ]
    text, pictures = hook().page_of({"cells": cells}, "name")
    assert pictures == {"name-1.png": b"\x89PNG\r\n\x1a\n"}
    head, rest = text.split("\n\n", 1)
    assert head == "# Title"
    assert rest.split("\n\n") == [
        '<a href="name.ipynb" download>Download this page as a notebook</a>\ntext',
        "```python\nx = 1\nx\n```",
        "```text {.output}\none\ntwo\n```",
        '<div class="output"><b>rich</b></div>',
        "![figure 1](name-1.png)\n",
    ]
