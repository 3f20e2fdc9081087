"""A hook of mkdocs: a notebook among the pages becomes a page, with the outputs that are stored in it.

Nothing runs and nothing is fetched. The notebook's own file stays beside the page, to be downloaded. A link to a notebook, as
a code host wants it, becomes one to its page.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(\]\([^)\s:#]+)\.ipynb((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        place = PurePosixPath(notebook.src_uri)
        text, pictures = page_of(json.loads(notebook.content_string), place.stem)
        files.append(File.generated(config, str(place.with_suffix(".md")), content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, str(place.with_name(name)), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return _LINK.sub(r"\1.md\2", markdown)


def page_of(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook's Markdown, and the pictures in it by the names of their files; `stem` is the notebook's own name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = {kind: "".join(value) for kind, value in _data(output).items() if isinstance(value, (str, list))}
            if "image/png" in data:
                name = f"{stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![figure {len(pictures)}]({name})")
            elif "text/html" in data:
                parts.append(f'<div class="output">{data["text/html"].strip()}</div>')
            elif data.get("text/plain", "").strip():
                parts.append(f"```text {{.output}}\n{data['text/plain'].rstrip()}\n```")
    download = f'<a href="{stem}.ipynb" download>Download this page as a notebook</a>'
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n{download}\n{rest}\n", pictures


def _data(output: dict[str, Any]) -> dict[str, Any]:
    """What an output shows, by kind; a stream is plain text, and what an error says is no part of a page."""
    return {"text/plain": output["text"]} if output["output_type"] == "stream" else output.get("data", {})
