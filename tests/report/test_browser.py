"""`gakd report` in a real headless browser: what is on the page, and that it fits, is quiet and fetches nothing."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from gakd.cli.report import ReportConfig, main
from tests.browser import FOUND, browser
from tests.report_runs import write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOUND is None, reason="no chromium or google-chrome on the path: the report was opened by none"),
]

EVIL = "</p><script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'>" + "long" * 100
RECIPES = ("gakd", "reverse_kl", "sft")
SECTIONS = ["warnings", "scores", "curves", "game", "completions", "settings", "runs"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    runs = [write_run(root / f"{recipe}-s{seed}", recipe, seed, 60) for recipe in RECIPES for seed in (1, 2)]
    prompts = ((f"Prompt {EVIL}", "", f"Reference {EVIL}"),)
    name = "a-run-whose-name-is-much-longer-than-a-phone-is-wide-and-has-no-blank"
    return [
        *runs,
        write_run(root / name, "gakd", 9, 60, accuracy=1.0, texts=[EVIL], prompts=prompts, after=False, planned=99),
    ]


@pytest.fixture(scope="module")
def report(folders, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    main(ReportConfig(tuple(folders), path))
    return path


@pytest.fixture(scope="module")
def page(report):
    with browser() as opened:
        opened.open(report, 1280)
        yield opened


def test_it_is_quiet_and_fetches_nothing(page, report):
    assert page.problems == []
    assert set(page.requests) == {report.as_uri()}


def test_all_sections_are_there_and_linked(page):
    assert page.evaluate("[...document.querySelectorAll('main > section')].map(one => one.id)") == SECTIONS
    assert page.evaluate("[...document.querySelectorAll('nav a')].map(one => one.hash.slice(1))") == SECTIONS
    assert page.evaluate("[...document.querySelectorAll('section')].every(one => one.innerText.length > 80)")
    assert "prefer" not in page.evaluate("document.title")


def table(page, name: str) -> dict[str, list[str]]:
    """First cell of a row -> the first lines of its others; the header is "head"."""
    rows = page.evaluate(
        f"[...document.querySelectorAll('table.{name} tr')].map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    return {row[0].splitlines()[0].strip(): row[1:] for row in rows}


def test_cells_hold_the_numbers_of_the_files(page, folders):
    found, head = table(page, "scores"), next(iter(table(page, "scores").values()))
    fields = {
        "cross-entropy": ("cross_entropy", 3),
        "ROUGE-L": ("rouge_l", 2),
        "response length": ("response_length", 1),
    }
    for title, (field, decimals) in fields.items():
        (column,) = [index for index, cell in enumerate(head) if cell.startswith(title)]
        for index, recipe in enumerate(RECIPES):
            each = [
                json.loads((folder / "after.json").read_text())["student"][field]
                for folder in folders[2 * index : 2 * index + 2]
            ]
            value, *below = found[recipe][column].split("\n")
            assert value.removesuffix(" ★ best").removesuffix(" ★") == f"{statistics.fmean(each):.{decimals}f}"
            assert below[-1] == f"{min(each):.{decimals}f} to {max(each):.{decimals}f}"
    assert found["teacher"][0] == "1.400"
    assert found["before training"][0] == "2.900"


def test_the_health_of_each_game_is_told(page):
    health = table(page, "health")
    assert list(health)[1:3] == ["gakd-s1", "gakd-s2"]
    assert list(health.values())[3][-2:] == ["100.0 %", "0.0 %"]
    verdicts = page.evaluate("[...document.querySelectorAll('.verdict')].map(one => one.innerText)")
    assert ["Lost. At step 52" in verdict for verdict in verdicts] == [False, False, True]


def test_settings_that_differ_and_no_others(page):
    found = table(page, "settings")
    assert found["recipe"] == ["gakd", "reverse_kl", "sft", "gakd"]
    assert found["run.steps"] == ["60", "60", "60", "99"]
    assert "run.seed" not in found
    assert "data.dataset" not in found


def test_text_of_a_run_is_inert(page):
    assert page.evaluate("window.hurt === undefined && document.scripts.length === 0 && document.images.length === 0")
    assert EVIL in page.evaluate(
        "[...document.querySelectorAll('.answer .text')].map(one => one.textContent).join('|')"
    )


def test_charts_have_words_and_nothing_of_them_is_cut(page):
    charts = "[...document.querySelectorAll('figure > svg')]"
    assert page.evaluate(f"{charts}.length") >= 12
    assert page.evaluate(f"{charts}.every(one => / over optimizer steps: .* from .* to /.test(one.ariaLabel))")
    assert page.evaluate(
        f"{charts}.every(one => one.querySelectorAll('path').length > 2 && one.querySelectorAll('text').length > 6)"
    )
    cut = f"""{charts}.flatMap(one => {{ const box = one.parentElement.getBoundingClientRect();
        return [...one.querySelectorAll('text')].map(text => text.getBoundingClientRect()).filter(text =>
            text.left < box.left || text.right > box.right || text.top < box.top || text.bottom > box.bottom) }}).length"""
    assert page.evaluate(cut) == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    colors = page.evaluate(
        "[...document.querySelectorAll('figure > svg path')].map(one => getComputedStyle(one).stroke)"
    )
    assert "rgb(31, 95, 174)" in colors  # --line-0, so that the page's colours have arrived


def test_a_keyboard_reaches_what_scrolls_or_opens(page):
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(one => one.tabIndex === 0 && one.ariaLabel.length > 3)"
    )
    page.evaluate("document.querySelector('summary').focus()")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert page.evaluate("document.querySelector('details').open")


CONTRAST = """(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const paper = one => { for (; one; one = one.parentElement) { const c = getComputedStyle(one).backgroundColor;
      if (!c.endsWith(', 0)')) return c } return 'rgb(255, 255, 255)' };
  return Math.min(...[...document.querySelectorAll('p, td, th, li, a, h1, h2, h3, h4, span, strong, summary, svg text')]
      .map(one => { const style = getComputedStyle(one), ink = one.tagName === 'text' ? style.fill : style.color;
          const [a, b] = [light(ink), light(paper(one))].sort(); return (b + 0.05) / (a + 0.05) })) })()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(width, dark, report, tmp_path):
    with browser() as page:
        page.open(report, width, dark)
        assert page.evaluate("[innerWidth, document.documentElement.scrollWidth <= innerWidth]") == [width, True]
        outside = page.evaluate(
            "[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll, svg, .skip, .hidden') && "
            "one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"
        )
        assert outside == []
        assert page.evaluate(CONTRAST) >= 4.5  # WCAG AA of running text
        page.screenshot(tmp_path / "page.png")
    assert Path(tmp_path / "page.png").stat().st_size > 50_000
