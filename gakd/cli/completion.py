"""Shell completion: subcommands, recipes, and the flags of each with what they take, written by tyro."""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from gakd.cli.command import SUBCOMMANDS
from gakd.cli.recipe_files import load_recipe, recipes, tools

# Where tyro has nothing to offer, and where it offers files, bash offers files itself, which knows folders and spaces.
_BASH = """\
_gakd() {
  _tyro_gakd
  if [[ -z ${COMPREPLY[0]} || ${COMP_WORDS[COMP_CWORD-1]} == -* && -e ${COMPREPLY[0]} ]]; then COMPREPLY=(); fi
}
complete -o default -F _gakd gakd"""


@dataclass
class CompletionConfig:
    shell: Annotated[
        Literal["bash", "zsh"], tyro.conf.Positional
    ]  # as an argument, which fish wants it as, it is too long
    """The shell that reads what is printed."""


@dataclass
class _NoFlags:
    pass


def main(config: CompletionConfig) -> None:
    """Print the script, which holds all names and flags: an updated package wants it written anew."""
    with contextlib.suppress(SystemExit):  # how tyro ends
        tyro.cli(
            _one_of(_subcommands()),
            prog="gakd",
            args=["--tyro-print-completion", config.shell],
            config=(tyro.conf.OmitArgPrefixes,),
        )
    if config.shell == "bash":
        print(_BASH)


def _subcommands() -> Iterator[Any]:
    files = recipes() | tools()
    for name, subcommand in SUBCOMMANDS.items():
        if name == "cp":
            kind = _one_of(_named(recipe, _NoFlags) for recipe in files)
        elif name == "run":
            modules = {recipe: load_recipe(path) for recipe, path in files.items()}
            kind = _one_of(
                _named(recipe, module.Config, vars(module).get("PAPER")) for recipe, module in modules.items()
            )
        elif subcommand.tool is not None:
            kind = load_recipe(files[subcommand.tool]).Config
        else:
            kind = getattr(importlib.import_module(subcommand.module), str(subcommand.config))
        yield _named(name, kind)


def _named(name: str, kind: Any, default: Any = None) -> Any:
    return Annotated[kind, tyro.conf.subcommand(name, default=tyro.MISSING if default is None else default)]


def _one_of(kinds: Iterator[Any]) -> Any:
    return functools.reduce(operator.or_, kinds)
