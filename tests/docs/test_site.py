"""Pages work where they are read: their links on a code host, the site that `make docs` builds of them, the tables made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import gakd
from tests import paper_table
from tests.browser import FOUND, browser
from tests.doc_blocks import PAGES, name_of
from tests.recipe_table import RECIPES, ROOT

CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Of headings, as code hosts and the site make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_somewhere_in_the_repository(page):
    for link in links(page):
        address = urlsplit(link)
        if address.scheme:
            assert address.scheme == "https"
            continue
        target = (page.parent / address.path) if address.path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert not address.fragment or address.fragment in anchors(target), f"{name_of(page)} links to {link}"


def test_the_page_of_papers_holds_the_table_of_the_recipes():
    text = paper_table.PAGE.read_text()
    assert paper_table.with_table(text) == text, "run python -m tests.paper_table"
    assert paper_table.MEASURED.keys() <= RECIPES.keys()


@pytest.mark.parametrize("recipe", paper_table.MEASURED)
def test_what_the_page_of_papers_calls_measured_stands_where_it_says(recipe):
    said = re.fullmatch(r"\[\w+\]\(([^)#]+).*\): (\S+) → (\S+)", paper_table.MEASURED[recipe])
    assert said is not None
    page, before, after = said.groups()
    text = (paper_table.PAGE.parent / page).read_text()
    assert re.search(rf"KL\(student‖teacher\) on the student's own text[^|]*\| {before} \| {after} \|", text)


def test_the_reference_documents_every_public_name():
    documented = set(
        re.findall(
            r"^::: (\S+)$", "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md")), re.M
        )
    )
    homes = {
        name: getattr(gakd, name).__module__ for name in gakd.__all__ if name not in ("IGNORE_INDEX", "__version__")
    }
    assert {name: home for name, home in homes.items() if home not in documented} == {}
    assert all((ROOT / f"{module.replace('.', '/')}.py").exists() for module in documented)


class Page(HTMLParser):
    """Addresses of a page: `loaded` when it is shown, `linked` for the reader; `ids` that links may name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        if found.get("src"):
            self.loaded.append(found["src"])
        if found.get("href") and tag == "link" and found.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.append(found["href"])
        if found.get("href") and tag == "a":
            self.linked.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason="the extra gakd[docs] builds the site")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_on_the_site_with_every_public_name(site):
    for page in PAGES:
        name = {"recipes/README.md": "recipes"}.get(name_of(page), name_of(page).removesuffix(".md"))
        name = name.removeprefix("docs/") if name.startswith("docs/") else name.lower()
        assert (site / f"{name}.html").is_file(), name
    ids = {found for page in (site / "reference").glob("*.html") for found in Page(page).ids}
    public = {name: getattr(gakd, name) for name in gakd.__all__ if name not in ("IGNORE_INDEX", "__version__")}
    assert {name for name, thing in public.items() if f"{thing.__module__}.{name}" not in ids} == set()


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere_and_its_links_lead_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for address in page.loaded:
            assert not urlsplit(address).netloc, f"{path.name} loads {address}"
        if path.name == "404.html":  # its links are those of the root
            continue
        for address in [*page.loaded, *page.linked]:
            parts = urlsplit(address)
            if parts.netloc or parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name} links to {address}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, f"{path.name} links to {address}"


@pytest.mark.slow
@pytest.mark.skipif(FOUND is None, reason="no Chromium on this machine")
def test_the_search_finds_a_name_and_shows_no_listing_of_code_without_a_server(site):
    results = "[...document.querySelectorAll('.md-search-result__link')].map(link => link.href)"
    with browser() as page:
        page.open(site / "index.html", 1280)
        page.evaluate("document.querySelector('.md-search__input').focus()")
        page.send("Input.insertText", text="relativistic")
        page.send("Input.dispatchKeyEvent", type="keyUp", key="c")
        deadline = time.monotonic() + 60
        while not (found := page.evaluate(results)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert any(
            address.endswith("adversarial.html?h=relativistic#gakd.adversary.games.RelativisticGAN")
            for address in found
        )
        assert [address for address in found if "/source/" in address] == []
        assert page.problems == []


@pytest.mark.slow
@pytest.mark.skipif(FOUND is None, reason="no Chromium on this machine")
def test_no_page_is_wider_than_its_window_and_no_table_than_its_page_on_a_laptop(site):
    cut = "[...document.querySelectorAll('.md-typeset__scrollwrap')].filter(one => one.scrollWidth > one.clientWidth).length"
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    found: dict[str, tuple[bool, int]] = {}
    with browser() as page:
        for path in sorted(path for path in site.rglob("*.html") if site / "source" not in path.parents):
            page.open(path, 1280)
            tables = page.evaluate(cut)
            too_wide = page.evaluate(wide)
            page.open(path, 390)  # where tables scroll by themselves
            if tables or too_wide or page.evaluate(wide):
                found[path.relative_to(site).as_posix()] = too_wide, tables
        page.evaluate("document.querySelector('.md-content').innerHTML = '<p style=\"width: 3000px\">wide</p>'")
        assert page.evaluate(wide)
    assert found == {}
