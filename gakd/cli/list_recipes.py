"""Recipes with their papers, and tools: what `gakd cp` copies and `gakd run` runs."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from gakd.cli.recipe_files import entry, recipes, summary, tools


@dataclass
class ListConfig:
    pass


def main(config: ListConfig) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("recipe", "paper", "method"):
        table.add_column(column, no_wrap=column == "recipe")
    for name, path in recipes().items():
        table.add_row(name, entry(path).paper, entry(path).method)
    table.add_row("")
    for name, path in tools().items():
        table.add_row(name, "", summary(path))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
