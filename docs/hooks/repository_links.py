"""A hook of mkdocs: pages link to files of the repository as a code host wants it, and the site has those files too.

Pages of the repository's root and recipes/README.md become pages beside those of docs/. Any other file or folder that a page
links to becomes a page that shows it. A link to a file that does not exist stays as it is, for `--strict` to find.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "readme.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md",
    "recipes/README.md": "recipes.md",
}  # fmt: skip
SOURCES = "source"
_LINK = re.compile(r"(?P<open>\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?P<close>\))")
_CODE = re.compile(r"^```.*?^```[^\n]*$", re.MULTILINE | re.DOTALL)
_UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n"  # a result would show the whole file
_LANGUAGES = {".py": "python", ".toml": "toml", ".txt": "text", ".md": "markdown"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.docs_dir).parent
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / path).read_text(encoding="utf-8")))
    pages = [(_place(file.src_uri), file.content_string) for file in files.documentation_pages()]
    linked = {target for place, text in pages for target in _targets(text, place)}
    shown = {target for target in linked if target not in PAGES and not target.startswith("docs/")}
    folders = {target for target in shown if (root / target).is_dir()}
    inside = {path.relative_to(root).as_posix() for folder in folders for path in (root / folder).glob("*.py")}
    for target in sorted(folders):
        files.append(File.generated(config, f"{SOURCES}/{target}.md", content=_contents(root, target)))
    for target in sorted(path for path in shown | inside if (root / path).is_file()):
        files.append(File.generated(config, f"{SOURCES}/{target}.md", content=_listing(root, target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    if uri.startswith(f"{SOURCES}/"):
        return markdown

    def moved(link: re.Match[str]) -> str:
        target = _resolve(link["target"], _place(uri))
        if target is None:
            return link[0]
        known = PAGES.get(
            target, target.removeprefix("docs/") if target.startswith("docs/") else f"{SOURCES}/{target}.md"
        )
        if files.get_file_from_path(known) is None:
            return link[0]
        return f"{link['open']}{_relative(known, uri)}{link['anchor'] or ''}{link['close']}"

    return _outside_code(markdown, lambda text: _LINK.sub(moved, text))


def _place(uri: str) -> PurePosixPath:
    """The file of the repository that a page was made of."""
    for path, page in PAGES.items():
        if page == uri:
            return PurePosixPath(path)
    return PurePosixPath("docs") / uri


def _targets(text: str, place: PurePosixPath) -> list[str]:
    found = [_resolve(link["target"], place) for link in _LINK.finditer(_CODE.sub("", text))]
    return [target for target in found if target is not None]


def _resolve(link: str, place: PurePosixPath) -> str | None:
    """The path in the repository that a link names; None for an address of the web."""
    if re.match(r"[a-z]+:", link) or link.startswith("/"):
        return None
    return os.path.normpath(place.parent / link).replace(os.sep, "/")


def _relative(target: str, uri: str) -> str:
    return os.path.relpath(target, PurePosixPath(uri).parent).replace(os.sep, "/")


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    parts, end = [], 0
    for block in _CODE.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def _listing(root: Path, path: str) -> str:
    text = (root / path).read_text(encoding="utf-8").rstrip()
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"{_UNSEARCHED}# {path}\n\n````{language}\n{text}\n````\n"


def _contents(root: Path, folder: str) -> str:
    names = [path.name for path in sorted((root / folder).glob("*.py"))]
    return f"# {folder}\n\n" + "".join(f"- [{name}]({PurePosixPath(folder).name}/{name}.md)\n" for name in names)
