"""The notebooks of the documentation: run in a kernel, as a reader runs them, and written back with what they showed.

`python -m tests.notebooks` does so to all of them; run it after a change to a cell or to what a cell shows.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tests.recipe_table import ROOT

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
MARK = "ran"  # in a notebook's metadata: the hash of the code whose outputs it holds


def code_mark(notebook: dict[str, Any]) -> str:
    """A hash of all code of a notebook."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def executed(path: Path) -> Any:
    """The notebook with the outputs of a kernel of its own; nbclient.CellExecutionError where a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    # Of this tree and no other: a kernel starts in the notebook's folder.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    environment.pop("MPLBACKEND", None)  # a kernel has its own, which shows figures
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})
    client.execute(env=environment)
    return notebook


def settled(notebook: Any) -> Any:
    """Less what another run of the same code would have otherwise: times, and bars that were drawn over each other."""
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        if cell["cell_type"] == "code":
            cell["outputs"] = [one for one in cell["outputs"] if one.get("name") != "stderr"]
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"]["language_info"] = {"name": "python"}
    notebook["metadata"][MARK] = code_mark(notebook)
    return notebook


def main() -> None:
    import nbformat

    for path in NOTEBOOKS:
        nbformat.write(settled(executed(path)), path)


if __name__ == "__main__":
    main()
