"""The tables of docs/papers.md, made from the recipes: `python -m tests.paper_table` writes them anew."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from gakd.cli.recipe_files import entry
from tests.recipe_runs import module_of
from tests.recipe_table import RECIPES, ROOT

PAGE = ROOT / "docs" / "papers.md"
BEGIN = "<!-- made by python -m tests.paper_table -->"
END = "<!-- end of what is made -->"

# What a page says was measured with a recipe: KL(student‖teacher) on the student's own text, before and after.
MEASURED = {
    "gakd": "[demo](../README.md): 10.03 → 2.14",
    "gkd": "[demo](on-policy.md#does-it-lower-the-kl-on-its-own-text): 10.03 → 1.86",
}
# The study's methods have the names of their recipes.
STUDY = json.loads((ROOT / "docs" / "results" / "study.json").read_text())["entries"]
# Flags that say where and how often, not what is trained.
NO_SETTING = {"output_dir", "save_every", "evaluate_every", "keep_checkpoints"}
# A temperature of 1 is none.
UNSAID = {"kl_temperature": 1.0}


def table() -> str:
    """A row a recipe, by paper in the order of the recipes."""
    papers = dict.fromkeys(entry(path).paper for path in RECIPES.values())
    lines = ["| paper | recipe | setting | measured |", "| --- | --- | --- | --- |"]
    for paper in papers:
        for name, path in RECIPES.items():
            if entry(path).paper == paper:
                link = f"[{name}](../{path.relative_to(ROOT).as_posix()})"
                lines.append(f"| {_linked(paper)} | {link} | {setting(name)} | {measured(name)} |")
    return "\n".join(lines)


def measured(recipe: str) -> str:
    """In the demo, and in the mini world, from the student that all methods start from there."""
    found = [MEASURED[recipe]] if recipe in MEASURED else []
    if recipe in STUDY:
        before, after = (STUDY[name]["measures"]["own_reverse_kl"]["estimate"] for name in ("student", recipe))
        found.append(f"[mini world](results.md): {before:.2f} → {after:.2f}")
    return "; ".join(found) or "not yet"


def setting(recipe: str) -> str:
    """The recipe's own flags as the paper's defaults have them, and what differs from the defaults that all share.

    An ablation's: what it has other than gakd.py, and what it lacks.
    """
    own = _flags(recipe)
    if RECIPES[recipe].parent.name != "ablations" or recipe == "released":
        return _text(own) or "the shared defaults"
    template = _flags("gakd")
    other = _text({name: value for name, value in own.items() if template.get(name) != value})
    lacks = ", ".join(name.replace("_", " ") for name in template if name not in own)
    return "; ".join(["as gakd", *filter(None, [other, lacks and f"without {lacks}"])])


def _flags(recipe: str) -> dict[str, Any]:
    paper = module_of(recipe).PAPER
    found: dict[str, Any] = {}
    for field in dataclasses.fields(paper):
        value = getattr(paper, field.name)
        if not dataclasses.is_dataclass(value):
            found[field.name] = value
            continue
        common = type(value)()
        for own in dataclasses.fields(value):
            chosen = getattr(value, own.name)
            if own.name not in NO_SETTING and chosen != getattr(common, own.name):
                found[own.name] = chosen
    return {name: value for name, value in found.items() if value != () and UNSAID.get(name) != value}


def with_table(text: str) -> str:
    """The page's text with the table in its place; ValueError where its marks are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} needs the lines {BEGIN} and {END} around the table")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def _text(flags: dict[str, Any]) -> str:
    shown = {name: format(value, "g") if isinstance(value, float) else str(value) for name, value in flags.items()}
    words = {"None": "none", "True": "on", "False": "off"}
    return ", ".join(f"{name.replace('_', ' ')} {words.get(value, value)}" for name, value in shown.items())


def _linked(paper: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
